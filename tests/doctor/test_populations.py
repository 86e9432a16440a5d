"""Batches that are not alike, calls of a layer that differ, and channels that hardly vary: signs that data shows."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.causes.bn202 import find_chance
from bnlab.doctor.gallery import FAULTS
from bnlab.doctor.gallery import make_healthy as make_gallery_healthy
from tests.doctor.networks import (
    Batch,
    change_images,
    find,
    get_conv,
    get_norm,
    list_images,
    make_batches,
    make_healthy,
    sort_images,
)

# Batches


def test_batches_that_are_sorted_by_class_are_a_note(batches: list[Batch]) -> None:
    """A test loader may be sorted."""
    finding = find("BN202", make_healthy(), list_images(sort_images(batches)))

    assert finding is not None
    assert "9" in finding.layers
    assert finding.severity == "note"


def test_by_how_much_variances_of_batches_differ_is_told() -> None:
    """Standard deviations 1 and 1/2: variances 1 and 1/4, of mean 5/8 and standard deviation 3/8·sqrt(24/23).

    Variances of 400 values have a relative standard error of sqrt(2/400) = 7%, so that a mean of twelve has one of 2%.
    """
    rows = [torch.randn(400, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    batches = [batch / 2 if number % 2 else batch for number, batch in enumerate(rows)]

    finding = find("BN202", nn.Sequential(nn.BatchNorm1d(3)).eval(), batches)

    assert finding is not None
    told = re.fullmatch(r"batch variances vary .* times as much as shuffled ones, by (\d+)%", finding.evidence)
    assert told is not None
    assert int(told[1]) == pytest.approx(100 * 3 / 5 * (24 / 23) ** 0.5, abs=3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "size"), [(2, 8), (10, 8)])
def test_shuffled_batches_are_alike(seed: int, count: int, size: int) -> None:
    shuffled = [*make_batches(count, size, seed=10 + seed), *make_batches(1, size=3, seed=seed)]

    assert find("BN202", make_healthy(), list_images(shuffled)) is None


@pytest.mark.parametrize("freedom", [1, 3, 10, 100])
def test_chance_is_that_of_four_standard_deviations(freedom: int) -> None:
    """3.2e-5, up to the approximation of Wilson & Hilferty, which is worst for one degree of freedom."""
    assert 1e-5 < chi2.sf(find_chance(freedom) * freedom, freedom) < 1e-4


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 8), (30, 4), (5, 50)])
def test_healthy_networks_have_notes_at_most_whatever_the_batches(count: int, size: int) -> None:
    """With labels and without, in few batches and in small ones."""
    batches = make_batches(count, size, seed=2)
    training = make_batches(8, seed=-1)

    diagnoses = [
        diagnose(make_healthy(), batches, progress=False),
        diagnose(make_healthy(), list_images(batches), progress=False),
        diagnose(make_healthy(), list_images(batches), training_batches=training, progress=False),
    ]

    assert {finding.severity for diagnosis in diagnoses for finding in diagnosis.faults} <= {"note"}


# Calls of a forward


class Pair(nn.Module):
    """Gives a network both images of pairs [N, 2, 3, 8, 8]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pairs: Tensor) -> Tensor:
        return self.network(pairs[:, 0]) + self.network(pairs[:, 1])


def pair(images: Tensor, others: Tensor) -> Tensor:
    return torch.stack((images, others), 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda images: images + 3, "2 calls a forward: their means make up"), (lambda images: 0.3 * images, "-fold")],
)
def test_two_domains_through_one_layer_are_seen_without_labels(
    change: Callable[[Tensor], Tensor], told: str, images: list[Tensor]
) -> None:
    pairs = [pair(batch, change(batch)) for batch in images[:8]]

    finding = find("BN204", Pair(make_healthy()), pairs)

    assert finding is not None
    assert finding.layers[0] == "network.1"
    assert told in finding.evidence


def test_two_images_of_one_population_are_none(images: list[Tensor]) -> None:
    others = list_images(make_batches(8, seed=2))
    pairs = [pair(batch, other) for batch, other in zip(images[:8], others, strict=True)]

    assert find("BN204", Pair(make_healthy()), pairs) is None
    assert find("BN204", make_healthy(), images) is None


# Channels


def test_a_dead_channel_is_a_note_whatever_other_faults_cost(batches: list[Batch]) -> None:
    model = make_healthy()
    get_conv(model, "4").weight.data[3] = 0
    get_norm(model, "9").reset_running_stats()

    finding = find("BN301", model, batches)

    assert finding is not None
    assert (finding.layers, finding.severity) == (("5",), "note")
    assert finding.evidence == "of 8 channels 1 have a variance below 10 eps, 1 below 100 eps"


def test_channels_may_be_dominated_by_eps(images: list[Tensor]) -> None:
    model = make_healthy()
    assert find("BN301", model, images) is None

    get_norm(model, "5").eps = float(population_statistics(model, images, progress=False)["5"].var.min()) / 50

    assert find("BN301", model, images) is not None


def test_layers_that_no_batch_reaches_are_named(batches: list[Batch]) -> None:
    model = make_healthy()
    model[12].register_module("unused", nn.BatchNorm1d(4))

    finding = find("BN901", model, change_images(batches[:2], lambda images: images))

    assert finding is not None
    assert (finding.layers, finding.evidence) == (("12.unused",), "1 reached by no batch")


def test_a_sorted_test_loader_is_not_why_averages_lag() -> None:
    specimen = FAULTS["stopped in the middle"].spoil(make_gallery_healthy())
    images = torch.cat([batch for batch, _ in specimen.batches])
    labels = torch.cat([batch for _, batch in specimen.batches])
    order = labels.argsort()
    batches = list(zip(images[order].split(64), labels[order].split(64), strict=True))

    codes = [finding.cause.code for finding in diagnose(specimen.model, batches, progress=False).faults]

    assert codes == ["BN108", "BN202"]
