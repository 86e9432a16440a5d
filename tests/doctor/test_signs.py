"""Signs without data: what buffers, counts, momenta, modes, an earlier checkpoint, a trace and ranks show, and what is
no fault."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bnlab import diagnose, population_statistics, record
from bnlab.commands.demo.specimen import average, list_norms
from bnlab.doctor.causes.bn001 import compute_stall
from bnlab.doctor.causes.bn401 import RanksDiffer
from bnlab.doctor.report.diagnosis import Diagnosis
from bnlab.model.layers import get_running_buffers
from bnlab.nn import SelfTuned
from tests.doctor.digits import NORMS, Batches, build, draw_batches, fit, get_norm, list_codes, make_healthy
from tests.helpers import run_two_ranks, with_momentum


def tell(diagnosis: Diagnosis, code: str) -> tuple[str, tuple[str, ...], str]:
    """Tell a finding's severity, layers and evidence."""
    (finding,) = [finding for finding in diagnosis.faults if finding.cause.code == code]
    return finding.severity, finding.layers, finding.evidence


# Of the model alone


def fill(number: int, value: float, names: tuple[str, ...] = NORMS, channels: slice = slice(3, 4)) -> nn.Module:
    """Fill channels of the running means (0) or variances (1) of a healthy network."""
    model = make_healthy()
    for name in names:
        get_running_buffers(get_norm(model, name))[number][channels] = value
    return model


def freeze_first(model: nn.Sequential) -> nn.Sequential:
    model[:3].requires_grad_(False)
    return model


def train_layer(model: nn.Sequential, name: str, training: bool = True) -> nn.Sequential:
    """Put one layer into train mode, or into eval mode."""
    model.get_submodule(name).train(training)
    return model


def average_batches(model: nn.Module, count: int) -> nn.Module:
    """Let a network average so many batches in train mode; its weights stay."""
    average(model, list(islice(cycle(draw_batches(20)), count)))
    return model


def set_counts(count: int) -> nn.Module:
    model = make_healthy()
    for norm in list_norms(model):
        norm.get_buffer("num_batches_tracked").fill_(count)
    return model


def add(norm: nn.Module) -> nn.Module:
    return nn.Sequential(*make_healthy(), norm).eval()


