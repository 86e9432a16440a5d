"""Exact statistics in the validations of Lightning and of Transformers; training goes on as without, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import bnlab
from bnlab.callbacks import make_lightning_callback, recalibrate_in_transformers
from tests.helpers import assert_equal_statistics, require

slow = pytest.mark.slow  # those that import Lightning or Transformers
State = dict[str, Tensor]


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def make_batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Six labelled batches, far from where running averages start."""
    generator = torch.Generator().manual_seed(seed)
    images = 5 + 3 * torch.randn(6, 16, 4, generator=generator)
    labels = torch.randint(3, (6, 16), generator=generator)
    return list(zip(images, labels, strict=True))


BATCHES = make_batches()
IMAGES = [images for images, _ in BATCHES]
HELD_OUT = make_batches(seed=2)
LOADER: Any = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
HELD_OUT_LOADER: Any = DataLoader(HELD_OUT[:1], batch_size=None)  # type: ignore[arg-type]


def copy_state(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def assert_exact(state: State, model: nn.Module, batches: list[Any] = IMAGES) -> None:
    """The running averages of a state are the exact statistics of its weights."""
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    assert_equal_statistics(bnlab.running_statistics(model), bnlab.population_statistics(model, batches))


@pytest.fixture
def lightning() -> Any:
    require("lightning")
    return pytest.importorskip("lightning")


@pytest.fixture
def transformers() -> Any:
    require("transformers")
    return pytest.importorskip("transformers")


@pytest.fixture
def make_module(lightning: Any) -> Callable[..., Any]:
    """Makes a LightningModule that keeps its network's state at each validation, and before it."""

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, network: nn.Module, fails: bool = False) -> None:
            super().__init__()
            self.network = network
            self.fails = fails
            self.states: list[State] = []
            self.running = copy_state(network)

        def forward(self, images: Tensor) -> Any:
            return self.network(images)

        def training_step(self, batch: Any) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self(images), labels)

        def on_train_batch_end(self, *_: Any) -> None:
            self.running = copy_state(self.network)

        def validation_step(self, batch: Any) -> None:
            self.states.append(copy_state(self.network))
            if self.fails and not self.trainer.sanity_checking:
                raise OSError("the disk is full")

        test_step = validation_step

        def predict_step(self, batch: Any) -> Any:
            self.states.append(copy_state(self.network))
            return batch

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Classifier


