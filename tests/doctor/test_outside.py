"""Faults of kinds that public reports had and the gallery had not: each in networks that differ, in several doses, and
healthy networks of the same kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bnlab
from bnlab.doctor.evidence.history import read_state
from bnlab.doctor.report.diagnosis import Diagnosis
from tests.doctor import digits
from tests.doctor.patients import Given
from tests.doctor.test_patients import build_perceptron, examine, load_perceptron, mark, read


def require(given: Given, verdict: str, code: str, says: str) -> Diagnosis:
    """Require a verdict, the first finding's code, and words; return the diagnosis."""
    diagnosis = examine(given)

    assert diagnosis.verdict == verdict, str(diagnosis)
    assert diagnosis.faults[0].cause.code == code, str(diagnosis)
    assert says in read(diagnosis), str(diagnosis)
    return diagnosis


def flatten(batches: digits.Batches) -> digits.Batches:
    return [(images.flatten(1), labels) for images, labels in batches]


def give_perceptron() -> Given:
    """Give a healthy network for rows of numbers, to be changed."""
    return Given(copy.deepcopy(load_perceptron()[0]), flatten(digits.make_hundreds()))


def list_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]


# Weights that were not trained


def leave_weights_initial() -> Given:
    """Give a new network the buffers of a trained one."""
    model = digits.build(4).eval()
    for norm, trained in zip(list_norms(model), list_norms(digits.make_healthy()), strict=True):
        norm.load_state_dict(dict(norm.named_parameters()) | dict(trained.named_buffers()))
    return Given(model)


def count_without_training(updates: int) -> Given:
    """Run a new network in train mode, as where an optimizer was given the parameters of another one."""
    model = build_perceptron().train()
    batches = flatten(digits.draw_batches(updates, seed=-1, size=8))
    for images, _ in batches:
        model(images)
    return Given(model.eval(), flatten(digits.make_hundreds()))


@pytest.mark.parametrize(
    "make", [leave_weights_initial, lambda: count_without_training(20), lambda: count_without_training(90)]
)
def test_weights_that_were_never_trained_are_the_networks_fault(make: Callable[[], Given]) -> None:
    given = make()

    require(given, "network", "BN306", "is this the network that was trained? Look at what load_state_dict returns.")

    recalibration = bnlab.recalibrate(given.model, given.batches, progress=False)
    assert not recalibration.written and "BN306" in recalibration.reason


@pytest.mark.parametrize("form", ["module", "state"])
def test_the_network_that_it_should_be_is_tried(form: str) -> None:
    given = leave_weights_initial()
    trained = digits.make_healthy()
    before = trained if form == "module" else read_state(trained, "test")

    require(
        Given(given.model, given.batches, {"before": before}), "network", "BN305", "weights and averages of before="
    )


