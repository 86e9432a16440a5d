"""The verdict: where the fault is, if there is one: it follows from what brings the score back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.experiment import Experiment, Trial
from bnlab.doctor.lag import compare_with_drift
from bnlab.doctor.scores import Difference, Scores
from bnlab.doctor.undoing import EACH_BATCH, EXACT, Kind
from bnlab.doctor.words import count_things, tell_number

Word = Literal["averages", "averages or images", "images", "network", "mode", "batches", "healthy", "undecided"]

KINDS = {"running": "running averages", "exact": "exact statistics", "batch": "each batch's own"}
"""Kinds of statistics that are scored, in words."""

ELSEWHERE = "labels, their order, preprocessing, loaded weights"
"""What to look at where a score is too low and nothing that was tried brings it back."""

WORTH = 0.005  # half a point: what a difference of shares must exceed to matter
_SURE = 4  # of a healthy model, the interval excludes that so many times WORTH would be gained
_OF_SPREAD = 0.01  # of a metric's range over images, without its tails: what matters where scores are no shares
_CONSTANTS = "It was trained with its averages as constants, so do not recalibrate."
_AS_CONSTRUCTED = "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
_BROKEN = "Some of them are not finite, or negative variances; all that comes after them in eval mode is spoiled."
_FIRST_OFF = "The first layer does not fit: either these images are others than in training, or its averages are wrong."
_NEAR_CHANCE = 0.1  # of what there is to gain over always naming the commonest label
_LOST_ON_NEW_IMAGES = 0.1  # a network that generalizes well loses less


@dataclass(frozen=True)
class Verdict:
    """Where the fault is.

    Attributes:
        word: "averages", "images", "network", "mode" or "batches": what brings the score back, undone; "averages or
            images" where nothing tells which of the two are others than they should be; "healthy": nothing that was
            tried brings anything back, and the model is not known to be bad; "undecided": too few images to tell.
        sentence: the reason, with its numbers.
        gain: what exact statistics gain over running ones.
        chosen: the undos that explain it: of the same size, and smaller ones that may.
    """

    word: Word
    sentence: str
    gain: Difference
    chosen: Sequence[Trial] = ()


def find_worth(scores: Scores, worth: float | None) -> float:
    """Find the smallest difference that matters: the caller's; half a point of shares; else by the metric's spread."""
    if worth is not None:
        return worth
    if scores.are_shares:
        return WORTH
    low, high = scores.values["exact"].nan_to_num().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    return max(_OF_SPREAD * float(high - low), 1e-12)


def judge(case: Case, scores: Scores, experiment: Experiment | None, worth: float) -> Verdict:
    """Judge by what was tried.

    Args:
        case: with what is expected of the model.
        scores: under running and exact statistics, and under each batch's own where these were tried.
        experiment: what was undone; None where no cause saw a sign.
        worth: the smallest difference of scores that matters.
    """
    gain = scores.compare("exact", "running")
    if case.is_broken:
        return Verdict("averages", _BROKEN, gain)
    if not math.isfinite(gain.value):
        return _judge_not_finite(scores, gain)
    if _is_mode(case, scores, worth) and not case.is_as_constructed:
        return Verdict("mode", _tell_mode(case, scores), gain)

    best = None if experiment is None else experiment.best
    if experiment is not None and best is not None:
        score_gain = experiment.measure_score(best)
        if experiment.measure_gain(best).low > 0 and score_gain.value > worth:
            return _judge_experiment(case, scores, experiment, gain)

    reached = scores.best
    if _is_bad(reached, scores, case.expected):
        sentence = _tell_bad(reached, scores, case.expected)
        if case.is_as_constructed:
            sentence = f"{sentence} {_AS_CONSTRUCTED}"
        return Verdict("network", sentence, gain)
    high = gain.high
    if experiment is not None and best is not None:
        high = max(high, experiment.measure_score(best).high)
    if high > _SURE * worth:
        return Verdict("undecided", _tell_undecided(gain, scores, worth), gain)
    sentence = f"Exact statistics of {count_things(gain.images, 'image')} {tell_gain(gain, scores)}."
    has_learnt_with_them = not any(case.is_initial(name) for name in case.seen)
    if gain.high < -worth and has_learnt_with_them:
        sentence = f"{sentence} {_CONSTANTS}"
    return Verdict("healthy", sentence, gain)


def _judge_experiment(case: Case, scores: Scores, experiment: Experiment, gain: Difference) -> Verdict:
    """Judge by the smallest undo that brings back as much as the best one."""
    chosen, rivals = experiment.choose()
    kinds = {_find_kind(trial) for trial in chosen}
    others = {_find_kind(trial) for trial in rivals} - kinds
    if not others:  # the fault is in the same place either way
        rivals = []
    sentence = _tell_trials([*chosen, *rivals], experiment, scores)
    if others:
        told = " or ".join(sorted(kinds | others))
        needed = _round_up(4 * experiment.as_is.shape[1])
        sentence = f"{sentence} Too few images to tell these apart ({told}); about {needed:,} would."
        return Verdict("undecided", sentence, gain, chosen=[*chosen, *rivals])

    word: Word = "averages"
    if len(kinds) == 1:
        (word,) = kinds
    elif kinds == {"averages", "images"}:
        word = "averages or images"
    is_unexplained = all(trial.is_proposed and trial.undo.shared == EXACT for trial in chosen)
    if word == "averages" and is_unexplained and _may_be_images(case, chosen):
        word = "averages or images"
        sentence = f"{sentence} {_FIRST_OFF}"
    return Verdict(word, sentence + _tell_low(scores, case.expected), gain, chosen=chosen)


def _find_kind(trial: Trial) -> Kind:
    """Find where the fault is: where its cause says, or in the batches, if no single set of averages helps."""
    return "batches" if trial.undo.shared == EACH_BATCH else trial.cause.kind


def _may_be_images(case: Case, chosen: Sequence[Trial]) -> bool:
    """Return whether other images may be why averages do not fit: exact ones replace those of the first layer too."""
    if case.training is not None or not case.seen:
        return False
    first = case.seen[0]
    replaces_first = all(first in trial.undo.layers for trial in chosen)
    drift = compare_with_drift(case, case.seen)
    if drift is not None and drift.is_lag:
        return False
    return replaces_first and case.is_off_surely(first) and not case.remembers_start(first)


def _judge_not_finite(scores: Scores, gain: Difference) -> Verdict:
    """Judge scores of which some are NaN or infinite."""
    exact = scores.mean("exact")
    if math.isfinite(exact):
        sentence = f"Scores under running averages are not finite. Exact statistics reach {tell_score(exact, scores)}."
        return Verdict("averages", sentence, gain)
    return Verdict("network", "Scores under exact statistics are not finite.", gain)


def _is_mode(case: Case, scores: Scores, worth: float) -> bool:
    """Return whether most batch norms are in train mode, and eval mode scores better."""
    training = case.select(lambda name: case.layers[name].training)
    if 2 * len(training) < len(case.layers) or not training or "batch" not in scores.values:
        return False
    return scores.compare("running", "batch").low > worth


def _tell_mode(case: Case, scores: Scores) -> str:
    training = case.select(lambda name: case.layers[name].training)
    where = "All are" if len(training) == len(case.layers) else f"{len(training)} are"
    now = tell_score(scores.mean("batch"), scores)
    in_eval = tell_score(scores.mean("running"), scores)
    return (
        f"{where} in train mode, where {scores.metric.lower()} is {now}; in eval mode it is {in_eval}. Call "
        "model.eval()."
    )


def _tell_trials(trials: Sequence[Trial], experiment: Experiment, scores: Scores) -> str:
    """Write what undoing the causes brings back."""
    first = trials[0]
    gain = experiment.measure_score(first)
    images = experiment.as_is.shape[1]
    difference = Difference(gain.value, gain.low, gain.high, images)
    causes = dict.fromkeys(trial.cause for trial in trials)
    undone = " or ".join(f"{cause.code} ({cause.title})" for cause in causes)
    before = tell_score(float(experiment.as_is[0].mean()), scores)
    after = tell_score(float(first.values[0].mean()), scores)
    counted = count_things(images, "image")
    return (
        f"Undoing {undone} takes {scores.metric.lower()} on {counted} from {before} to {after}, by "
        f"{tell(difference, scores)}."
    )


def is_near_chance(scores: Scores) -> bool:
    """Return whether hardly anything is gained over always naming the commonest label, under any statistics."""
    commonest = scores.commonest
    return commonest is not None and scores.best < commonest + _NEAR_CHANCE * (1 - commonest)


def _is_bad(score: float, scores: Scores, expected: float | None) -> bool:
    if expected is not None:
        return score < expected
    if scores.commonest is None:
        return False
    return score <= scores.commonest or math.isclose(score, scores.commonest)  # they are added up in another order


def _tell_bad(reached: float, scores: Scores, expected: float | None) -> str:
    if expected is not None:
        bar = f"{tell_score(expected, scores)} is expected"
    else:
        assert scores.commonest is not None
        bar = f"always naming the commonest class scores {tell_score(scores.commonest, scores)}"
    return f"Nothing that was tried brings it above {tell_score(reached, scores)}, where {bar}."


def _tell_low(scores: Scores, expected: float | None) -> str:
    """Say where else to look if the best statistics leave the score below what is expected; empty where not."""
    best = scores.best
    if expected is None or best >= expected:
        return ""
    return f" If {tell_score(best, scores)}, the best under any statistics, is too low, look also at {ELSEWHERE}."


def _tell_undecided(gain: Difference, scores: Scores, worth: float) -> str:
    told = f"Exact statistics {tell_gain(gain, scores)} on {count_things(gain.images, 'image')}"
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
    """Say how the training batches score as the model is, and what it means if that is much more than these do."""
    told = f"On the training batches {tell_score(on_training, scores)}, as the model is."
    best = scores.best
    if on_training - best > _LOST_ON_NEW_IMAGES:
        told = (
            f"{told} The network does not generalize to these images: they differ from the training images, or those "
            "were too few."
        )
    return told