class OwnNorm(nn.Module):
    """A norm of another class than torch's, which keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_avg_mean", torch.zeros(4))


def mix_momenta() -> nn.Module:
    model = with_momentum(make_healthy(), 0.9)
    layer = model.get_submodule("4")
    layer.momentum = 0.0  # type: ignore[assignment]
    return model


ALL = slice(None)
NOT_FINITE = "not finite in 1 of 16 channels of '1', the first in depth"
STALLS = "bfloat16: an average may stop 3.9% short of its goal"  # 2⁻⁸ / .1
OVERFLOWN = "a variance above 65,504, the largest float16, has become infinite in 1 layer"
OF_ZERO = "variance 0 in more than 99% of channels, although 144 updates counted"
OF_START = "mean 0 and variance 1 in more than 99% of channels, 0 updates counted"
IN_TRAIN = "in train mode"
OF_HALF = "variance 1 in more than 99% of channels, although 144 updates counted"

SIGNS: list[tuple[str, str, tuple[str, ...], str, Callable[[], nn.Module]]] = [
    ("BN001", "error", NORMS, NOT_FINITE, lambda: fill(0, math.nan)),
    ("BN001", "error", NORMS, NOT_FINITE, lambda: fill(1, math.inf)),
    ("BN001", "error", NORMS, "negative in 1 of 16 channels of '1', the first in depth", lambda: fill(1, -0.1)),
    ("BN002", "warning", NORMS, OF_START, build),
    ("BN002", "warning", ("4",), OF_ZERO, lambda: fill(1, 0.0, ("4",), ALL)),
    ("BN001", "note", NORMS, STALLS, lambda: make_healthy().bfloat16()),
    ("BN001", "warning", NORMS, STALLS, lambda: make_healthy().bfloat16().train()),
    ("BN001", "error", ("4",), OVERFLOWN, lambda: fill(1, 1e5, ("4",)).half()),
    (
        "BN101",
        "warning",
        NORMS,
        "10 updates of momentum 0.1: 65% of the way",
        lambda: average_batches(build(momentum=0.1), 10),
    ),
    (
        "BN101",
        "warning",
        NORMS,
        "200 updates of momentum 0.001: 18% of the way",
        lambda: average_batches(build(momentum=0.001), 200),
    ),
    ("BN102", "warning", NORMS, "momentum 0.99, a memory of 1.0 batches", lambda: with_momentum(make_healthy(), 0.99)),
    (
        "BN102",
        "warning",
        NORMS,
        "144 updates of momentum 0; momentum 0.9, a memory of 1.2 batches",
        lambda: mix_momenta(),
    ),
    ("BN104", "warning", ("1",), "1 frozen layer in train mode", lambda: freeze_first(make_healthy()).train()),
    ("BN102", "warning", NORMS, "144 updates of momentum 0", lambda: with_momentum(make_healthy(), 0.0)),
    ("BN002", "warning", NORMS, OF_HALF, lambda: fill(1, 1.0, channels=ALL)),
    (
        "BN402",
        "warning",
        ("4",),
        f"1 of 3 {IN_TRAIN}, in a model in eval mode",
        lambda: train_layer(make_healthy(), "4"),
    ),
    ("BN402", "note", NORMS, f"3 of 3 {IN_TRAIN}", lambda: make_healthy().train()),
    ("BN402", "note", ("4", "7"), f"2 of 3 {IN_TRAIN}", lambda: train_layer(make_healthy().train(), "1", False)),
    (
        "BN402",
        "note",
        ("11",),
        "1 without running statistics",
        lambda: add(nn.BatchNorm1d(4, track_running_stats=False)),
    ),
    ("BN901", "note", ("11",), "1 of another class than torch's", lambda: add(OwnNorm())),
]


@pytest.mark.parametrize(("code", "severity", "layers", "evidence", "make"), SIGNS)
def test_signs_are_seen_without_data(
    code: str, severity: str, layers: tuple[str, ...], evidence: str, make: Callable[[], nn.Module]
) -> None:
    diagnosis = diagnose(make())

    assert tell(diagnosis, code) == (severity, layers, evidence)
    assert {finding.cause.code for finding in diagnosis.faults if finding.severity != "note"} <= {code}
    assert diagnosis.verdict is None
    assert diagnosis.is_healthy == (severity == "note")


QUIET: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "healthy": (make_healthy, set()),
    "a count that began again, as torchvision's": (lambda: set_counts(0), set()),
    # .9¹⁰ = .35 of each variance would still be the start's, and one layer has smaller ones
    "a count that variances refute": (lambda: set_counts(10), set()),
    "momentum up to a half": (lambda: with_momentum(make_healthy(), 0.5), set()),
    "a mean of all batches": (lambda: average_batches(build(momentum=None), 10), set()),
    "self-tuned": (lambda: average_batches(SelfTuned.convert(build()), 10), set()),
    "double precision in train mode": (lambda: make_healthy().double().train(), {"BN402"}),
    "all is frozen": (lambda: make_healthy().train().requires_grad_(False), {"BN402"}),
    "frozen and in eval mode": (lambda: freeze_first(make_healthy()), set()),
    "new and in train mode": (lambda: build().train(), {"BN002"}),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_is_no_fault_is_quiet(name: str) -> None:
    make, codes = QUIET[name]

    assert set(list_codes(diagnose(make()))) == codes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_in_low_precision_stop_as_far_from_their_goal_as_is_said(dtype: torch.dtype) -> None:
    layer = nn.BatchNorm1d(64, momentum=0.1).to(dtype)
    goal = torch.linspace(1, 2, 64, dtype=dtype)
    average = torch.zeros(64, dtype=dtype)

    for _ in range(300):
        average.lerp_(goal, 0.1)

    short = ((goal - average) / goal).double().max()
    assert 0.5 * compute_stall(layer) < short <= compute_stall(layer)


# Of an earlier checkpoint


def forward_in_train_mode(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.zeros(4, 3, 8, 8))


def change_weights(change: Callable[[Tensor], Tensor], is_recalibrated: bool = False) -> Callable[[nn.Module], None]:
    """Change all matrices of weights, and take the averages again or not."""

    def apply(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.copy_(change(parameter.data))
        if is_recalibrated:
            population_statistics(model, draw_batches(20), progress=False).write_to(model)

    return apply


def move(weight: Tensor) -> Tensor:
    """Move all weights, as further training or an average of other weights does."""
    generator = torch.Generator().manual_seed(0)
    return weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)


def train_on(model: nn.Module) -> None:
    fit(model, steps=4)


def train_frozen(model: nn.Module) -> None:
    model.train()
    model.get_submodule("1").eval()
    fit(model, steps=4, keep_mode=True)


CHANGED: dict[str, tuple[Callable[[nn.Module], None], bool, list[str], str]] = {
    "forwards in train mode": (
        forward_in_train_mode,
        False,
        ["BN104"],
        "3 updates since the earlier checkpoint; 14 tensors",
    ),
    "moved": (change_weights(move), False, ["BN106"], "weights moved by "),
    "frozen and updated": (train_on, True, ["BN104"], "4 updates since the earlier checkpoint"),
    "frozen and kept in eval mode": (train_frozen, True, [], ""),
    "trained on": (train_on, False, [], ""),
    "hardly moved, by 0.02%": (change_weights(lambda weight: weight.half().float()), False, [], ""),
    "moved and recalibrated": (change_weights(move, True), False, [], ""),
    "nothing": (lambda model: None, False, [], ""),
}


def test_layers_that_are_not_frozen_are_not_called_so() -> None:
    model = make_healthy()
    before = copy.deepcopy(model)
    forward_in_train_mode(model)

    evidence = tell(diagnose(model.train(), before=before), "BN104")[2]

    assert evidence.startswith("3 updates since the earlier checkpoint")


@pytest.mark.parametrize("name", CHANGED)
def test_an_earlier_checkpoint_shows_what_moved_alone(name: str) -> None:
    change, is_frozen, codes, reported = CHANGED[name]
    model = make_healthy()
    if is_frozen:
        freeze_first(model)
    before = copy.deepcopy(model)
    change(model)

    diagnosis = diagnose(model.eval(), before=before)

    assert list_codes(diagnosis) == codes
    for code in codes:
        severity, layers, evidence = tell(diagnosis, code)
        assert layers == (("1",) if is_frozen else NORMS)
        assert evidence.startswith(reported)
        assert severity == ("note" if is_frozen else "warning")


# Of a trace


def train_sharpness_aware(model: nn.Module, batches: Batches, radius: float = 0.05) -> None:
    """Take each step by the gradient at weights that are moved uphill by a radius: two forwards of the same images."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for inputs, labels in batches:
        F.cross_entropy(model(inputs), labels).backward()
        weights = list(model.parameters())
        gradients = [weight.grad.clone() for weight in weights if weight.grad is not None]
        length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data.add_(gradient, alpha=float(radius / length))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data.sub_(gradient, alpha=float(radius / length))
        optimizer.step()
        optimizer.zero_grad()


