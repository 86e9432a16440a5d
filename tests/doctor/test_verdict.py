"""The verdict on planted scores and undos: each of its words, and where one ends and the next begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.common.scores import Difference
from bnlab.doctor import Cause, Undo
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.scores import Scores
from bnlab.doctor.evidence.scoring import Judged
from bnlab.doctor.interventions.experiment import Trial, UndoExperiment
from bnlab.doctor.thresholds import WORTH
from bnlab.doctor.undo import EACH_BATCH, EXACT, Kind
from bnlab.doctor.verdict.labelled import compute_worth, judge
from bnlab.doctor.verdict.verdict import Verdict
from bnlab.doctor.words import describe_gain
from tests.doctor.causes import Planted

IMAGES = 1000
Undone = tuple[Kind, float, int]
"""An undo: its cause's kind, its degrees, and how many images are right."""


def make_case(*, training: bool = False, expected: float | None = None) -> Case:
    """Make a case of one layer, which fits."""
    layer = nn.BatchNorm1d(2).eval()
    layer.get_buffer("running_mean").fill_(1)
    return replace(diagnose(layer.train(training)).case, expected=expected)


def make_values(right: int, images: int = IMAGES) -> Tensor:
    """Make values of images of which the first so many are right."""
    return torch.cat([torch.ones(right), torch.zeros(images - right)]).double()


def make_scores(commonest: float | None = None, images: int = IMAGES, **right: int) -> Scores:
    values = {kind: make_values(count, images) for kind, count in right.items()}
    return Scores(values, are_shares=True, commonest=commonest)


def make_experiment(right: int, undos: Sequence[Undone], shared: str = "") -> UndoExperiment:
    """Make an experiment in which so many images are right as it is, and more under undos; likelihoods are tenfold."""
    as_is = Judged(make_values(right), 10 * make_values(right))
    trials = []
    for number, (kind, degrees, count) in enumerate(undos):
        cause: Cause = type("Own", (Planted,), {"kind": kind, "code": f"OWN{number}"})()
        undo = Undo(f"undo {number}", ("",), degrees, lambda model, stack: None, shared)
        trials.append(Trial(cause, undo, Judged(make_values(count), 10 * make_values(count))))
    return UndoExperiment(as_is, trials, has_labels=True)


def conclude(scores: Scores, experiment: UndoExperiment | None = None, case: Case | None = None) -> Verdict:
    return judge(case or make_case(), scores, experiment, WORTH)


# What brings the score back


@pytest.mark.parametrize(
    ("undos", "word", "says"),
    [
        ([("averages", 0, 900)], "averages", "raises score by 30.0 points ["),
        ([("images", 0, 900)], "images", "on 1,000 images"),
        ([("network", 0, 900)], "network", "OWN0"),
        ([("mode", 0, 900)], "mode", "OWN0"),
        ([("averages", 64, 900), ("images", 2, 895)], "images", "OWN1"),  # all but a sixtieth
        ([("averages", 64, 900), ("images", 2, 800)], "averages", "OWN0"),  # a third is left
        ([("averages", 0, 900), ("images", 2, 900)], "averages", "OWN0"),
        ([("averages", 2, 900), ("images", 3, 900)], "averages", "OWN0"),
        ([("averages", 2, 900), ("images", 2, 900)], "averages or images", "OWN0 (planted) or OWN1"),
        ([("network", 2, 900), ("images", 2, 900)], "undecided", "OWN0 (planted) or OWN1"),
        ([("averages", 64, 900), ("images", 2, 875)], "undecided", "(averages or images); about 4,000 may."),
        ([("averages", 64, 900), ("averages", 2, 875)], "averages", "OWN0"),  # the same word for both
        ([("averages", 0, 606)], "averages", "0.6 points"),
        ([("averages", 0, 605)], "healthy", ""),  # half a point does not matter
    ],
)
def test_the_smallest_undo_that_brings_the_score_back_decides(undos: list[Undone], word: str, says: str) -> None:
    verdict = conclude(make_scores(running=600, exact=600), make_experiment(600, undos))

    assert verdict.word == word, verdict.sentence
    assert says in verdict.sentence


