"""What an experiment answers, in words that are composed from its verdicts and its networks' settings alone."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Tables, answers
from bnlab.harness.reporting.frames import NUMBERS, RESULTS, name_value

WORDS = {
    "holds": "Holds",
    "fails": "Fails",
    "undecided": "Undecided",
    "one seed": "Not tested, with one seed",
    "not measured": "Not measured",
}
READING = (
    "means over seeds [95% interval, of each line by itself]; verdicts by one-sided t tests (of shares of the networks "
    "exact binomial ones) at 5%, with Holm's correction over the lines of a claim, so that a line may hold although "
    "its interval reaches a little past the margin; fails: the opposite of what the brackets say is significant. Of "
    "several conditions there is the range of the means, and the outer bounds of the intervals"
)
# Settings that are named where all networks share them, and how.
_SHARED = {
    "data": "{}",
    "data.images": "{:,} images",
    "model": "{}",
    "model.depth": "depth {}",
    "batch_size": "batch size {}",
    "epochs": "{:g} epochs",
    "optimizer": "{}",
    "lr": "learning rate {:g}",
    "schedule": "{} schedule",
}
# Settings that are named where all networks share another value than this one.
_USUAL = {
    "norm": "batch",
    "norm.batch_size": 32,
    "norm.every_second": "none",
    "order": "shuffled",
    "averaging": "none",
    "freeze_at": 1.0,
    "freeze_with": "none",
    "label_smoothing": 0.0,
    "data.shift": 0,
    "data.flip": False,
}
_NO_ROW = "no row for it"
_NAMED = 3  # the most conditions of one verdict that are named
_TINY = 1e-5  # below it numbers are written as 1.2e-07
_DERIVED = ("steps", "lr_effective", "norm_batch_size", "seed", *RESULTS)


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
    def command(self) -> str:
        """What makes the results again."""
        return self.experiment.command or f"python -m experiments.sweep experiment={self.experiment.name}"

    @property
    def claims(self) -> list[tuple[Claim, list[dict[Hashable, Any]]]]:
        """Each claim with its conditions: condition, number, n, verdict."""
        rows = [
            {"number": format_number(*(row[key] for key in NUMBERS)), **row} for row in self.frame.to_dict("records")
        ]
        claims = self.experiment.claims.items()
        return [(claim, [row for row in rows if row["claim"] == name]) for name, claim in claims]


def compose_answer(experiment: Experiment, tables: Tables) -> Answer:
    """The verdicts on an experiment's claims, and what was measured; raises as `experiment.answers`."""
    runs = tables["runs"]
    data = _list_values(runs["data"]) if "data" in runs else ""
    return Answer(experiment, answers(experiment, tables), data, describe_networks(runs))


def summarize(claim: Claim, rows: pd.DataFrame) -> str:
    """The claim, and under which conditions it holds, fails (the opposite holds) or is undecided, with the numbers.

    Up to three conditions are named, by what tells them apart; more are counted.
    """
    every = list(rows["where"])
    tells = [len({*values}) > 1 or len(every) == 1 for values in zip(*every, strict=True)]
    parts = []
    for verdict, word in WORDS.items():
        chosen = rows[rows["verdict"] == verdict]
        groups = [chosen.iloc[[place]] for place in range(len(chosen))] if len(chosen) <= _NAMED else [chosen]
        described = []
        for group in groups:
            words = ", ".join(word for word, told in zip(group["where"].iloc[0], tells, strict=True) if word and told)
            if len(group) > 1:
                words = f"{'all' if len(group) == len(rows) else f'{len(group)} of'} {len(rows)} conditions"
            described.append(": ".join(filter(None, (words, format_range(group, claim.rule.unit)))))
        if described:
            parts.append(f"{word} — {'; '.join(described)}.")
    return f"{claim.text} ({claim.rule.margin}) {' '.join(parts)}"