def accumulate_gradients(model: nn.Module, batches: Batches) -> None:
    """Take a step every three batches."""
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    for number, (inputs, labels) in enumerate(batches, start=1):
        F.cross_entropy(model(inputs), labels).backward()
        if number % 3 == 0:
            optimizer.step()


@pytest.mark.parametrize(
    ("fit", "severity", "reported"),
    [
        (train_sharpness_aware, "warning", "2 updates a step, of the same batch at other weights ("),
        (accumulate_gradients, "note", "3 updates a step, of different batches"),
    ],
)
def test_several_updates_a_step_are_of_the_same_batch_or_not(
    fit: Callable[[nn.Module, Batches], None], severity: str, reported: str
) -> None:
    model = build()
    with record(model) as trace:
        fit(model, draw_batches(12))

    found, _, evidence = tell(diagnose(model, trace=trace), "BN103")

    assert found == severity
    assert evidence.startswith(reported)


def make_loader(images: int, **settings: Any) -> DataLoader[Any]:
    """Make a loader of so many images in batches of 32."""
    ((inputs, labels),) = draw_batches(1, images)
    return DataLoader(TensorDataset(inputs, labels), batch_size=32, **settings)


LENGTHS: dict[str, tuple[Callable[[], Any], bool]] = {
    "8 are left": (lambda: make_loader(72, shuffle=True), True),
    "8 are left, in a list": (lambda: draw_batches(2) + draw_batches(1, 8), True),
    "what is left is dropped": (lambda: make_loader(72, drop_last=True), False),
    "20 are left: more than half": (lambda: make_loader(84), False),
    "many sizes": (lambda: draw_batches(1) + draw_batches(2, 8), False),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_of_training_batches_show_a_small_last_one(name: str) -> None:
    load, is_small = LENGTHS[name]
    training = load()

    for data in (None, draw_batches(8)):
        diagnosis = diagnose(make_healthy(), data, training_batches=training, progress=False)

        assert ("BN110" in list_codes(diagnosis)) == is_small
        assert diagnosis.is_healthy
        if is_small:
            assert tell(diagnosis, "BN110")[2] == "the last batch of an epoch has 8 images of 32"


def test_training_batches_that_are_cut_short_do_not_tell_which_is_the_last() -> None:
    batches = [*draw_batches(2), *draw_batches(1, 8), *draw_batches(2)]

    diagnosis = diagnose(make_healthy(), draw_batches(20), training_batches=iter(batches), max_images=72)

    assert "BN110" not in list_codes(diagnosis)


# Of ranks


@pytest.mark.parametrize(("off", "severity"), [(0.005, None), (0.05, "note"), (0.5, "warning")])
def test_the_distance_between_ranks_is_graded(off: float, severity: str | None) -> None:
    case = diagnose(make_healthy()).case
    other = {name: buffers.clone() for name, buffers in case.buffers.items()}
    other["4"][0, 2] += off * (other["4"][1, 2] + 1e-5).sqrt()
    both: list[Mapping[str, Tensor]] = [case.buffers, other]

    signs = RanksDiffer().look(replace(case, ranks=both))

    if severity is None:
        assert signs is None
    else:
        assert signs is not None
        assert (signs.layers, signs.severity) == (("4",), severity)
        assert signs.evidence == f"up to {off:g} σ between 2 ranks, in '4'"


def test_nan_on_one_rank_is_a_warning() -> None:
    case = diagnose(make_healthy()).case
    other = {name: buffers.clone() for name, buffers in case.buffers.items()}
    other["4"][0, 2] = torch.nan

    signs = RanksDiffer().look(replace(case, ranks=[case.buffers, other]))

    assert signs is not None
    assert (signs.layers, signs.severity) == (("4",), "warning")
    assert signs.evidence == "NaN or infinite on some of 2 ranks, in '4'"
    assert RanksDiffer().look(replace(case, ranks=[other, other])) is None


@pytest.mark.slow
def test_ranks_of_a_group_are_compared(tmp_path: Path) -> None:
    script = """
from bnlab import diagnose
model = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).eval()
model[0].running_mean += 1.0 + rank
diagnosis = diagnose(model, ranks=dist.group.WORLD)
(finding,) = [found for found in diagnosis.faults if found.cause.code == "BN401"]
assert finding.severity == "warning", finding
"""
    run_two_ranks(script, tmp_path)


def test_buffers_that_are_not_finite_are_named_in_the_order_of_the_data() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm1d(8)
            self.first = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Reversed().eval()
    for layer in (model.first, model.last):
        get_running_buffers(layer)[0].fill_(math.nan)

    _, layers, evidence = tell(diagnose(model, [torch.randn(8, 8)], progress=False), "BN001")

    assert layers == ("first", "last")
    assert evidence.endswith("of 'first', the first in depth")
