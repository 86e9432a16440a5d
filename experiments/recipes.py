"""What several questions share: columns that rows are grouped by, scores and frames, tuned rates, and picks.

*Exact statistics* of `select_accuracies` and what is made of it are those of training images as training sees them,
augmented where it augments: that is what running averages estimate. Exact statistics of plain images stand beside them
where training augments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import (
    FIRST,
    gap_over_layers,
    lowest,
    name_panels,
    over_best,
    paired,
    put_in_order,
    rows,
    score,
    select,
    select_largest_gap,
)
from bnlab.harness.reporting.plots import Axis
from bnlab.harness.reporting.question import Score, Tables

# Columns by which rows are averaged or paired
EACH = ("panel", "batch_size")
OVER_TIME = ("panel", "estimator", "momentum", "epoch")

# A comparison gives running minus exact accuracy, a share. Times −100 it is the points that are lost.
COST_OF_EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1, "against": "exact", "scale": -100}
"""Arguments of `score`: points that PyTorch's running average loses against exact statistics of the same network."""
PYTORCH = (0.1, "PyTorch's default")  # a mark on an axis of momenta

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

ALL_LAYERS = (
    "Root mean square over the deeper layers. The first layer is shown separately: its input is standardized "
    "beforehand, so its means stay near 0, and it has noise but hardly any lag."
)
"""A sentence for captions of figures of `compute_gaps`."""


def score_cost(at: float, by: Sequence[str] = EACH, **wanted: Any) -> Score:
    """Score the points of accuracy that PyTorch's running average loses, at a share of the training."""
    # `wanted` comes last, so that a caller may choose another estimator, momentum or reference.
    return score("evaluations", "accuracy", by, at=at, **{**COST_OF_EMA, "split": "test", **wanted})


def score_each_seed(compute: Score, value: str, by: Sequence[str], **wanted: Any) -> Score:
    """Score each seed by itself: few seeds are drawn as a thin line each, since their intervals would be too wide."""
    score_seeds = score(compute, value, (*by, "seed"), **wanted)

    def count_seeds(tables: Tables) -> pd.DataFrame:
        frame = score_seeds(tables)
        return frame.assign(n=frame["seed"].nunique())

    return count_seeds


def name_lines(frame: pd.DataFrame, column: str, names: Mapping[Any, str], line: str = "line") -> pd.DataFrame:
    """Name the values of a column, in the order of `names`; rows with another value are left out.

    Lines differ by their names alone: columns that tell estimators apart are dropped.
    """
    named = frame.assign(**{line: frame[column].map(names)})
    named = named[named[line].notna()]
    # `paired` along a line would match rows by estimator and momentum, too. Lines of two estimators would
    # have no pairs.
    by_name_alone = named.drop(columns=["estimator", "momentum", "statistics_split"], errors="ignore")
    return put_in_order(by_name_alone, line, names.values())


def compute_gaps(
    tables: Tables, at: float | Sequence[float] = (), by: Sequence[str] | None = None, **wanted: Any
) -> pd.DataFrame:
    """Average the gaps of means over layers, see `gap_over_layers`, with a panel for each share of the training.

    At each share the panel of the deeper layers comes before that of the first layer.

    Args:
        tables: the tables of the experiment.
        at: shares of the training.
        by, wanted: see `rows`; by default all settings that were swept are told apart.
    """
    gaps = gap_over_layers(rows(tables, "gaps", at, by, **wanted), "mean_gap")
    # The sort is stable, so that shares of the training keep their order.
    ordered = gaps.sort_values("layers", key=lambda layers: layers == FIRST, kind="stable")
    return name_panels(ordered, "{panel}, {layers}")


def divide_by_best_momentum(
    tables: Tables, at: float | Sequence[float] = (), by: Sequence[str] | None = None, table: str = "gaps"
) -> pd.DataFrame:
    """Divide each gap of a mean by that of the best fixed momentum of the layer and step, which is known in hindsight.

    Args:
        tables: the tables of the experiment.
        at, by, table: see `rows`; by default all settings that were swept are told apart.
    """
    return over_best(rows(tables, table, at, by), "mean_gap")


def select_largest(tables: Tables, at: float, value: str, by: Sequence[str], **wanted: Any) -> pd.DataFrame:
    """Select the largest gap of each network over its layers, see `select_largest_gap`, with PyTorch's average."""
    wanted = {"estimator": "ema", "momentum": 0.1, **wanted}
    return select_largest_gap(rows(tables, "gaps", at, by=None, **wanted), value, by)


def select_picks(tables: Tables) -> pd.DataFrame:
    """Find the checkpoint of each network that validation accuracy with each estimator picks.

    Returns:
        A row for each network and estimator, `last` among them, which always picks the last checkpoint. `tested`: the
        picked weights' test accuracy with exact statistics. `cost`: how much lower it is than that of the pick of exact
        statistics, as a share of the images. `same`: whether both pick the same checkpoint.
    """
    wanted: dict[str, Any] = {"statistics_split": "train", "momentum": (0.1, None)}
    on_val = rows(tables, "evaluations", split="val", **wanted)

    # The last checkpoint takes part as the pick of an estimator of its own, which never looks at accuracies.
    is_last = (on_val["estimator"] == "exact") & (on_val["step"] == on_val["steps"])
    candidates = pd.concat([on_val, on_val[is_last].assign(estimator="last")])

    # `lowest` picks the smallest value, so that accuracies become errors. Of equal ones it takes the first
    # row, which is that of the earliest checkpoint, because `rows` sorts by step.
    candidates["error"] = 1 - candidates["accuracy"]
    picks = lowest(candidates, "error", ["run", "estimator"])

    on_test = rows(tables, "evaluations", split="test", **wanted)
    exact_on_test = select(on_test, estimator="exact").set_index(["run", "step"])
    tested = exact_on_test["accuracy"].rename("tested")
    picks = picks.join(tested, on=["run", "step"])

    # All picks are tested under exact statistics, so that the cost is that of the choice alone.
    of_exact = select(picks, estimator="exact").set_index("run")
    network = picks["run"]
    best_tested = network.map(of_exact["tested"])
    best_step = network.map(of_exact["step"])
    picks["cost"] = best_tested - picks["tested"]
    picks["same"] = best_step == picks["step"]
    return picks


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