@pytest.mark.parametrize(
    ("exact", "word"),
    [
        (900, "averages or images"),  # as much
        (895, "averages or images"),  # all but a sixtieth
        (875, "averages or images"),  # a twelfth is left
        (860, "averages or images"),  # .13 [.09, .18] of the gain, for two undos at once
        (840, "images"),  # .20 [.14, .26]
    ],
)
def test_images_are_at_fault_only_where_exact_statistics_bring_back_clearly_less(exact: int, word: str) -> None:
    """Averages of such images would explain it as well, and training batches would tell."""
    averages = make_experiment(600, [("averages", 64, exact)], shared=EXACT).trials
    images = make_experiment(600, [("images", 2, 900)])
    experiment = replace(images, trials=[*averages, *images.trials])
    scores = make_scores(running=600, exact=exact)
    case = make_case()
    compared = replace(case, training=population_statistics(case.model, [torch.randn(8, 2)], progress=False))

    assert conclude(scores, experiment).word == word
    assert conclude(scores, experiment, compared).word == "images"


def test_each_batchs_own_statistics_are_a_verdict_on_batches() -> None:
    experiment = make_experiment(600, [("network", math.inf, 900)], shared=EACH_BATCH)

    assert conclude(make_scores(running=600, exact=600, batch=900), experiment).word == "batches"


# Nothing brings it back


EVEN = make_values(49, 98)
AS_MANY = make_values(98, 98)
CHANCE = torch.cat([torch.zeros(20), torch.ones(880), torch.zeros(70), torch.ones(30)]).double()
ONE = torch.tensor([0.3])


@pytest.mark.parametrize(
    ("running", "exact", "word", "says"),
    [
        # Of equal predictions the upper end is 1.96·sqrt(2/(N+1)/(N+2)): four times half a point for 137.5 images.
        (make_values(100, 137), make_values(100, 137), "undecided", ""),
        (make_values(100, 138), make_values(100, 138), "healthy", ""),
        # 49 gained and 49 lost: half the interval is 1.96·sqrt(100/99/100), 39.4 times half a point: 98·39.4² images.
        (EVEN, 1 - EVEN, "undecided", "too few images to tell; about 160,000 images would."),
        (AS_MANY, AS_MANY, "undecided", "too few images to tell; about 550 images would."),  # 98·5.57
        # 30 gained and 20 lost of 1,000.
        (make_values(900), CHANCE, "undecided", "images would."),
        (ONE, ONE, "undecided", "more images would."),
        (torch.tensor([math.nan, -0.5]), torch.tensor([-0.5, -0.5]), "averages", "Exact statistics reach -50.0%."),
        (torch.tensor([-math.inf, -0.5]), torch.tensor([-0.5, -0.5]), "averages", "Exact statistics reach -50.0%."),
        (
            torch.tensor([math.nan, -0.5]),
            torch.tensor([math.nan, -0.5]),
            "network",
            "Scores under exact statistics are not finite.",
        ),
        (
            torch.tensor([-0.5, -0.5]),
            torch.tensor([math.nan, -0.5]),
            "network",
            "Scores under exact statistics are not finite.",
        ),
        # The network was trained with its averages as constants.
        (make_values(900), make_values(800), "healthy", "with its averages as constants, so do not recalibrate."),
        (make_values(900), make_values(899), "healthy", "lose 0.1 points [-0.2, 0.4]."),
    ],
)
def test_what_exact_statistics_gain_decides(running: Tensor, exact: Tensor, word: str, says: str) -> None:
    verdict = conclude(Scores({"running": running, "exact": exact}, are_shares=True))

    assert verdict.word == word, verdict.sentence
    assert verdict.sentence.endswith(says)


@pytest.mark.parametrize(
    ("commonest", "expected", "word"),
    [
        (0.400, None, "network"),
        (0.399, None, "healthy"),
        (None, None, "healthy"),
        (0.99, 0.400, "healthy"),
        (0.10, 0.401, "network"),
    ],
)
def test_a_model_is_bad_that_misses_what_is_expected_or_the_commonest_label(
    commonest: float | None, expected: float | None, word: str
) -> None:
    scores = make_scores(commonest, running=400, exact=400, batch=390)

    verdict = conclude(scores, case=make_case(expected=expected))

    assert verdict.word == word
    if expected is not None and word == "network":
        assert "40.0%, where 40.1% is expected" in verdict.sentence


