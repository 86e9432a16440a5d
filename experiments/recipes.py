"""What questions on whole recipes share: accuracies by statistics, tuned rates, what is lost by rate, and picks.

*Exact statistics* are those of training images as training sees them, augmented where it augments: that is what running
averages estimate. Exact statistics of plain images stand beside them where training augments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import paired, rows, select
from bnlab.harness.reporting.plots import Axis
from bnlab.harness.reporting.question import Tables

RATE = "optimizer.lr"
RATES = Axis("learning rate", log=True, ticks="values")
VALIDATED = Axis("validation accuracy (%)")
TUNING_SEEDS = (100, 101, 102)
SCHEDULE = "optimizer.schedule"
RUNNING, LAST, TUNED = "running averages", "last batch", "self-tuned momentum"
EXACT, PLAIN = "exact statistics", "exact statistics of plain images"
CONSTANT, COSINE, STEP = "constant", "cosine", "step"
# Neighbours among the rates that were trained, the smaller one first.
RATES_APART = ((0.025, 0.1), (0.1, 0.4))


def select_accuracies(
    tables: Tables, by: Sequence[str], at: Sequence[float] = (), split: str | tuple[str, ...] = "test"
) -> pd.DataFrame:
    """Find accuracies under each kind of statistics, which `line` names.

    Args:
        tables: the tables of the experiment.
        by: settings in which the networks differ beside the seed.
        at: shares of the training; all measured steps without any, in one panel.
        split: images that are predicted, one or several.
    """
    # Running averages of PyTorch's momentum, and statistics that have none, such as exact ones.
    frame = rows(tables, "evaluations", at, by, split=split, momentum=(0.1, None))
    if not at:
        frame["panel"] = ""
    frame["line"] = name_statistics(frame)
    named = frame[frame["line"].notna()]
    return named.drop(columns=["estimator", "momentum", "statistics_split"])


def name_statistics(frame: pd.DataFrame) -> pd.Series:
    """Name the statistics of each row; None for others than the five that these questions compare."""
    names = {"ema": RUNNING, "last_batch": LAST, "predictive": TUNED, "exact": EXACT}
    line = frame["estimator"].map(names)
    is_augmented = frame["statistics_split"] == "train_augmented"
    # Plain images give other exact statistics only where training augments. Elsewhere they are the exact statistics of
    # training.
    augmenting = frame.loc[is_augmented, "run"].unique()
    is_plain = (line == EXACT) & ~is_augmented & frame["run"].isin(augmenting)
    return line.mask(is_plain, PLAIN)


def subtract_exact(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Subtract the accuracy under exact statistics of the same weights: a share, negative where statistics lose."""
    return paired(accuracies, "accuracy", EXACT, along="line")


def select_lost(tables: Tables, by: Sequence[str], at: Sequence[float] = (), **wanted: Any) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from that under running averages, or what else is wanted.

    Args:
        tables: the tables of the experiment.
        by, at: see `select_accuracies`.
        wanted: see `select`; `line` names the statistics, running averages by default.
    """
    return select(subtract_exact(select_accuracies(tables, by, at)), **{"line": RUNNING, **wanted})


def name_dataset(frame: pd.DataFrame) -> pd.Series:
    """Name the data set of each row; own data have an import path as their name, which no reader knows."""
    return frame["data"].map({"cifar10": "CIFAR-10"}).fillna("Fashion-MNIST")


def compute_growth(lost: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Subtract what is lost at a quarter of the learning rate: negative where the larger rate loses more.

    Args:
        lost: rows of `subtract_exact` of one kind of statistics.
        by: settings in which networks differ, the learning rate among them.
    """
    # The rates are what is compared, so that they are not matched.
    matching = ["seed", *(column for column in by if column != RATE)]
    differences = []
    for small, large in RATES_APART:
        both = select(lost, **{RATE: (small, large)})
        counts = both.groupby([*matching, "panel"], dropna=False)[RATE].transform("nunique")
        compared = both[counts == 2]  # an experiment that is not done has seeds of one rate alone
        grown = paired(compared, "accuracy", small, along=RATE, matching=matching)
        differences.append(grown.assign(rates=f"{large:g} against {small:g}"))
    return pd.concat(differences)