class Scale(nn.Module):
    """Multiplies and shifts each channel."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


@torch.no_grad()
def move_scales_out(given: Given) -> Given:
    """Give batch norms weights of 1 and biases of 0, and put a layer behind each that does what theirs did."""
    layers: list[nn.Module] = []
    assert isinstance(given.model, nn.Sequential)
    for layer in given.model:
        layers.append(layer)
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layers.append(Scale(layer.weight, layer.bias))
            layer.weight.fill_(1)
            layer.bias.zero_()
    return Given(nn.Sequential(*layers).eval(), given.batches)


HEALTHY: dict[str, Callable[[], Given]] = {
    "digits 0": lambda: Given(digits.make_healthy(0)),
    "digits 1": lambda: Given(digits.make_healthy(1)),
    "perceptron": give_perceptron,
}
KINDS = ["digits 0", pytest.param("digits 1", marks=pytest.mark.slow), "perceptron"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_training_left_at_1_are_a_note(kind: str) -> None:
    given = move_scales_out(HEALTHY[kind]())

    diagnosis = examine(given)

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
    assert "BN306" in diagnosis.findings["code"].tolist()
    assert bnlab.diagnose(given.model).is_healthy


# Averages of no images


@torch.no_grad()
def feed(given: Given, fill: Callable[[Tensor], Tensor], times: int, momentum: float = 0.1) -> Given:
    """Send tensors that are no images through a network in train mode."""
    for norm in list_norms(given.model):
        norm.momentum = momentum  # type: ignore[assignment]
    given.model.train()
    for _ in range(times):
        given.model(fill(given.batches[0][0][:4]))
    given.model.eval()
    return given


def make_noise() -> Callable[[Tensor], Tensor]:
    """Make noise that does not depend on what was drawn before, as where a network is built when it is first loaded."""
    generator = torch.Generator().manual_seed(0)
    return lambda images: torch.randn(images.shape, generator=generator)


FED: list[Any] = [
    pytest.param(
        lambda: feed(Given(digits.make_healthy(0), digits.make_hundreds()), torch.ones_like, 3),
        "of ones, as 3 forwards in train mode",
        True,
        marks=pytest.mark.slow,
    ),
    (lambda: feed(Given(digits.make_healthy(1)), torch.zeros_like, 8), "of zeros, as 8 forwards in train mode", True),
    (lambda: feed(Given(digits.make_healthy(2), digits.make_few(500)), make_noise(), 40), "of normal noise, as", False),
    (lambda: feed(give_perceptron(), torch.ones_like, 5, 0.05), "of ones, as 5 forwards in train mode", True),
]


@pytest.mark.parametrize(("make", "says", "is_taken_out"), FED)
def test_forwards_of_no_images_are_counted_and_recalibrated(
    make: Callable[[], Given], says: str, is_taken_out: bool
) -> None:
    """Noise is not the same in each forward: whether what is left after taking it out counts, the last bits decide."""
    given = make()

    trials = require(given, "averages", "BN111", says).trials

    if is_taken_out:
        assert (trials[trials["chosen"]]["degrees"] == 1).all(), str(trials)
    assert bnlab.recalibrate(given.model, given.batches, progress=False).written


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_of_no_images_that_is_nearly_forgotten_is_a_note(kind: str) -> None:
    diagnosis = examine(feed(HEALTHY[kind](), torch.ones_like, 1, 0.001))

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)


# A forward that is not the formula


class AbsoluteWeights(nn.BatchNorm2d):
    """Batch norm that scales by the absolute values of its weights, in both modes."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.abs()
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )


class WithActivation(nn.BatchNorm2d):
    """Batch norm with an activation built in, as InPlaceABN has it."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.leaky_relu(super().forward(input), 0.01)


def choose_channels(norm: nn.Module, count: int) -> Tensor:
    """Choose so many channels, the widest first."""
    return norm.get_parameter("weight").detach().abs().argsort(descending=True)[:count]


@torch.no_grad()
def turn_filters(model: nn.Sequential, count: int) -> nn.Sequential:
    """Turn the sign of so many filters in front of each batch norm, and of its weights: nothing else changes."""
    for number, layer in enumerate(model):
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            chosen = choose_channels(layer, count)
            for values in (*model[number - 1].parameters(), layer.get_buffer("running_mean"), layer.weight):
                values[chosen] *= -1
    return model


def take_class(model: nn.Module, kind: type[nn.BatchNorm2d]) -> nn.Module:
    for norm in list_norms(model):
        norm.__class__ = kind
    return model


def forget_signs(seed: int, count: int) -> Given:
    """Write a network's batch norms anew with |γ|, where so many weights of each are negative."""
    return Given(take_class(turn_filters(digits.make_healthy(seed), count), AbsoluteWeights))


@torch.no_grad()
def store_signs(given: Given, count: int) -> Given:
    """Turn the sign of so many weights, as where it had no meaning in training."""
    for norm in list_norms(given.model):
        norm.get_parameter("weight")[choose_channels(norm, count)] *= -1
    return given


FORMULAS: dict[str, tuple[Callable[[], Given], str]] = {
    "4 forgotten": (lambda: forget_signs(0, 4), "BN304"),
    "8 forgotten": (lambda: forget_signs(1, 8), "BN304"),
    "4 stored": (lambda: store_signs(Given(digits.make_healthy(2)), 4), "BN303"),
    "3 stored": (lambda: store_signs(give_perceptron(), 3), "BN303"),
}
FORMULA = {
    "BN303": "with the absolute values of the weights",
    "BN304": "3 layers with the absolute values of the weight",
}


