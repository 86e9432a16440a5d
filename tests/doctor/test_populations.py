"""Batches that are not alike, calls of a layer that differ, and channels that hardly vary: signs that data shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.causes.bn202 import compute_chance
from bnlab.doctor.verdict.findings import Finding
from tests.doctor import digits
from tests.doctor.digits import Batches, draw_batches, get_norm, list_images, make_healthy


def find(code: str, model: nn.Module, batches: Sequence[Any]) -> Finding | None:
    """Diagnose a model, and return the finding of a code; None without."""
    found = diagnose(model, batches, progress=False).faults
    return next((finding for finding in found if finding.cause.code == code), None)


# Batches


def test_batches_that_are_sorted_by_class_are_a_note(batches: Batches) -> None:
    """A test loader may be sorted."""
    finding = find("BN202", make_healthy(), list_images(digits.sort_by_class(batches)))

    assert finding is not None
    assert "7" in finding.layers
    assert finding.severity == "note"


def test_by_how_much_variances_of_batches_differ_is_told() -> None:
    """Standard deviations 1 and 1/2: variances 1 and 1/4, of mean 5/8 and standard deviation 3/8·sqrt(24/23).

    Variances of 400 values have a relative standard error of sqrt(2/400) = 7%, so that a mean of twelve has one of 2%.
    """
    rows = [torch.randn(400, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    batches = [batch / 2 if number % 2 else batch for number, batch in enumerate(rows)]

    finding = find("BN202", nn.Sequential(nn.BatchNorm1d(3)).eval(), batches)

    assert finding is not None
    reported = re.fullmatch(r"batch variances vary .* times as much as shuffled ones, by (\d+)%", finding.evidence)
    assert reported is not None
    assert int(reported[1]) == pytest.approx(100 * 3 / 5 * (24 / 23) ** 0.5, abs=3)


@pytest.mark.parametrize("freedom", [1, 3, 10, 100])
def test_chance_is_that_of_four_standard_deviations(freedom: int) -> None:
    """3.2e-5, up to the approximation of Wilson & Hilferty, which is worst for one degree of freedom."""
    from scipy.stats import chi2

    assert 1e-5 < chi2.sf(compute_chance(freedom) * freedom, freedom) < 1e-4


MANY = pytest.param(30, 4, marks=pytest.mark.slow)


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 8), MANY, (5, 50), (2, 8), (10, 8)])
def test_healthy_networks_have_notes_at_most_whatever_the_batches(count: int, size: int) -> None:
    """With labels and without, in few batches and in small ones, which are alike."""
    batches = [*draw_batches(count, size, seed=12), *draw_batches(1, size=3, seed=2)]
    training = draw_batches(8, seed=-1)

    diagnoses = [
        diagnose(make_healthy(), batches, progress=False),
        diagnose(make_healthy(), list_images(batches), progress=False),
        diagnose(make_healthy(), list_images(batches), training_batches=training, progress=False),
    ]

    findings = [finding for diagnosis in diagnoses for finding in diagnosis.faults]
    assert {finding.severity for finding in findings} <= {"note"}
    assert "BN202" not in {finding.cause.code for finding in findings}


# Calls of a forward


class Pair(nn.Module):
    """Gives a network both images of pairs [N, 2, 3, 8, 8]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pairs: Tensor) -> Tensor:
        return self.network(pairs[:, 0]) + self.network(pairs[:, 1])


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda images: images + 3, "2 calls a forward: their means make up"),
        (lambda images: 0.3 * images, "-fold"),
        (lambda images: images.flip(0), None),  # of one population
    ],
)
def test_two_domains_through_one_layer_are_seen_without_labels(
    change: Callable[[Tensor], Tensor], reported: str | None, images: list[Tensor]
) -> None:
    pairs = [torch.stack((batch, change(batch)), 1) for batch in images[:4]]

    finding = find("BN204", Pair(make_healthy()), pairs)

    assert (finding is None) == (reported is None)
    if finding is not None and reported is not None:
        assert finding.layers[0] == "network.1"
        assert reported in finding.evidence


# Channels


def test_a_dead_channel_is_a_note_whatever_other_faults_cost(batches: Batches) -> None:
    model = make_healthy()
    model.get_submodule("3").get_parameter("weight").data[3] = 0
    get_norm(model, "7").reset_running_stats()

    finding = find("BN301", model, batches[:8])

    assert finding is not None
    assert (finding.layers, finding.severity) == (("4",), "note")
    assert finding.evidence == "variances below 10 eps in 1 of 32 channels, below 100 eps in 1"


def test_a_channel_that_never_varies_is_dead_without_eps_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.0)).eval()
    for parameter in model[0].parameters():
        parameter.data[2] = 0

    finding = find("BN301", model, [torch.randn(50, 3, generator=torch.Generator().manual_seed(0))])

    assert finding is not None
    assert finding.evidence.startswith("variances below 10 eps in 1 of 4 channels")


def test_channels_may_be_dominated_by_eps(images: list[Tensor]) -> None:
    """None is dead, of a variance below 10 eps, and many are below 100 eps."""
    model = make_healthy()
    few = images[:8]
    assert find("BN301", model, few) is None

    get_norm(model, "4").eps = float(population_statistics(model, few, progress=False)["4"].var.min()) / 11

    assert find("BN301", model, few) is not None
