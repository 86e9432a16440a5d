"""The verdict: are the averages at fault, or something else, or nothing?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bnlab.doctor.scores import Difference, Scores, estimate_mean
from bnlab.doctor.words import count_things, tell_number

Word = Literal["averages", "not the averages", "healthy", "undecided"]

KINDS = {"running": "running averages", "exact": "exact statistics", "batch": "each batch's own"}
"""Kinds of statistics that are scored, in words."""

_EXACT = "Exact statistics, measured anew on these images,"

ELSEWHERE = "labels, their order, preprocessing, loaded weights"
"""What to look at where a score is too low and the averages are not at fault."""

_POPULATIONS = "batches come from different populations, or from another one than in training"

_LOST_ON_NEW_IMAGES = 0.1  # a network that generalizes well loses less
_DOES_NOT_GENERALIZE = (
    "The network does not generalize to these images: they differ from the training images, or those were too few."
)

WORTH = 0.005  # half a point: what a difference of shares must exceed to matter
_SURE = 4  # of a healthy model, the interval excludes that so many times WORTH would be gained


@dataclass(frozen=True)
class Verdict:
    """What the scores under running, exact and batch statistics say together.

    Attributes:
        word: "averages": exact statistics gain more than `worth`, and the interval excludes 0; or they alone give
            finite scores. "not the averages": each batch's own statistics are better by more than new averages mend, or
            the model is bad whatever exact statistics may gain. "healthy": they gain nothing, and the model is not
            known to be bad. "undecided": the interval says none of these.
        sentence: the reason, with its numbers.
        gain: what exact statistics gain over running ones.
        is_bad: whether the model misses what is expected under any statistics.
    """

    word: Word
    sentence: str
    gain: Difference
    is_bad: bool = False


def judge(scores: Scores, expected: float | None, worth: float) -> Verdict:
    """Judge whether running averages cost anything.

    A model is bad where it misses what is expected, or, if nothing is, where it is no better than always naming the
    commonest label.

    Args:
        scores: under running and exact statistics, and under each batch's own where these were tried.
        expected: the score that the model should reach; default none.
        worth: the smallest difference that matters, in the unit of the scores.
    """
    gain = scores.compare("exact", "running")
    if not math.isfinite(gain.value):
        return _judge_not_finite(scores, gain)
    is_gained = gain.value > worth and gain.low > 0
    if _is_own_better(scores, worth) and not (is_gained and _do_averages_mend_more(scores)):
        sentence = _tell_smaller_part(gain, scores) if is_gained else _tell_own(scores)
        return Verdict("not the averages", sentence, gain)
    if is_gained:
        sentence = f"{_EXACT} {tell_gain(gain, scores)} on {gain.images:,} images."
        return Verdict("averages", sentence + _tell_low(scores, expected), gain)

    most = scores.mean("running") + max(gain.high, 0.0)
    if _is_bad(most, scores, expected):
        sentence = _tell_bad(f"{tell_score(most, scores)} at most", scores, expected)
        return Verdict("not the averages", sentence, gain, is_bad=True)
    if gain.high > _SURE * worth:
        return Verdict("undecided", _tell_undecided(gain, scores, worth) + _tell_low(scores, expected), gain)

    best = max(scores.mean(kind) for kind in scores.values)
    if _is_bad(best, scores, expected):
        sentence = _tell_bad(f"{tell_score(best, scores)} at best", scores, expected)
        return Verdict("not the averages", sentence, gain, is_bad=True)
    sentence = f"Exact statistics of {count_things(gain.images, 'image')} {tell_gain(gain, scores)}."
    return Verdict("healthy", sentence, gain)


def is_harmless(gain: Difference, worth: float) -> bool:
    """Return whether exact statistics may gain nothing, and no more than a healthy model's may."""
    return gain.low <= 0 and gain.high <= _SURE * worth


def _judge_not_finite(scores: Scores, gain: Difference) -> Verdict:
    """Judge scores of which some are NaN or infinite."""
    exact = scores.mean("exact")
    if math.isfinite(exact):
        sentence = f"Scores under running averages are not finite. {_EXACT} reach {tell_score(exact, scores)}."
        return Verdict("averages", sentence, gain)
    return Verdict("not the averages", "Scores under exact statistics are not finite.", gain, is_bad=True)


def _is_own_better(scores: Scores, worth: float) -> bool:
    """Return whether each batch's own statistics are better than both other kinds, surely by more than `worth`."""
    if "batch" not in scores.values:
        return False
    return all(scores.compare("batch", kind).low > worth for kind in ("exact", "running"))


