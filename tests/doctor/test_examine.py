"""Measuring for the causes: dropout, forwards and waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics, recalibrate
from bnlab.doctor.evidence import examine, setup
from bnlab.doctor.evidence.case import Case
from bnlab.exact import population
from bnlab.model.layers import batch_norm_layers
from bnlab.model.reading import DeviceReader
from tests.doctor.digits import draw_batches, list_images, make_exact, make_healthy
from tests.waits import Waits


def measure_dropped(model: nn.Module, images: list[Tensor]) -> Any:
    return diagnose(model, images, progress=False).case.dropped


def test_dropout_raises_the_variance_behind_it() -> None:
    """With probability p and values of mean μ and variance v, to v + (v + μ²)·p/(1−p) before another layer."""
    images = list_images(draw_batches(1, 1000))
    model = nn.Sequential(nn.Dropout(0.2), nn.BatchNorm2d(3))

    moments = population_statistics(model, images, progress=False)["1"]
    expected = 1 + (moments.var + moments.mean.square()) / moments.var * 0.25
    assert torch.allclose(measure_dropped(model, images)["1"], expected, rtol=0.02)
    assert measure_dropped(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(3)), images[:2]) == {}


def count_forwards(model: nn.Module, batches: int, size: int = 64) -> tuple[int, float, int]:
    """Count the forwards of a diagnosis, of a few images and of all, and what it tried."""
    sizes: list[int] = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return model(batch[0])

    diagnosis = diagnose(model, draw_batches(batches, size=size), forward=forward, progress=False)
    return sum(count < size for count in sizes), sizes.count(size) / batches, len(diagnosis.trials)


def test_dropout_is_measured_in_one_more_pass() -> None:
    model = make_healthy()
    dropout = nn.Dropout()
    model.set_submodule("5", nn.Sequential(nn.ReLU(), dropout))
    model.eval()

    counts = []
    for probability in (0.0, 0.5):
        dropout.p = probability
        counts.append(count_forwards(model, 5)[1])

    assert counts[1] == counts[0] + 1


def test_a_healthy_network_takes_six_forwards_and_probes_of_one_batch() -> None:
    """Whose first layer fits, so that nothing is proposed."""
    model = make_exact(list_images(draw_batches(8, size=64)))

    few, passes, _ = count_forwards(model, 8)

    assert passes <= 6
    assert few <= 12


class SharedHead(nn.Module):
    """Gives the same three batch norms the images, and then their squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.BatchNorm2d(3)
        blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3)]
        self.head = nn.Sequential(*blocks)
        self.out = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out((self.head(x) + self.head(x.square())).relu().mean((2, 3)))


@pytest.mark.parametrize(("fits", "up_to_first"), [(True, 0), (False, 14)])
def test_layers_that_are_called_twice_are_measured_in_several_passes_once(fits: bool, up_to_first: int) -> None:
    """Five passes settle a chain of three; the halves of the images take one together, as does each undo.

    Where the first layer does not fit, passes that end there look at the images as they are, twice for each of four
    fits of scale and shift, and for what these and reversed channels explain.
    """
    model = SharedHead().eval()
    if fits:
        recalibrate(model, draw_batches(8, size=64), layers=["stem"], force=True)

    _, passes, trials = count_forwards(model, 8)

    checked = 0.5  # four of eight batches are evaluated once more
    scored = 3  # under running, exact and each batch's own statistics
    halves = 1
    unchanged = 1
    assert trials > 0
    assert passes <= 5 + checked + scored + halves + unchanged + trials + up_to_first


def test_nobody_waits_for_a_device_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (setup, population):
        monkeypatch.setattr(module, "choose_reader", lambda *_: DeviceReader())
    model = make_healthy()
    layers = batch_norm_layers(model, caller="test")
    case = Case(model, layers, (), (), {})
    task = setup.set_up(model, layers, None, None, False)

    def count_waits(batches: int) -> int:
        data = draw_batches(batches, size=16)
        with Waits() as waits:
            examine.examine(case, task.on(data), None)
            examine.add_training(case, task.on(data), None)
        return waits.counts.total()

    assert count_waits(9) == count_waits(5)
