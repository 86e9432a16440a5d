"""Verdicts of the seeds alone that were added to an experiment later.

Most experiments were first decided with five seeds. Those in `EXTENDED` were then given ten more, because conditions of
theirs were undecided. Such a second look makes it likelier that something holds by chance, and the ten new seeds alone
do not share that fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Tables, decide
from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import AddedSeeds
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


def describe_added_seeds(outcomes: Sequence[Outcome], results: Path) -> AddedSeeds:
    """Say what the added seeds decide alone, with a row of `count_changes` for each experiment that was given more."""
    rows = []
    for outcome in outcomes:
        name = outcome.experiment.name
        if name in EXTENDED:
            verdicts = hold_out(outcome.experiment, load(name, results))
            rows.append({"experiment": name, **count_changes(verdicts)})
    counts = pd.DataFrame(rows)
    total = counts.drop(columns="experiment").sum()
    text = (
        "Most experiments were decided with five seeds; many were then given ten more, because conditions of theirs "
        "were undecided. A second look makes it likelier that something holds by chance, so here is what the ten "
        f"new seeds say alone of the {total['decided']} conditions that five seeds did not decide and fifteen do: "
        f"{total['alike']} likewise, {total['undecided']} they leave undecided, {total['reversed'] or 'none'} they "
        f"reverse. Of what five seeds had decided, {total['undone'] or 'nothing'} is undecided with fifteen."
    )
    return AddedSeeds(text, counts)


def hold_out(experiment: Experiment, tables: Tables) -> pd.DataFrame:
    """Decide the claims with the first seeds, with the added ones alone, and with all.

    Args:
        experiment: the question with its claims.
        tables: those of the experiment, with all seeds.

    Returns:
        A row for each condition that occurs three times; verdicts in the columns `first`, `added` and `with_all`.
    """
    seeds = tables["runs"]["seed"]
    verdicts = {
        "first": _decide(experiment, tables, seeds < FIRST_SEEDS),
        "added": _decide(experiment, tables, seeds >= FIRST_SEEDS),
        "with_all": _decide(experiment, tables, seeds.notna()),
    }
    return pd.DataFrame(verdicts).dropna()


def count_changes(verdicts: pd.DataFrame) -> dict[str, int]:
    """Count what more seeds have changed.

    Args:
        verdicts: of `hold_out`.

    Returns:
        `conditions`: all rows. `decided`: those that the first seeds did not decide, and all do; of these `alike` are
        decided likewise by the added seeds alone, `undecided` are not decided by them, and `reversed` are decided the
        other way. `undone`: those that the first seeds decided, and all do not.
    """
    was_decided = verdicts["first"].isin(_DECIDED)
    is_decided = verdicts["with_all"].isin(_DECIDED)
    newly_decided = verdicts[~was_decided & is_decided]

    is_alike = newly_decided["added"] == newly_decided["with_all"]
    is_decided_alone = newly_decided["added"].isin(_DECIDED)
    return {
        "conditions": len(verdicts),
        "decided": len(newly_decided),
        "alike": int(is_alike.sum()),
        "undecided": int((~is_decided_alone).sum()),
        "reversed": int((is_decided_alone & ~is_alike).sum()),
        "undone": int((was_decided & ~is_decided).sum()),
    }


def _decide(experiment: Experiment, tables: Tables, is_wanted: pd.Series) -> pd.Series:
    """Decide the claims from some of the networks: verdicts by claim and condition."""
    names = tables["runs"].loc[is_wanted, "run"]
    chosen = {}
    for name, frame in tables.items():
        is_chosen = frame["run"].isin(names)
        chosen[name] = frame[is_chosen]

    decided = decide(experiment, chosen)
    decided["place"] = decided["where"].map(_name_place)
    return decided.set_index(["claim", "place"])["verdict"]


def _name_place(where: tuple[str, ...]) -> str:
    """Name a condition without the layer that has the largest gap, which need not be the same for other seeds."""
    return ", ".join(word for word in where if not word.startswith("largest in"))
