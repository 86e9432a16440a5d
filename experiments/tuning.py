"""Learning rates that are picked by validation on some seeds, and networks that are tested on others.

A cell is a set of networks that differ in the learning rate and the seed alone. `experiments.tune` trains what a cell
lacks; a question reads the networks at the best rate with `select_tested`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.frames import select
from bnlab.harness.reporting.plots import Axis

RATE = "optimizer.lr"
RATES = Axis("learning rate", log=True, ticks="values")
VALIDATED = Axis("validation accuracy (%)")
TUNING_SEEDS = (100, 101, 102)
FIRST_RATES = (0.025, 0.1, 0.4)
FACTOR = 4.0  # between two rates
_RATE_DECIMALS = 9
# Committed tables have seven digits, and three thousand images tell apart no more than these.
_ACCURACY_DECIMALS = 5


def pick_rate(accuracies: Mapping[Any, float]) -> tuple[float, float | None]:
    """Pick the rate with the highest accuracy, of equal ones the smallest, and the rate to try beyond it.

    There is none to try where a smaller and a larger rate have been, or where the three smallest are alike.

    >>> pick_rate({0.025: 0.5, 0.1: 0.7, 0.4: 0.6})
    (0.1, None)
    >>> pick_rate({0.025: 0.5, 0.1: 0.6, 0.4: 0.7})
    (0.4, 1.6)
    """
    # Committed accuracies are rounded, and must lead to the same rate as those that are not. `max` takes the first of
    # equal values, so that the rates are sorted.
    rounded = {rate: round(accuracies[rate], _ACCURACY_DECIMALS) for rate in sorted(accuracies)}
    best = max(rounded, key=lambda rate: rounded[rate])
    # Where the three smallest give the same, such as chance, the search would go on to ever smaller ones.
    smallest = [*rounded.values()][:3]
    if len(smallest) == 3 and smallest == [rounded[best]] * 3:
        return best, None
    # At an edge, a better rate may lie beyond it.
    if best == max(accuracies):
        return best, round(best * FACTOR, _RATE_DECIMALS)
    if best == min(accuracies):
        return best, round(best / FACTOR, _RATE_DECIMALS)
    return best, None


def validate(tables: Tables) -> pd.DataFrame:
    """Find the validation accuracy of each network of the tuning seeds at its end.

    Returns:
        The rows of `runs` with two more columns: `accuracy` under exact statistics, `running` under running averages;
        both are the network's own where its norm has no statistics, that of chance where the training has diverged, and
        NaN where nothing was measured.
    """
    runs = select(tables["runs"], seed=TUNING_SEEDS)
    # The merge leaves out the networks of other seeds.
    validated = select(tables["evaluations"], split="val").merge(runs[["run", "steps"]], on="run")
    at_end = validated[validated["step"] == validated["steps"]]

    exact = select(at_end, estimator=("exact", "none")).set_index("run")["accuracy"]
    running = select(at_end, estimator=("ema", "none")).set_index("run")["accuracy"]
    chance = compute_chance(runs)
    # A network that has diverged has no accuracy, and counts as guessing. If it were left out, its rate would look
    # better than it is.
    is_diverged = runs["status"] == "diverged"
    return runs.assign(
        accuracy=runs["run"].map(exact).mask(is_diverged, chance),
        running=runs["run"].map(running).mask(is_diverged, chance),
    )


def compute_chance(runs: pd.DataFrame) -> pd.Series:
    """Compute the accuracy of guessing, by the number of classes; UserError where tables do not say it."""
    if runs["data.classes"].isna().any():
        raise UserError("a rate can be tuned on glyphs alone: of other data the table runs has no data.classes")
    return 1 / runs["data.classes"]


def select_tested(tables: Tables, cell: Sequence[str]) -> Tables:
    """Select the networks of other seeds than the tuning ones at the best rate of their cell, and their rows.

    The best rate is the one with the highest validation accuracy under exact statistics, over tuning seeds that have
    all been measured; a cell whose best rate is the smallest or the largest that was tried has no networks.

    Args:
        tables: those of the experiment.
        cell: the columns of `runs` in which cells differ.
    """
    picks = []
    validated = validate(tables).dropna(subset=["accuracy", "running"])
    for values, networks in validated.groupby([*cell], dropna=False, sort=False):
        by_rate = networks.groupby(RATE)
        # Means over different numbers of seeds are not comparable, as there are while an experiment is under way.
        is_whole = by_rate["seed"].nunique() == len(TUNING_SEEDS)
        means = by_rate["accuracy"].mean()[is_whole]
        if means.empty:
            continue
        best, beyond = pick_rate(means.to_dict())
        # If the best rate is at the edge, a better one may lie beyond.
        if beyond is None:
            picks.append((*values, best))

    runs = tables["runs"]

    # Seeds that have picked the rate are left out: the rate was chosen to be good on them.
    is_tuning = runs["seed"].isin(TUNING_SEEDS)
    # pandas joins null with null, so that cells whose norm has no momentum find their rate, too.
    tested = runs[~is_tuning].merge(pd.DataFrame(picks, columns=[*cell, RATE]), on=[*cell, RATE])
    selected = {name: frame[frame["run"].isin(tested["run"])] for name, frame in tables.items()}
    return {**selected, "runs": tested}


def select_collapses(accuracies: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Find the rows whose accuracy is below half of the median of their group.

    Args:
        accuracies: rows with `accuracy`, one for each network.
        by: the columns that make the groups.
    """
    medians = accuracies.groupby([*by], dropna=False)["accuracy"].transform("median")
    is_collapsed: pd.Series = accuracies["accuracy"] < 0.5 * medians
    return is_collapsed