@pytest.mark.parametrize("name", mark(zip(FORMULAS), [("4 forgotten",), ("3 stored",)]))
def test_signs_of_weights_that_training_used_otherwise_are_the_networks_fault(name: str) -> None:
    make, code = FORMULAS[name]

    require(make(), "network", code, FORMULA[code])


@pytest.mark.parametrize("name", mark(zip(FORMULAS), [("8 forgotten",), ("4 stored",)]))
def test_new_statistics_do_not_hide_what_the_doctor_names(name: str) -> None:
    make, code = FORMULAS[name]
    given = make()

    recalibration = bnlab.recalibrate(given.model, given.batches, progress=False)

    assert not recalibration.written
    reason = str(recalibration.reason)
    assert code in reason and FORMULA[code] in reason


FORMULAS_OF_TRAINING: list[Callable[[], Given]] = [
    lambda: Given(take_class(store_signs(Given(digits.make_healthy(0)), 8).model, AbsoluteWeights)),
    lambda: Given(take_class(digits.make_healthy(1), WithActivation)),
    lambda: Given(turn_filters(digits.make_healthy(2), 8)),
]


@pytest.mark.parametrize("make", FORMULAS_OF_TRAINING)
def test_a_forward_that_training_used_is_no_alarm(make: Callable[[], Given]) -> None:
    """The absolute values of the weights, an activation that is built in, and negative weights."""
    diagnosis = examine(make())

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)


# Another eps


@torch.no_grad()
def shrink(given: Given, divisor: float, eps: float, layers: int = 1) -> Given:
    """Give a network small variances in its first layers, with weights for which an eps would be right."""
    model = given.model
    assert isinstance(model, nn.Sequential)
    places = [number for number, layer in enumerate(model) if layer in list_norms(model)][:layers]
    for place in places:
        norm = model[place]
        for weights in model[place - 1].parameters():
            weights.div_(divisor)
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        sigma = (var + norm.eps).sqrt()  # type: ignore[operator]
        mean /= divisor
        var /= divisor**2
        norm.get_parameter("weight").mul_(divisor * (var + eps).sqrt() / sigma)
    return given


def set_eps(given: Given, eps: float) -> Given:
    for norm in list_norms(given.model):
        norm.eps = eps  # type: ignore[assignment]
    return given


OTHER_EPS: list[Any] = [
    pytest.param(lambda: shrink(Given(digits.make_healthy(0)), 300, 1e-3), "an eps of 0.001", marks=pytest.mark.slow),
    (lambda: shrink(Given(digits.make_healthy(1)), 100, 1e-3, 3), "an eps of 0.001"),
    (lambda: set_eps(shrink(give_perceptron(), 100, 1e-5), 1e-3), "an eps of 1e-05"),
]


@pytest.mark.parametrize(("make", "says"), OTHER_EPS)
def test_another_eps_than_in_training_is_the_networks_fault(make: Callable[[], Given], says: str) -> None:
    require(make(), "network", "BN307", says)


def test_an_eps_that_is_not_usual_is_taken_from_the_earlier_module() -> None:
    given = shrink(Given(digits.make_healthy(0)), 300, 5e-4)
    before = set_eps(Given(copy.deepcopy(given.model)), 5e-4).model

    diagnosis = examine(Given(given.model, given.batches, {"before": before}))

    assert diagnosis.verdict == "network" and diagnosis.faults[0].cause.code == "BN307", str(diagnosis)
    assert "an eps of before=" in diagnosis.trials["undone"].tolist()


SMALL = [(kind, eps) for kind in HEALTHY for eps in (1e-3, 1e-5)]


@pytest.mark.parametrize(("kind", "eps"), mark(SMALL, [("digits 0", 1e-3), ("perceptron", 1e-5)]))
def test_small_variances_with_their_eps_are_no_alarm(kind: str, eps: float) -> None:
    diagnosis = examine(set_eps(shrink(HEALTHY[kind](), 100, eps), eps))

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)


