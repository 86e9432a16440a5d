"""Predictions in eval mode that are random, that depend on the batch, or that change from one forward to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose
from tests.doctor.networks import find, make_batches, make_healthy
from tests.helpers import AddsItsCalls

BATCHES = make_batches(4, 16)


class Wrapped(nn.Module):
    """A healthy network whose output, in all modes, goes through a function."""

    def __init__(self, function: Callable[[Tensor], Any], network: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.network = make_healthy() if network is None else network

    def forward(self, images: Tensor) -> Any:
        return self.function(self.network(images))


class Divided(nn.Module):
    """A network whose images are divided by their mean square, over the whole batch or of each image."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.network = make_healthy()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images / images.square().mean(self.axes, keepdim=True))


class Noise(nn.Module):
    """Adds noise of a size, in eval mode too."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn_like(x)


class KeepsSize(nn.Module):
    """Keeps the size of its input in a buffer, in its first forward alone; returns the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("size").fill_(x.shape[-1])
        return x


def list_probes(model: nn.Module, batches: list[Any], **arguments: Any) -> list[str]:
    """List which of BN211 and BN212 are found."""
    found = diagnose(model.eval(), batches, progress=False, **arguments).faults
    return [finding.cause.code for finding in found if finding.cause.code in ("BN211", "BN212")]


# BN211


@pytest.mark.parametrize("structure", [lambda x: x, lambda x: {"logits": x}, lambda x: (x, 0)])
def test_bn211_finds_dropout_that_eval_does_not_turn_off(structure: Callable[[Tensor], Any]) -> None:
    model = Wrapped(lambda logits: structure(F.dropout(logits, 0.1)))

    finding = find("BN211", model.eval(), BATCHES)

    assert finding is not None
    assert finding.layers == ("",)
    assert finding.severity == "warning"
    assert list_probes(model, BATCHES) == ["BN211"]  # that images alone differ too is no second finding


def test_a_random_forward_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)

    torch.manual_seed(0)
    diagnose(Wrapped(F.dropout).eval(), BATCHES, progress=False)

    assert torch.equal(torch.rand(1), expected)


# BN212


@pytest.mark.parametrize("size", [1, 3, 16])
def test_bn212_finds_a_mean_over_the_whole_batch(size: int) -> None:
    model = Divided((0, 1, 2, 3)).eval()

    finding = find("BN212", model, make_batches(48 // size, size))

    assert finding is not None
    assert finding.layers == ("",)
    assert finding.severity == "warning"


def test_bn212_finds_what_a_network_with_one_large_image_does_to_the_others() -> None:
    images, labels = BATCHES[0]
    images = torch.cat([images[:15], 50 * images[15:]])

    assert list_probes(Divided((0, 1, 2, 3)), [(images, labels)]) == ["BN212"]


# Healthy networks


def make_bfloat16() -> nn.Module:
    return Wrapped(lambda logits: logits.float(), make_healthy().bfloat16())


@pytest.mark.parametrize(
    ("make_model", "change"),
    [
        (make_healthy, lambda images: images),
        (lambda: make_healthy(dropout=0.5), lambda images: images),
        (lambda: make_healthy().double(), lambda images: images.double()),
        (make_bfloat16, lambda images: images.bfloat16()),
        (lambda: Wrapped(lambda logits: 1000 + 1e-4 * logits), lambda images: images),  # below rounding
        (lambda: Wrapped(lambda logits: torch.full_like(logits, torch.nan)), lambda images: images),
        (lambda: Wrapped(torch.zeros_like), lambda images: images),
        (lambda: Wrapped(lambda logits: logits.argmax(1)), lambda images: images),
        (lambda: Divided((1, 2, 3)), lambda images: images),
    ],
    ids=["float32", "dropout", "float64", "bfloat16", "offset", "nan", "constant", "classes", "of each image"],
)
def test_healthy_predictions_are_quiet(make_model: Callable[[], nn.Module], change: Callable[[Tensor], Tensor]) -> None:
    batches = [change(images) for images, _ in BATCHES]

    assert list_probes(make_model(), batches) == []


class OnlyBatches(nn.Module):
    """A network that refuses to run images alone, and whose features are divided by a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Divided((0, 1, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            raise ArithmeticError("one image is no batch")
        return self.network(images)


def test_bn212_is_quiet_where_images_cannot_be_run_alone() -> None:
    assert list_probes(OnlyBatches(), BATCHES) == []


def test_bn212_is_quiet_where_batches_cannot_be_cut() -> None:
    batches = [(images, torch.zeros(3)) for images, _ in BATCHES]

    assert list_probes(Divided((0, 1, 2, 3)), batches) == []


def test_bn212_is_quiet_where_the_output_is_one_number() -> None:
    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    assert list_probes(make_healthy(), BATCHES, forward=compute_loss) == []


def test_bn212_leaves_batch_norms_without_averages_to_bn402() -> None:
    model = Wrapped(nn.BatchNorm1d(4, track_running_stats=False))

    assert list_probes(model, BATCHES) == []


# BN216


def test_bn216_a_model_that_changes_in_eval_mode_is_not_called_random() -> None:
    model = nn.Sequential(AddsItsCalls(), make_healthy()).eval()
    with pytest.warns(RuntimeWarning, match="another input"):
        diagnosis = diagnose(model, BATCHES, progress=False)

    codes = list(diagnosis.findings["code"])
    assert codes[0] == "BN216"
    assert not {"BN211", "BN212"} & set(codes)
    assert diagnosis.faults[0].layers == ("1.1",)
    assert not diagnosis.is_healthy


@pytest.mark.parametrize(("size", "codes"), [(1.0, {"BN211"}), (0.003, set())])
def test_bn216_leaves_random_predictions_to_bn211(size: float, codes: set[str]) -> None:
    model = nn.Sequential(Noise(size), make_healthy()).eval()
    with pytest.warns(RuntimeWarning, match="another input"):
        found = set(diagnose(model, BATCHES, progress=False).findings["code"])

    assert found & {"BN211", "BN216"} == codes


def test_bn211_looks_at_a_model_whose_first_forward_fills_a_cache() -> None:
    model = nn.Sequential(KeepsSize(), Wrapped(lambda logits: F.dropout(logits, 0.1)))

    assert list_probes(model, BATCHES) == ["BN211"]
