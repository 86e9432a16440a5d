"""What an experiment answers, in words that are composed from its verdicts and its networks' settings alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Tables, answers
from bnlab.harness.reporting.frames import RESULTS

_WORDS = {
    "holds": "Holds —",
    "fails": "Fails —",
    "undecided": "Undecided —",
    "one seed": "Not tested, with one seed —",
}
VERDICTS = tuple(_WORDS)
NUMBERS = ("mean", "low", "high", "n")
READING = (
    "mean over seeds [95% interval, of each line by itself]; verdict by one-sided t tests at 5%, with Holm's "
    "correction over the lines of a claim"
)
# Settings that are named where all networks share them, and how.
_SHARED = {
    "data": "{}",
    "data.images": "{:,} images",
    "model": "{}",
    "model.depth": "depth {}",
    "epochs": "{:g} epochs",
    "optimizer": "{}",
    "lr": "learning rate {:g}",
    "schedule": "{} schedule",
}
_DERIVED = ("steps", "lr_effective", "norm_batch_size", "seed", *RESULTS)


@dataclass(frozen=True)
class Answer:
    """What the tables say on an experiment's question.

    Attributes:
        experiment: the question.
        frame: verdicts with their numbers, see `experiment.answers`.
        sentences: one for each claim.
        networks: what was measured, and what was not varied.
    """

    experiment: Experiment
    frame: pd.DataFrame
    sentences: tuple[str, ...]
    networks: str

    @property
    def tally(self) -> str:
        """How many of its conditions have each verdict."""
        counts = self.frame["verdict"].value_counts()
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of each condition: claim, its text and unit, condition, number, n, verdict."""
        claims = {claim.id: claim for claim in self.experiment.claims}
        return [
            {
                "text": claims[row["claim"]].text,
                "unit": claims[row["claim"]].rule.unit,
                "number": format_number(*(row[key] for key in NUMBERS)),
                **{key: row[key] for key in ("claim", "condition", "n", "verdict")},
            }
            for row in self.frame.to_dict("records")
        ]

    @property
    def margins(self) -> str:
        """The reasons for the claims' margins, each once."""
        rules = [claim.rule for claim in self.experiment.claims]
        return "; ".join(dict.fromkeys(f"{rule} {rule.unit}: {rule.reason}" for rule in rules))


def compose_answer(experiment: Experiment, tables: Tables) -> Answer:
    """Raises as `experiment.answers`."""
    frame = answers(experiment, tables)
    sentences = tuple(summarize(claim, frame[frame["claim"] == claim.id]) for claim in experiment.claims)
    return Answer(experiment, frame, sentences, describe_networks(tables["runs"]))


def summarize(claim: Claim, rows: pd.DataFrame) -> str:
    """The claim, and under which conditions it holds, fails (the opposite holds) or is undecided, with the numbers."""
    parts = []
    for verdict in VERDICTS:
        chosen = rows[rows["verdict"] == verdict].to_dict("records")
        if chosen:
            numbers = [(str(row["condition"]), format_number(*(row[key] for key in NUMBERS))) for row in chosen]
            where = [": ".join(filter(None, (condition, number))) for condition, number in numbers]
            parts.append(f"{_WORDS[verdict]} {'; '.join(where)}.")
    margin = " ".join(filter(None, (str(claim.rule), claim.rule.unit)))
    return f"{claim.text} ({margin}) {' '.join(parts)}"


def describe_networks(runs: pd.DataFrame) -> str:
    """How many networks, what they have in common, in what they differ, and what was not varied."""
    settings = [str(column) for column in runs if column not in ("run", *_DERIVED)]
    varied = [column for column in settings if "." not in column and runs[column].nunique(dropna=False) > 1]
    differ = [f"{column.replace('_', ' ')} {_list_values(runs[column])}" for column in varied]
    shared = [
        words.format(runs[column].iloc[0])
        for column, words in _SHARED.items()
        if column in runs and runs[column].nunique(dropna=False) == 1 and pd.notna(runs[column].iloc[0])
    ]
    seeds = runs["seed"].nunique()
    count = f"{len(runs)} network{'s' if len(runs) > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}"
    return f"{count}: {', '.join([*differ, *shared])}. What all of them share was not varied: it may change the answer."


def _list_values(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values.unique()))


def format_number(mean: float, low: float, high: float, n: int) -> str:
    """Mean and interval to two digits of the interval's half; nothing where there are none."""
    if n < 2:
        return f"{mean:.3g}" if n else ""
    half = (high - low) / 2
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 3
    mean, low, high = (round(value, digits) + 0.0 for value in (mean, low, high))  # no -0.0
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