def select_complete(tables: Tables, accuracies: pd.DataFrame, by: Sequence[str], rates: int = 3) -> pd.DataFrame:
    """Select the rows of groups that have been trained at all learning rates; one that diverged has been, too.

    Args:
        tables: the tables of the experiment.
        accuracies: rows with the settings of their networks.
        by: the columns that make a group.
        rates: how many learning rates there are.
    """
    # A rate at which the training diverged has been tried as well.
    ended = select(tables["runs"], status=("finished", "diverged"))
    counts = ended.groupby([*by], dropna=False)[RATE].nunique()
    complete = counts.index[counts == rates]
    groups = pd.MultiIndex.from_frame(accuracies[[*by]])
    return accuracies[groups.isin(complete)]


def pick(accuracies: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Pick a network's step in each group by validation accuracy, under running averages and under exact statistics.

    Args:
        accuracies: rows of `select_accuracies` of validation and test images.
        by: the columns that make a group, such as "run" for checkpoints, or seed and schedule for learning rates.

    Returns:
        A row for each group: what running averages have picked, with `cost`, the test accuracy of the pick of exact
        statistics minus that of this one, both under exact statistics (a share), and `differs`, if the picks do.
        Of equal accuracies the first pick is taken: the smallest rate, or the earliest step.
    """
    # `idxmax` takes the first of equal values, which is now that of the smallest rate and the earliest step.
    ordered = accuracies.sort_values([RATE, "step"], kind="stable")
    on_validation = select(ordered, split="val")
    # Both picks are tested under exact statistics, so that the cost is that of the choice and not of the statistics.
    tested = select(ordered, split="test", line=EXACT).set_index(["run", "step"])["accuracy"]

    picks = {}
    for line in (RUNNING, EXACT):
        candidates = select(on_validation, line=line).reset_index(drop=True)
        labels = candidates.groupby([*by], dropna=False, sort=False)["accuracy"].idxmax()
        picked = candidates.loc[labels]
        picked = picked.join(tested.rename("tested"), on=["run", "step"])
        picks[line] = picked.set_index([*by])

    # `!=` refuses two Series whose labels are in different orders.
    running = picks[RUNNING].sort_index()
    exact = picks[EXACT].sort_index()
    is_other = running["step"] != exact["step"]
    # If the checkpoints of a single network are picked from, the networks are the same.
    if "run" not in by:
        is_other |= running["run"] != exact["run"]
    cost = exact["tested"] - running["tested"]
    return running.assign(cost=cost, differs=is_other).reset_index()


def select_tested(tables: Tables) -> Tables:
    """Select the networks of other seeds than the tuning ones: they were trained at the picked rates alone."""
    runs = tables["runs"]
    # Seeds that have picked the rate are left out: the rate was chosen to be good on them.
    is_tuning = runs["seed"].isin(TUNING_SEEDS)
    return {**tables, "runs": runs[~is_tuning]}


def validate(tables: Tables) -> pd.DataFrame:
    """Find the validation accuracy of each network of the tuning seeds at its end.

    Returns:
        The rows of `runs` with a further column `accuracy`: under exact statistics, or the network's own where its norm
        has no statistics; that of chance where the training has diverged; NaN where nothing was measured.
    """
    runs = select(tables["runs"], seed=TUNING_SEEDS)
    validated = select(tables["evaluations"], split="val", estimator=("exact", "none"))
    # The merge leaves out the networks of other seeds.
    merged = validated.merge(runs[["run", "steps"]], on="run")
    at_end = merged[merged["step"] == merged["steps"]].set_index("run")["accuracy"]
    # A network that has diverged has no accuracy, and counts as guessing. If it were left out, its rate would look
    # better than it is.
    is_diverged = runs["status"] == "diverged"
    return runs.assign(accuracy=runs["run"].map(at_end).mask(is_diverged, compute_chance(runs)))


def compute_chance(runs: pd.DataFrame) -> pd.Series:
    """Compute the accuracy of guessing, by the number of classes."""
    chance: pd.Series = 1 / runs["data.classes"]
    return chance


def select_collapses(accuracies: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Find the rows whose accuracy is below half of the median of their group.

    Args:
        accuracies: rows with `accuracy`, one for each network.
        by: the columns that make the groups.
    """
    medians = accuracies.groupby([*by], dropna=False)["accuracy"].transform("median")
    is_collapsed: pd.Series = accuracies["accuracy"] < 0.5 * medians
    return is_collapsed
