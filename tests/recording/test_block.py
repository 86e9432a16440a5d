"""Recording beside training: training stays as it is, and a replay with the layers' momentum is their buffers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from bnlab import MomentTrace, population_statistics, record, record_frozen, replay, running_statistics, using
from bnlab.estimators import EMA, Cumulative, LastBatch
from bnlab.inference import TestBatch, apply_statistics
from bnlab.model.layers import batch_norm_layers, find_replaced_forward
from bnlab.recording.recorders import count_averaged
from tests.exact.zoo import CASES, Net, OwnForward, conv
from tests.helpers import (
    assert_equal_statistics,
    images,
    plain,
    residual,
    same_traces,
    train,
    unchanged,
    with_momentum,
    without_dropout,
)

DATA = images(6, 6, 6, 5, 2)


def make_checkpointed(reentrant: bool, ends_with_norm: bool, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), *([] if ends_with_norm else [nn.ReLU(), nn.Conv2d(4, 4, 1)]))
    return Net(lambda n, x: n.b(checkpoint(n.a, x.requires_grad_(), use_reentrant=reentrant)), a=body, b=conv(4, 3))


def make_channels_last() -> nn.Module:
    return plain().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no such way


def make_patched() -> nn.Module:
    model = plain()
    own = model[1].forward
    model[1].forward = lambda input: own(input)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "channels last": make_channels_last,
    "checkpointed up to a norm": lambda: make_checkpointed(False, True),
    "checkpointed up to an own forward": lambda: make_checkpointed(False, True, OwnForward),
    "checkpointed, reentrant": lambda: make_checkpointed(True, False),
    "momentum 0.5": lambda: with_momentum(residual(), 0.5),
    "average of all": lambda: with_momentum(residual(), None),
    "patched forward": make_patched,
    "compiled": plain,
    "compiled in part": residual,
}
OF_ZOO = "sequential, residual, partly frozen, features, sound, volumes, siamese, in a loop, by content, not affine, "
OF_ZOO += "keywords, own forward, synchronized, data parallel, checkpointed, autocast, writes buffers"
MOMENTA = {"momentum 0.5": 0.5, "average of all": None, "not affine": None}
COMPILERS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in part": lambda model: model[3].compile(backend="eager") or model,
}


@pytest.mark.parametrize("name", [*MODELS, *OF_ZOO.split(", ")])
def test_training_is_as_without_and_its_replay_is_the_buffers(name: str) -> None:
    if name in MODELS:
        bare, recorded, batches = MODELS[name](), MODELS[name](), DATA
    else:
        case = CASES[name]()
        bare, recorded, batches = copy.deepcopy(case.model), case.model, case.batches
    wrap = COMPILERS.get(name, lambda model: model)
    torch.manual_seed(0)
    expected = train(wrap(bare), batches)
    torch.manual_seed(0)
    with no_warning(), record(recorded) as trace:
        wrapped = wrap(recorded)
        outputs = train(wrapped, batches)

    assert all(map(torch.equal, outputs, expected))
    assert trace.last_step == len(batches)

    for (key, value), other in zip(bare.state_dict().items(), recorded.state_dict().values(), strict=True):
        assert torch.equal(value, other) or "running" in key, key
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)
    momentum = MOMENTA.get(name, 0.1)
    last = replay(trace, Cumulative() if momentum is None else EMA(momentum))[trace.last_step]
    assert_equal_statistics(last, running_statistics(bare), tolerance=1e-6)
    lengths = {key: len(layer) for key, layer in trace.layers.items()}
    train(wrapped, batches[:2])
    assert lengths == {key: len(layer) for key, layer in trace.layers.items()}, "recorded after the block"


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="record")
        yield


def get_steps(trace: MomentTrace) -> list[list[int]]:
    return [layer.steps for layer in trace.layers.values()]


def judge_within(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Train on a batch, and judge it by the averages that have just taken it; small batches are refused then."""
    trained = net.block(x)
    if len(x) < 6:
        raise ValueError("a small batch")
    judged = net.block.eval()(x)
    net.block.train()
    return trained + judged


