"""The verdict: are the averages at fault, or something else, or nothing?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bnlab.doctor.scores import Difference, Scores

Word = Literal["averages", "not the averages", "healthy", "undecided"]

KINDS = {"running": "running averages", "exact": "exact statistics", "batch": "each batch's own"}
"""Kinds of statistics that are scored, in words."""

WORTH = 0.005  # half a point: what a difference of shares must exceed to matter
_SURE = 4  # of a healthy model, the interval excludes that so many times WORTH would be gained


@dataclass(frozen=True)
class Verdict:
    """What the scores under running, exact and batch statistics say together.

    Attributes:
        word: "averages": exact statistics gain more than `worth`, and the interval excludes 0. "not the averages": they
            gain nothing, and the model is bad under them too; or only a batch's own statistics are better. "healthy":
            they gain nothing, and the model is not bad. "undecided": the interval says none of these.
        sentence: the reason, with its numbers.
        gain: what exact statistics gain over running ones.
    """

    word: Word
    sentence: str
    gain: Difference


def judge(scores: Scores, expected: float | None, worth: float) -> Verdict:
    """Judge whether running averages cost anything.

    Args:
        scores: under running and exact statistics, and under each batch's own where these were tried.
        expected: the score that the model should reach; default none. Without, a model is bad where it is no better
            than always naming the commonest label.
        worth: the smallest difference that matters, in the unit of the scores.
    """
    gain = scores.compare("exact", "running")
    if gain.value > worth and gain.low > 0:
        return Verdict("averages", f"Exact statistics gain {tell(gain, scores)}.", gain)
    if gain.high > _SURE * worth:
        return Verdict("undecided", _tell_undecided(gain, scores, worth), gain)

    if _is_bad(scores, expected):
        best = tell_score(max(scores.mean(kind) for kind in scores.values), scores)
        sentence = f"The model is bad under exact statistics too: {best} at best. Look for another cause."
        return Verdict("not the averages", sentence, gain)
    if "batch" in scores.values:
        own = scores.compare("batch", "exact")
        if own.value > worth and own.low > 0:
            sentence = (
                f"No single set of averages helps, but each batch's own statistics gain {tell(own, scores)}: batches "
                "come from different populations, or from another one than in training."
            )
            return Verdict("not the averages", sentence, gain)
    if gain.value < -worth and gain.high < 0:
        sentence = "Running averages are better than exact statistics of these images, which differ from training's."
        return Verdict("healthy", sentence, gain)
    return Verdict("healthy", f"Exact statistics gain {tell(gain, scores)}.", gain)


def _is_bad(scores: Scores, expected: float | None) -> bool:
    best = max(scores.mean(kind) for kind in scores.values)
    if expected is not None:
        return best < expected
    return scores.commonest is not None and best <= scores.commonest


def _tell_undecided(gain: Difference, scores: Scores, worth: float) -> str:
    half = (gain.high - gain.low) / 2
    needed = math.inf if not math.isfinite(half) else gain.images * (half / worth) ** 2
    wanted = "more images" if not math.isfinite(needed) else f"about {_round_up(needed):,} images"
    return f"Exact statistics gain {tell(gain, scores)}: too few images to tell; {wanted} would."


def _round_up(count: float) -> int:
    """Round up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def tell(difference: Difference, scores: Scores) -> str:
    """Write a difference with its interval, in points where scores are shares."""
    scale = 100 if scores.are_shares else 1
    numbers = [f"{scale * value:.3g}" for value in (difference.value, difference.low, difference.high)]
    unit = " points" if scores.are_shares else ""
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}] on {difference.images:,} images"


def tell_score(value: float, scores: Scores) -> str:
    """Write a mean score, in percent where scores are shares."""
    return f"{100 * value:.1f}%" if scores.are_shares else f"{value:.4g}"
