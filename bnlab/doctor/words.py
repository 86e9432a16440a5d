"""Words of verdicts, and numbers of evidence and scores."""

from __future__ import annotations

import math

from bnlab.common.scores import Difference, describe_number
from bnlab.doctor.evidence.scores import Scores
from bnlab.doctor.thresholds import LOST_ON_NEW_IMAGES

HEADLINES = {
    "averages": "The averages are at fault",
    "averages or images": "The averages are at fault, or the images",
    "images": "The images are at fault, not the averages",
    "network": "The network is at fault, not the averages",
    "mode": "The mode is at fault, not the averages",
    "batches": "The batches are at fault: no single set of averages helps",
    "healthy": "Healthy averages",
    "undecided": "Undecided",
}
"""Verdict → how an answer begins."""

KINDS = {"running": "running averages", "exact": "exact statistics", "batch": "each batch's own statistics"}
"""Kinds of statistics that are scored, in words."""


def count_things(count: int, thing: str) -> str:
    """Write a number of things: "1 update", "2,000 updates"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def describe_ratio(ratio: float, digits: int = 2) -> str:
    """Write how many times as large something is as chance explains; a channel that is constant has no chance."""
    most = 1000
    return f"over {most:,}" if ratio > most else describe_number(ratio, digits)


def round_up(count: float) -> int:
    """Round up to two digits."""
    # The place of the second digit; numbers of one or two digits are rounded to whole ones.
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def describe_gain(gain: Difference, scores: Scores) -> str:
    """Write a gain with its interval, or, where it is negative, a loss: "lose 0.2 points [-0.3, 0.7]"."""
    # The number as it is written decides: a loss that rounds to 0.0 is reported as a gain of 0.0.
    if not _describe_value(gain.value, scores).startswith("-"):
        return f"gain {describe_difference(gain, scores)}"
    loss = Difference(-gain.value, -gain.high, -gain.low, gain.images)
    return f"lose {describe_difference(loss, scores)}"


def describe_difference(difference: Difference, scores: Scores) -> str:
    """Write a difference with its interval, in points where scores are shares."""
    unit = " points" if scores.are_shares else ""
    value = _describe_value(difference.value, scores)
    low = _describe_value(difference.low, scores)
    high = _describe_value(difference.high, scores)
    return f"{value}{unit} [{low}, {high}]"


def _describe_value(value: float, scores: Scores) -> str:
    """Write a difference of scores: points with one decimal, or three significant digits."""
    return f"{100 * value:z.1f}" if scores.are_shares else describe_number(value)


def describe_score(value: float, scores: Scores) -> str:
    """Write a mean score, in percent where scores are shares."""
    return f"{100 * value:.1f}%" if scores.are_shares else f"{value:.4g}"


def describe_training(on_training: float, scores: Scores, best: float) -> str:
    """Say how the training batches score as the model is, and what it means if that is much more than these do.

    Args:
        on_training: their score.
        scores: of these images.
        best: the best score that was reached on these, as what can be undone is no lack of generalization.
    """
    reported = f"On the training batches {describe_score(on_training, scores)}, as the model is."
    if on_training - best > LOST_ON_NEW_IMAGES:
        reported = (
            f"{reported} The network does not generalize to these images: they differ from the training images, or "
            "those were too few."
        )
    return reported