def test_buffers_that_a_forward_reads_have_taken_its_batch() -> None:
    bare = Net(judge_within, block=conv(3, 4))
    recorded = copy.deepcopy(bare)
    with record(recorded):
        for x in DATA:
            if len(x) < 6:
                for net in (bare, recorded):
                    with pytest.raises(ValueError, match="small"):
                        net(x)
            else:
                torch.testing.assert_close(recorded(x), bare(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded.state_dict(), bare.state_dict(), rtol=1e-6, atol=1e-6)


def test_accumulated_gradients_are_of_one_step() -> None:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with record(model, step=4) as trace:
        for number, x in enumerate(images(4, 4, 4, 4)):
            model(x).sum().backward()
            model.eval()(x)
            model.train()
            if number % 2:
                optimizer.step()

    assert get_steps(trace) == [[5, 5, 6, 6]] * 2
    assert repr(trace) == "MomentTrace(2 layers, steps 4 to 6)"


def test_two_networks_with_an_optimizer_each() -> None:
    """As of a GAN: each trace counts the updates of its own network."""
    generator = plain()
    critic = without_dropout(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)))
    first = torch.optim.Adam(generator.parameters())
    second = torch.optim.Adam(critic.parameters())
    with no_warning(), record(generator) as of_generator, record(critic) as of_critic:
        for x in images(4, 4, 4):
            for _ in range(2):
                critic(generator(x).detach()).sum().backward()
                second.step()
            critic(generator(x)).sum().backward()
            first.step()

    assert get_steps(of_generator) == [[1, 1, 1, 2, 2, 2, 3, 3, 3]] * 2
    # What the generator's update needs of the critic comes before the critic's next update.
    assert get_steps(of_critic) == [[1, 2, 3, 3, 4, 5, 5, 6, 7]]


def test_updates_go_on_after_other_parameters_were_loaded() -> None:
    """`load_state_dict(assign=True)` puts other parameters in the place of those that were there at first."""
    model = plain()
    with record(model) as trace:
        for _ in range(2):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x in images(4, 4):
                model(x)
                model(x).sum().backward()
                optimizer.step()
            model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)

    assert get_steps(trace) == [[1, 1, 2, 2, 3, 3, 4, 4]] * 2


@pytest.mark.parametrize("is_within", [False, True])
def test_a_student_is_recorded_in_a_block_that_evaluates_its_teacher(is_within: bool) -> None:
    """`is_within`: one module holds both, as distillation is often written. Both share their activation."""
    student, teacher = plain(), plain()
    student[2] = teacher[2]
    both = nn.ModuleDict({"student": student, "teacher": teacher})
    (x, *_) = DATA
    with record(both if is_within else student) as trace, using(teacher, running_statistics(teacher)):
        teacher(x)
        student(x)

    of_student = [steps for name, steps in zip(trace.layers, get_steps(trace), strict=True) if "teacher" not in name]
    assert of_student == [[1]] * 2


def test_a_model_that_makes_the_images_of_a_measurement_is_not_trained_by_it() -> None:
    """As a generator in train mode, on whose images its critic is measured: its averages move, which is warned of."""
    generator = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).train()
    critic = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match="are not the average of what was recorded"), record(generator) as trace:
        generator(torch.randn(4, 3))
        population_statistics(critic, [torch.randn(4, 3)], forward=lambda model, batch: model(generator(batch)))

    assert get_steps(trace) == [[1]]


def test_blocks_may_end_in_another_order_than_they_began() -> None:
    first, second = plain(), plain()
    blocks = [using(model, running_statistics(model)) for model in (first, second)]
    for block in blocks:
        block.__enter__()
    blocks[0].__exit__(None, None, None)
    with record(first) as of_first:
        first.train()(DATA[0])
    blocks[1].__exit__(None, None, None)
    with record(second) as of_second:
        second.train()(DATA[0])

    assert get_steps(of_first) == get_steps(of_second) == [[1]] * 2


