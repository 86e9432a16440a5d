"""Names that several questions share: what tells rows apart, what is compared, and reasons for margins."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.frames import FIRST, find_largest_gap, gap_over_layers, lowest, name_panels, rows, select

EACH = ("panel", "batch_size")
OVER_TIME = ("panel", "estimator", "momentum", "epoch")
COST_OF_EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1, "against": "exact", "scale": -100}
"""In `score`: points that PyTorch's running average loses against exact statistics of the same network."""
PYTORCH = (0.1, "PyTorch's default")  # a mark on an axis of momenta

SIX_IMAGES = "7 or 8 of 2,500 test images: about the standard error where accuracy is near 97%; comparisons are paired"
FLAT = "gaps around a minimum are flat: twice the best momentum costs about as much"
HARDLY_SEEN = "a quarter more is hardly seen in accuracy"
AS_ACCURATE = "at 0 both are as accurate"
AS_NEAR = "at 1 both are as near"
A_POINT = "a point is what decides between two networks of this size"

ALL_LAYERS = (
    "Root mean square over the layers behind the first; the first beside it, whose input is standardized by hand: its "
    "means stay near 0, so that it has noise and hardly any lag."
)
"""In captions of figures that `find_gaps` gives rows to."""


def find_gaps(tables: Tables, at: float | Sequence[float] = (), **wanted: Any) -> pd.DataFrame:
    """Average gaps of the mean over layers, in panels by share of the training: behind the first layer, then the first.

    Args:
        tables: those of the experiment.
        at: shares of the training.
        wanted: as in `rows`, `by` included.
    """
    gaps = gap_over_layers(rows(tables, "gaps", at, **wanted), "mean_gap")
    behind_first = gaps.sort_values("layers", key=lambda layers: layers == FIRST, kind="stable")
    return name_panels(behind_first, "{panel}, {layers}")


def find_largest(tables: Tables, at: float, value: str, by: Sequence[str], **wanted: Any) -> pd.DataFrame:
    """Find the largest gap of each network over its layers, see `find_largest_gap`, under PyTorch's momentum."""
    wanted = {"estimator": "ema", "momentum": 0.1, **wanted}
    return find_largest_gap(rows(tables, "gaps", at, **wanted), value, by)


def drop_chance(accuracies: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Select rows where exact statistics show at least 20%, on average over seeds: near chance none are better."""
    exact = accuracies["accuracy"].where(accuracies["estimator"] == "exact")
    groups = exact.groupby([accuracies[column] for column in by])
    is_above = groups.transform("mean") >= 0.2
    return accuracies[is_above]


def find_picks(tables: Tables) -> pd.DataFrame:
    """Find the checkpoint that each estimator picks, and the last one; `cost` is against what exact statistics pick."""
    wanted: dict[str, Any] = {"statistics_split": "train", "momentum": (0.1, None)}
    val = rows(tables, "evaluations", split="val", **wanted)
    exact = select(val, estimator="exact")
    is_last = exact["step"] == exact["steps"]
    last = exact[is_last].assign(estimator="last")

    candidates = pd.concat([val, last])
    candidates["error"] = 1 - candidates["accuracy"]
    picks = lowest(candidates, "error", ["run", "estimator"])

    test = rows(tables, "evaluations", split="test", **wanted)
    tested = select(test, estimator="exact").set_index(["run", "step"])
    picks = picks.join(tested["accuracy"].rename("tested"), on=["run", "step"])

    best = select(picks, estimator="exact").set_index("run")
    best_tested = picks["run"].map(best["tested"])
    best_step = picks["run"].map(best["step"])
    picks["cost"] = best_tested - picks["tested"]
    picks["same"] = best_step == picks["step"]
    return picks
