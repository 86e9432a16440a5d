"""Accuracy over training under running, precise and exact statistics: who is pessimistic, and when? (F1, Q2, Q11)"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bnlab.harness import style
from bnlab.harness.intervals import summarize, t_interval
from bnlab.harness.style import Figure, Tables
from experiments.panels import RUN_COLUMNS, at_shares, networks

_KEYS = ("run", "step", "estimator", "momentum", "statistics_split", "epoch")
_RUNS = RUN_COLUMNS
_RUNNING = ("ema", "last_batch", "cumulative")
_SHARES = (0.1, 0.55, 1.0)


def _panelled(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    joined = networks(frame, runs).sort_values(["batch_size", "step"])
    panel = "batch size " + joined["batch_size"].astype(str) + " (" + joined["steps"].astype(str) + " steps)"
    return joined.assign(panel=panel)


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent by panel, estimator and epoch, with its interval over seeds."""
    chosen = _panelled(tables["evaluations"], tables["runs"])
    chosen = chosen.assign(percent=100 * chosen["accuracy"])
    return summarize(chosen, "percent", ["panel", "estimator", "momentum", "epoch"])


def score_cost(tables: Tables) -> pd.DataFrame:
    """Points of accuracy against exact statistics of the same network, by panel, estimator and epoch."""
    chosen = _panelled(tables["evaluations"], tables["runs"])
    exact = chosen[chosen["estimator"] == "exact"].set_index(["run", "step"])["accuracy"]
    reference = exact.reindex(pd.MultiIndex.from_frame(chosen[["run", "step"]])).to_numpy()
    chosen = chosen.assign(points=100 * (chosen["accuracy"] - reference))
    return summarize(chosen[chosen["estimator"] != "exact"], "points", ["panel", "estimator", "momentum", "epoch"])


def plot_accuracy(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy against epochs, a line for each estimator."""
    _by_estimator(frame, ax)
    ax.set(ylabel="test accuracy (%)", ylim=(0, 102))
    return ax


def plot_cost(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy minus that under exact statistics, against epochs, a line for each estimator."""
    _by_estimator(frame, ax)
    ax.axhline(0, color="black", linewidth=1.1, label="exact population")
    ax.set(ylabel="accuracy − that under exact (points)")
    return ax


def _by_estimator(frame: pd.DataFrame, ax: Axes) -> None:
    for name in dict.fromkeys(frame["estimator"]):
        chosen = frame[frame["estimator"] == name]
        momentum = chosen["momentum"].iloc[0]
        label = style.estimator_label(name) + ("" if pd.isna(momentum) else f" (momentum {momentum:g})")
        dashed = {"linestyle": (0, (4, 2))} if name == "exact" else {}
        style.line(ax, chosen, "epoch", style.estimator_colour(name), label, **dashed)
    ax.set(xscale="log", xlabel="epoch")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def summary(tables: Tables) -> list[str]:
    """Accuracy against exact statistics at three fixed points of training, paired, in numbers of these tables."""
    rows = at_shares(tables["evaluations"], tables["runs"], _SHARES)
    exact = rows[rows["estimator"] == "exact"].set_index(["run", "panel"])["accuracy"]
    lines = ["Accuracy under running averages minus that under exact statistics, points [95% interval over seeds]:"]
    for size in sorted(rows["batch_size"].unique()):
        for name in _RUNNING:
            here = rows[(rows["batch_size"] == size) & (rows["estimator"] == name)].set_index(["run", "panel"])[
                "accuracy"
            ]
            points = 100 * (here - exact.reindex(here.index))
            found = []
            for panel in dict.fromkeys(rows["panel"]):
                mean, low, high, n = t_interval(points.xs(panel, level="panel").to_list())
                found.append(f"{panel} {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(f"batch size {size}, {style.estimator_label(name)}: {'; '.join(found)}; n={n}")
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
