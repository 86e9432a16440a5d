"""What an experiment answers, in words that are composed from its verdicts and its networks' settings alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from bnlab.harness.errors import Note
from bnlab.harness.reporting.experiment import Claim, Experiment, Tables, answers
from bnlab.harness.reporting.frames import NUMBERS, RESULTS, name_value

WORDS = {
    "holds": "Holds",
    "fails": "Fails",
    "undecided": "Undecided",
    "one seed": "Not tested, with one seed",
    "not measured": "Not measured",
}
Condition = tuple[str, ...]
"""In words, one for each coordinate: `where` of `experiment.answers`."""
READING = (
    "means over seeds [95% interval, of each line by itself]; verdicts by one-sided t tests (of shares of the networks "
    "exact binomial ones) at 5%, with Holm's correction over the lines of a claim; fails: the opposite of what the "
    "brackets say is significant. So a line can hold although its two-sided interval reaches a little past the margin, "
    "and be undecided although it does not, where a claim has many lines. Where all networks of a line have the same "
    "number, to the digits that are shown, there is no interval: these networks agree, which does not say that all "
    "others would. Where several conditions are joined, the line gives the range of their means and the outer bounds "
    "of their intervals"
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
USUAL = {
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
_IMAGES = {"split": "test", "shift": "none"}  # of predictions, likewise
_ON_FROZEN_WEIGHTS = ("exact", "precise", "update_bn", "swa")
_POPULATIONS = {"val": "the validation split", "train_augmented": "augmented training images"}
_NO_ROW = "no row for it"
_GROUPS = 3  # the most groups of undecided conditions that are named
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
        images: which images are predicted, where these are not the usual ones; empty otherwise.
        changes: in which settings the tables differ from those that claims were written for; empty if in none.
    """

    experiment: Experiment
    frame: pd.DataFrame
    data: str
    networks: str
    images: str = ""
    changes: str = ""

    def list_sentences(self, number: str | None = None) -> list[str]:
        """A sentence for each claim that bears on a question or hypothesis; without a number, for all."""
        claims = self.experiment.claims.items()
        return [
            self._sentences[c] for c, claim in claims if number is None or not claim.answers or number in claim.answers
        ]

    @cached_property
    def _sentences(self) -> dict[str, str]:
        """By the claims' ids."""
        return {
            c: summarize(claim, self.frame[self.frame["claim"] == c]) for c, claim in self.experiment.claims.items()
        }

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
    """The verdicts on an experiment's claims, and what was measured; raises as `experiment.answers`.

    Warns of networks that diverged, which means over seeds leave out, or that are not finished otherwise.
    """
    frame = answers(experiment, tables)
    runs = tables["runs"]
    if short := describe_unfinished(runs):
        warnings.warn(f"{experiment.name}: {short}", Note, stacklevel=2)
    data = _list_values(runs["data"]) if "data" in runs else ""
    return Answer(experiment, frame, data, describe_networks(runs), describe_images(tables))


def summarize(claim: Claim, rows: pd.DataFrame) -> str:
    """The claim, and under which conditions it holds, fails (the opposite holds) or is undecided, with the numbers.

    Undecided conditions are counted where it takes many words to name them.
    """
    every, unit = list(rows["where"]), claim.rule.unit
    parts = []
    for verdict, word in WORDS.items():
        chosen = rows[rows["verdict"] == verdict]
        groups = group_conditions(list(chosen["where"]))
        described = [
            ": ".join(filter(None, (describe_conditions(where, every), format_range(group, unit))))
            for where, group in ((where, chosen[chosen["where"].isin(where)]) for where in groups)
        ]
        if verdict == "undecided" and len(groups) > _GROUPS:
            described = [f"{len(chosen)} of {len(every)} conditions: {format_range(chosen, unit)}"]
        if described:
            parts.append(f"{word} — {'; '.join(described)}.")
    return f"{claim.text} ({claim.rule.margin}) {' '.join(parts)}"


def group_conditions(conditions: list[Condition]) -> list[list[Condition]]:
    """Few groups, each of which is all combinations of some values of each coordinate."""
    if not conditions:
        return []
    values = [{*column} for column in zip(*conditions, strict=True)]
    if len(conditions) == math.prod(map(len, values)):
        return [conditions]
    splits = []
    for place in range(len(values)):
        # Values of this coordinate that go with the same others stay together.
        others: dict[str, set[Condition]] = {value: set() for value in values[place]}
        for condition in conditions:
            others[condition[place]].add(condition[:place] + condition[place + 1 :])
        parts: dict[frozenset[Condition], list[Condition]] = {}
        for condition in conditions:
            parts.setdefault(frozenset(others[condition[place]]), []).append(condition)
        if len(parts) > 1:
            splits.append([group for part in parts.values() for group in group_conditions(part)])
    return min(splits, key=len)