def test_forwards_count_until_there_is_an_update() -> None:
    model = plain()
    (x, *_) = DATA
    with record(model) as trace:
        model(x)
        model(x)

    assert get_steps(trace) == [[1, 2]] * 2

    with record(model) as trace:
        for _ in range(2):
            model(x)
            model(x)
            trace.step()
    assert get_steps(trace) == [[1, 1, 2, 2]] * 2

    with pytest.raises(ValueError, match=r"MomentTrace.step: nothing is recorded now; call it inside"):
        trace.step()


def test_parts_that_are_called_alone() -> None:
    encoder = residual()
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2)})
    with no_warning(), record(model) as trace:
        train(encoder, DATA)

    assert all(steps == [1, 2, 3, 4, 5] for steps in get_steps(trace))

    with pytest.warns(UserWarning, match=r"no update by an optimizer was seen.*call trace\.step"), record(model):
        encoder(DATA[0])
        encoder(DATA[1])


MEASUREMENTS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "population": lambda model, other: population_statistics(model, images(4, 4)),
    "frozen": lambda model, other: record_frozen(model, images(4, 4)),
    "using": lambda model, other: call_within(using(model, running_statistics(other)), model),
    "apply_statistics": lambda model, other: call_within(apply_statistics(model, TestBatch()), model),
}


def call_within(block: AbstractContextManager[Any], model: nn.Module) -> None:
    with block:
        model(images(4)[0])


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_not_recorded_and_disturb_nothing(name: str) -> None:
    model, alone, other = residual(), residual(), residual()
    with record(alone) as expected:
        train(alone, DATA)
    with no_warning(), record(model) as trace:
        train(model, DATA[:2])
        with unchanged(model):
            MEASUREMENTS[name](model, other)
        train(model, DATA[2:])

    assert same_traces(trace, expected)


def list_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def reset_running_statistics(model: nn.Module) -> None:
    for norm in list_norms(model):
        norm.reset_running_stats()


def run_past_the_forwards(model: nn.Module) -> None:
    """Call the forwards of the classes, not those that a block of `record` puts in their place."""
    for norm in list_norms(model):
        type(norm).forward(norm, torch.randn(4, norm.num_features, 2, 2))


WRITES: dict[str, Callable[[nn.Sequential], Any]] = {
    "load_state_dict": lambda model: model.load_state_dict(plain().state_dict()),
    "write_to": lambda model: running_statistics(plain()).write_to(model),
    "reset_running_stats": reset_running_statistics,
    "update_bn": lambda model: update_bn(images(4), model),
    "past its forward": run_past_the_forwards,
}


@pytest.mark.parametrize("name", WRITES)
def test_buffers_that_something_else_writes_are_warned_of(name: str) -> None:
    model = plain()
    reported = "running buffers of '1', '4' are not the average"
    with pytest.warns(UserWarning, match=reported) as said, record(model):
        train(model, DATA[:3])
        WRITES[name](model)
        train(model, DATA[3:])

    assert len(said) == 1
    assert said[0].filename == __file__