# Train mode, without labels


def cut_head(model: Any, layers: int) -> nn.Sequential:
    """Leave out the last layers, so that images or features come out and no classes."""
    return nn.Sequential(*list(model)[:-layers])


GENERATORS: list[Callable[[], Given]] = [
    lambda: Given(cut_head(digits.make_healthy(0), 2)),
    lambda: Given(cut_head(digits.make_healthy(1), 5), digits.make_batches(size=8, images=400)),
    lambda: Given(cut_head(give_perceptron().model, 1), flatten(digits.make_batches(size=20))),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", GENERATORS)
def test_train_mode_without_labels_is_a_warning_that_says_what_it_does(make: Callable[[], Given]) -> None:
    given = make()
    images = digits.list_images(given.batches)

    resting = bnlab.diagnose(given.model.eval(), images, progress=False)
    diagnosis = examine(Given(given.model.train(), images))  # type: ignore[arg-type]

    assert resting.is_healthy and not [finding for finding in resting.faults if finding.cause.code == "BN402"]
    assert diagnosis.verdict is None and not diagnosis.is_healthy
    assert [finding.cause.code for finding in diagnosis.faults if finding.severity == "warning"] == ["BN402"]
    assert "the same images in a smaller batch are predicted otherwise, by " in read(diagnosis)
    assert "Call model.eval()" in read(diagnosis)


def test_averages_that_do_not_fit_ask_for_a_history_where_nothing_can_be_scored() -> None:
    """A generator whose weights were changed: images come out and no classes, so that no verdict can be reached."""
    model = cut_head(digits.make_healthy(0), 2)
    images = digits.list_images(digits.make_few())

    resting = bnlab.diagnose(model, images, progress=False)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(1.5)
    changed = bnlab.diagnose(model, images, progress=False)

    assert resting.verdict is None and "before=" not in read(resting)
    assert changed.verdict is None and "before=" in read(changed) and "training_batches=" in read(changed)


def test_averages_that_take_the_place_of_the_batch_in_train_mode_are_no_warning() -> None:
    """A layer whose forward never looks at the batch is in train mode without harm."""

    class Frozen(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )

    model = take_class(cut_head(digits.make_healthy(0), 2), Frozen)

    diagnosis = examine(Given(model.train(), digits.list_images(digits.make_few())))  # type: ignore[arg-type]

    assert diagnosis.is_healthy, str(diagnosis)


# Channels that were removed


@torch.no_grad()
def carry_constants(given: Given, places: tuple[int, ...], count: int) -> Given:
    """Let so many channels of batch norms carry a constant, on which those behind them count."""
    for place in places:
        norm = given.model[place]  # type: ignore[index]
        chosen = choose_channels(norm, count)
        norm.weight[chosen] = 0
        norm.bias[chosen] = 1.0
        bnlab.population_statistics(given.model, given.batches, progress=False).write_to(given.model)
    return given


@torch.no_grad()
def remove_constants(given: Given, places: tuple[int, ...]) -> Given:
    """Cut out the channels that carry a constant."""
    model: Any = copy.deepcopy(given.model)
    for place in places:
        norm = model[place]
        kept = norm.weight.nonzero()[:, 0]
        model[place - 1].weight = nn.Parameter(model[place - 1].weight[kept])
        if model[place - 1].bias is not None:
            model[place - 1].bias = nn.Parameter(model[place - 1].bias[kept])
        smaller = type(norm)(len(kept))
        smaller.load_state_dict(
            {name: values[kept] if values.dim() else values for name, values in norm.state_dict().items()}
        )
        behind = next(layer for layer in model[place + 1 :] if isinstance(layer, (nn.Conv2d, nn.Linear)))
        columns = behind.weight.unflatten(1, (len(norm.weight), -1))[:, kept].flatten(1, 2)
        behind.weight = nn.Parameter(columns)
        model[place] = smaller
    return Given(model.eval(), given.batches, {"before": given.model})


def put_prelu(model: nn.Sequential) -> nn.Sequential:
    """Put a PReLU of slope 0 in the place of each ReLU: it computes the same, and has a weight."""
    for number, module in enumerate(model):
        if isinstance(module, nn.ReLU):
            model[number] = nn.PReLU(init=0.0).eval()
    return model


def prune_constants(given: Given, places: tuple[int, ...], count: int) -> Given:
    return remove_constants(carry_constants(given, places, count), places)


PRUNED: list[Any] = [
    pytest.param(
        lambda: prune_constants(Given(digits.make_healthy(0)), (1,), 4),
        "4 channels removed in front of 3,",
        marks=pytest.mark.slow,
    ),
    (lambda: prune_constants(Given(digits.make_healthy(1)), (4, 7), 8), "16 channels removed in front of 6, 10,"),
    (lambda: prune_constants(give_perceptron(), (1,), 3), "3 channels removed in front of 3,"),
    (lambda: prune_constants(Given(put_prelu(digits.make_healthy(0))), (1,), 4), "4 channels removed in front of 3,"),
]


@pytest.mark.parametrize(("make", "says"), PRUNED)
def test_what_removed_channels_carried_is_added_again(make: Callable[[], Given], says: str) -> None:
    require(make(), "network", "BN308", says)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_channels_that_carried_nothing_leave_a_healthy_network(kind: str) -> None:
    given = HEALTHY[kind]()
    norm = given.model[1]  # type: ignore[index]
    chosen = norm.weight.abs().argsort()[:2]
    norm.weight[chosen] = 0
    norm.bias[chosen] = 0
    bnlab.population_statistics(given.model, given.batches, progress=False).write_to(given.model)

    diagnosis = examine(remove_constants(given, (1,)))

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)