@pytest.fixture
def make_trainer(lightning: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes a Trainer of Lightning with these callbacks."""

    def make(*callbacks: Any, **options: Any) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        saves = any(isinstance(callback, lightning.pytorch.callbacks.ModelCheckpoint) for callback in callbacks)
        return lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=list(callbacks),
            enable_checkpointing=saves,
            default_root_dir=tmp_path,
            **quiet,
            **options,
        )

    return make


@slow
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 4}, {"val_check_interval": 2}],
    ids=lambda options: "".join(options) or "plain",
)
def test_lightning_validates_and_saves_exactly_and_trains_as_without(
    lightning: Any, make_module: Any, make_trainer: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = make_module(make_network())
    make_trainer(**options).fit(plain, LOADER, HELD_OUT_LOADER)
    module = make_module(make_network())
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    trainer = make_trainer(make_lightning_callback(LOADER), checkpoints, **options)

    trainer.fit(module, LOADER, HELD_OUT_LOADER)

    assert len(module.states) == len(plain.states) >= 3
    for state, running in zip(module.states, plain.states, strict=True):
        assert_exact(state, module.network)
        assert not are_equal(state, running)
        assert torch.equal(state["0.weight"], running["0.weight"])
    assert are_equal(copy_state(module.network), copy_state(plain.network))
    assert trainer.callback_metrics["recalibration_seconds"] > 0

    saved = [torch.load(path, weights_only=True)["state_dict"] for path in tmp_path.glob("*.ckpt")]
    assert saved
    for state in saved:
        network = {name.removeprefix("network."): value for name, value in state.items()}
        assert any(are_equal(validated, network) for validated in module.states)


@slow
@pytest.mark.parametrize("calls_itself", [False, True])
def test_lightning_validates_under_the_latest_training_batches(
    make_module: Any, make_trainer: Any, calls_itself: bool
) -> None:
    class Measuring(make_module):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self(images) if calls_itself else self.network(images), labels)

        def validation_step(self, batch: Any) -> None:
            super().validation_step(batch)
            torch.rand(())

    torch.manual_seed(1)
    plain = Measuring(make_network())
    make_trainer().fit(plain, LOADER, HELD_OUT_LOADER)
    module = Measuring(make_network())
    trainer = make_trainer(make_lightning_callback(images=32))
    with pytest.warns(RuntimeWarning, match="running averages are evaluated.*no call of the model"):
        trainer.fit(module, LOADER, HELD_OUT_LOADER)

    assert are_equal(copy_state(module.network), copy_state(plain.network))
    assert_exact(module.states[-1], module.network, IMAGES[-2:])
    assert len(module.states) == 1 + 3  # the sanity check, and three epochs

    trainer.test(module, HELD_OUT_LOADER)
    assert_exact(module.states[-1], module.network, IMAGES[-2:])
    assert are_equal(copy_state(module.network), copy_state(plain.network))


@slow
def test_lightning_says_once_that_there_is_nothing_yet(make_module: Any, make_trainer: Any) -> None:
    module = make_module(make_network())
    before = copy_state(module.network)
    with pytest.warns(RuntimeWarning, match="running averages are evaluated.*no call of the model"):
        make_trainer(make_lightning_callback()).validate(module, HELD_OUT_LOADER)

    assert are_equal(module.states[0], before)


@slow
@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_lightning_evaluates_exactly_without_training(make_module: Any, make_trainer: Any, method: str) -> None:
    module = make_module(make_network())
    before = copy_state(module.network)
    trainer = make_trainer(make_lightning_callback(IMAGES))

    getattr(trainer, method)(module, HELD_OUT_LOADER)

    (state,) = module.states
    assert_exact(state, module.network)
    assert are_equal(copy_state(module.network), before)
    assert ("recalibration_seconds" in trainer.callback_metrics) == (method != "predict")


@slow
def test_lightning_puts_averages_back_after_an_exception(make_module: Any, make_trainer: Any) -> None:
    network = make_network()
    module = make_module(network, fails=True)

    with pytest.raises(OSError, match="disk"):
        make_trainer(make_lightning_callback(IMAGES)).fit(module, LOADER, HELD_OUT_LOADER)

    assert_exact(module.states[-1], module.network)
    assert are_equal(copy_state(module.network), module.running)

    network[1].requires_grad_(False)
    with pytest.warns(RuntimeWarning, match="running averages are evaluated.*all layers are frozen"):
        make_trainer(make_lightning_callback(IMAGES)).validate(make_module(network), HELD_OUT_LOADER)


class StubTrainer:
    """What is known of a Trainer of Transformers; it keeps its model's state whenever that is evaluated or saved."""

    def __init__(self, network: nn.Module) -> None:
        self.model = network
        self.state = SimpleNamespace(global_step=0)
        self.is_in_train = False
        self.logged: list[dict[str, float]] = []
        self.states: list[State] = []

        self.callback_handler = SimpleNamespace(callbacks=["a callback"])

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def evaluate(self, data_sets: int = 1) -> None:
        """One of several data sets after the other, each by a call of its own."""
        if data_sets > 1:
            for _ in range(data_sets):
                self.evaluate()
        else:
            self.states.append(copy_state(self.model))

    def predict(self) -> None:
        raise OSError("the disk is full")

    save_model = evaluate


@pytest.fixture
def stub() -> StubTrainer:
    trainer = StubTrainer(make_network())
    recalibrate_in_transformers(trainer, BATCHES)
    return trainer


def test_several_data_sets_are_evaluated_under_one_measurement(stub: StubTrainer) -> None:
    before = copy_state(stub.model)

    stub.evaluate(2)

    assert len(stub.states) == 2
    for state in stub.states:
        assert_exact(state, stub.model)
    assert are_equal(copy_state(stub.model), before)
    assert [list(values) for values in stub.logged] == [["recalibration_seconds"]]


def test_a_checkpoint_takes_the_statistics_of_its_evaluation(stub: StubTrainer) -> None:
    """Another training measures again, also at a step of the same number."""
    before = copy_state(stub.model)
    stub.is_in_train = True
    stub.evaluate()
    stub.save_model()
    assert len(stub.logged) == 1
    assert are_equal(*stub.states)

    stub.state = SimpleNamespace(global_step=0)
    stub.model.get_parameter("0.weight").data.mul_(2)
    stub.evaluate()

    assert len(stub.logged) == 2
    assert_exact(stub.states[-1], stub.model)
    assert torch.equal(stub.model.get_buffer("1.running_mean"), before["1.running_mean"])


def test_averages_come_back_after_an_exception(stub: StubTrainer) -> None:
    before = copy_state(stub.model)
    with pytest.raises(OSError, match="disk"):
        stub.predict()

    assert are_equal(copy_state(stub.model), before)


def test_what_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"recalibrate_in_transformers: batches is a Tensor; pass an iterable"):
        recalibrate_in_transformers(StubTrainer(make_network()), IMAGES[0])
    with pytest.raises(TypeError, match=r"make_lightning_callback: batches is a Tensor; pass an iterable"):
        make_lightning_callback(IMAGES[0])
    with pytest.raises(ValueError, match="watch: no BatchNorm layer"):
        recalibrate_in_transformers(StubTrainer(nn.Sequential(nn.Linear(4, 3))), IMAGES)
    twice = StubTrainer(make_network())
    recalibrate_in_transformers(twice, IMAGES)
    with pytest.raises(ValueError, match="this trainer evaluates under exact statistics already"):
        recalibrate_in_transformers(twice, IMAGES)
    with pytest.raises(TypeError, match="recalibrate_in_transformers: trainer is a int; pass a Trainer"):
        recalibrate_in_transformers(3)
    with pytest.raises(ValueError, match="make_lightning_callback: images=0; pass how many"):
        make_lightning_callback(images=0)


