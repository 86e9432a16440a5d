"""The verdict on planted scores: each of its words, and where one ends and the next begins."""

import re

import pytest
import torch
from torch import Tensor

from bnlab.doctor.scores import Difference, Scores
from bnlab.doctor.verdict import WORTH, judge, tell_gain

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
    assert verdict.sentence.startswith("Exact statistics, measured anew on these images, gain 30.0 points [")
    assert verdict.sentence.endswith("on 1,000 images.")


@pytest.mark.parametrize(
    ("commonest", "expected", "exact", "is_low"),
    [
        (0.1, None, 549, True),  # half of the way from .1 to 1 is .55
        (0.1, None, 550, False),
        (0.1, 0.9, 890, True),
        (0.1, 0.5, 520, False),
        (None, None, 20, False),  # without labels nobody knows what is low
    ],
)
def test_averages_that_leave_the_score_low_say_where_else_to_look(
    commonest: float | None, expected: float | None, exact: int, is_low: bool
) -> None:
    verdict = judge(make_scores(commonest, running=0, exact=exact), expected, WORTH)

    assert verdict.word == "averages"
    told = f" If {exact / 10:.1f}%, the best under any statistics, is too low, look also at labels, their order, "
    assert (told in verdict.sentence) == is_low


def test_undecided_about_a_low_score_says_where_else_to_look() -> None:
    """100 images gained and 100 lost of 1,000: half the interval is 2.8 points."""
    exact = make_scores(exact=400).values["exact"]
    scores = Scores({"running": exact.roll(100), "exact": exact}, are_shares=True, commonest=0.1)

    verdict = judge(scores, None, WORTH)

    assert verdict.word == "undecided"
    assert " If 40.0%, the best under any statistics, is too low, look also at labels" in verdict.sentence


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


@pytest.mark.parametrize(("images", "word"), [(6, "undecided"), (148, "undecided"), (149, "healthy")])
def test_equal_shares_are_healthy_from_149_images_on(images: int, word: str) -> None:
    """The upper end is 1 − .05^(1/N), which is four times half a point between these."""
    shares = torch.full((images,), 0.98, dtype=torch.float64)

    verdict = judge(Scores({"running": shares, "exact": shares}, are_shares=True), None, WORTH)

    assert verdict.word == word


def test_undecided_says_how_many_images_would_decide() -> None:
    """49 of 98 images gained and 49 lost: half the interval is 1.96·sqrt(100/99/100) = 19.7 points, 39.4 times half a
    point: 98·39.4² = 152,000 images."""
    right = torch.cat([torch.ones(49), torch.zeros(49)]).double()

    verdict = judge(Scores({"running": right, "exact": 1 - right}, are_shares=True), None, WORTH)

    assert verdict.word == "undecided"
    assert verdict.sentence.endswith("too few images to tell; about 160,000 images would.")


def test_undecided_by_equal_predictions_takes_fewer_images() -> None:
    """Half the interval of 98 equal predictions is 2.79 points, 5.57 times half a point, and falls with the number of
    images: 98·5.57 = 546."""
    verdict = judge(make_scores(running=98, exact=98, images=98), None, WORTH)

    assert verdict.word == "undecided"
    assert verdict.sentence.endswith("too few images to tell; about 550 images would.")


@pytest.mark.parametrize(
    ("running", "exact", "word", "sentence"),
    [
        (float("nan"), -0.5, "averages", "Exact statistics, measured anew on these images, reach -0.5."),
        (float("-inf"), -0.5, "averages", "Scores under running averages are not finite. Exact"),
        (float("nan"), float("nan"), "not the averages", "Scores under exact statistics are not finite."),
        (-0.5, float("nan"), "not the averages", "Scores under exact statistics are not finite."),
    ],
)
def test_scores_that_are_not_finite(running: float, exact: float, word: str, sentence: str) -> None:
    values = {"running": torch.tensor([running, -0.5]), "exact": torch.tensor([exact, -0.5])}

    verdict = judge(Scores(values, are_shares=False), None, WORTH)

    assert verdict.word == word
    assert sentence in verdict.sentence


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


def test_bad_tells_what_exact_statistics_may_reach_at_most() -> None:
    """The upper end of 1,000 equal predictions is 0.277 points above them."""
    verdict = judge(make_scores(0.5, running=400, exact=400, batch=402), None, WORTH)

    assert verdict.is_bad
    assert verdict.sentence == (
        "Exact statistics, measured anew on these images, do not help: 40.3% at most, where always naming the "
        "commonest label scores 50.0%."
    )


def test_bad_by_chance_tells_the_best_score() -> None:
    """The upper end is above the commonest label's share, and the scores are not."""
    verdict = judge(make_scores(0.402, running=400, exact=400, batch=402), None, WORTH)

    assert verdict.word == "not the averages"
    assert "do not help: 40.2% at best, where always naming the commonest label scores 40.2%." in verdict.sentence


