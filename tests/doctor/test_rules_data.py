"""Rules about averages on data, each on a network that shows its fault and on one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.rules.bn202 import find_chance
from bnlab.layers import get_running_buffers
from tests.doctor.networks import (
    NORMS,
    Batch,
    average,
    draw_images,
    find,
    get_conv,
    get_norm,
    list_images,
    make_batches,
    make_exact,
    make_healthy,
    reset,
    sort_images,
    split,
)

# Healthy networks


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 8), (4, 16), (30, 4), (5, 50)])
def test_healthy_networks_have_notes_at_most(seed: int, count: int, size: int) -> None:
    """With labels and without, in few batches and in small ones, the last one smaller than the others."""
    images, labels = draw_images(count * size - size // 2, seed=2)
    batches = split(images, labels, size)
    training = make_batches(8, seed=-1)
    model = make_healthy(seed)

    diagnoses = [
        diagnose(model, batches, progress=False),
        diagnose(model, list_images(batches), progress=False),
        diagnose(model, list_images(batches), training_batches=training, progress=False),
    ]

    severities = {finding.severity for diagnosis in diagnoses for finding in diagnosis.faults}
    assert severities <= {"note"}


# BN201


def average_in_small_batches(momentum: float) -> nn.Sequential:
    """Average 60 batches of 16 with this momentum."""
    model = make_healthy()
    for name in NORMS:
        get_norm(model, name).momentum = momentum
    average(model, make_batches(60, size=16, seed=-2))
    return model


def test_bn201_averages_of_few_batches_are_noisy() -> None:
    finding = find("BN201", average_in_small_batches(0.5), list_images(make_batches(50, size=16)))

    assert finding is not None
    assert "9" in finding.signs.layers
    assert finding.severity == "note"
    assert finding.signs.evidence.endswith("with momentum 0.5")


def test_bn201_is_quiet_where_nothing_is_off(images: list[Tensor]) -> None:
    assert find("BN201", make_exact(images), images) is None


def test_bn201_is_quiet_where_the_gap_is_more_than_noise(images: list[Tensor]) -> None:
    model = make_exact(images)
    for name in NORMS:
        mean, var = get_running_buffers(get_norm(model, name))
        mean.add_(0.3 * var.sqrt())

    assert find("BN201", model, images) is None


def test_bn201_is_quiet_where_variances_alone_are_far_off(images: list[Tensor]) -> None:
    model = make_exact(images)
    for name in NORMS:
        get_running_buffers(get_norm(model, name))[1].mul_(2)

    assert find("BN201", model, images) is None


# BN202


def test_bn202_batches_that_are_sorted_by_class(batches: list[Batch]) -> None:
    finding = find("BN202", make_healthy(), list_images(sort_images(batches)))

    assert finding is not None
    assert "9" in finding.signs.layers
    assert finding.severity == "note"  # a test loader may be sorted; its cost decides


def test_bn202_costs_what_averages_of_sorted_batches_cost(batches: list[Batch]) -> None:
    training = sort_images(make_batches(24, seed=-1))
    model = make_healthy()
    average(model, training)

    finding = find("BN202", model, batches, training_batches=training)

    assert finding is not None
    assert finding.severity in ("warning", "error")


@pytest.mark.parametrize("change", [lambda images: images + 1, lambda images: images / 2], ids=["mean", "contrast"])
@pytest.mark.parametrize("is_training", [False, True])
def test_bn202_a_batch_of_each_domain_in_turn(change: Callable[[Tensor], Tensor], is_training: bool) -> None:
    """Of these batches, or of those of training; nothing else explains averages that fit neither domain."""
    alternating = []
    for number, (batch, labels) in enumerate(make_batches(24)):
        alternating.append((change(batch) if number % 2 else batch, labels))
    model = make_healthy()
    average(model, alternating)
    second = [(change(batch), labels) for batch, labels in make_batches(8, seed=3)]

    if is_training:
        diagnosis = diagnose(model, second, training_batches=alternating, progress=False)
    else:
        diagnosis = diagnose(model, alternating, progress=False)

    codes = {finding.rule.code: finding.signs.layers for finding in diagnosis.faults}
    assert codes.get("BN202") == NORMS
    assert not {"BN108", "BN209"} & codes.keys()


def test_bn202_says_by_how_much_variances_differ() -> None:
    """Standard deviations 1 and 1/2: variances 1 and 1/4, of mean 5/8 and standard deviation 3/8·sqrt(24/23).

    Variances of 400 values have a relative standard error of sqrt(2/400) = 7%, so that a mean of twelve has one of 2%.
    """
    rows = [torch.randn(400, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    batches = [batch / 2 if number % 2 else batch for number, batch in enumerate(rows)]

    finding = find("BN202", nn.Sequential(nn.BatchNorm1d(3)).eval(), batches)

    assert finding is not None
    told = re.fullmatch(r"batch variances vary .* times as much as shuffled ones, by (\d+)%", finding.signs.evidence)
    assert told is not None
    assert int(told[1]) == pytest.approx(100 * 3 / 5 * (24 / 23) ** 0.5, abs=3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("count", "size"), [(2, 8), (4, 32), (10, 8)])
def test_bn202_is_quiet_on_shuffled_batches(seed: int, count: int, size: int) -> None:
    shuffled = [*make_batches(count, size, seed=10 + seed), *make_batches(1, size=3, seed=seed)]

    assert find("BN202", make_healthy(), list_images(shuffled)) is None


@pytest.mark.parametrize("freedom", [1, 3, 10, 100])
def test_bn202_chance_is_that_of_four_standard_deviations(freedom: int) -> None:
    """3.2e-5, up to the approximation of Wilson & Hilferty, which is worst for one degree of freedom."""
    assert 1e-5 < chi2.sf(find_chance(freedom) * freedom, freedom) < 1e-4


# BN203


class Flat(nn.Sequential):
    """A batch norm over 12 features of the images: as many values in a batch as images."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def test_bn203_batches_of_eight() -> None:
    model = Flat()
    average(model, make_batches(100, size=8, seed=-1))

    finding = find("BN203", model, list_images(make_batches(60, size=8)))

    assert finding is not None
    assert finding.signs.layers == ("2",)
    assert finding.signs.evidence.startswith("8 values in a batch: n/(n−1) is 1.14")
    assert finding.severity == "note"


