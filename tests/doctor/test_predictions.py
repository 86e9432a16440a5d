"""Predictions in eval mode that are random, that depend on the batch, or that change from one forward to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose
from tests.doctor.digits import Batches, draw_batches, make_healthy
from tests.helpers import AddsItsCalls

Change = Callable[[Tensor], Any]


def draw() -> Batches:
    return draw_batches(4, 16)


class Wrapped(nn.Module):
    """A network whose images go through a function, and its output through another."""

    def __init__(self, of_output: Change, of_images: Change = torch.clone, network: nn.Module | None = None) -> None:
        super().__init__()
        self.of_output = of_output
        self.of_images = of_images
        self.network = make_healthy() if network is None else network

    def forward(self, images: Tensor) -> Any:
        return self.of_output(self.network(self.of_images(images)))


def divide_batch(images: Tensor) -> Tensor:
    """Divide a batch by its mean square."""
    return images / images.square().mean()


def divide_each(images: Tensor) -> Tensor:
    """Divide each image by its mean square."""
    return images / images.square().mean((1, 2, 3), keepdim=True)


def divide_several(images: Tensor) -> Tensor:
    if len(images) == 1:
        raise ArithmeticError("one image is no batch")
    return divide_batch(images)


def drop(x: Tensor) -> Tensor:
    """Drop values in eval mode too."""
    return F.dropout(x, 0.1)


def add_noise(size: float) -> Change:
    return lambda x: x + size * torch.randn_like(x)


def enlarge_last() -> Batches:
    """One large image changes what a network makes of the others."""
    images, labels = draw()[0]
    return [(torch.cat([images[:15], 50 * images[15:]]), labels)]


def compute_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class KeepsSize(nn.Module):
    """Keeps the size of its input in a buffer, in its first forward alone; returns the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("size").fill_(x.shape[-1])
        return x


def change_batches(change: Change) -> list[Tensor]:
    return [change(images) for images, _ in draw()]


def spoil_labels() -> list[Any]:
    """Give all batches of images the same three labels, so that they cannot be cut."""
    return [(images, torch.zeros(3)) for images, _ in draw()]


Row = tuple[str, Callable[[], nn.Module], Callable[[], list[Any]], str | None]

TWICE = "two runs of the same batch differ by "
ALONE = "images alone and in a batch differ by "
OTHER_INPUT = "an evaluation gives '1.1' another input"

ROWS: list[Row] = [
    ("dropout in eval mode", lambda: Wrapped(drop), draw, TWICE),
    ("its logits by name", lambda: Wrapped(lambda logits: {"logits": drop(logits)}), draw, TWICE),
    ("its logits first", lambda: Wrapped(lambda logits: (drop(logits), 0)), draw, TWICE),
    ("dropout and a cache", lambda: nn.Sequential(KeepsSize(), Wrapped(drop)), draw, TWICE),
    ("noise", lambda: Wrapped(torch.clone, add_noise(1.0)), draw, TWICE),
    ("hardly any noise", lambda: Wrapped(torch.clone, add_noise(0.003)), draw, None),
    (
        "a mean over three images",
        lambda: Wrapped(torch.clone, divide_batch),
        lambda: draw_batches(16, 3, seed=3),
        ALONE,
    ),
    ("a mean over the batch", lambda: Wrapped(torch.clone, divide_batch), lambda: draw_batches(3, 16), ALONE),
    ("one large image", lambda: Wrapped(torch.clone, divide_batch), enlarge_last, ALONE),
    ("no image alone", lambda: Wrapped(torch.clone, divide_several), draw, None),
    (
        "batches that cannot be cut",
        lambda: Wrapped(torch.clone, divide_batch),
        spoil_labels,
        None,
    ),
    ("a mean of each image", lambda: Wrapped(torch.clone, divide_each), draw, None),
    ("no averages", lambda: Wrapped(nn.BatchNorm1d(10, track_running_stats=False)), draw, None),  # BN402 tells
    ("counted calls", lambda: nn.Sequential(AddsItsCalls(), make_healthy()), draw, OTHER_INPUT),
    ("float32", make_healthy, draw, None),
    ("dropout", lambda: nn.Sequential(nn.Dropout(0.5), make_healthy()), draw, None),
    ("float64", lambda: make_healthy().double(), lambda: change_batches(Tensor.double), None),
    (
        "bfloat16",
        lambda: Wrapped(Tensor.float, network=make_healthy().bfloat16()),
        lambda: change_batches(Tensor.bfloat16),
        None,
    ),
    ("below rounding", lambda: Wrapped(lambda logits: 1000 + 1e-4 * logits), draw, None),
    ("nan", lambda: Wrapped(lambda logits: torch.full_like(logits, torch.nan)), draw, None),
    ("constant", lambda: Wrapped(torch.zeros_like), draw, None),
    ("classes", lambda: Wrapped(lambda logits: logits.argmax(1)), draw, None),
]


@pytest.mark.filterwarnings("ignore:.*another input:RuntimeWarning", "ignore:.*without running:RuntimeWarning")
@pytest.mark.parametrize(("name", "make", "load", "reported"), ROWS, ids=[row[0] for row in ROWS])
def test_predictions_are_random_or_depend_on_the_batch(
    name: str, make: Callable[[], nn.Module], load: Callable[[], list[Any]], reported: str | None
) -> None:
    diagnosis = diagnose(make().eval(), load(), progress=False)

    found = [finding for finding in diagnosis.faults if finding.cause.code == "BN211"]
    assert len(found) == (reported is not None), str(diagnosis)
    if reported is not None:
        assert found[0].evidence.startswith(reported)
        expected = (("1.1",), "error") if reported == OTHER_INPUT else (("",), "warning")
        assert (found[0].layers, found[0].severity) == expected


def test_an_output_of_one_number_is_not_probed_and_the_random_state_stays() -> None:
    make_healthy()  # is trained at its first call, which draws
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    diagnosis = diagnose(make_healthy(), draw(), forward=compute_loss, progress=False)
    diagnose(Wrapped(F.dropout).eval(), draw(), progress=False)

    assert "BN211" not in set(diagnosis.findings["code"])
    assert torch.equal(torch.rand(1), expected)