class Measuring(StubTrainer):
    """Evaluates as Transformers does: its metric is the mean of the running averages of the first channel."""

    def train_on(self, images: Tensor) -> None:
        self.model.train()(images)
        self.state.global_step += 1

    def evaluate(self, data_sets: int = 1) -> dict[str, float]:  # type: ignore[override]
        self.model.eval()
        metric = self.model.get_buffer("1.running_mean")[0].item()
        metrics = {"eval_mean": metric, "eval_runtime": float(torch.rand(())), "epoch": 1.0}
        self.states.append(copy_state(self.model))
        self.log(metrics)
        self.callback_handler.callbacks[:] = [*self.callback_handler.callbacks, "called"]
        return metrics


def test_the_latest_training_batches_are_measured_where_none_are_given() -> None:
    trainer = Measuring(make_network())
    recalibrate_in_transformers(trainer, images=32)
    for images in IMAGES:
        trainer.train_on(images)
    running = copy_state(trainer.model)

    torch.manual_seed(0)
    metrics = trainer.evaluate()

    torch.manual_seed(0)
    assert metrics["eval_runtime"] == float(torch.rand(()))  # the only evaluation that counts has drawn it
    assert_exact(trainer.states[-1], trainer.model, IMAGES[-2:])
    assert are_equal(copy_state(trainer.model), running)
    assert metrics["eval_mean"] == trainer.states[-1]["1.running_mean"][0].item()
    assert trainer.callback_handler.callbacks == ["a callback", "called"]
    assert [list(values) for values in trainer.logged] == [
        ["recalibration_seconds"],
        ["eval_mean", "eval_runtime", "epoch"],
    ]


def test_before_the_first_batch_running_averages_are_evaluated_and_that_is_said_once() -> None:
    trainer = Measuring(make_network())
    recalibrate_in_transformers(trainer)
    before = copy_state(trainer.model)
    with pytest.warns(RuntimeWarning, match="running averages are evaluated.*no call of the model") as caught:
        trainer.evaluate()
        trainer.save_model()

    assert len(caught) == 1
    assert all(are_equal(state, before) for state in trainer.states)


class Initializing(Measuring):
    """Makes its model anew for each training, as `model_init` says."""

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return make_network()

    def train(self) -> None:
        self.model = self.call_model_init()
        for images in IMAGES:
            self.train_on(images)


@pytest.mark.parametrize("batches", [None, BATCHES])
def test_a_model_that_a_training_makes_is_the_one_that_is_watched(batches: list[Any] | None) -> None:
    trainer = Initializing(make_network())
    recalibrate_in_transformers(trainer, batches, images=96)
    first = trainer.model
    before = copy_state(first)

    trainer.train()
    trainer.evaluate()

    assert trainer.model is not first
    assert_exact(trainer.states[-1], trainer.model, IMAGES)
    assert are_equal(copy_state(first), before)


def test_a_training_goes_on_whatever_its_measurement_raises() -> None:
    trainer = Measuring(make_network())

    def fail(model: nn.Module, batch: Any) -> None:
        raise RuntimeError("out of memory")

    recalibrate_in_transformers(trainer, BATCHES, forward=fail)
    before = copy_state(trainer.model)

    with pytest.warns(RuntimeWarning, match="running averages are evaluated, not exact statistics: out of memory"):
        trainer.evaluate()

    assert are_equal(trainer.states[-1], before)


