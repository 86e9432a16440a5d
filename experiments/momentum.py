"""Which momentum, and does theory know it? Gap and accuracy against it, with the predicted optimum (F16, H1, H13).

Theory sees noise, drift and level of the recorded batch moments of *other* seeds than those it is drawn over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bnlab import theory
from bnlab.harness import style
from bnlab.harness.errors import UserError
from bnlab.harness.intervals import summarize
from bnlab.harness.style import Figure, Tables
from experiments.panels import RUN_COLUMNS, at_shares, plot_exact

_KEYS = ("run", "step", "estimator", "momentum", "statistics_split")
_RUNS = RUN_COLUMNS
_SHARES = (0.1, 0.5, 1.0)  # shares of the training that are drawn
_NOISE = ("mean_level", "mean_noise", "mean_drift")
_DRIFT = ("run", "step", "layer", *_NOISE)
_FINE = np.geomspace(1e-4, 1, 401)  # momenta among which theory chooses


def score_gap(tables: Tables) -> pd.DataFrame:
    """Gap of the EMA's mean (averaged over layers) by panel, batch size and momentum; and the prediction's.

    `kind` is measured or predicted; both are geometric means over seeds.
    """
    measured = at_shares(tables["gaps"], tables["runs"], _SHARES)
    measured = measured[measured["estimator"] == "ema"]
    by = ["panel", "batch_size", "momentum"]
    networks = measured.groupby([*by, "seed"], sort=False)["mean_gap"].mean().reset_index()
    found = summarize(networks, "mean_gap", by, geometric=True).assign(kind="measured")
    return pd.concat([found, _predicted(tables, sorted(networks["momentum"].unique()))], ignore_index=True)


def predicted_gap(momentum: np.ndarray, layer: pd.Series) -> np.ndarray:
    """What theory expects of the mean's gap for the weights after the last update, for each momentum.

    sqrt((noise·m/(2−m) + drift·(1−m)²/(m(2−m)))·(1−ρ) + drift + level·ρ) with ρ = (1−m)^(2·step): noise and lag
    behind a random walk, built up over so many steps, the last update, and what is left of the start at 0.
    """
    left = np.square(theory.start_residue(momentum, layer["step"]))
    walk = theory.random_walk_error(momentum, layer["mean_drift"], layer["mean_noise"])
    return np.sqrt(walk * (1 - left) + layer["mean_drift"] + layer["mean_level"] * left)


def _predicted(tables: Tables, momenta: list[float]) -> pd.DataFrame:
    rows = []
    for (panel, size, seed), layers in _others(tables):
        gaps = np.mean([predicted_gap(np.array(momenta), layer) for _, layer in layers.iterrows()], axis=0)
        rows += [(panel, size, momentum, seed, gap) for momentum, gap in zip(momenta, gaps, strict=True)]
    frame = pd.DataFrame(rows, columns=["panel", "batch_size", "momentum", "seed", "gap"])
    return summarize(frame, "gap", ["panel", "batch_size", "momentum"], geometric=True).assign(kind="predicted")


def _others(tables: Tables) -> list[tuple[tuple[Any, Any, Any], pd.DataFrame]]:
    """For each panel, batch size and seed: the layers' noise, drift and level, averaged over all seeds but this one."""
    drift = at_shares(tables["drift"], tables["runs"], _SHARES)
    found = []
    for (panel, size), group in drift.groupby(["panel", "batch_size"], sort=False):  # type: ignore[misc]
        if group["seed"].nunique() == 1:
            raise UserError(
                f"the prediction is made from other seeds, and batch size {size} has seed {group['seed'].iloc[0]}; "
                "sweep several, such as seed=0,1"
            )
        for seed in group["seed"].unique():
            others = group[group["seed"] != seed].groupby("layer")[["step", *_NOISE]].mean()
            found.append(((panel, size, seed), others))
    return found


def score_optimum(tables: Tables) -> pd.DataFrame:
    """Predicted and measured best momentum of each layer, panel, batch size and seed."""
    gaps = at_shares(tables["gaps"], tables["runs"], _SHARES)
    gaps = gaps[gaps["estimator"] == "ema"]
    keys = ["panel", "batch_size", "seed", "layer"]
    best = gaps.loc[gaps.groupby(keys, sort=False)["mean_gap"].idxmin()].set_index(keys)["momentum"]
    rows = []
    for (panel, size, seed), layers in _others(tables):
        for layer, values in layers.iterrows():
            momentum = _FINE[np.argmin(predicted_gap(_FINE, values))]
            rows.append((panel, size, seed, layer, momentum, best.at[(panel, size, seed, layer)]))
    return pd.DataFrame(rows, columns=["panel", "batch_size", "seed", "layer", "predicted", "measured"])


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Test accuracy in percent under the EMA, and under exact statistics (momentum null); predicted optima beside."""
    chosen = at_shares(tables["evaluations"], tables["runs"], _SHARES)
    chosen = chosen[chosen["estimator"].isin(["ema", "exact"])]
    by = ["panel", "batch_size", "momentum"]
    found = summarize(chosen.assign(percent=100 * chosen["accuracy"]), "percent", by).assign(kind="measured")
    predicted = score_optimum(tables).groupby(["panel", "batch_size"], sort=False)["predicted"].agg(_geometric_mean)
    optimum = predicted.rename("momentum").reset_index().assign(kind="optimum")
    return pd.concat([found, optimum], ignore_index=True)


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def plot_gap(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured gap with its interval; dashed the prediction, a star at its smallest value."""
    for size, colour in style.series(sorted(frame["batch_size"].unique())).items():
        here = frame[frame["batch_size"] == size]
        style.line(ax, here[here["kind"] == "measured"], "momentum", colour, f"batch size {size}")
        predicted = here[here["kind"] == "predicted"].sort_values("momentum")
        ax.plot(predicted["momentum"], predicted["mean"], color=colour, linestyle="--", linewidth=1.1)
        if len(predicted):
            lowest = predicted.loc[predicted["mean"].idxmin()]
            ax.plot(lowest["momentum"], lowest["mean"], "*", color=colour, markersize=11, markeredgecolor="white")
    ax.plot([], [], color="#555555", linestyle="--", linewidth=1.1, label="predicted from other seeds")
    ax.plot([], [], "*", color="#555555", markersize=9, label="lowest prediction", linestyle="none")
    style.log_axis(ax, frame["momentum"], "momentum (weight of the new batch)")
    ax.set(yscale="log", ylabel="gap of the running mean (σ)")
    return ax


