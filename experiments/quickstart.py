"""What do running averages cost, early and late in training? Real digits, three batch sizes, one momentum sweep."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnlab.harness import style
from bnlab.harness.intervals import summarize, t_interval
from bnlab.harness.style import Figure, Tables
from experiments.panels import RUN_COLUMNS, at_shares, by_batch_size, networks, plot_estimators, plot_exact

_KEYS = ("run", "step", "estimator", "momentum", "statistics_split")
_SHARES = (0.1, 1.0)
_DEFAULT = 0.1  # PyTorch's momentum
_EARLY, _LATE = "after 10% of training", "at the end of training"


def score_gap(tables: Tables) -> pd.DataFrame:
    """Gap of the EMA's mean by panel, batch size and momentum: averaged over layers, an interval over seeds."""
    chosen = at_shares(tables["gaps"], tables["runs"], _SHARES)
    chosen = chosen[chosen["estimator"] == "ema"]
    by = ["panel", "batch_size", "momentum"]
    per_network = chosen.groupby([*by, "seed"], sort=False)["mean_gap"].mean().reset_index()
    return summarize(per_network, "mean_gap", by, geometric=True)


def plot_gap(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Gap against momentum, a line for each batch size."""
    _by_batch_size(frame, ax)
    ax.set(yscale="log", ylabel="gap of the running mean (σ)")
    return ax


def score_estimators(tables: Tables) -> pd.DataFrame:
    """Gap of the mean by batch size, estimator and epoch, at PyTorch's momentum where there is one."""
    chosen = by_batch_size(tables["gaps"], tables["runs"])
    chosen = chosen[(chosen["estimator"] != "exact") & (chosen["momentum"].isna() | (chosen["momentum"] == _DEFAULT))]
    by = ["panel", "estimator", "momentum", "epoch"]
    per_network = chosen.groupby([*by, "seed"], sort=False, dropna=False)["mean_gap"].mean().reset_index()
    return summarize(per_network, "mean_gap", by, geometric=True)


def plot_gap_of_estimators(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Gap against epochs, a line for each estimator."""
    plot_estimators(frame, ax)
    ax.set(yscale="log", ylabel="gap of the mean (σ)")
    return ax


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent under the EMA by momentum, and under exact statistics (momentum null)."""
    chosen = at_shares(tables["evaluations"], tables["runs"], _SHARES)
    chosen = chosen[chosen["estimator"].isin(["ema", "exact"])]
    return summarize(chosen.assign(percent=100 * chosen["accuracy"]), "percent", ["panel", "batch_size", "momentum"])


def plot_accuracy(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy against momentum, a line for each batch size; dashed: the same networks under exact statistics."""
    _by_batch_size(frame[frame["momentum"].notna()], ax)
    plot_exact(frame, ax)
    ax.set(ylabel="test accuracy (%)", ylim=(0, 102))
    return ax


def _by_batch_size(frame: pd.DataFrame, ax: Axes) -> None:
    for size, colour in style.series(sorted(frame["batch_size"].unique())).items():
        style.line(ax, frame[frame["batch_size"] == size], "momentum", colour, f"batch size {size}")
    style.log_axis(ax, frame["momentum"], "momentum (weight of the new batch)")
    ax.axvline(_DEFAULT, color="#999999", linewidth=0.8, linestyle=":", label="PyTorch's default")


def summary(tables: Tables) -> list[str]:
    """A few lines for somebody who has never heard of the question; every number from these tables."""
    gaps, accuracies = score_gap(tables), score_accuracy(tables)
    sizes = sorted(tables["runs"]["batch_size"].unique())
    large = sizes[-1]
    gap = _row(gaps, _EARLY, large, _DEFAULT)
    under, exact = (_row(accuracies, _EARLY, large, momentum) for momentum in (_DEFAULT, None))
    steps = round(_SHARES[0] * tables["runs"].set_index("batch_size")["steps"].loc[[large]].iloc[0])
    late = gaps[gaps["panel"] == _LATE].sort_values("mean")
    best = late.groupby("batch_size")["momentum"].first()
    costs = "; ".join(f"{size}: {_interval(_loss(tables, size)[:3])}" for size in sizes)
    off = f"{_interval(gap[['mean', 'low', 'high']])} standard deviations off"
    means = f"means of {under['n']:.0f} networks" if under["n"] > 1 else "one network"
    return [
        "In training, batch norm uses each batch's own mean and variance; for prediction it uses running averages.",
        f"After a tenth of training at batch size {large} ({steps} steps), those of PyTorch's default "
        f"(momentum {_DEFAULT}) are {off}:",
        f"the network scores {under['mean']:.1f}% on new digits with them and {exact['mean']:.1f}% with exact "
        f"statistics, on the same weights ({means}).",
        *_choosing(tables),
        f"At the end of training the default costs, in points of accuracy by batch size, {costs}.",
        "The momentum with the smallest gap was then "
        + ", ".join(f"{best[size]:g} at batch size {size}" for size in sizes)
        + "."
        + ("  [95% intervals over seeds]" if gap["n"] > 1 else "  One seed: no intervals."),
    ]


def _row(frame: pd.DataFrame, panel: str, size: int, momentum: float | None) -> pd.Series:
    here = frame[(frame["panel"] == panel) & (frame["batch_size"] == size)]
    return here[here["momentum"].isna() if momentum is None else here["momentum"] == momentum].iloc[0]


def _loss(tables: Tables, size: int) -> tuple[float, float, float, int]:
    """Points of accuracy that momentum 0.1 loses against exact statistics at the end, paired by network."""
    late = at_shares(tables["evaluations"], tables["runs"], _SHARES)
    late = late[(late["panel"] == _LATE) & (late["batch_size"] == size)]
    exact = late[late["estimator"] == "exact"].set_index("run")["accuracy"]
    default = late[(late["estimator"] == "ema") & (late["momentum"] == _DEFAULT)].set_index("run")["accuracy"]
    return t_interval((100 * (exact - default)).to_list())


def score_choosing(tables: Tables) -> pd.DataFrame:
    """How many times the default's gap of the mean is that of `predictive`, by batch size.

    Of the same network, step and layer; geometric mean over steps and layers, an interval over seeds.
    """
    gaps = networks(tables["gaps"], tables["runs"])
    keys = ["batch_size", "seed", "step", "layer"]
    default = gaps[(gaps["estimator"] == "ema") & (gaps["momentum"] == _DEFAULT)].set_index(keys)["mean_gap"]
    chosen = gaps[gaps["estimator"] == "predictive"].set_index(keys)["mean_gap"]
    logs = (default / chosen).dropna().transform(np.log).groupby(level=keys[:2]).mean()
    return summarize(logs.transform(np.exp).rename("times").reset_index(), "times", ["batch_size"], geometric=True)


def _choosing(tables: Tables) -> list[str]:
    """One sentence; none where `predictive` was not measured."""
    rows = score_choosing(tables).set_index("batch_size")[["mean", "low", "high"]]
    times = "; ".join(f"{size}: {_interval(row)}" for size, row in rows.iterrows())
    sentence = (
        "Over all of training, the default's gap is so many times that of an average that keeps choosing its momentum "
        f"by forecasting the next batch (`predictive`), by batch size: {times}."
    )
    return [sentence] if times else []


def _interval(found: Iterable[float]) -> str:
    mean, low, high = (round(value, 2) + 0.0 for value in found)  # no -0.00
    return f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")


_STEPS = "The learning rate rises for a fifth of training and falls to 0 at the end."
FIGURES = [
    Figure(
        name="gap",
        title="How far the running mean is from the population mean",
        caption="Root-mean-square distance over channels, averaged over layers, in standard deviations of the layer's "
        "input; lower is better. Left of the minimum the average lags behind the weights and still holds its start "
        "of 0; right of it the noise of single batches remains. " + _STEPS + " Lines: geometric mean over "
        "seeds, bands: 95% intervals.",
        columns={"gaps": (*_KEYS, "layer", "mean_gap"), "runs": RUN_COLUMNS},
        score=score_gap,
        plot=plot_gap,
    ),
    Figure(
        name="estimators",
        title="Other averages of the same batches",
        caption="Distance of the estimated mean from the exact population mean, in standard deviations, averaged over "
        "layers, over training; where an average has a momentum it is PyTorch's 0.1; Kalman and predictive momentum "
        "choose theirs. Precise BN is measured anew on the training set, all others come from the recorded batches. "
        "Once the start is forgotten the two EMAs are one. "
        + _STEPS
        + " Lines: geometric mean over seeds, bands: 95% intervals.",
        columns={"gaps": (*_KEYS, "layer", "mean_gap", "epoch"), "runs": RUN_COLUMNS},
        score=score_estimators,
        plot=plot_gap_of_estimators,
    ),
    Figure(
        name="accuracy",
        title="What the gap costs: test accuracy of the same networks",
        caption="Each network is evaluated under its running averages for every momentum, and under exact population "
        "statistics (dashed); nothing else differs. Early, slow averages lose much of the accuracy that the weights "
        "already have; at the end only those do that are slow for their number of steps. Lines: mean over seeds, "
        "bands: 95% intervals.",
        columns={"evaluations": (*_KEYS, "accuracy"), "runs": RUN_COLUMNS},
        score=score_accuracy,
        plot=plot_accuracy,
    ),
]