class Wrapped(nn.Module):
    """A model as Transformers calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(images)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def list_examples(batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {"images": image, "labels": label}
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]


@pytest.fixture
def make_hugging_face(transformers: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes a Trainer of Transformers that keeps its model's state at each evaluation, in `states`."""

    def make(network: nn.Module, **options: Any) -> Any:
        states: list[State] = []

        def compute_metrics(predicted: Any) -> dict[str, float]:
            states.append(copy_state(trainer.model.network))
            accuracy = (predicted.predictions.argmax(1) == predicted.label_ids).mean().item()
            return {"accuracy": accuracy}

        arguments = {
            "output_dir": str(tmp_path / "trained"),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 16,
            "learning_rate": 0.05,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        trainer = transformers.Trainer(
            Wrapped(network),
            transformers.TrainingArguments(**{**arguments, **options}),
            train_dataset=list_examples(BATCHES),
            eval_dataset=list_examples(HELD_OUT),
            compute_metrics=compute_metrics,
        )
        trainer.states = states
        return trainer

    return make


def count_logged(trainer: Any) -> int:
    return len([entry for entry in trainer.state.log_history if "recalibration_seconds" in entry])


@slow
@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 2}, {"eval_strategy": "steps", "eval_steps": 4}], ids=str
)
def test_transformers_evaluates_and_saves_exactly_and_trains_as_without(
    make_hugging_face: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = make_hugging_face(make_network(), **options)
    plain.train()
    trainer = make_hugging_face(
        make_network(), save_strategy=options.get("eval_strategy", "epoch"), save_steps=4, **options
    )
    recalibrate_in_transformers(trainer, IMAGES)

    trainer.train()

    assert len(trainer.states) == len(plain.states) >= 2
    for state in trainer.states:
        assert_exact(state, trainer.model.network)
    assert are_equal(copy_state(trainer.model), copy_state(plain.model))
    assert count_logged(trainer) == len(trainer.states)  # a checkpoint takes the statistics of its evaluation

    saved = [load_file(path) for path in tmp_path.glob("trained/checkpoint-*/model.safetensors")]
    assert saved
    for state in saved:
        network = {name.removeprefix("network."): value for name, value in state.items()}
        assert any(are_equal(evaluated, network) for evaluated in trainer.states)


@slow
def test_transformers_evaluates_under_the_latest_training_batches(make_hugging_face: Any) -> None:
    plain = make_hugging_face(make_network())
    plain.train()
    trainer = make_hugging_face(make_network())
    recalibrate_in_transformers(trainer, images=96)  # all of an epoch, so that its order does not matter

    trainer.train()

    assert are_equal(copy_state(trainer.model), copy_state(plain.model))
    assert len(trainer.states) == len(plain.states) == 3
    for state in trainer.states:
        assert_exact(state, trainer.model.network)


@slow
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_batches_are_converted_as_lightning_converts_those_that_it_trains_on(
    make_module: Any, make_trainer: Any, precision: str
) -> None:
    module = make_module(make_network())

    make_trainer(make_lightning_callback(LOADER), precision=precision).fit(module, LOADER)

    assert module.network[1].running_mean.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]