def test_a_training_that_leaves_nothing_is_warned_of() -> None:
    """In eval mode, with and without an update, and past a layer that has taken the place of a recorded one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def update() -> None:
        model(x).square().sum().backward()
        optimizer.step()

    with pytest.warns(UserWarning, match="nothing was recorded"), record(model):
        model.eval()
        update()
    with pytest.warns(UserWarning, match="nothing was recorded: no batch-norm layer was called"), record(model):
        model(x)
    with pytest.warns(UserWarning, match="the layers replaced"), record(model.train()):
        update()
        model[1] = nn.BatchNorm1d(4)
        update()


def test_code_that_was_compiled_before_is_recorded_or_warned_of() -> None:
    model = plain()
    (x, *_) = DATA
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    with warnings.catch_warnings(record=True) as said, record(model) as trace:
        warnings.simplefilter("always")
        compiled(x)
        compiled(x)

    assert bool(said) != (get_steps(trace) == [[1, 2]] * 2)


@pytest.mark.parametrize(
    ("make", "make_copy"),
    [
        (plain, lambda model: pickle.loads(pickle.dumps(model))),
        (lambda: nn.Sequential(OwnForward(3), plain()), copy.deepcopy),
    ],
)
def test_a_copy_made_inside_works_and_is_not_recorded(make: Callable[[], nn.Module], make_copy: Any) -> None:
    model, twin = without_dropout(make()), without_dropout(make())
    with no_warning(), record(model) as trace, record(model):
        train(model, images(4))
        train(twin, images(4))
        clone = make_copy(model)
        outputs, expected = train(clone, images(6, 3)), train(twin, images(6, 3))
        with record(clone) as of_clone:
            train(clone, images(5))

    assert all(map(torch.equal, outputs, expected))
    assert trace.last_step == of_clone.last_step == 1
    assert not any(map(find_replaced_forward, batch_norm_layers(clone, caller="test").values()))
    assert all(layer.counts[0] % 4 == 0 and len(layer) == 1 for layer in trace.layers.values())

    train(twin, images(5))
    assert_equal_statistics(running_statistics(clone), running_statistics(twin))


def test_a_model_that_is_moved_to_another_type_before_its_training() -> None:
    """As trainers do, to a device."""
    with no_warning(), record(model := plain()) as trace:
        train(model.double(), [x.double() for x in DATA])

    assert trace.layers["1"].moments.dtype == torch.float64
    assert_equal_statistics(replay(trace, EMA(0.1))[5], running_statistics(model), tolerance=1e-12)


def test_gradients_of_several_forwards_together() -> None:
    """Moments that a backward pass still to come has saved are not written again."""
    models = plain(), plain()
    with record(models[0]):
        for model in map(without_dropout, models):
            sum(model(x).square().mean() for x in DATA).backward()

    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forwards_without_gradients_are_recorded(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    model = without_dropout(plain())
    with no_warning(), record(model) as trace:
        with mode():
            model(DATA[0])
        train(model, DATA[1:2])

    assert len(trace.layers["1"]) == 2
    assert_equal_statistics(replay(trace, EMA(0.1))[trace.last_step], running_statistics(model), tolerance=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_batches_that_are_not_finite(bad: float) -> None:
    """They spoil the layer's own average, and one entry of the trace."""
    model = nn.Sequential(nn.BatchNorm2d(3), without_dropout(plain()))
    first, second, third, *_ = DATA
    with no_warning(), record(model) as trace, torch.no_grad():
        model(first)
        model(torch.full_like(second, bad))
        model(third)

    is_finite = [bool(entry.isfinite().all()) for entry in trace.layers["1.4"].moments]

    assert is_finite == [True, False, True]

    last = replay(trace, LastBatch())[3]
    assert last["1.4"].var.isfinite().all()
    assert not model.get_buffer("0.running_mean").isfinite().any()


class Biased(nn.BatchNorm2d):
    """Averages the variance that it divides by, times a factor: as many batch norms that are written by hand."""

    factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(self.factor * var, self.momentum)  # type: ignore[union-attr, arg-type]
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()


def test_an_own_forward_may_average_biased_variances() -> None:
    model = nn.Sequential(Biased(3))
    with no_warning(), record(model):
        for x in DATA:
            model(x)

    model[0].factor = 1.01  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="not the average of what was recorded"), record(model):
        model(DATA[0])