def test_an_unrelated_network_is_refused_as_an_earlier_one() -> None:
    given = give_perceptron()

    with pytest.raises(ValueError, match="before= has no running statistics of this model's layers; is it another"):
        bnlab.diagnose(given.model, given.batches, before=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


# Several forwards a score


def compare_pairs(given: Given, contrast: float, shift: float, size: int = 25) -> Given:
    """Let a network tell whether pairs are alike: anchors as it knows them, and others, each in batches of their own.

    Its averages are of both kinds of batches, each of which train mode has normalized by itself.
    """
    model = given.model
    images, labels = digits.join(given.batches)
    others, theirs = images.flip(0), labels.flip(0)
    pairs = digits.split(torch.stack([images, contrast * others + shift], 1), labels == theirs, size)
    model.train()
    with torch.no_grad():
        for batch, _ in pairs[:20]:
            model(batch[:, 0])
            model(batch[:, 1])

    def evaluate(network: nn.Module) -> Tensor:
        right = []
        for batch, are_alike in pairs:
            named = network(batch[:, 0]).argmax(1)
            of_others = network(batch[:, 1]).argmax(1)
            right.append((named == of_others) == are_alike)
        return torch.cat(right)

    anchors: digits.Batches = [(batch[:, 0], are_alike) for batch, are_alike in pairs]
    return Given(model.eval(), anchors, {"evaluate": evaluate})


PAIRS: list[Any] = [
    pytest.param(lambda: compare_pairs(Given(digits.make_healthy(0)), 0.25, 1.0), marks=pytest.mark.slow),
    lambda: compare_pairs(Given(digits.make_healthy(1)), 0.5, 2.0),
    lambda: compare_pairs(give_perceptron(), 0.4, 1.5),
]


@pytest.mark.parametrize("make", PAIRS)
def test_forwards_of_two_kinds_of_batches_are_several_populations(make: Callable[[], Given]) -> None:
    given = make()
    with torch.no_grad():
        scored = float(given.arguments["evaluate"](given.model).double().mean())

    diagnosis = examine(given)

    assert diagnosis.scores["batch"] > scored + 0.05, str(diagnosis)
    assert diagnosis.verdict == "batches" and diagnosis.faults[0].cause.code == "BN204", str(diagnosis)
    assert "evaluate= runs two kinds of batches" in read(diagnosis)
    assert "batches that mix them" in read(diagnosis)


@pytest.mark.parametrize("kind", KINDS)
def test_forwards_of_pairs_of_one_kind_are_one_population(kind: str) -> None:
    diagnosis = examine(compare_pairs(HEALTHY[kind](), 1.0, 0.0))

    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
    assert "BN204" not in diagnosis.findings["code"].tolist()


# Norms that cannot be measured


def export(model: nn.Module, given: Given) -> nn.Module:
    return export_program(model, given.batches[0][0]).module()


def export_program(model: nn.Module, images: Tensor, **settings: Any) -> torch.export.ExportedProgram:
    torch.compiler.reset()  # torch 2.6 exports eight models in a process, and refuses the ninth
    return torch.export.export(model, (images,), **settings)


class ForeignNorm(nn.Module):
    """Normalizes by what it stores and has an activation built in; it is no class of torch's."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.register_buffer("running_mean", norm.get_buffer("running_mean"))
        self.register_buffer("running_var", norm.get_buffer("running_var"))
        self.register_buffer("num_batches_tracked", norm.get_buffer("num_batches_tracked"))

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)  # type: ignore[arg-type]
        return nn.functional.leaky_relu(out, 0.01)


def replace_foreign(given: Given) -> nn.Module:
    model: Any = given.model
    for name, module in list(model.named_modules()):
        if module in list_norms(model):
            model[int(name)] = ForeignNorm(module)
    return model.eval()  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[Given], nn.Module]] = {
    "exported": lambda given: export(given.model, given),
    "decomposed": lambda given: export_program(given.model, given.batches[0][0]).run_decompositions().module(),
    "foreign": replace_foreign,
}
FORMED = [(kind, form) for kind in HEALTHY for form in FORMS]
FEW_HEALTHY = [("digits 0", "exported"), ("perceptron", "decomposed"), ("digits 0", "foreign")]
FEW_FAULTY = [("perceptron", "exported"), ("digits 0", "decomposed"), ("perceptron", "foreign")]


@pytest.mark.parametrize(("kind", "form"), mark(FORMED, FEW_HEALTHY))
def test_healthy_norms_that_cannot_be_measured_are_checked_and_quiet(kind: str, form: str) -> None:
    given = HEALTHY[kind]()
    layers = {name for name, module in given.model.named_modules() if module in list_norms(given.model)}

    diagnosis = bnlab.diagnose(FORMS[form](given), given.batches, progress=False)

    assert diagnosis.is_healthy and diagnosis.verdict is None, str(diagnosis)
    assert {*diagnosis.case.layers} == layers
    assert "cannot be measured: buffers, counts and before= were checked." in read(diagnosis)


@pytest.mark.parametrize(("kind", "form"), mark(FORMED, FEW_FAULTY))
def test_faults_of_what_norms_store_are_found(kind: str, form: str) -> None:
    given = HEALTHY[kind]()
    first, *_, last = list_norms(given.model)
    first.get_buffer("running_var")[0] = float("nan")
    last.reset_running_stats()  # type: ignore[operator]

    codes = {finding.cause.code: finding for finding in bnlab.diagnose(FORMS[form](given)).faults}

    assert codes["BN001"].severity == "error" and len(codes["BN001"].layers) == 1
    assert codes["BN002"].severity == "warning" and len(codes["BN002"].layers) == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_earlier_checkpoint_is_compared_with_norms_that_cannot_be_measured(form: str) -> None:
    before = digits.make_healthy(1)
    given = Given(copy.deepcopy(before))
    with torch.no_grad():
        for parameter in given.model.parameters():
            parameter.mul_(1.5)

    diagnosis = bnlab.diagnose(FORMS[form](given), before=before)

    (finding,) = [finding for finding in diagnosis.faults if finding.cause.code == "BN106"]
    assert finding.severity == "warning" and len(finding.layers) == 3


class NormOfItsOwn(ForeignNorm):
    """Says its eps, and normalizes by its batch in train mode where it can."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor
    eps = 1e-5
    momentum = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def test_norms_of_other_classes_are_examined() -> None:
    given = Given(digits.make_healthy())
    model: Any = given.model
    for name in digits.NORMS:
        model[int(name)] = NormOfItsOwn(model[int(name)]).eval()
    model[4].running_mean += 1

    diagnosis = examine(given)

    assert diagnosis.verdict == "averages" and diagnosis.faults[0].layers == ("4",), str(diagnosis)


class CallsTwice(nn.Module):
    """Calls one batch norm twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(75, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(self.norm(x).relu())))  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_a_graph_of_any_batch_size_is_measured_as_the_model_that_it_was_made_of(is_decomposed: bool) -> None:
    """Graphs of one batch size are not, as they cannot be run on a part of a batch."""
    generator = torch.Generator().manual_seed(0)
    batches = [3 + torch.randn(size, 3, 5, 5, generator=generator) for size in (16, 16, 8)]
    model = CallsTwice().eval()
    program = export_program(model, batches[0], dynamic_shapes=({0: torch.export.Dim("images")},))
    exported = (program.run_decompositions() if is_decomposed else program).module()
    state = {name: value.clone() for name, value in exported.state_dict().items()}

    case = bnlab.diagnose(exported, batches, progress=False).case

    expected = bnlab.population_statistics(model, batches, progress=False)
    assert case.is_measurable and case.seen == list(expected)
    for name, moments in expected.items():
        assert torch.allclose(case.exact[name].mean, moments.mean, rtol=1e-4, atol=1e-5)  # kernels may differ
        assert torch.allclose(case.exact[name].var, moments.var, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in exported.state_dict().items())


class Reads(nn.Module):
    """Normalizes without weight and bias; what is called as its weight is that of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))
        self.register_buffer("running_mean", torch.ones(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.weight)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var)  # type: ignore[arg-type]