def _do_averages_mend_more(scores: Scores) -> bool:
    """Return whether exact statistics may gain as much over running ones as a batch's own do over exact ones.

    What a batch's own statistics gain over running averages has two parts: running → exact, which new averages mend,
    and exact → batch, which none do, as exact statistics are the average of all these images. The word goes to the
    larger part. Both are of the same images, so their difference is paired; where its interval has 0 in it, the
    averages have the word, as they are what can be mended without training.
    """
    values = scores.values
    mended = values["exact"] - values["running"]
    left = values["batch"] - values["exact"]
    return estimate_mean(left - mended).low <= 0


def _tell_own(scores: Scores) -> str:
    own = tell_gain(scores.compare("batch", "exact"), scores)
    return (
        f"No single set of averages helps. Each batch's own statistics {own} over exact ones (measured anew on all "
        f"these images): {_POPULATIONS}."
    )


def _tell_smaller_part(gain: Difference, scores: Scores) -> str:
    own = tell_gain(scores.compare("batch", "running"), scores)
    return (
        f"No single set of averages mends most of it. {_EXACT} {tell_gain(gain, scores)} on {gain.images:,} images; "
        f"each batch's own {own}: {_POPULATIONS}."
    )


def _is_bad(score: float, scores: Scores, expected: float | None) -> bool:
    if expected is not None:
        return score < expected
    return scores.commonest is not None and score <= scores.commonest


def _tell_bad(reached: str, scores: Scores, expected: float | None) -> str:
    if expected is not None:
        bar = f"{tell_score(expected, scores)} is expected"
    else:
        assert scores.commonest is not None
        bar = f"always naming the commonest label scores {tell_score(scores.commonest, scores)}"
    return f"{_EXACT} do not help: {reached}, where {bar}."


def _tell_low(scores: Scores, expected: float | None) -> str:
    """Say where else to look if the best statistics leave the score low; empty where they do not.

    Low is below what is expected, or, if nothing is, less than half of the way from always naming the commonest label
    to naming all labels rightly.
    """
    bar = expected
    if bar is None and scores.commonest is not None and scores.are_shares:
        bar = (1 + scores.commonest) / 2
    best = max(scores.mean(kind) for kind in scores.values)
    if bar is None or best >= bar:
        return ""
    return f" If {tell_score(best, scores)}, the best under any statistics, is too low, look also at {ELSEWHERE}."


def _tell_undecided(gain: Difference, scores: Scores, worth: float) -> str:
    told = f"{_EXACT} {tell_gain(gain, scores)} on {count_things(gain.images, 'image')}"
    half = (gain.high - gain.low) / 2
    wanted = "more images"
    if math.isfinite(half):
        is_unchanged = bool((scores.values["exact"] == scores.values["running"]).all())
        power = 1 if is_unchanged else 2  # intervals of images that do not change fall with their number
        needed = gain.images * (half / worth) ** power
        wanted = f"about {_round_up(needed):,} images"
    return f"{told}: too few images to tell; {wanted} would."


def _round_up(count: float) -> int:
    """Round up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def tell_gain(gain: Difference, scores: Scores) -> str:
    """Write a gain with its interval, or, where it is negative, a loss: "lose 0.2 points [-0.3, 0.7]"."""
    if not _tell_number(gain.value, scores).startswith("-"):
        return f"gain {tell(gain, scores)}"
    loss = Difference(-gain.value, -gain.high, -gain.low, gain.images)
    return f"lose {tell(loss, scores)}"


def tell(difference: Difference, scores: Scores) -> str:
    """Write a difference with its interval, in points where scores are shares."""
    unit = " points" if scores.are_shares else ""
    value = _tell_number(difference.value, scores)
    return f"{value}{unit} [{_tell_number(difference.low, scores)}, {_tell_number(difference.high, scores)}]"


def _tell_number(value: float, scores: Scores) -> str:
    """Write a difference of scores: points with one decimal, or three significant digits."""
    return f"{100 * value:z.1f}" if scores.are_shares else tell_number(value)


def tell_score(value: float, scores: Scores) -> str:
    """Write a mean score, in percent where scores are shares."""
    return f"{100 * value:.1f}%" if scores.are_shares else f"{value:.4g}"


def tell_training(on_training: float, scores: Scores) -> str:
    """Say how the training batches score, and what it means if that is much more than the best of these scores."""
    told = f"On the training batches {tell_score(on_training, scores)}."
    best = max(scores.mean(kind) for kind in scores.values)
    if on_training - best > _LOST_ON_NEW_IMAGES:
        told = f"{told} {_DOES_NOT_GENERALIZE}"
    return told