def test_averages_that_leave_the_score_low_say_where_else_to_look() -> None:
    experiment = make_experiment(100, [("averages", 0, 400)])

    verdict = conclude(make_scores(0.1, running=100, exact=400), experiment, make_case(expected=0.9))

    assert verdict.word == "averages"
    assert "If 40.0%, the best that was reached, is too low, look also at labels" in verdict.sentence


def test_an_expected_score_that_an_undo_reaches_is_not_too_low() -> None:
    experiment = make_experiment(100, [("images", 0, 950)])

    verdict = conclude(make_scores(0.1, running=100, exact=850), experiment, make_case(expected=0.9))

    assert verdict.word == "images"
    assert "too low" not in verdict.sentence


def test_more_images_are_asked_for_only_where_they_would_be_tried() -> None:
    """With labels undos are tried on 1,000 images, however many there are."""
    undos: list[Undone] = [("averages", 64, 900), ("images", 2, 875)]

    verdict = conclude(make_scores(0.1, running=600, exact=600), make_experiment(600, undos))

    assert verdict.word == "undecided"
    assert "1,000 images do not tell these apart (averages or images), and undos are tried on no more." in (
        verdict.sentence
    )


def test_the_gain_that_is_not_decided_is_the_one_that_is_named() -> None:
    """Of 10,000 images exact statistics surely gain nothing, but the best undo may, of 1,000: 64 up and 60 down."""
    experiment = make_experiment(600, [("images", 2, 604)])
    (trial,) = experiment.trials
    shifted = make_values(604).roll(60)
    experiment = replace(experiment, trials=[replace(trial, judged=Judged(shifted, 10 * shifted))])

    verdict = conclude(make_scores(0.1, images=10_000, running=6000, exact=6000), experiment)

    assert verdict.word == "undecided"
    assert "Undoing OWN0 (planted) would gain 0.4 points" in verdict.sentence
    assert "on 1,000 images, and undos are tried on no more: too few to tell." in verdict.sentence


@pytest.mark.parametrize(
    ("training", "batch", "word"),
    [(True, 700, "mode"), (True, 893, "healthy"), (False, 700, "healthy")],  # of 7 images nobody can be sure
)
def test_the_mode_is_at_fault_where_it_costs_something(training: bool, batch: int, word: str) -> None:
    verdict = conclude(make_scores(running=900, exact=900, batch=batch), case=make_case(training=training))

    assert verdict.word == word
    if word == "mode":
        assert "score is 70.0%; in eval mode it is 90.0%. Call model.eval()." in verdict.sentence


# Units


def test_what_matters_is_half_a_point_of_shares_and_a_hundredth_of_the_spread_of_others() -> None:
    """From the 5th to the 95th percentile: 90 of 0, 1, …, 100."""
    values = torch.arange(101.0).double()
    shares = Scores({"running": values / 100, "exact": values / 100}, are_shares=True)
    others = Scores({"running": values, "exact": values}, are_shares=False)

    assert compute_worth(shares, None) == 0.005
    assert compute_worth(others, None) == pytest.approx(0.9)
    assert compute_worth(shares, 0.2) == compute_worth(others, 0.2) == 0.2


@pytest.mark.parametrize(
    ("ends", "are_shares", "reported"),
    [
        ((-0.00168, -0.0049, 0.0016), True, "lose 0.2 points [-0.2, 0.5]"),
        ((-0.0004, -0.0049, 0.0041), True, "gain 0.0 points [-0.5, 0.4]"),
        ((1341.2, -3.14159, 26000.0), False, "gain 1,340 [-3.14, 26,000]"),
        ((-0.012345, -0.1, -0.001), False, "lose 0.0123 [0.001, 0.1]"),
    ],
)
def test_a_gain_is_told_with_one_decimal_or_three_digits(
    ends: tuple[float, float, float], are_shares: bool, reported: str
) -> None:
    assert describe_gain(Difference(*ends, 1000), Scores({}, are_shares)) == reported
