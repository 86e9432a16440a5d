"""The experiment: which undo is preferred, on planted values, and how images are shared out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.common.scores import estimate_mean
from bnlab.doctor import Undo
from bnlab.doctor.evidence.sample import MOST_IMAGES, split_halves, take_sample
from bnlab.doctor.evidence.scores import measure_likelihood
from bnlab.doctor.evidence.scoring import Judged
from bnlab.doctor.evidence.setup import measure, measure_under, set_up
from bnlab.doctor.interventions.experiment import Trial, UndoExperiment
from bnlab.model.layers import batch_norm_layers
from tests.doctor.causes import Planted
from tests.helpers import assert_equal_statistics, unchanged


def draw(images: int, seed: int) -> Tensor:
    """Draw standard normal numbers that have mean 0 and standard deviation 1 exactly."""
    values = torch.randn(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values - values.mean()) / values.std()


def plant(gains: Sequence[tuple[float, float]], images: int = 1000, spread: float = 0.1) -> UndoExperiment:
    """Plant undos that bring back so much of the likelihood, each with its degrees.

    Args:
        gains: of each undo the mean gain and the degrees.
        images: number of images.
        spread: standard deviation over images of what one undo brings back more than another.
    """
    as_is = Judged(torch.zeros(images).double(), draw(images, 0))
    trials = []
    for number, (gain, degrees) in enumerate(gains, start=1):
        likelihood = as_is.likelihoods + gain + spread * draw(images, number)
        undo = Undo(f"undo {number}", ("1",), degrees, lambda model, stack: None)
        trials.append(Trial(Planted(), undo, Judged(torch.full((images,), gain).double(), likelihood)))
    return UndoExperiment(as_is, trials, has_labels=True)


def name_trials(trials: Sequence[Trial]) -> list[str]:
    return [trial.undo.words.removeprefix("undo ") for trial in trials]


@pytest.mark.parametrize(
    ("gains", "images", "spread", "chosen", "rivals"),
    [
        ([(1.0, 64), (0.95, 2)], 1000, 0.1, "2", ""),  # all but 5%: the smaller one
        ([(1.0, 64), (0.70, 2)], 1000, 0.1, "1", ""),  # it leaves 30%
        ([(1.0, 64), (0.95, 2), (0.96, 2)], 1000, 0.1, "23", ""),  # as small: both
        ([(1.0, 64), (0.95, 8), (0.97, 2), (0.5, 0)], 1000, 0.1, "3", ""),
        ([(1.0, 2), (0.99, 64)], 1000, 0.1, "1", ""),  # a larger one is never preferred
        ([(1.0, 64), (0.95, 2)], 2000, 0.7, "2", ""),
        ([(1.0, 64), (0.95, 2)], 20, 0.7, "1", "2"),  # too few images to show that it leaves less than a tenth
    ],
)
def test_the_smallest_undo_that_brings_back_all_but_a_tenth_is_chosen(
    gains: list[tuple[float, float]], images: int, spread: float, chosen: str, rivals: str
) -> None:
    experiment = plant(gains, images, spread)

    assert experiment.best is not None and name_trials([experiment.best]) == ["1"]
    choice = experiment.choose()
    assert name_trials(choice.chosen) == list(chosen)
    assert name_trials(choice.rivals) == list(rivals)
    assert name_trials(experiment.choose_shown()) == list(chosen)


def plant_scores(gain: float, likelihood: float, images: int = 1000) -> UndoExperiment:
    """Plant one undo that makes a share of all images right, and labels so much likelier with a spread of 0.1."""
    right = torch.arange(images).double() / images
    as_is = Judged((right < 0.5).double(), torch.zeros(images).double())
    judged = Judged((right < 0.5 + gain).double(), likelihood + 0.1 * draw(images, 1))
    undo = Undo("undo 1", ("1",), 2, lambda model, stack: None)
    return UndoExperiment(as_is, [Trial(Planted(), undo, judged)], has_labels=True)


@pytest.mark.parametrize(
    ("gain", "likelihood", "by_scores"),
    [
        (0.05, -0.1, True),  # surely 5 points, though errors are surer of themselves
        (0.05, 0.0, True),
        (0.05, 0.1, False),  # labels are likelier, which tells more
        (0.005, -0.1, False),  # half a point is not worth it
        (0.01, -0.1, False),  # 0.4 to 1.6 points
        (-0.05, -0.1, False),
    ],
)
def test_scores_count_where_they_surely_gain_and_likelihoods_do_not(
    gain: float, likelihood: float, by_scores: bool
) -> None:
    planted = plant_scores(gain, likelihood)

    judged = planted.rank_by_scores()

    assert (judged is not planted) == by_scores
    assert judged.best is not None
    if by_scores:
        assert judged.measure_ranked_gain(judged.best).value == pytest.approx(gain)
        assert name_trials(judged.choose_shown()) == ["1"]


def test_nothing_is_shown_where_the_best_may_bring_back_nothing() -> None:
    """A gain of .02 with a standard deviation of 1 over 1,000 images, .032 of their mean."""
    assert plant([(0.02, 2)], spread=1.0).choose_shown() == []
    assert name_trials(plant([(0.2, 2)], spread=1.0).choose_shown()) == ["1"]
    assert plant([]).best is None
    assert plant([]).choose_shown() == []


@pytest.mark.parametrize("tests", [1, 8])
def test_an_interval_by_hand(tests: int) -> None:
    """Mean 2 and standard deviation 1 of 100, for so many differences at once."""
    gain = estimate_mean(2 + draw(100, 3), tests=tests)

    half = NormalDist().inv_cdf(1 - 0.025 / tests) / 10
    assert gain.value == pytest.approx(2)
    assert (gain.low, gain.high) == pytest.approx((2 - half, 2 + half))
    one = estimate_mean(torch.tensor([0.3], dtype=torch.float64), tests=tests)
    assert (one.low, one.high) == (-math.inf, math.inf)


# Likelihoods


def test_likelihood_is_the_log_softmax_of_the_label() -> None:
    """One that is surely wrong, or NaN, is no worse than −10."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [30.0, 0.0, 0.0], [1.0, 0.0, 0.5], [math.nan, 0.0, 0.0]])
    labels = torch.tensor([1, 2, 0, 0])

    values = measure_likelihood(logits, labels)

    expected = -F.cross_entropy(logits.double(), labels, reduction="none")
    assert values is not None and values.dtype == torch.float64
    assert torch.allclose(values, expected.nan_to_num(-10).clamp(min=-10))


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (torch.zeros(3, 1), torch.tensor([0, 1, 0])),  # one logit
        (torch.zeros(3), torch.tensor([0, 1, 0])),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.0])),  # numbers
        (torch.zeros(3, 2), torch.tensor([0, 1, 2])),  # a class too many
        (torch.zeros(3, 2), None),
        ("text", torch.tensor([0])),
    ],
)
def test_what_is_no_class_has_no_likelihood(output: Any, labels: Tensor | None) -> None:
    assert measure_likelihood(output, labels) is None