def test_a_node_whose_names_are_shared_with_others_is_not_measured_and_said_so() -> None:
    images = torch.randn(4, 3, 5, 5)
    program = export_program(nn.Sequential(Reads()).eval(), images, dynamic_shapes=({0: torch.export.Dim("n")},))

    diagnosis = bnlab.diagnose(program.module(), [images], progress=False)

    assert diagnosis.case.seen == [] and "What '0' normalize cannot be measured" in read(diagnosis)


def test_a_graph_in_train_mode_is_told() -> None:
    given = Given(digits.make_healthy().train())

    diagnosis = bnlab.diagnose(export(given.model, given))

    assert "BN402" in diagnosis.findings["code"].tolist()


def test_a_graph_whose_buffers_are_not_its_own_is_refused() -> None:
    given = Given(digits.make_healthy())
    program = export_program(given.model, given.batches[0][0])

    with pytest.raises(
        ValueError, match=r"reads running statistics that are no buffers of it; pass program\.module\(\)"
    ):
        bnlab.diagnose(program.graph_module)


def test_a_running_mean_alone_is_no_batch_norm() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))

    with pytest.raises(ValueError, match="'0' keep a running mean or a running variance alone"):
        bnlab.diagnose(nn.Sequential(Half()))


# Norms that were folded


@torch.no_grad()
def fold_twice(has_zeros: bool) -> Given:
    """Fold each norm into the convolution before it, and leave the norm; `has_zeros`: a weight of each norm is 0."""
    given = Given(digits.make_healthy(0), digits.make_hundreds())
    model: Any = given.model
    for norm in list_norms(model):
        if has_zeros:
            norm.get_parameter("weight")[0] = 0
    bnlab.population_statistics(model, given.batches, progress=False).write_to(model)
    for number, module in enumerate(model):
        if isinstance(module, nn.BatchNorm2d):
            model[number - 1] = fuse_conv_bn_eval(model[number - 1], module)
    return given


@pytest.mark.parametrize("has_zeros", [pytest.param(False, marks=pytest.mark.slow), True])
def test_norms_that_were_folded_already_are_named(has_zeros: bool) -> None:
    given = fold_twice(has_zeros)

    require(given, "network", "BN302", "exact means and variances are the layer's own biases")
