"""Verdicts from added seeds alone, as a check of verdicts that needed them.

Most experiments were first decided with five seeds. Those in `EXTENDED` were then given ten more, because some of
their conditions were undecided. Such a second look makes it likelier that something holds by chance. The ten added
seeds alone do not have that fault: whether to add them was decided without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bnlab.harness.reporting.experiment import Experiment, Tables, decide
from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import AddedSeeds
from bnlab.harness.reporting.tables import load

FIRST_SEEDS = 5
EXTENDED = (
    "drift",
    "few_images",
    "gap",
    "model_selection",
    "momentum",
    "non_iid",
    "predictive",
    "quickstart",
    "settings",
    "shift",
    "streams",
    "tolerance",
    "variance",
    "weight_averaging",
)
"""Experiments of results/reference whose seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were known."""

FROM_THE_START = {
    "ghost": ("batches_win_after_many_updates", "the_lead_shrinks", "running_averages_fail"),
    "non_iid": ("long_warmup_rescues", "short_memory_rescues", "the_start_is_to_blame"),
}
"""Claims of experiments in two parts, of which one had five seeds first and this one had fifteen from the start."""

_DECIDED = ("holds", "fails")


def describe_added_seeds(outcomes: Sequence[Outcome], results: Path) -> AddedSeeds:
    """Describe what the added seeds decide alone, over all experiments and for each.

    Args:
        outcomes: the experiments; those in `EXTENDED` are described, at least one.
        results: the folder of all results.
    """
    rows = []
    for outcome in outcomes:
        name = outcome.experiment.name
        if name not in EXTENDED:
            continue
        tables = load(name, results)
        begun_with_all = FROM_THE_START.get(name, ())
        extended = {key: claim for key, claim in outcome.experiment.claims.items() if key not in begun_with_all}
        verdicts = hold_out(replace(outcome.experiment, claims=extended), tables)
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
    """Decide the claims three times: with the first seeds, with the added ones alone, and with all.

    Args:
        experiment: the question with its claims.
        tables: the experiment's tables, with all seeds.

    Returns:
        A row for each condition that has a verdict all three times, in the columns `first`, `added` and `with_all`.
    """
    seeds = tables["runs"]["seed"]
    verdicts = {
        "first": _decide_with(experiment, tables, seeds < FIRST_SEEDS),
        "added": _decide_with(experiment, tables, seeds >= FIRST_SEEDS),
        "with_all": _decide_with(experiment, tables, seeds.notna()),
    }
    return pd.DataFrame(verdicts).dropna()  # NaN where one of the three lacks the condition


def count_changes(verdicts: pd.DataFrame) -> dict[str, int]:
    """Count the verdicts that the added seeds have changed.

    Args:
        verdicts: the result of `hold_out`.

    Returns:
        conditions: how many there are.
        decided: those that the first seeds do not decide, and all seeds do.
        alike: of `decided`, those that the added seeds alone decide as all seeds do.
        undecided: of `decided`, those that the added seeds alone do not decide.
        reversed: of `decided`, those that the added seeds alone decide the other way.
        undone: those that the first seeds decide, and all seeds do not.
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


def _decide_with(experiment: Experiment, tables: Tables, is_wanted: pd.Series) -> pd.Series:
    """Decide the claims from some of the networks.

    Args:
        experiment: the question with its claims.
        tables: the experiment's tables, with all seeds.
        is_wanted: for each row of the table `runs`, whether its network is among them.

    Returns:
        A verdict for each claim and condition, which are its index.
    """
    names = tables["runs"].loc[is_wanted, "run"]
    chosen = {}
    for name, frame in tables.items():
        is_chosen = frame["run"].isin(names)
        chosen[name] = frame[is_chosen]

    decided = decide(experiment, chosen)
    decided["condition"] = decided["where"].map(_name_condition)
    return decided.set_index(["claim", "condition"])["verdict"]


def _name_condition(where: tuple[str, ...]) -> str:
    """Name a condition without the layer that has the largest gap, which need not be the same for other seeds."""
    return ", ".join(word for word in where if not word.startswith("largest in"))
