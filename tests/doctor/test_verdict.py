"""The verdict on planted scores and undos: each of its words, and where one ends and the next begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.doctor import Cause, Undo
from bnlab.doctor.case import Case
from bnlab.doctor.experiment import Experiment, Trial
from bnlab.doctor.scores import Difference, Scores
from bnlab.doctor.undoing import EACH_BATCH, Kind
from bnlab.doctor.verdict import WORTH, Verdict, find_worth, judge, tell_gain
from tests.doctor.causes import Planted

IMAGES = 1000


def make_case(*, training: bool = False, expected: float | None = None) -> Case:
    """Make a case of one layer, which fits."""
    layer = nn.BatchNorm1d(2).eval()
    layer.running_mean.fill_(1)  # type: ignore[union-attr]
    return replace(diagnose(layer.train(training)).case, expected=expected)


def make_values(right: int, images: int = IMAGES) -> Tensor:
    """Make values of images of which the first so many are right."""
    return torch.cat([torch.ones(right), torch.zeros(images - right)]).double()


def make_scores(commonest: float | None = None, images: int = IMAGES, **right: int) -> Scores:
    values = {kind: make_values(count, images) for kind, count in right.items()}
    return Scores(values, are_shares=True, commonest=commonest)


def make_experiment(
    right: int, undos: Sequence[tuple[Kind, float, int]], images: int = IMAGES, shared: str = ""
) -> Experiment:
    """Make an experiment in which so many images are right as it is, and more under undos.

    Args:
        right: images that are right as it is.
        undos: of each its cause's kind, its degrees, and how many images are right; likelihoods are ten times that.
        images: number of images.
        shared: which shared undo all are.
    """
    as_is = torch.stack((make_values(right, images), 10 * make_values(right, images)))
    trials = []
    for number, (kind, degrees, count) in enumerate(undos):
        cause: Cause = type("Own", (Planted,), {"kind": kind, "code": f"OWN{number}"})()
        undo = Undo(f"undo {number}", ("",), degrees, lambda model, stack: None, shared)
        values = torch.stack((make_values(count, images), 10 * make_values(count, images)))
        trials.append(Trial(cause, undo, values))
    return Experiment(as_is, trials, has_labels=True)


def conclude(scores: Scores, experiment: Experiment | None = None, case: Case | None = None) -> Verdict:
    return judge(case or make_case(), scores, experiment, WORTH)


# What brings the score back


@pytest.mark.parametrize("kind", ["averages", "images", "network", "mode"])
def test_the_word_is_the_kind_of_the_cause_whose_undo_brings_the_score_back(kind: Kind) -> None:
    experiment = make_experiment(600, [(kind, 0, 900)])

    verdict = conclude(make_scores(running=600, exact=600), experiment)

    assert verdict.word == kind
    assert [trial.cause.code for trial in verdict.chosen] == ["OWN0"]


@pytest.mark.parametrize(
    ("undos", "word"),
    [
        ([("averages", 64, 900), ("images", 2, 895)], "images"),  # all but a sixtieth
        ([("averages", 64, 900), ("images", 2, 800)], "averages"),  # a third is left
        ([("averages", 0, 900), ("images", 2, 900)], "averages"),
        ([("averages", 2, 900), ("images", 2, 900)], "averages or images"),
        ([("averages", 64, 900), ("images", 2, 875)], "undecided"),  # a twelfth, which 1,000 images do not show
        ([("averages", 64, 900), ("averages", 2, 875)], "averages"),  # the same word for both
    ],
)
def test_the_smaller_undo_decides(undos: list[tuple[Kind, float, int]], word: str) -> None:
    verdict = conclude(make_scores(running=600, exact=900), make_experiment(600, undos))

    assert verdict.word == word, verdict.sentence
    if word == "undecided":
        assert "Too few images to tell" in verdict.sentence and "4,000 would" in verdict.sentence


def test_each_batchs_own_statistics_are_a_verdict_on_batches() -> None:
    experiment = make_experiment(600, [("network", math.inf, 900)], shared=EACH_BATCH)

    assert conclude(make_scores(running=600, exact=600, batch=900), experiment).word == "batches"


@pytest.mark.parametrize(("right", "is_worth_it"), [(606, True), (605, False)])
def test_the_smallest_gain_that_matters(right: int, is_worth_it: bool) -> None:
    """More than half a point."""
    experiment = make_experiment(600, [("averages", 0, right)])

    assert (conclude(make_scores(running=600, exact=600), experiment).word == "averages") == is_worth_it


def test_what_was_undone_is_told_with_its_numbers() -> None:
    sentence = conclude(make_scores(running=600, exact=600), make_experiment(600, [("images", 0, 900)])).sentence

    assert "60.0%" in sentence and "90.0%" in sentence and "1,000 images" in sentence
    assert "30.0 points [" in sentence or "30.0 [" in sentence


# Nothing brings it back


@pytest.mark.parametrize(("images", "word"), [(137, "undecided"), (138, "healthy")])
def test_equal_predictions_are_healthy_from_138_images_on(images: int, word: str) -> None:
    """The upper end is 1.96·sqrt(2/(N+1)/(N+2)), which is four times half a point between these."""
    assert conclude(make_scores(running=100, exact=100, images=images)).word == word


def test_undecided_says_how_many_images_would_decide() -> None:
    """49 of 98 images gained and 49 lost: half the interval is 1.96·sqrt(100/99/100) = 19.7 points, 39.4 times half a
    point: 98·39.4² = 152,000 images. Equal predictions take fewer: 98·5.57 = 546."""
    right = make_values(49, 98)
    even = conclude(Scores({"running": right, "exact": 1 - right}, are_shares=True))
    equal = conclude(make_scores(running=98, exact=98, images=98))

    assert even.word == equal.word == "undecided"
    assert even.sentence.endswith("too few images to tell; about 160,000 images would.")
    assert equal.sentence.endswith("too few images to tell; about 550 images would.")


def test_a_gain_by_chance_is_none() -> None:
    """30 images gained and 20 lost of 1,000: 1 point, whose interval has 0 in it and reaches 2.4."""
    running = make_values(900)
    exact = running.clone()
    exact[:20] = 0
    exact[-30:] = 1

    verdict = conclude(Scores({"running": running, "exact": exact}, are_shares=True))

    assert verdict.word == "undecided"
    assert verdict.gain.value == pytest.approx(0.01)


def test_one_image_cannot_decide() -> None:
    one = torch.tensor([0.3])

    verdict = conclude(Scores({"running": one, "exact": one}, are_shares=True))

    assert verdict.word == "undecided"
    assert verdict.sentence.endswith("more images would.")


@pytest.mark.parametrize(
    ("running", "exact", "word"),
    [
        (math.nan, -0.5, "averages"),
        (-math.inf, -0.5, "averages"),
        (math.nan, math.nan, "network"),
        (-0.5, math.nan, "network"),
    ],
)
def test_scores_that_are_not_finite(running: float, exact: float, word: str) -> None:
    values = {"running": torch.tensor([running, -0.5]), "exact": torch.tensor([exact, -0.5])}

    verdict = conclude(Scores(values, are_shares=False))

    assert verdict.word == word
    assert "not finite" in verdict.sentence


@pytest.mark.parametrize(("commonest", "word"), [(0.400, "network"), (0.399, "healthy"), (None, "healthy")])
def test_a_model_is_bad_that_is_no_better_than_the_commonest_label(commonest: float | None, word: str) -> None:
    verdict = conclude(make_scores(commonest, running=400, exact=400, batch=390))

    assert verdict.word == word


@pytest.mark.parametrize(("expected", "word"), [(0.95, "network"), (0.90, "healthy")])
def test_a_model_is_bad_that_misses_what_the_caller_expects(expected: float, word: str) -> None:
    verdict = conclude(make_scores(commonest=0.99, running=900, exact=900), case=make_case(expected=expected))

    assert verdict.word == word
    if word == "network":
        assert "90.0%, where 95.0% is expected" in verdict.sentence


def test_averages_that_leave_the_score_low_say_where_else_to_look() -> None:
    experiment = make_experiment(100, [("averages", 0, 400)])

    verdict = conclude(make_scores(0.1, running=100, exact=400), experiment, make_case(expected=0.9))

    assert verdict.word == "averages"
    assert "If 40.0%, the best under any statistics, is too low, look also at labels" in verdict.sentence


def test_exact_statistics_that_lose_are_not_to_be_written() -> None:
    """The network was trained with its averages as constants."""
    verdict = conclude(make_scores(running=900, exact=800), case=make_case(expected=0.85))

    assert verdict.word == "healthy"
    assert verdict.sentence.startswith("Exact statistics of 1,000 images lose 10.0 points [")
    assert "trained with its averages as constants" in verdict.sentence
    assert "constants" not in conclude(make_scores(running=900, exact=899)).sentence


# Mode


@pytest.mark.parametrize(
    ("training", "batch", "word"), [(True, 700, "mode"), (True, 899, "healthy"), (False, 700, "healthy")]
)
def test_the_mode_is_at_fault_where_it_costs_something(training: bool, batch: int, word: str) -> None:
    scores = make_scores(running=900, exact=900, batch=batch)

    verdict = conclude(scores, case=make_case(training=training))

    assert verdict.word == word
    if word == "mode":
        assert "score is 70.0%; in eval mode it is 90.0%. Call model.eval()." in verdict.sentence


# Units


def test_what_matters_is_half_a_point_of_shares_and_a_hundredth_of_the_spread_of_others() -> None:
    """From the 5th to the 95th percentile: 90 of 0, 1, …, 100."""
    values = torch.arange(101.0).double()
    shares = Scores({"running": values / 100, "exact": values / 100}, are_shares=True)
    others = Scores({"running": values, "exact": values}, are_shares=False)

    assert find_worth(shares, None) == 0.005
    assert find_worth(others, None) == pytest.approx(0.9)
    assert find_worth(shares, 0.2) == find_worth(others, 0.2) == 0.2


@pytest.mark.parametrize(
    ("ends", "are_shares", "told"),
    [
        ((-0.00168, -0.0049, 0.0016), True, "lose 0.2 points [-0.2, 0.5]"),
        ((-0.0004, -0.0049, 0.0041), True, "gain 0.0 points [-0.5, 0.4]"),
        ((0.0729, 0.0589, 0.0868), True, "gain 7.3 points [5.9, 8.7]"),
        ((1341.2, -3.14159, 26000.0), False, "gain 1,340 [-3.14, 26,000]"),
        ((-0.012345, -0.1, -0.001), False, "lose 0.0123 [0.001, 0.1]"),
    ],
)
def test_a_gain_is_told_with_one_decimal_or_three_digits(
    ends: tuple[float, float, float], are_shares: bool, told: str
) -> None:
    assert tell_gain(Difference(*ends, 1000), Scores({}, are_shares)) == told