def test_an_own_forward_may_add_up_one_value_after_the_other() -> None:
    """As torch's does on the CPU where channels are innermost: here its variance is off by a thousand roundings."""

    class Plain(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input)

    model = nn.Sequential(nn.ReLU(), Plain(8))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 8, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    with no_warning(), record(model):
        model(images)

    with pytest.warns(UserWarning, match="not the average of what was recorded"), record(model):
        model(images)
        model[1].get_buffer("running_var").mul_(1.02)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, OwnForward])
@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (1, 3, 1, 1), (4, 2)])
def test_input_that_a_layer_refuses_or_passes_over_has_no_entry(shape: Any, kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(kind(3))
    bare = nn.Sequential(kind(3))
    refused = torch.zeros(shape)
    with no_warning(), record(model) as trace:
        for each in (model, bare):
            for x in DATA[:2]:
                with pytest.raises((ValueError, RuntimeError)):
                    each(refused)
                each(x[:0])
                each(x)

    assert trace.layers["0"].counts == [6 * 64] * 2

    for mine, other in zip(model.buffers(), bare.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_leaves_the_model_its_own_forward(error: type[BaseException]) -> None:
    for model in (plain(), make_patched(), nn.BatchNorm2d(3)):
        with unchanged(model), pytest.raises(error), record(model):
            raise error


def test_what_is_refused_and_how() -> None:
    given: Any
    for given, options, error, message in (
        ("model", {}, TypeError, r"record: expected a torch\.nn\.Module, found str"),
        (nn.Linear(2, 2), {}, ValueError, "record: no BatchNorm layer with running statistics in Linear"),
        (plain(), {"step": -1}, ValueError, "record: step=-1; pass the number of updates so far"),
        (plain(), {"step": 1.5}, TypeError, r"record: step=1\.5; pass"),
        (plain().to("meta"), {}, ValueError, "record: layer '1' is on the meta device, which holds no values"),
    ):
        with pytest.raises(error, match=message), record(given, **options):
            pass


class Squaring(nn.BatchNorm2d):
    """A batch norm that normalizes the square of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * x)


def test_what_a_layer_normalizes_in_place_of_its_input() -> None:
    model = nn.Sequential(Squaring(3), nn.Conv2d(3, 4, 3))

    with warnings.catch_warnings(), record(model) as trace:
        warnings.simplefilter("error")
        train(model, [*DATA, torch.empty(0, 3, 8, 8)])

    replayed = replay(trace, EMA(0.1), [trace.last_step])[trace.last_step]
    assert_equal_statistics(replayed, running_statistics(model))
    frozen = record_frozen(model, DATA[:1]).layers["0"].moments[0]
    torch.testing.assert_close(frozen[0], DATA[0].square().mean((0, 2, 3)))


class Slim(nn.BatchNorm2d):
    """It takes fewer channels than it has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return nn.functional.batch_norm(x, mean[:4], var[:4], training=self.training)


def test_what_cannot_be_read_is_left_alone() -> None:
    """Nothing is raised inside of a training."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Slim(8), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).train()
    bare = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="'1' were left to their own forward"), record(model) as trace:
        train(model, DATA)
    train(bare, DATA)

    assert [len(layer) for layer in trace.layers.values()] == [0, len(DATA)]
    for mine, other in zip(model.buffers(), bare.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


class ByHand(nn.BatchNorm2d):
    """It averages half of its input, by arithmetic of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.get_buffer("running_mean").lerp_(x[::2].mean((0, 2, 3)), 0.1)
            self.get_buffer("running_var").lerp_(x[::2].var((0, 2, 3)), 0.1)
        return x


def test_a_layer_that_averages_something_else_is_named() -> None:
    with pytest.warns(UserWarning, match="are not the average of what was recorded"), record(model := ByHand(3)):
        model(DATA[0])


def test_a_batch_norm_over_several_processes_averages_the_values_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    x = torch.zeros(2, 3, 5, 5)

    assert count_averaged(nn.SyncBatchNorm(3), x) == 4 * 50
    assert count_averaged(nn.BatchNorm2d(3), x) == 50