def test_bn203_is_quiet_where_averages_are_of_larger_batches() -> None:
    model = Flat()
    average(model, make_batches(60, size=256, seed=-1))

    assert find("BN203", model, list_images(make_batches(200, size=8))) is None


def test_bn203_knows_the_size_of_training_batches() -> None:
    model = Flat()
    average(model, make_batches(100, size=8, seed=-1))
    images = list_images(make_batches(4, size=64))

    assert find("BN203", model, images) is None
    assert find("BN203", model, images, training_batches=make_batches(60, size=8, seed=-1)) is not None
    assert find("BN203", model, images, training_batches=make_batches(8, size=64, seed=-1)) is None


def test_bn201_gives_way_to_tiny_batches_which_explain_the_noise() -> None:
    model = Flat()
    average(model, make_batches(100, size=8, seed=-1))
    images = list_images(make_batches(4, size=64))
    batches = {size: make_batches(480 // size, size=size, seed=-1) for size in (8, 60)}

    assert find("BN201", model, images, training_batches=batches[8]) is None
    assert find("BN201", model, images, training_batches=batches[60]) is not None


# BN206


def test_bn206_averages_follow_dropout(images: list[Tensor]) -> None:
    finding = find("BN206", make_healthy(dropout=0.3), images)

    assert finding is not None
    assert "5" in finding.signs.layers
    assert "1" not in finding.signs.layers  # which has none in front
    assert finding.severity == "note"


def test_bn206_is_quiet_after_recalibration(images: list[Tensor]) -> None:
    assert find("BN206", make_exact(images, dropout=0.3), images) is None


def test_bn206_is_quiet_without_dropout(images: list[Tensor]) -> None:
    assert find("BN206", make_healthy(), images) is None


# BN301


def test_bn301_a_channel_is_dead(images: list[Tensor]) -> None:
    model = make_healthy()
    get_conv(model, "4").weight.data[3] = 0

    finding = find("BN301", model, images)

    assert finding is not None
    assert finding.signs.layers == ("5",)
    assert finding.signs.evidence == "of 8 channels 1 have a variance below 10 eps, 1 below 100 eps"


def test_bn301_channels_are_dominated_by_eps(images: list[Tensor]) -> None:
    model = make_healthy()
    get_norm(model, "5").eps = float(population_statistics(model, images)["5"].var.min()) / 50

    assert find("BN301", model, images) is not None


def test_bn301_is_a_note_whatever_other_faults_cost(batches: list[Batch]) -> None:
    model = reset(make_healthy())
    for number in (0, 4, 8):
        get_conv(model, str(number)).weight.data[0] = 0

    finding = find("BN301", model, batches)

    assert finding is not None
    assert finding.severity == "note"


def test_bn301_is_quiet_on_channels_that_vary(images: list[Tensor]) -> None:
    assert find("BN301", make_healthy(), images) is None
