"""What the seeds say by themselves that were added to an experiment later.

Most experiments were first decided with five seeds. Those in `EXTENDED` were then given ten more, because conditions of
theirs were undecided. Such a second look makes it likelier that something holds by chance, and the ten new seeds alone
do not share that fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from bnlab.harness.reporting.answer import Answer
from bnlab.harness.reporting.experiment import Experiment, Tables, answers
from bnlab.harness.reporting.tables import load

FIRST_SEEDS = 5
EXTENDED = (
    "accuracy",
    "drift",
    "few_images",
    "gap",
    "model_selection",
    "momentum",
    "non_iid",
    "norms",
    "predictive",
    "quickstart",
    "settings",
    "shift",
    "start",
    "streams",
    "tolerance",
    "variance",
    "weight_averaging",
)
"""Experiments of results/reference whose seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were known."""

_DECIDED = ("holds", "fails")


def list_added_seeds(answers: Sequence[Answer], results: Path) -> pd.DataFrame:
    """A row of `hold_out` for each of the answered experiments that was given more seeds later."""
    extended = [answer.experiment for answer in answers if answer.experiment.name in EXTENDED]
    counts = [{"experiment": of.name, **hold_out(of, load(of.name, results))} for of in extended]
    return pd.DataFrame(counts)


def hold_out(experiment: Experiment, tables: Tables) -> dict[str, int]:
    """Count the conditions that the added seeds decided, and what these seeds say alone.

    Args:
        experiment: the question with its claims.
        tables: those of the experiment, with all seeds.

    Returns:
        `decided`: conditions that were undecided with the first seeds and are decided with all; of these `alike` are
        decided likewise by the added seeds alone, `undecided` are not decided by them, and `reversed` are decided the
        other way. `conditions`: all that have a verdict with the first seeds and with all.
    """
    first = _decide(experiment, tables, lambda seeds: seeds < FIRST_SEEDS)
    added = _decide(experiment, tables, lambda seeds: seeds >= FIRST_SEEDS)
    every = _decide(experiment, tables, lambda seeds: seeds >= 0)
    verdicts = pd.DataFrame({"first": first, "added": added, "every": every}).dropna()

    newly = verdicts[(verdicts["first"] == "undecided") & verdicts["every"].isin(_DECIDED)]
    alike = newly["added"] == newly["every"]
    decided = newly["added"].isin(_DECIDED)
    return {
        "conditions": len(verdicts),
        "decided": len(newly),
        "alike": int(alike.sum()),
        "undecided": int((~decided).sum()),
        "reversed": int((decided & ~alike).sum()),
    }


def _decide(experiment: Experiment, tables: Tables, wanted: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """The verdicts on networks with the wanted seeds, by claim and condition."""
    runs = tables["runs"][wanted(tables["runs"]["seed"])]
    chosen = {name: frame[frame["run"].isin(runs["run"])] for name, frame in tables.items()}
    frame = answers(experiment, {**chosen, "runs": runs})
    conditions = [", ".join(word for word in where if not word.startswith("largest in")) for where in frame["where"]]
    return frame.set_index([frame["claim"], pd.Index(conditions, name="place")])["verdict"]
