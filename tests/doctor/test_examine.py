"""Measuring for the causes: dropout, forwards and waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor import examination, examine
from bnlab.exact import population
from bnlab.exact.readers import DeviceReader
from bnlab.layers import batch_norm_layers
from tests.doctor.networks import list_images, make_batches, make_exact, make_healthy
from tests.waits import Waits


def test_dropout_raises_the_variance_behind_it() -> None:
    """With probability p and values of mean μ and variance v, to v + (v + μ²)·p/(1−p) before another layer."""
    images = list_images(make_batches(60))
    model = nn.Sequential(nn.Dropout(0.2), nn.BatchNorm2d(3))
    evidence = diagnose(model, images, progress=False).case.evidence

    moments = population_statistics(model, images, progress=False)["1"]
    expected = 1 + (moments.var + moments.mean.square()) / moments.var * 0.25
    assert evidence is not None
    assert torch.allclose(evidence.dropped["1"], expected, rtol=0.02)


@pytest.mark.parametrize(("place", "passes"), [("7", 1), ("11", 0)], ids=["before the last layer", "behind it"])
def test_dropout_is_measured_where_layers_follow_it(place: str, passes: int) -> None:
    """In one more pass over 5 batches of 32 images."""
    model = make_healthy()
    dropout = model.get_submodule(place)
    assert isinstance(dropout, nn.Dropout)
    sizes: list[int] = []

    def forward(model: nn.Module, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return model(images)

    def count_passes(probability: float) -> float:
        dropout.p = probability
        sizes.clear()
        diagnose(model, list_images(make_batches(5)), forward=forward, progress=False)
        return sizes.count(32) / 5

    assert count_passes(0.5) == count_passes(0.0) + passes


def test_without_dropout_nothing_is_dropped() -> None:
    model = nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(3))
    evidence = diagnose(model, list_images(make_batches(2)), progress=False).case.evidence

    assert evidence is not None
    assert evidence.dropped == {}


def count_forwards(model: nn.Module, batches: int) -> tuple[int, float]:
    """Count the forwards of a diagnosis: of all images, and of eight or sixteen."""
    sizes: list[int] = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return model(batch[0])

    diagnose(model, make_batches(batches, size=64), forward=forward, progress=False)
    return sum(size < 64 for size in sizes), sizes.count(64) / batches


def test_a_healthy_network_takes_six_forwards_and_probes_of_one_batch() -> None:
    """Whose first layer fits, so that nothing is proposed."""
    model = make_exact(list_images(make_batches(8, size=64)))

    few, passes = count_forwards(model, 8)

    assert passes <= 6
    assert few <= 12


def test_nobody_waits_for_a_device_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (examination, population):
        monkeypatch.setattr(module, "choose_reader", lambda *_: DeviceReader())
    model = make_healthy()
    layers = batch_norm_layers(model, caller="test")
    of_model = examination.Examination.of(model, layers, None, None, False)

    def count_waits(batches: int) -> int:
        data = make_batches(batches, size=16)
        with Waits() as waits:
            examine.examine(of_model, data, None)
            examine.examine_training(of_model, data)
        return waits.counts.total()

    assert count_waits(9) == count_waits(5)