def describe_conditions(group: list[Condition], every: list[Condition]) -> str:
    """What the conditions of a group have that others have not; all values of a coordinate need no word."""
    words = []
    for values, possible in zip(zip(*group, strict=True), zip(*every, strict=True), strict=True):
        if len({*possible}) == 1 or {*values} != {*possible}:
            words.append(join_values([*dict.fromkeys(values)]))
    everywhere = "both conditions" if len(every) == 2 else f"all {len(every)} conditions"
    return ", ".join(filter(None, words)) or everywhere * (len(every) > 1)


def join_values(values: list[str]) -> str:
    """In one phrase, with the words that they begin and end with said once.

    >>> join_values(["after 20% of training", "after 55% of training"]), join_values(["batch size 4", "batch size 16"])
    ('after 20% and 55% of training', 'batch size 4 and 16')
    """
    split = [value.split() for value in values]
    begin = _count_same(split)
    end = _count_same([words[begin:][::-1] for words in split])
    middle = [" ".join(words[begin : len(words) - end]) for words in split]
    listed = " and ".join(filter(None, [", ".join(middle[:-1]), middle[-1]]))
    return " ".join(filter(None, [*split[0][:begin], listed, *split[0][len(split[0]) - end :]]))


def _count_same(lists: list[list[str]]) -> int:
    """How many words all lists begin with, but for one that is left of each."""
    shortest = min(map(len, lists)) - (len(lists) > 1)
    return next((k for k in range(shortest) if len({words[k] for words in lists}) > 1), max(shortest, 0))


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
    shared = [
        words.format(runs[column].iloc[0])
        for column, words in _SHARED.items()
        if column in runs and runs[column].nunique(dropna=False) == 1 and pd.notna(runs[column].iloc[0])
    ]
    shared += _describe_unusual(runs, USUAL)
    seeds = runs["seed"].nunique()
    count = f"{len(runs)} network{'s' if len(runs) > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}"
    unfinished = f" Note: {short}." if (short := describe_unfinished(runs)) else ""
    described = f"{count}: {', '.join([*differ, *shared])}.{unfinished}"
    return f"{described} What all of them share was not varied: it may change the answer."


def describe_images(tables: Tables) -> str:
    """Which images are predicted, where all are others than those of the test split as they are; empty otherwise.

    And of which images the population's statistics are, where all of them are of others than those of training.
    """
    found = _describe_unusual(tables.get("evaluations", pd.DataFrame()), _IMAGES)
    told = [f"Predictions are of other images: {', '.join(found)}."] if found else []
    splits = {split for table in tables for split in _list_populations(tables[table])}
    if splits and not splits & {"train", "none"}:
        words = " and ".join(_POPULATIONS.get(split, split) for split in sorted(splits))
        told.append(
            f"Where estimators are measured on frozen weights, exact ones too, they are of {words}; what gaps and "
            "doses are measured from, and what networks are frozen with, is of the training split."
        )
    return " ".join(told)


def _list_populations(frame: pd.DataFrame) -> list[str]:
    """The splits of which the rows' exact and precise statistics are."""
    if not {"estimator", "statistics_split"} <= {*frame}:
        return []
    kinds = frame["estimator"].astype(str).str.replace(r"\(.*", "", regex=True)
    return list(frame[kinds.isin(_ON_FROZEN_WEIGHTS)]["statistics_split"].dropna().unique())


def _describe_unusual(frame: pd.DataFrame, usual: Mapping[str, Any]) -> list[str]:
    """The columns in which all rows have one value, and not the usual one, with that value."""
    shared = [column for column in usual if column in frame and frame[column].nunique(dropna=False) == 1]
    values = {column: frame[column].iloc[0] for column in shared}
    return [name_value(key, value) for key, value in values.items() if pd.notna(value) and value != usual[key]]


def describe_unfinished(runs: pd.DataFrame) -> str:
    """How many of the networks diverged or failed; empty if none did. Reference tables do not say."""
    statuses = runs["status"] if "status" in runs else pd.Series(dtype=str)
    counts = [f"{(statuses == status).sum()} {status}" for status in ("diverged", "failed") if status in set(statuses)]
    return f"of {len(runs)} networks {' and '.join(counts)}: means are of the rows that there are" if counts else ""


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