def format_range(rows: pd.DataFrame, unit: str) -> str:
    """The mean and interval of one condition; of several the range of means, and of all intervals."""
    measured = rows[rows["n"] > 0]
    rounded = [round_numbers(*row) for row in measured[[*NUMBERS]].itertuples(index=False)]
    if not rounded:
        return _NO_ROW
    agree = all(map(_agree, rounded))
    if not agree and (len(rounded) < 2 or min(map(len, rounded)) == 1):
        return f"{', '.join(map(_join_numbers, rounded))} {unit}".rstrip()
    means, lows, highs = (sorted(texts, key=float) for texts in zip(*rounded, strict=True))
    spread = [*dict.fromkeys((means[0], means[-1]))]
    note = f" (intervals from {lows[0]} to {highs[-1]})"
    if agree:
        note = f", {'each ' * (len(spread) > 1)}{_say_same(measured['n'].max())}"
    return f"{' to '.join(spread)} {unit}".rstrip() + note


def describe_networks(runs: pd.DataFrame) -> str:
    """How many networks, what they have in common, in what they differ, and what was not varied."""
    settings = [str(column) for column in runs if column not in ("run", *_DERIVED)]
    varied = [column for column in settings if runs[column].nunique(dropna=False) > 1]
    own = [column for column in varied if "." not in column]
    nested = [column for column in varied if "." in column and not any(runs[column].equals(runs[o]) for o in own)]
    differ = [name_value(column, _list_values(runs[column])) for column in (*own, *nested)]
    values = {c: runs[c].iloc[0] for c in settings if c not in varied and pd.notna(runs[c].iloc[0])}
    shared = [words.format(values[column]) for column, words in _SHARED.items() if column in values]
    shared += [name_value(c, values[c]) for c, usual in _USUAL.items() if c in values and values[c] != usual]
    seeds, statuses = runs["seed"].nunique(), runs.get("status", pd.Series(dtype=str))
    unfinished = [
        f"{(statuses == status).sum()} {status}" for status in ("diverged", "failed") if status in {*statuses}
    ]
    count = f"{len(runs)} network{'s' * (len(runs) > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    note = f" Of these {' and '.join(unfinished)}: means are of the rows that there are." if unfinished else ""
    described = f"{count}: {', '.join([*differ, *shared])}.{note}"
    return f"{described} What all of them share was not varied: it may change the answer."


def _list_values(values: pd.Series) -> str:
    return ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values.dropna().unique())
    )


def round_numbers(mean: float, low: float, high: float, n: int) -> list[str]:
    """Mean, low and high to two digits of the interval's half; the mean alone without interval; nothing without n."""
    half = (high - low) / 2
    if not math.isfinite(half):
        return [f"{mean:.3g}"] if n else []
    if 0 < max(abs(low), abs(high)) < _TINY:
        return [f"{value:.1e}" for value in (mean, low, high)]
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 1e-9 * abs(mean) else 3  # rounding
    return [f"{round(value, digits) + 0.0:.{digits}f}" for value in (mean, low, high)]  # no -0.0


def format_number(mean: float, low: float, high: float, n: int) -> str:
    """Mean and interval, as `round_numbers` has them; in words where there is no row, or no width.

    >>> format_number(0.25, 0.25, 0.25, 5), format_number(1.0, 0.5, 1.5, 5)
    ('0.250, the same in all 5 networks', '1.00 [0.50, 1.50]')
    >>> format_number(1 / 3, 1 / 3, 1 / 3 + 1e-16, 2)
    '0.333, the same in both networks'
    """
    numbers = round_numbers(mean, low, high, n)
    return (f"{numbers[0]}, {_say_same(n)}" if _agree(numbers) else _join_numbers(numbers)) or _NO_ROW


def _agree(numbers: list[str]) -> bool:
    """Whether the interval has no width."""
    return len(numbers) == 3 and numbers[1] == numbers[2]


def _say_same(n: int) -> str:
    return f"the same in {'both' if n == 2 else f'all {n}'} networks"


def _join_numbers(numbers: list[str]) -> str:
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) > 1 else "".join(numbers)