class NeedsAutocast(nn.Module):
    """Keeps whether autocast held in each of its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.held.append(torch.is_autocast_enabled("cpu"))
        return images


@slow
def test_lightning_measures_under_the_autocast_of_its_steps(make_module: Any, make_trainer: Any) -> None:
    probe = NeedsAutocast()
    module = make_module(nn.Sequential(probe, *make_network()))

    make_trainer(make_lightning_callback(), precision="bf16-mixed").fit(module, LOADER, HELD_OUT_LOADER)

    assert probe.held
    assert all(probe.held)


@pytest.fixture
def make_ema(lightning: Any) -> Callable[..., Any]:
    """Makes the callback of Lightning that averages weights and buffers, of which a fifth is replaced each step."""
    if not hasattr(lightning.pytorch.callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging; 2.6 has")
    return lambda **options: lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.8, **options)


def load_checkpoints(folder: Path) -> list[Any]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))]


def select_network(state: State) -> State:
    return {name.removeprefix("network."): value for name, value in state.items()}


@slow
@pytest.mark.parametrize("given", [None, LOADER], ids=["watched", "batches"])
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}], ids=str)
def test_weights_that_lightning_averages_are_validated_and_saved_exactly(
    lightning: Any,
    make_module: Any,
    make_trainer: Any,
    make_ema: Any,
    is_first: bool,
    given: Any,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    def train(folder: Path, *ours: Any) -> Any:
        module = make_module(make_network())
        checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{step:02d}")
        callbacks = [*ours, make_ema()] if is_first else [make_ema(), *ours]
        trainer = make_trainer(*callbacks, checkpoints, num_sanity_val_steps=0, **options)
        trainer.fit(module, LOADER, HELD_OUT_LOADER)
        return module

    plain = train(tmp_path / "plain")
    module = train(tmp_path / "exact", make_lightning_callback(given, images=32))

    assert len(module.states) == len(plain.states) >= 3
    for state, averaged in zip(module.states, plain.states, strict=True):
        assert torch.equal(state["0.weight"], averaged["0.weight"])
        assert not torch.equal(state["1.running_var"], averaged["1.running_var"])
    for state in module.states if given else module.states[-1:]:
        assert_exact(state, module.network, IMAGES if given else IMAGES[-2:])
    assert are_equal(copy_state(module.network), copy_state(plain.network))

    saved = load_checkpoints(tmp_path / "exact")
    without = load_checkpoints(tmp_path / "plain")
    assert len(saved) == len(without) == len(module.states)
    for checkpoint, before in zip(saved, without, strict=True):
        network = select_network(checkpoint["state_dict"])
        assert any(are_equal(validated, network) for validated in module.states)
        # A training that is resumed has the running averages of the weights that are trained.
        assert are_equal(checkpoint["current_model_state"], before["current_model_state"])


@slow
def test_what_a_module_evaluates_at_the_end_of_a_validation_is_exact(make_module: Any, make_trainer: Any) -> None:
    class Drawing(make_module):  # type: ignore[misc, valid-type]
        def on_validation_epoch_end(self) -> None:
            self.states.append(copy_state(self.network))

    module = Drawing(make_network())

    make_trainer(make_lightning_callback(LOADER)).fit(module, LOADER, HELD_OUT_LOADER)

    assert len(module.states) == 2 * (1 + 3)  # the sanity check, and three epochs
    for state in module.states:
        assert_exact(state, module.network)


@slow
def test_a_checkpoint_of_weights_that_were_not_validated_has_their_averaged_buffers(
    lightning: Any, make_module: Any, make_trainer: Any, make_ema: Any, tmp_path: Path
) -> None:
    def train(folder: Path, *ours: Any) -> None:
        checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(
            folder, save_top_k=-1, filename="{step:02d}", every_n_train_steps=4
        )
        make_trainer(make_ema(), checkpoints, *ours).fit(make_module(make_network()), LOADER, HELD_OUT_LOADER)

    train(tmp_path / "plain")
    train(tmp_path / "exact", make_lightning_callback(LOADER))

    saved = load_checkpoints(tmp_path / "exact")
    without = load_checkpoints(tmp_path / "plain")
    assert len(saved) == len(without) >= 3
    for checkpoint, before in zip(saved, without, strict=True):
        assert are_equal(checkpoint["state_dict"], before["state_dict"])


@slow
def test_weights_that_a_module_exchanges_itself_are_validated_exactly(
    lightning: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    """Its own hooks run after those of all callbacks, and its checkpoints have the weights that it trains."""

    class Exchanging(make_module):  # type: ignore[misc, valid-type]
        def on_validation_epoch_start(self) -> None:
            self.trained = [parameter.data.clone() for parameter in self.parameters()]
            for parameter in self.parameters():
                parameter.data.mul_(0.5)

        def on_validation_epoch_end(self) -> None:
            for parameter, value in zip(self.parameters(), self.trained, strict=True):
                parameter.data.copy_(value)

    def train(folder: Path, *ours: Any) -> Any:
        module = Exchanging(make_network())
        checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{step:02d}")
        make_trainer(*ours, checkpoints).fit(module, LOADER, HELD_OUT_LOADER)
        return module

    plain = train(tmp_path / "plain")
    module = train(tmp_path / "exact", make_lightning_callback(LOADER))

    for state, halved in zip(module.states, plain.states, strict=True):
        assert torch.equal(state["0.weight"], halved["0.weight"])
        assert_exact(state, module.network)
    assert are_equal(copy_state(module.network), copy_state(plain.network))
    saved = load_checkpoints(tmp_path / "exact")
    without = load_checkpoints(tmp_path / "plain")
    assert len(saved) == len(without) == 3
    for checkpoint, before in zip(saved, without, strict=True):
        assert are_equal(checkpoint["state_dict"], before["state_dict"])


@slow
@pytest.mark.parametrize("given", [None, LOADER], ids=["watched", "batches"])
def test_stochastic_weight_averaging_ends_as_without(
    lightning: Any, make_module: Any, make_trainer: Any, given: Any
) -> None:
    def train(*ours: Any) -> State:
        module = make_module(make_network())
        average = lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        make_trainer(average, *ours).fit(module, LOADER, HELD_OUT_LOADER)
        return copy_state(module.network)

    assert are_equal(train(make_lightning_callback(given)), train())
