"""What an experiment answers, in words that are composed from its verdicts and its networks' settings alone."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import CANNOT_BE_SCORED, NOT_TESTED, Claim, Experiment, Tables, answers
from bnlab.harness.reporting.frames.selection import list_values, list_varied, name_value

READING = (
    "Numbers are means over seeds with the 95% interval of each line by itself. A line *holds* if a one-sided t test "
    "over seeds says so at 2.5% (for a range, two tests), and *fails* if a test says the opposite (for a range, at "
    "1.25% on each side); shares of networks take exact binomial tests. All lines of a claim share these 2.5%, by "
    "Holm's correction, because the more lines a claim has, the likelier one of them holds by chance. A line that is "
    "undecided only because of that correction is marked *by itself*. A claim that says *never* needs all its lines to "
    "hold, without a correction. What is the same for all seeds is compared with the margin, not tested; a share of so "
    "few networks that no count could decide is shown as a count."
)
# Settings that are named where all networks share them.
_SHARED = ("data", "data.images", "model", "model.depth", "norm", "batch_size", "epochs", "optimizer", "lr", "schedule")
_TINY = 1e-5  # below it numbers are written as 1.2e-07


@dataclass(frozen=True)
class Answer:
    """What the tables say on an experiment's question.

    Attributes:
        experiment: the question.
        frame: verdicts with their numbers, see `experiment.answers`.
        basis: the names of the networks' data, and how many seeds the claims are of, as `glyphs, n = 5 to 15`.
        networks: what was measured, and what was not varied.
    """

    experiment: Experiment
    frame: pd.DataFrame
    basis: str
    networks: str

    def list_claims(self, number: str = "") -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """Each claim that bears on a question or hypothesis, of all without a number, with its conditions.

        These have condition, number (mean and interval, or a count), n, verdict and `said`, the verdict with its note.
        """
        rows = [
            {**row, "number": _write_number(row), "said": _say_verdict(row)} for row in self.frame.to_dict("records")
        ]
        claims = self.experiment.claims.items()
        return [
            (claim, [row for row in rows if row["claim"] == name])
            for name, claim in claims
            if not number or number in (claim.answers or self.experiment.answers)
        ]

    def list_unscored(self) -> dict[str, str]:
        """Say of each claim that cannot be scored why, by its name."""
        unscored = self.frame[self.frame["verdict"] == CANNOT_BE_SCORED]
        return dict(zip(unscored["claim"], unscored["note"], strict=True))


def _write_number(row: dict[Hashable, Any]) -> str:
    if row["n"] == 0:
        return ""
    if row["verdict"] == NOT_TESTED:
        return count_share(row["mean"], row["n"])
    return format_number(row["mean"], row["low"], row["high"])


def _say_verdict(row: dict[Hashable, Any]) -> str:
    return f"{row['verdict']} ({row['note']})" if row["note"] else row["verdict"]


def count_share(share: float, n: int) -> str:
    """Write a share of networks as a count.

    >>> count_share(2 / 3, 3)
    '2 of 3'
    """
    return f"{round(share * n)} of {n}"


def compose_answer(experiment: Experiment, tables: Tables) -> Answer:
    """Decide the claims of an experiment, and say what was measured."""
    runs = tables["runs"]
    frame = answers(experiment, tables)
    basis = [list_values(runs["data"]), *_count_seeds(frame)]
    return Answer(experiment, frame, ", ".join(basis), describe_networks(runs))


def _count_seeds(frame: pd.DataFrame) -> list[str]:
    """In words, how many seeds the verdicts on claims are of that could be scored; nothing where there is none."""
    scored = frame[frame["verdict"] != CANNOT_BE_SCORED]
    if scored.empty:
        return []
    bounds = dict.fromkeys((f"{scored['n'].min()}", f"{scored['n'].max()}"))
    return [f"n = {' to '.join(bounds)}"]


def describe_networks(runs: pd.DataFrame) -> str:
    """How many networks, in what they differ, what they have in common, and that this was not varied."""
    varied = list_varied(runs)
    shared = [column for column in _SHARED if column in runs and runs[column].nunique(dropna=False) == 1]
    named = ", ".join(name_value(column, list_values(runs[column])) for column in (*varied, *shared))
    note = "What all of them share was not varied: it may change the answer."
    return f"{count_networks(runs)}: {named}.{say_unfinished(runs)} {note}"


def count_networks(runs: pd.DataFrame) -> str:
    """Count networks and seeds, as `4 networks, 2 seeds`."""
    count, seeds = len(runs), runs["seed"].nunique()
    return f"{count} network{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}"


def say_unfinished(runs: pd.DataFrame) -> str:
    """Say in a sentence, after a space, how many networks have diverged or failed; nothing if none has."""
    statuses = list(runs.get("status", ()))
    unfinished = [f"{statuses.count(status)} {status}" for status in ("diverged", "failed") if status in statuses]
    return f" Of these {' and '.join(unfinished)}: means are of the rows that there are." if unfinished else ""


def round_numbers(mean: float, low: float, high: float) -> list[str]:
    """Mean, low and high to two digits of the interval's half; the mean alone where there is no interval."""
    half = (high - low) / 2
    if not math.isfinite(half):
        return [f"{mean:.3g}"]
    if 0 < max(abs(low), abs(high)) < _TINY:
        return [f"{value:.1e}" for value in (mean, low, high)]
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 1e-9 * abs(mean) else 3  # rounding
    return [f"{round(value, digits) + 0.0:.{digits}f}" for value in (mean, low, high)]  # no -0.0


def format_number(mean: float, low: float, high: float) -> str:
    """Mean and interval, as `round_numbers` has them.

    >>> format_number(1.0, 0.5, 1.5), format_number(0.25, math.nan, math.nan)
    ('1.00 [0.50, 1.50]', '0.25')
    """
    rounded, *bounds = round_numbers(mean, low, high)
    return f"{rounded} [{', '.join(bounds)}]" if bounds else rounded
