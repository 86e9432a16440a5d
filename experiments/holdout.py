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
    "gap": ("larger_gaps_cost_more", "gaps_tell_less_between_seeds"),
    "momentum": ("last_batch_leads_early",),
    # Not in EXTENDED, because the networks that its other claims read still have five seeds.
    "ghost": ("batches_win_after_many_updates", "the_lead_shrinks", "running_averages_fail"),
    "non_iid": ("long_warmup_rescues", "short_memory_rescues", "the_start_is_to_blame"),
    "settings": ("order_is_kept", "order_is_kept_at_falling_rates"),
    "variance": ("averaged_variances_are_too_small",),
}
"""Claims that never had five seeds: of a part of an experiment that had fifteen from the start, or asked after that."""


def describe_added_seeds(outcomes: Sequence[Outcome], results: Path) -> AddedSeeds:
    """Describe what the added seeds decide alone, over all experiments in `EXTENDED`, at least one, and for each."""
    rows = []
    for outcome in outcomes:
        experiment = outcome.experiment
        if experiment.name in EXTENDED:
            verdicts = hold_out(experiment, load(experiment.name, results))
            rows.append({"experiment": experiment.name, **count_changes(verdicts)})

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
    """Decide the claims that had five seeds first three times: with these, with the added ones alone, and with all.

    Returns:
        A row for each condition that has a verdict all three times, in the columns `first`, `added` and `with_all`.
    """
    # A second look cannot have changed the verdicts of these claims.
    had_all_seeds = FROM_THE_START.get(experiment.name, ())
    claims = {key: claim for key, claim in experiment.claims.items() if key not in had_all_seeds}
    runs = tables["runs"]
    parts = {
        "first": runs[runs["seed"] < FIRST_SEEDS],
        "added": runs[runs["seed"] >= FIRST_SEEDS],
        "with_all": runs,
    }

    verdicts = {}
    for part, networks in parts.items():
        # All tables are cut to the same networks, so that no score finds a measured row without its settings.
        chosen = {name: frame[frame["run"].isin(networks["run"])] for name, frame in tables.items()}
        decided = decide(replace(experiment, claims=claims), chosen)
        # Conditions are matched by name, and the layer with the largest gap may differ between the three parts.
        decided["condition"] = decided["where"].map(_name_condition)
        verdicts[part] = decided.set_index(["claim", "condition"])["verdict"]
    return pd.DataFrame(verdicts).dropna()  # NaN where one of the three lacks the condition


def _name_condition(where: tuple[str, ...]) -> str:
    """Name a condition without the layer that has the largest gap, which need not be the same for other seeds."""
    return ", ".join(word for word in where if not word.startswith("largest in"))


def count_changes(verdicts: pd.DataFrame) -> dict[str, int]:
    """Count the verdicts of `hold_out` that the added seeds have changed.

    Returns:
        conditions: how many there are.
        decided: those that the first seeds do not decide, and all seeds do.
        alike: of `decided`, those that the added seeds alone decide as all seeds do.
        undecided: of `decided`, those that the added seeds alone do not decide.
        reversed: of `decided`, those that the added seeds alone decide the other way.
        undone: those that the first seeds decide, and all seeds do not.
    """
    # Other verdicts than "undecided" leave a condition open, too: "one seed", "not tested".
    is_decided = verdicts.isin(["holds", "fails"])

    newly = verdicts[~is_decided["first"] & is_decided["with_all"]]
    is_alike = newly["added"] == newly["with_all"]
    is_undecided = ~newly["added"].isin(["holds", "fails"])
    return {
        "conditions": len(verdicts),
        "decided": len(newly),
        "alike": int(is_alike.sum()),
        "undecided": int(is_undecided.sum()),
        "reversed": int((~is_undecided & ~is_alike).sum()),
        "undone": int((is_decided["first"] & ~is_decided["with_all"]).sum()),
    }
