"""What an experiment answers, in words that are composed from its verdicts and its networks' settings alone."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import NOT_MEASURED, Claim, Experiment, Tables, answers
from bnlab.harness.reporting.frames.selection import RESULTS, name_value

VERDICTS = ("holds", "fails", "undecided", "one seed", NOT_MEASURED)
READING = (
    "means over seeds [95% interval, of each line by itself]; verdicts by one-sided t tests (of shares of the networks "
    "exact binomial ones) at 5%, with Holm's correction over the lines of a claim, so that a line may hold although "
    "its interval reaches a little past the margin; fails: the opposite of what the brackets say is significant. Of "
    "several conditions there is the range of the means, and the outer bounds of the intervals"
)
# Settings that are named where all networks share them.
_SHARED = ("data", "data.images", "model", "model.depth", "norm", "batch_size", "epochs", "optimizer", "lr", "schedule")
_NAMED = 3  # the most conditions of one verdict that are named
_TINY = 1e-5  # below it numbers are written as 1.2e-07
_DERIVED = ("run", "steps", "lr_effective", "norm_batch_size", "seed", *RESULTS)


@dataclass(frozen=True)
class Answer:
    """What the tables say on an experiment's question.

    Attributes:
        experiment: the question.
        frame: verdicts with their numbers, see `experiment.answers`.
        data: the names of the networks' data.
        networks: what was measured, and what was not varied.
    """

    experiment: Experiment
    frame: pd.DataFrame
    data: str
    networks: str

    def list_sentences(self, number: str = "") -> list[str]:
        """A sentence for each claim that bears on a question or hypothesis; without a number, for all."""
        claims = self.experiment.claims.items()
        chosen = [pair for pair in claims if not (number and pair[1].answers) or number in pair[1].answers]
        return [summarize(claim, self.frame[self.frame["claim"] == name]) for name, claim in chosen]

    @property
    def claims(self) -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """Each claim with its conditions: condition, number, n, verdict."""
        numbers = [format_number(*row) for row in self.frame[["mean", "low", "high"]].itertuples(index=False)]
        rows = self.frame.assign(number=numbers).to_dict("records")
        claims = self.experiment.claims.items()
        return [(claim, [row for row in rows if row["claim"] == name]) for name, claim in claims]


def compose_answer(experiment: Experiment, tables: Tables) -> Answer:
    """The verdicts on an experiment's claims, and what was measured; raises as `experiment.answers`."""
    runs = tables["runs"]
    return Answer(experiment, answers(experiment, tables), _list_values(runs["data"]), describe_networks(runs))


def summarize(claim: Claim, rows: pd.DataFrame) -> str:
    """The claim, and under which conditions it holds, fails (the opposite holds) or is undecided, with the numbers.

    Up to three conditions of a verdict are named, by what tells them apart; more are counted.
    """
    differ = [len(rows) == 1 or len({*words}) > 1 for words in zip(*rows["where"], strict=True)]
    parts = []
    for verdict in VERDICTS:
        chosen = rows[rows["verdict"] == verdict]
        described = []
        for row in chosen.to_dict("records"):
            where = [word for word, told in zip(row["where"], differ, strict=True) if word and told]
            number = f"{format_number(row['mean'], row['low'], row['high'])} {claim.rule.unit}"
            described.append(": ".join(filter(None, (", ".join(where), number))))
        if len(chosen) > _NAMED:
            described = [f"{len(chosen)} of {len(rows)} conditions: {format_range(chosen, claim.rule.unit)}"]
        if described:
            parts.append(f"{verdict.capitalize()} — {'; '.join(described)}.")
    return f"{claim.text} ({claim.rule.margin}) {' '.join(parts)}"


def format_range(rows: pd.DataFrame, unit: str) -> str:
    """The range of the means of several conditions, and the outer bounds of their intervals."""
    numbers = [round_numbers(*row) for row in rows[["mean", "low", "high"]].itertuples(index=False)]
    means = sorted((mean for mean, *_ in numbers), key=float)
    bounds = sorted((bound for _, *bounds in numbers for bound in bounds), key=float)
    note = f" (intervals from {bounds[0]} to {bounds[-1]})" if bounds else ""
    return f"{' to '.join(dict.fromkeys((means[0], means[-1])))} {unit}{note}"


def describe_networks(runs: pd.DataFrame) -> str:
    """How many networks, in what they differ, what they have in common, and that this was not varied."""
    settings = [str(column) for column in runs if column not in _DERIVED]
    varied = [column for column in settings if runs[column].nunique(dropna=False) > 1]
    differing = runs[varied].astype(str).T.drop_duplicates().index  # `lr` and `optimizer.lr` are the same
    shared = [column for column in _SHARED if column in runs and column not in varied]
    named = ", ".join(name_value(column, _list_values(runs[column])) for column in (*differing, *shared))
    statuses = list(runs.get("status", ()))
    unfinished = [f"{statuses.count(status)} {status}" for status in ("diverged", "failed") if status in statuses]
    note = f" Of these {' and '.join(unfinished)}: means are of the rows that there are." if unfinished else ""
    count, seeds = len(runs), runs["seed"].nunique()
    counts = f"{count} network{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    return f"{counts}: {named}.{note} What all of them share was not varied: it may change the answer."


def _list_values(values: pd.Series) -> str:
    return ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values.dropna().unique())
    )


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
