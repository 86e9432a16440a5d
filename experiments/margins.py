"""What several questions share: columns that rows are grouped by, reasons for margins, and frames for figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import (
    FIRST,
    gap_over_layers,
    lowest,
    name_panels,
    over_best,
    put_in_order,
    rows,
    score,
    select,
    select_largest_gap,
)
from bnlab.harness.reporting.question import Score, Tables, above, within

# Columns by which rows are averaged or paired
EACH = ("panel", "batch_size")
OVER_TIME = ("panel", "estimator", "momentum", "epoch")

# A comparison gives running minus exact accuracy, a share. Times −100 it is the points that are lost.
COST_OF_EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1, "against": "exact", "scale": -100}
"""Arguments of `score`: points that PyTorch's running average loses against exact statistics of the same network."""
PYTORCH = (0.1, "PyTorch's default")  # a mark on an axis of momenta

# Reasons for margins, which verdicts print beside them
SIX_IMAGES = "7 or 8 of 2,500 test images, about the standard error at 97% accuracy; comparisons are paired"
FLAT = "the gap is flat around its minimum: with twice the best momentum it is about as small"
HARDLY_SEEN = "a quarter more hardly shows in accuracy"
AS_ACCURATE = "0 means equal accuracy"
AS_NEAR = "1 means equally near"
A_POINT = "networks of this size are chosen by differences of about a point"

# Margins that several claims have
GAINS = above(0.0, "points gained", AS_ACCURATE)
COSTS_A_POINT = above(1.0, "points", A_POINT)
HARMLESS = within(-0.3, 0.3, "points", SIX_IMAGES)

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