def plot_accuracy(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Accuracy against momentum; dashed under exact statistics, a star where theory puts the momentum."""
    for size, colour in style.series(sorted(frame["batch_size"].unique())).items():
        here = frame[frame["batch_size"] == size]
        curve = here[(here["kind"] == "measured") & here["momentum"].notna()].sort_values("momentum")
        style.line(ax, curve, "momentum", colour, f"batch size {size}")
        for momentum in here[here["kind"] == "optimum"]["momentum"]:
            height = np.interp(np.log(momentum), np.log(curve["momentum"]), curve["mean"])
            ax.plot(momentum, height, "*", color=colour, markersize=11, markeredgecolor="white")
    plot_exact(frame[frame["kind"] == "measured"], ax)
    ax.plot([], [], "*", color="#555555", markersize=9, label="predicted optimum", linestyle="none")
    style.log_axis(ax, frame["momentum"].dropna(), "momentum (weight of the new batch)")
    ax.set(ylabel="test accuracy (%)", ylim=(0, 102))
    return ax


def plot_optimum(frame: pd.DataFrame, *, ax: Axes) -> Axes:
    """Measured against predicted best momentum, a point for each layer of each network; the band is ×1.5 each way."""
    for size, colour in style.series(sorted(frame["batch_size"].unique())).items():
        here = frame[frame["batch_size"] == size]
        ax.plot(here["predicted"], here["measured"], "o", color=colour, alpha=0.6, markersize=4.5, linestyle="none",
                label=f"batch size {size}")  # fmt: skip
    ends = np.array([1e-3, 1.0])
    ax.plot(ends, ends, color="black", linewidth=1)
    ax.fill_between(ends, ends / 1.5, ends * 1.5, color="black", alpha=0.12, linewidth=0, label="within ×1.5")
    ax.set(xscale="log", yscale="log", xlabel="predicted momentum", ylabel="momentum with the smallest gap")
    return ax


def summary(tables: Tables) -> list[str]:
    """How near theory's momentum is to the measured one, with those apart that lie at the bound of 1."""
    frame = score_optimum(tables)
    distance = np.abs(np.log(frame["predicted"] / frame["measured"]))
    bound = (frame["predicted"] > 0.95) & (frame["measured"] == 1)
    layers, seeds = frame["layer"].nunique(), frame["seed"].nunique()
    lines = [f"Predicted against measured best momentum; {layers} layers × {seeds} seeds for each batch size:"]
    for panel in dict.fromkeys(frame["panel"]):
        for size in sorted(frame["batch_size"].unique()):
            here = (frame["panel"] == panel) & (frame["batch_size"] == size)
            inside = here & ~bound
            if not here.any():
                lines.append(f"  {panel}, batch size {size}: too few steps to fit noise and drift")
                continue
            within = [int((distance[inside] <= np.log(factor)).sum()) for factor in (1.5, 3.0)]
            lines.append(
                f"  {panel}, batch size {size}: {(here & bound).sum()} of {here.sum()} both at 1; of the other "
                f"{inside.sum()}, {within[0]} within ×1.5 and {within[1]} within ×3"
            )
    return lines


FIGURES = [
    Figure(
        name="gap",
        title="Gap against momentum, measured and predicted",
        caption="Distance of the EMA's mean from the exact population mean, in standard deviations, averaged over "
        "layers: lag on the left, noise of single batches on the right. Dashed: theory for noise, drift (a "
        "random walk) and start, all from the batch moments of the other seeds, without any exact statistic; the "
        "star is its lowest point on the sweep's grid. Lines: geometric mean over seeds, bands: 95% intervals.",
        columns={"gaps": (*_KEYS, "layer", "mean_gap"), "drift": _DRIFT, "runs": _RUNS},
        score=score_gap,
        plot=plot_gap,
    ),
    Figure(
        name="accuracy",
        title="Test accuracy against the momentum",
        caption="The same networks evaluated under the EMA for every momentum, and under exact population statistics "
        "(dashed). Stars: theory's momentum from other seeds, geometric mean over layers and seeds. Lines: mean over "
        "seeds, bands: 95% intervals.",
        columns={"evaluations": (*_KEYS, "accuracy"), "drift": _DRIFT, "runs": _RUNS},
        score=score_accuracy,
        plot=plot_accuracy,
    ),
    Figure(
        name="optimum",
        title="Theory's momentum against the best one, layer by layer",
        caption="Each point is a layer of a network: across, the momentum that noise and drift of the other seeds "
        "predict; up, the momentum of the sweep with the smallest gap. On the line theory is right; the grey band is a "
        "factor of 1.5 each way; above it, a larger momentum than predicted is best. The measured ones lie on the "
        "sweep's grid.",
        columns={"gaps": (*_KEYS, "layer", "mean_gap"), "drift": _DRIFT, "runs": _RUNS},
        score=score_optimum,
        plot=plot_optimum,
    ),
]
