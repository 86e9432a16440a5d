"""Measuring for the rules: the sample of images, and the layers that are looked at first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnlab import Statistics, diagnose, population_statistics, using
from bnlab.doctor import examination, examine
from bnlab.exact import population
from bnlab.exact.readers import DeviceReader
from bnlab.layers import batch_norm_layers
from tests.doctor.networks import list_images, make_batches, make_healthy
from tests.waits import Waits


def test_a_sample_is_spread_over_the_data() -> None:
    batches = [torch.full((64, 1), float(number)) for number in range(32)]

    sample = examine.take_sample(batches)

    assert [float(batch[0, 0]) for batch in sample] == [0, 4, 8, 12, 16, 20, 24, 28]


def test_a_sample_is_cut_to_512_images() -> None:
    assert [len(batch) for batch in examine.take_sample([torch.zeros(700, 1)])] == [512]
    assert [len(batch) for batch in examine.take_sample([torch.zeros(300, 1)] * 2)] == [300, 212]
    assert [len(batch) for batch in examine.take_sample([torch.zeros(3, 1)] * 2)] == [3, 3]


def test_reversed_channels_are_those_of_the_layer_that_data_reaches_first() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm2d(3)
            self.first = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    images = list_images(make_batches(2))
    evidence = diagnose(Backwards(), images, progress=False).case.evidence

    assert evidence is not None
    straight = evidence.changed["as they are"]
    flipped = evidence.changed["reversed"]
    assert list(flipped) == list(straight) == ["first"]
    assert torch.allclose(straight["first"].mean, torch.cat(images).double().mean((0, 2, 3)))
    assert torch.equal(flipped["first"].mean, straight["first"].mean.flip(0))


def test_what_is_no_image_is_not_changed() -> None:
    evidence = diagnose(nn.BatchNorm1d(3), [torch.randn(8, 3)], progress=False).case.evidence

    assert evidence is not None
    assert evidence.changed == {}


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


def test_single_layers_cost_nothing_to_be_measured_where_all_together_do_not() -> None:
    """On 256 images the interval ends below two points; two images leave open whether averages cost anything."""
    healthy = diagnose(make_healthy(), make_batches(8), progress=False)
    undecided = diagnose(make_healthy(), make_batches(1, size=2), progress=False)
    stricter = diagnose(make_healthy(), make_batches(8), worth=1e-3, progress=False)

    assert healthy.verdict == "healthy"
    assert healthy.table["cost"].isna().all()
    assert undecided.verdict == stricter.verdict == "undecided"
    assert undecided.table["cost"].notna().all()
    assert stricter.table["cost"].notna().all()


def test_single_layers_cost_what_their_buffers_alone_do() -> None:
    model = make_healthy()
    layer = model.get_submodule("5")
    assert isinstance(layer, nn.BatchNorm2d)
    layer.reset_running_stats()
    batches = make_batches(8)

    evidence = diagnose(model, batches, progress=False).case.evidence
    assert evidence is not None and evidence.scores is not None
    exact = population_statistics(model, batches, progress=False)
    others = {name: moments for name, moments in exact.items() if name != "5"}
    with using(model, Statistics(others, exact.eps)):
        right = torch.cat([model(images).argmax(1) == labels for images, labels in batches])

    expected = evidence.scores.mean("exact") - float(right.double().mean())
    assert evidence.costs["5"] == pytest.approx(expected)
    assert expected > 0.02
    assert abs(evidence.costs["1"]) < 0.02


def test_nobody_waits_for_a_device_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (examination, population):
        monkeypatch.setattr(module, "choose_reader", lambda *_: DeviceReader())
    monkeypatch.setattr(examine, "is_harmless", lambda *_: False)  # so that single layers are measured too
    model = make_healthy()
    layers = batch_norm_layers(model, caller="test")
    of_model = examination.Examination.of(model, layers, None, None, False)

    def count_waits(batches: int) -> int:
        data = make_batches(batches, size=16)
        with Waits() as waits:
            examine.examine(of_model, data, None, worth=0.005)
            examine.examine_training(of_model, data)
        return waits.counts.total()

    assert count_waits(9) == count_waits(5)
