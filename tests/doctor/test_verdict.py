"""The verdict on planted scores: each of its words, and where one ends and the next begins."""

import pytest
import torch
from torch import Tensor

from bnlab.doctor.scores import Scores
from bnlab.doctor.verdict import WORTH, judge

IMAGES = 1000


def make_scores(commonest: float | None = None, images: int = IMAGES, **right: int) -> Scores:
    """Make scores of images of which the first so many are right, by kind of statistics."""
    values: dict[str, Tensor] = {}
    for kind, count in right.items():
        values[kind] = torch.cat([torch.ones(count), torch.zeros(images - count)]).double()
    return Scores(values, are_shares=True, commonest=commonest)


def test_averages_are_at_fault_where_exact_statistics_gain() -> None:
    verdict = judge(make_scores(running=600, exact=900, batch=890), None, WORTH)

    assert verdict.word == "averages"
    assert verdict.gain.value == pytest.approx(0.3)
    assert verdict.sentence.startswith("Exact statistics gain 30 points [")
    assert verdict.sentence.endswith("on 1,000 images.")


@pytest.mark.parametrize(
    ("gained", "word"),
    [
        (6, "averages"),  # .006 > .005, and the lower end .0005 > 0
        (5, "healthy"),  # no more than is worth it; the upper end .010 < .02
    ],
)
def test_the_smallest_gain_that_matters(gained: int, word: str) -> None:
    assert judge(make_scores(running=900, exact=900 + gained), None, WORTH).word == word


def test_a_gain_by_chance_is_none() -> None:
    """30 images gained and 20 lost of 1,000: 1 point, whose interval has 0 in it and reaches 2.4."""
    running = torch.cat([torch.ones(900), torch.zeros(100)]).double()
    exact = running.clone()
    exact[:20] = 0
    exact[-30:] = 1
    verdict = judge(Scores({"running": running, "exact": exact}, are_shares=True), None, WORTH)

    assert verdict.word == "undecided"
    assert verdict.gain.value == pytest.approx(0.01)


@pytest.mark.parametrize(("images", "word"), [(137, "undecided"), (138, "healthy")])
def test_equal_predictions_are_healthy_from_138_images_on(images: int, word: str) -> None:
    """The upper end is 1.96·sqrt(2/(N+1)/(N+2)), which is four times half a point between these."""
    assert judge(make_scores(running=100, exact=100, images=images), None, WORTH).word == word


def test_undecided_says_how_many_images_would_decide() -> None:
    """Half the interval of 98 equal predictions is 2.79 points, 5.57 times half a point: 98·5.57² = 3,043 images."""
    verdict = judge(make_scores(running=98, exact=98, images=98), None, WORTH)

    assert verdict.word == "undecided"
    assert verdict.sentence.endswith("too few images to tell; about 3,100 images would.")


def test_one_image_cannot_decide() -> None:
    verdict = judge(
        Scores({"running": torch.tensor([0.3]), "exact": torch.tensor([0.3])}, are_shares=True), None, WORTH
    )

    assert verdict.word == "undecided"
    assert verdict.sentence.endswith("more images would.")


@pytest.mark.parametrize(("commonest", "word"), [(0.400, "not the averages"), (0.399, "healthy"), (None, "healthy")])
def test_a_model_is_bad_that_is_no_better_than_the_commonest_label(commonest: float | None, word: str) -> None:
    assert judge(make_scores(commonest, running=400, exact=400, batch=390), None, WORTH).word == word


@pytest.mark.parametrize(("expected", "word"), [(0.95, "not the averages"), (0.90, "healthy")])
def test_a_model_is_bad_that_misses_what_the_caller_expects(expected: float, word: str) -> None:
    verdict = judge(make_scores(commonest=0.99, running=900, exact=900), expected, WORTH)

    assert verdict.word == word


def test_bad_tells_the_best_score() -> None:
    verdict = judge(make_scores(0.5, running=400, exact=400, batch=410), None, WORTH)

    assert verdict.sentence == "The model is bad under exact statistics too: 41.0% at best. Look for another cause."


def test_averages_may_be_at_fault_in_a_bad_model() -> None:
    assert judge(make_scores(0.5, running=100, exact=400), None, WORTH).word == "averages"


def test_no_averages_help_where_only_batch_statistics_are_better() -> None:
    verdict = judge(make_scores(running=700, exact=700, batch=900), None, WORTH)

    assert verdict.word == "not the averages"
    assert verdict.sentence.startswith(
        "No single set of averages helps, but each batch's own statistics gain 20 points"
    )


def test_averages_that_are_better_than_exact_statistics_are_healthy() -> None:
    verdict = judge(make_scores(running=900, exact=800), None, WORTH)

    assert verdict.word == "healthy"
    assert verdict.sentence.startswith("Running averages are better")


def test_worth_is_in_the_unit_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    running = -10 - torch.rand(IMAGES, dtype=torch.float64, generator=generator)
    scores = Scores({"running": running, "exact": running + 0.5}, are_shares=False)

    assert judge(scores, None, worth=0.4).word == "averages"
    assert judge(scores, None, worth=0.6).word == "healthy"
    assert judge(scores, None, worth=0.4).sentence == "Exact statistics gain 0.5 [0.5, 0.5] on 1,000 images."