# Images


@pytest.mark.parametrize(
    ("sizes", "halves"),
    [([4, 4, 4, 4], ([4, 4], [4, 4])), ([4, 4, 4], ([4, 4], [4])), ([5], ([2], [3])), ([1], ([1],))],
)
def test_halves_share_out_all_images(sizes: list[int], halves: tuple[list[int], ...]) -> None:
    numbers = torch.arange(float(sum(sizes)))[:, None]
    data = [(rows, rows[:, 0].long()) for rows in numbers.split(sizes)]

    parts = split_halves(data)

    assert tuple([len(images) for images, _ in part] for part in parts) == halves
    images = torch.cat([images for part in parts for images, _ in part])
    labels = torch.cat([labels for part in parts for _, labels in part])
    assert sorted(labels.tolist()) == list(range(sum(sizes)))
    assert torch.equal(images[:, 0].long(), labels)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        (50, 60, list(range(0, 60, 3))),
        (100, 19, [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]),
        (1, 1999, [number * 1999 // 1000 for number in range(1000)]),
    ],
)
def test_a_sample_is_spread_over_the_data(size: int, count: int, expected: list[int]) -> None:
    batches = [torch.full((size, 1), float(number)) for number in range(count)]

    sample = take_sample(batches)

    assert [int(batch[0, 0]) for batch in sample] == expected
    assert sum(map(len, sample)) == MOST_IMAGES == 1000


@pytest.mark.parametrize(("size", "sizes"), [(700, [700, 300]), (3, [3, 3])])
def test_the_last_batch_of_a_sample_is_cut(size: int, sizes: list[int]) -> None:
    batches = [torch.zeros(size, 1), torch.zeros(size, 1)]

    assert [len(batch) for batch in take_sample(batches)] == sizes


def test_given_statistics_are_what_layers_are_measured_under() -> None:
    """Under their exact statistics, calls of a shared layer give these again: the search for them has settled there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    batches = [torch.randn(8, 4) for _ in range(4)]
    task = set_up(model.eval(), batch_norm_layers(model, caller="test"), None, None, False).on(batches)
    exact = measure(task)
    assert exact.cost is not None and exact.cost.passes > 1

    with unchanged(model):
        found = measure_under(task, exact)

    # The search ends where no mean, in σ, and no log variance moves by more than 1e-6; float32 rounds by as much.
    assert_equal_statistics(found, exact)