@pytest.mark.parametrize(("expected", "word"), [(0.66, "not the averages"), (0.64, "undecided")])
def test_too_few_images_are_enough_for_a_model_that_is_bad_at_the_upper_end_too(expected: float, word: str) -> None:
    """Of 40 equal predictions the upper end is 1.96·sqrt(2/41/42) = 6.7 points above their 57.5%: 64.2%."""
    scores = make_scores(commonest=0.1, images=40, running=23, exact=23)

    assert judge(scores, expected, WORTH).word == word
    assert judge(scores, None, WORTH).word == "undecided"


def test_exact_statistics_that_lose_do_not_make_a_model_bad() -> None:
    """It scores 90% as it is, and 80% under exact statistics."""
    assert judge(make_scores(running=900, exact=800), 0.85, WORTH).word == "healthy"


def test_averages_may_be_at_fault_in_a_bad_model() -> None:
    assert judge(make_scores(0.5, running=100, exact=400), None, WORTH).word == "averages"


def test_no_averages_help_where_only_batch_statistics_are_better() -> None:
    verdict = judge(make_scores(running=700, exact=700, batch=900), None, WORTH)

    assert verdict.word == "not the averages"
    assert not verdict.is_bad
    assert verdict.sentence.startswith(
        "No single set of averages helps. Each batch's own statistics gain 20.0 points ["
    )


def test_batch_statistics_that_are_far_better_decide_before_the_number_of_images_does() -> None:
    """Of 100 images the upper end of no gain is 2.7 points; 70 more are right under batch statistics."""
    verdict = judge(make_scores(images=100, running=20, exact=20, batch=90), None, WORTH)

    assert verdict.word == "not the averages"


@pytest.mark.parametrize("running", [800, 900])
def test_batch_statistics_have_to_be_better_than_running_averages_too(running: int) -> None:
    word = judge(make_scores(running=running, exact=700, batch=900), None, WORTH).word

    assert word == ("not the averages" if running == 800 else "healthy")


@pytest.mark.parametrize(("batch", "word"), [(912, "healthy"), (913, "not the averages")])
def test_batch_statistics_are_far_better_where_the_interval_is_above_what_matters(batch: int, word: str) -> None:
    """Of 1,000 differences 12 (13) are 1, and one of each sign is added: the lower end is 1.20 − 0.73 = 0.47 points
    (1.30 − 0.75 = 0.54)."""
    assert judge(make_scores(running=900, exact=900, batch=batch), None, WORTH).word == word


@pytest.mark.parametrize(("exact", "word"), [(720, "not the averages"), (800, "averages"), (880, "averages")])
def test_the_word_goes_to_the_larger_part(exact: int, word: str) -> None:
    """Of 300 images that are right under batch statistics alone, new averages mend 120, 200 or 280."""
    assert judge(make_scores(running=600, exact=exact, batch=900), None, WORTH).word == word


@pytest.mark.parametrize(("batch", "word"), [(721, "averages"), (722, "not the averages")])
def test_the_larger_part_is_larger_by_more_than_chance(batch: int, word: str) -> None:
    """Of 1,000 differences 50 are −1, which new averages mend, and 71 (72) are 1, which only batch statistics do: 2.1
    (2.2) points, and half the interval is 1.96·sqrt((.121 − .021²)/999) = 2.15 points (2.16)."""
    assert judge(make_scores(running=600, exact=650, batch=batch), None, WORTH).word == word


def test_both_parts_are_told_where_new_averages_mend_the_smaller_one() -> None:
    verdict = judge(make_scores(running=600, exact=700, batch=950), None, WORTH)

    assert verdict.word == "not the averages"
    assert verdict.gain.value == pytest.approx(0.1)
    pattern = (
        r"No single set of averages mends most of it\. Exact statistics, measured anew on these images, gain 10\.0 "
        r"points \[.*\] on 1,000 images; each batch's own gain 35\.0 points \[.*\]: batches come from .*"
    )
    assert re.fullmatch(pattern, verdict.sentence)


def test_averages_that_are_better_than_exact_statistics_are_healthy() -> None:
    verdict = judge(make_scores(running=900, exact=800), None, WORTH)

    assert verdict.word == "healthy"
    assert verdict.sentence.startswith("Exact statistics of 1,000 images lose 10.0 points [")
    assert verdict.gain.high < 0


def test_worth_is_in_the_unit_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    running = -10 - torch.rand(IMAGES, dtype=torch.float64, generator=generator)
    scores = Scores({"running": running, "exact": running + 0.5}, are_shares=False)

    assert judge(scores, None, worth=0.4).word == "averages"
    assert judge(scores, None, worth=0.6).word == "healthy"
    told = "Exact statistics, measured anew on these images, gain 0.5 [0.5, 0.5] on 1,000 images."
    assert judge(scores, None, worth=0.4).sentence == told


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
