"""Accuracy over training under running, precise and exact statistics: who is pessimistic, and when? (F1, Q2, Q11)"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness import style
from bnlab.harness.intervals import summarize, t_interval
from bnlab.harness.style import Figure, Tables
from experiments.panels import RUN_COLUMNS, at_shares, by_batch_size, plot_estimators

_KEYS = ("run", "step", "estimator", "momentum", "statistics_split", "epoch")
_RUNS = RUN_COLUMNS
_SHARES = (0.1, 0.55, 1.0)


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent by panel, estimator and epoch, with its interval over seeds."""
    chosen = by_batch_size(tables["evaluations"], tables["runs"])
    chosen = chosen.assign(percent=100 * chosen["accuracy"])
    return summarize(chosen, "percent", ["panel", "estimator", "momentum", "epoch"])


def score_cost(tables: Tables) -> pd.DataFrame:
    """Points of accuracy against exact statistics of the same network, by panel, estimator and epoch."""
    chosen = by_batch_size(tables["evaluations"], tables["runs"])
    exact = chosen[chosen["estimator"] == "exact"].set_index(["run", "step"])["accuracy"]
    reference = exact.reindex(pd.MultiIndex.from_frame(chosen[["run", "step"]])).to_numpy()
    chosen = chosen.assign(points=100 * (chosen["accuracy"] - reference))
    return summarize(chosen[chosen["estimator"] != "exact"], "points", ["panel", "estimator", "momentum", "epoch"])


def plot_accuracy(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy against epochs, a line for each estimator."""
    plot_estimators(frame, ax)
    ax.set(ylabel="test accuracy (%)", ylim=(0, 102))
    return ax


def plot_cost(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy minus that under exact statistics, against epochs, a line for each estimator."""
    plot_estimators(frame, ax)
    ax.axhline(0, color="black", linewidth=1.1, label="exact population")
    ax.set(ylabel="accuracy − that under exact (points)")
    return ax


def summary(tables: Tables) -> list[str]:
    """Accuracy against exact statistics at three fixed points of training, paired, in numbers of these tables."""
    rows = at_shares(tables["evaluations"], tables["runs"], _SHARES)
    exact = rows[rows["estimator"] == "exact"].set_index(["run", "panel"])["accuracy"]
    lines = ["Accuracy minus that under exact statistics, points [95% interval over seeds]:"]
    others = rows[rows["estimator"] != "exact"].sort_values("batch_size", kind="stable")
    for (size, name, momentum), here in others.groupby(
        ["batch_size", "estimator", "momentum"], dropna=False, sort=False
    ):
        accuracy = here.set_index(["run", "panel"])["accuracy"]
        points, found = 100 * (accuracy - exact.reindex(accuracy.index)), []
        for panel, values in points.groupby(level="panel", sort=False):
            *bounds, n = t_interval(values.to_list())
            mean, low, high = (round(value, 1) + 0.0 for value in bounds)  # no -0.0
            found.append(f"{panel} {mean:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if n > 1 else ""))
        lines.append(f"batch size {size}, {style.estimator_label(name, momentum)}: {'; '.join(found)}; n={n}")
    return lines


_READING = (
    "Lines: mean over seeds, bands: 95% intervals. All estimators are computed on the same networks at the same steps."
)
FIGURES = [
    Figure(
        name="accuracy",
        title="The same weights, evaluated under different statistics",
        caption="Test accuracy over training. Exact statistics show what the weights can do at that step; an average "
        "of past batches describes weights that are gone, the last batch alone is noisy. " + _READING,
        columns={"evaluations": (*_KEYS, "accuracy"), "runs": _RUNS},
        score=score_accuracy,
        plot=plot_accuracy,
    ),
    Figure(
        name="cost",
        title="Accuracy against that under exact population statistics",
        caption="Difference in test accuracy to the same network under exact statistics, paired; below 0 is a loss. "
        + _READING,
        columns={"evaluations": (*_KEYS, "accuracy"), "runs": _RUNS},
        score=score_cost,
        plot=plot_cost,
    ),
]
