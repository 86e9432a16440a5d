"""Accuracy over training under running, precise and exact statistics: who is pessimistic, and when? (F1, Q2, Q11)"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness import style
from bnlab.harness.intervals import summarize, t_interval
from bnlab.harness.style import Figure, Tables

_KEYS = ("run", "step", "estimator", "momentum", "statistics_split", "epoch")
_RUNS = ("run", "seed", "batch_size", "steps")
_RUNNING = ("ema", "last_batch", "cumulative")


def _panelled(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    joined = frame.merge(runs[list(_RUNS)], on="run").sort_values(["batch_size", "step"])
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
    ax.set(ylabel="accuracy lost (points)")
    return ax


def _by_estimator(frame: pd.DataFrame, ax: Axes) -> None:
    for name in dict.fromkeys(frame["estimator"]):
        chosen = frame[frame["estimator"] == name]
        momentum = chosen["momentum"].iloc[0]
        label = style.estimator_label(name) + ("" if pd.isna(momentum) else f" (momentum {momentum:g})")
        dashed = {"linestyle": (0, (4, 2))} if name == "exact" else {}
        style.line(ax, chosen, "epoch", style.estimator_colour(name), label, **dashed)
    ax.set(xscale="log", xlabel="epoch")
    ax.xaxis.set_major_formatter("{x:g}")


def summary(tables: Tables) -> list[str]:
    """What the curves say, in numbers of these tables: the worst point of each running estimator, and the end."""
    costs, frame = score_cost(tables), _panelled(tables["evaluations"], tables["runs"])
    lines = []
    for panel in dict.fromkeys(costs["panel"]):
        here = costs[costs["panel"] == panel]
        for name in _RUNNING:
            worst = here[here["estimator"] == name].sort_values("mean").iloc[0]
            lines.append(
                f"{panel}: {style.estimator_label(name)} is worst at epoch {worst['epoch']:.2g}, "
                f"{worst['mean']:+.1f} points [{worst['low']:+.1f}, {worst['high']:+.1f}] against exact, n={worst['n']}"
            )
        end = frame[(frame["panel"] == panel) & (frame["step"] == frame["steps"])].set_index(["run", "estimator"])
        paired = end["accuracy"].unstack()
        mean, low, high, n = t_interval((100 * (paired["ema"] - paired["exact"])).to_list())
        lines.append(f"{panel}: at the end the EMA's accuracy differs by {mean:+.2f} [{low:+.2f}, {high:+.2f}], n={n}")
    return lines


_READING = (
    "Lines: mean over seeds, bands: 95% intervals. All estimators are computed on the same networks at the same steps."
)
FIGURES = [
    Figure(
        name="accuracy",
        title="The same weights, evaluated under five statistics",
        caption="Test accuracy over training. At a very large batch there are few steps, and an average of past "
        "batches describes weights that are gone; exact statistics show what the weights can do. At a small batch the "
        "last batch alone is too noisy. " + _READING,
        columns={"evaluations": (*_KEYS, "accuracy"), "runs": _RUNS},
        score=score_accuracy,
        plot=plot_accuracy,
    ),
    Figure(
        name="cost",
        title="Accuracy lost against exact population statistics",
        caption="Difference in test accuracy to the same network under exact statistics, paired; 0 is no loss. "
        + _READING,
        columns={"evaluations": (*_KEYS, "accuracy"), "runs": _RUNS},
        score=score_cost,
        plot=plot_cost,
    ),
]
