"""Outcomes of experiments, in words that are composed from verdicts and the networks' settings alone."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Tables, decide, state_findings
from bnlab.harness.reporting.frames.selection import list_values, list_varied, name_value
from bnlab.harness.reporting.verdicts import CANNOT_BE_SCORED, NOT_TESTED

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
_SHARED = (
    "data",
    "data.images",
    "model",
    "model.depth",
    "norm",
    "batch_size",
    "epochs",
    "optimizer",
    "optimizer.lr",
    "optimizer.schedule",
)
_TINY = 1e-5  # below it numbers are written as 1.2e-07


@dataclass(frozen=True)
class Outcome:
    """Outcome of an experiment: what its tables say on its question.

    Attributes:
        experiment: the question; its figures have findings as titles where these hold.
        frame: verdicts with their numbers, see `experiment.decide`.
        basis: the names of the networks' data, and how many seeds the claims are of, as `glyphs, n = 5 to 15`.
        networks: what was measured, and what was not varied.
    """

    experiment: Experiment
    frame: pd.DataFrame
    basis: str
    networks: str

    def list_claims(self) -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """List the claims with their conditions.

        These have condition, number (mean and interval, or a count), n, verdict and `said`, the verdict with its note.
        """
        claims = []
        for name, claim in self.experiment.claims.items():
            is_of_claim = self.frame["claim"] == name
            conditions = self.frame[is_of_claim].to_dict("records")
            for condition in conditions:
                condition["number"] = _write_number(condition)
                condition["said"] = _say_verdict(condition)
            claims.append((claim, conditions))
        return claims

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


def find_outcome(experiment: Experiment, tables: Tables) -> Outcome:
    """Decide the claims of an experiment, and say what was measured."""
    runs = tables["runs"]
    frame = decide(experiment, tables)
    basis = [list_values(runs["data"]), *_count_seeds(frame)]
    stated = state_findings(experiment, frame)
    return Outcome(stated, frame, ", ".join(basis), describe_networks(runs))


def _count_seeds(frame: pd.DataFrame) -> list[str]:
    """Say how many seeds the verdicts on claims are of that could be scored; nothing where there is none."""
    is_scored = frame["verdict"] != CANNOT_BE_SCORED
    counts = frame.loc[is_scored, "n"]
    if counts.empty:
        return []
    low = counts.min()
    high = counts.max()
    if low == high:
        return [f"n = {low}"]
    return [f"n = {low} to {high}"]


def describe_networks(runs: pd.DataFrame) -> str:
    """Say how many networks there are, in what they differ, what they share, and that this was not varied."""
    words = []
    for column in (*list_varied(runs), *_list_shared(runs)):
        values = list_values(runs[column])
        words.append(_say_setting(column, values))

    counts = count_networks(runs)
    settings = ", ".join(words)
    unfinished = say_unfinished(runs)
    devices = _say_devices(runs)
    return (
        f"{counts}: {settings}.{unfinished}{devices} What all of them share was not varied: it may change the answer."
    )


def _say_devices(runs: pd.DataFrame) -> str:
    """Say how many networks each processor or GPU has trained."""
    counts = runs["device"].value_counts() if "device" in runs else pd.Series(dtype=int)
    if counts.empty:
        return ""
    if len(counts) == 1:
        return f" Trained on {counts.index[0]}."
    parts = [f"{count} on {device}" for device, count in counts.items()]
    return f" Trained: {', '.join(parts)}."


def _say_setting(column: str, values: str) -> str:
    """Say a setting with its values, as conditions do, but for the learning rate: this list is long as it is."""
    if column == "optimizer.lr":
        return f"lr {values}"
    return name_value(column, values)


def _list_shared(runs: pd.DataFrame) -> list[str]:
    """List the settings that are worth naming and that all networks share."""
    known = [column for column in _SHARED if column in runs]
    return [column for column in known if runs[column].nunique(dropna=False) == 1]


def count_networks(runs: pd.DataFrame) -> str:
    """Count networks and seeds, as `4 networks, 2 seeds`."""
    networks = _count(len(runs), "network")
    seeds = _count(runs["seed"].nunique(), "seed")
    return f"{networks}, {seeds}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}s" if number > 1 else f"{number} {noun}"


def say_unfinished(runs: pd.DataFrame) -> str:
    """Say in a sentence, after a space, how many networks have diverged or failed; nothing if none has."""
    statuses = list(runs.get("status", ()))
    counts = []
    for status in ("diverged", "failed"):
        if status in statuses:
            counts.append(f"{statuses.count(status)} {status}")
    if not counts:
        return ""
    return f" Of these {' and '.join(counts)}: means are of the rows that there are."


def round_numbers(mean: float, low: float, high: float) -> list[str]:
    """Round mean, low and high to two digits of the interval's half; the mean alone where there is no interval."""
    half = (high - low) / 2
    if not math.isfinite(half):
        return [f"{mean:.3g}"]

    numbers = (mean, low, high)
    largest = max(abs(low), abs(high))
    if 0 < largest < _TINY:
        return [f"{number:.1e}" for number in numbers]

    digits = _choose_digits(mean, half)
    rounded = [round(number, digits) + 0.0 for number in numbers]  # no -0.0
    return [f"{number:.{digits}f}" for number in rounded]


def _choose_digits(mean: float, half: float) -> int:
    """Choose the digits behind the point that leave two to the half of an interval."""
    if half <= 1e-9 * abs(mean):  # the interval is of rounding
        return 3
    wanted = 1 - math.floor(math.log10(half))
    return min(6, max(0, wanted))


def format_number(mean: float, low: float, high: float) -> str:
    """Write mean and interval, as `round_numbers` has them.

    >>> format_number(1.0, 0.5, 1.5), format_number(0.25, math.nan, math.nan)
    ('1.00 [0.50, 1.50]', '0.25')
    """
    rounded, *bounds = round_numbers(mean, low, high)
    return f"{rounded} [{', '.join(bounds)}]" if bounds else rounded
