"""What questions share: rows of all networks at the same shares of their training, and lines that several draw."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bnlab.harness import style
from bnlab.harness.errors import UserError

RUN_COLUMNS = ("run", "seed", "batch_size", "steps")
# Columns of `runs` that are results, or say the same as others.
_RESULTS = ("run", "status", "train_seconds", "final_loss", "last_step", "settings", "versions", "device", "threads")


def networks(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """`frame` with its networks' seed, batch size and number of steps.

    Raises:
        UserError: a batch size and seed have several networks, which an average over seeds would mix.
    """
    known = runs[runs["run"].isin(frame["run"])]
    doubled = known[known.duplicated(["batch_size", "seed"], keep=False)]
    if len(doubled):
        first = doubled.iloc[0]
        same = doubled[(doubled["batch_size"] == first["batch_size"]) & (doubled["seed"] == first["seed"])]
        raise UserError(
            f"batch size {first['batch_size']}, seed {first['seed']} has several networks ({_difference(same)})\n"
            "sweep each under its own name=... and draw that, or remove this folder's parts and sweep one again "
            "(what is trained is kept)"
        )
    return frame.merge(known[list(RUN_COLUMNS)], on="run")


def _difference(networks: pd.DataFrame) -> str:
    """The first of them with the settings in which they differ."""
    differing = [c for c in networks if c not in _RESULTS and networks[c].nunique(dropna=False) > 1]
    described = [
        ", ".join([str(row["run"]), *(f"{column} {row[column]}" for column in differing)])
        for row in networks.head(3).to_dict("records")
    ]
    return "; ".join(described)


def at_shares(frame: pd.DataFrame, runs: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """The rows at each share of their network's training, in that order, named in the column `panel`.

    Steps are whole: the measured step nearest to the share, if it is within 2% of the training or half a step.
    """
    joined = networks(frame, runs)
    done = joined["step"] / joined["steps"]
    chosen = []
    for share in shares:
        distance = (done - share).abs()
        nearest = distance == distance.groupby(joined["run"]).transform("min")
        close = distance <= (0.5 / joined["steps"]).clip(lower=0.02) + 1e-9
        name = "at the end of training" if share == 1 else f"after {share:.0%} of training"
        near = joined[nearest & close]
        later = near["step"] == near.groupby("run")["step"].transform("max")  # of two steps that are equally near
        chosen.append(near[later].assign(panel=name))
    return pd.concat(chosen, ignore_index=True)


def by_batch_size(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with their networks' settings, a panel for each batch size and number of steps."""
    joined = networks(frame, runs).sort_values(["batch_size", "step"])
    panel = "batch size " + joined["batch_size"].astype(str) + " (" + joined["steps"].astype(str) + " steps)"
    return joined.assign(panel=panel)


def plot_estimators(frame: pd.DataFrame, ax: Axes) -> None:
    """Against epochs, a line for each estimator and momentum."""
    for (name, momentum), chosen in frame.groupby(["estimator", "momentum"], dropna=False, sort=False):
        style.line(
            ax, chosen, "epoch", label=style.estimator_label(name, momentum), **style.estimator_style(name, momentum)
        )
    style.log_axis(ax, frame["epoch"], "epoch")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def plot_exact(frame: pd.DataFrame, ax: Axes) -> None:
    """Dashed, for each batch size, the value of the networks under exact statistics (momentum null)."""
    for size, colour in style.series(sorted(frame["batch_size"].unique())).items():
        exact = frame[(frame["batch_size"] == size) & frame["momentum"].isna()]["mean"]
        ax.axhline(exact.item(), color=colour, linestyle="--", linewidth=1.1)
    ax.plot([], [], color="#555555", linestyle="--", linewidth=1.1, label="exact statistics")
