"""python -m experiments.pool_cifar10: pool what running averages lose on CIFAR-10 before the learning rate is 0.

Three experiments have trained a ResNet-20 in batches of 128 at a peak rate of 0.1. They differ in schedule, in epochs,
in whether an epoch's last, smaller batch is left out, and in what exact statistics are of; all of them augment. Their
networks lose points of test accuracy, after a tenth of the training and half-way: under exact statistics minus under
running averages of momentum 0.1.

They are pooled with random effects, as a sample of experiments like these. Beside it stand all networks together, as if
of one experiment. All this is post hoc (†): it was not planned before the numbers were known.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special

from bnlab.harness.lab.command import print_table, run_command
from bnlab.harness.lab.registry import REFERENCE
from bnlab.harness.reporting.frames import interval, select
from bnlab.harness.reporting.question import Tables
from bnlab.harness.reporting.tables import load
from bnlab.harness.reporting.wording import format_number, list_values, round_numbers
from experiments.recipes import EXACT, PLAIN, RATE, RUNNING, SCHEDULE, select_accuracies, subtract_exact

EXPERIMENTS = ("real", "cifar10", "cifar10_augmented")
POOLED: dict[str, Any] = {"batch_size": 128, RATE: 0.1, SCHEDULE: ("onecycle", "cosine"), "averaging": "none"}
_REFERENCE = "exact statistics of"
_NUMBERS = ["mean", "low", "high"]


def main() -> int:
    """Print what is lost in each experiment, and pooled."""
    return run_command(_print_pooled, sys.argv[1:], usage=str(__doc__))


def _print_pooled(_words: list[str]) -> int:
    lost = compare_networks(load_experiments())
    described = ["experiment", SCHEDULE, "epochs", _REFERENCE]
    losses = interval(lost, "accuracy", [*described, "panel"], scale=-100)
    losses["points"] = _format_points(losses)
    print_table(losses.pivot(index=[*described, "n"], columns="panel", values="points").reset_index())

    pooled = pool_experiments(lost)
    pooled["pooled†"] = _format_points(pooled)
    pooled["tau (points)"] = pooled["tau"].round(2)
    pooled["all networks together†"] = _format_points(pool_networks(lost))
    print()
    print_table(pooled[["panel", "pooled†", "tau (points)", "all networks together†"]])
    print(f"\nRunning averages lose {say_losses(pooled)}. †: post hoc")
    return 0


def _format_points(losses: pd.DataFrame) -> list[str]:
    return [format_number(*numbers) for numbers in losses[_NUMBERS].itertuples(index=False)]


def load_experiments() -> dict[str, Tables]:
    """Load the committed tables of the three experiments, by name."""
    return {name: load(name, REFERENCE) for name in EXPERIMENTS}


def compare_networks(experiments: Mapping[str, Tables]) -> pd.DataFrame:
    """Compare running averages with exact statistics in each network, after a tenth of the training and half-way.

    Args:
        experiments: the tables of each experiment, by its name.

    Returns:
        Rows of `subtract_exact`, with the `experiment` and what its exact statistics are of.
    """
    parts = []
    for name, tables in experiments.items():
        networks = select(tables["runs"], **POOLED)
        # Without `by`, networks that differ in more than their seed are refused.
        accuracies = select_accuracies({**tables, "runs": networks}, by=[], at=(0.1, 0.5))
        lost = select(subtract_exact(accuracies), line=RUNNING)

        # Plain images have a line of their own where exact statistics are of augmented ones.
        kind = "augmented" if PLAIN in set(accuracies["line"]) else "plain"
        images = list_values(select(accuracies, line=EXACT)["stat_images"])
        parts.append(lost.assign(**{"experiment": name, _REFERENCE: f"{images} {kind} images"}))
    return pd.concat(parts)


def pool_experiments(lost: pd.DataFrame) -> pd.DataFrame:
    """Pool the experiments' losses: `pool_means`, in points, for each `panel`, and `n`, the number of networks."""
    losses = interval(lost, "accuracy", ["panel", "experiment"], scale=-100)
    pooled = []
    for panel, means in losses.groupby("panel", sort=False):
        numbers = pool_means(means["mean"].to_numpy(), means["error"].to_numpy())
        pooled.append({"panel": panel, "n": means["n"].sum(), **numbers})
    return pd.DataFrame(pooled)


def pool_networks(lost: pd.DataFrame) -> pd.DataFrame:
    """Average over all networks as if they were of one experiment: `interval`, in points, for each `panel`."""
    # Experiments may share a seed, but not a network.
    return interval(lost.assign(seed=lost["run"]), "accuracy", ["panel"], scale=-100)


def pool_means(means: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Pool the means of experiments with random effects.

    The variance between experiments is Paule and Mandel's (1982, doi:10.6028/jres.087.022). The interval is Knapp and
    Hartung's (2003, doi:10.1002/sim.1482), with the modification that Röver, Knapp and Friede (2015,
    doi:10.1186/s12874-015-0091-1) advise for few experiments with unequal errors.

    Args:
        means: [experiments]
        errors: [experiments], standard errors of the means, above 0. They count as known.

    Returns:
        `mean`, the 95% interval from `low` to `high`, and `tau`, the standard deviation between experiments.
    """
    freedom = len(means) - 1

    def weigh(between: float) -> tuple[float, float, float]:
        weights = 1 / (errors**2 + between)
        mean = np.average(means, weights=weights)
        scatter = (weights * (means - mean) ** 2).sum()
        return mean, weights.sum() ** -0.5, scatter - freedom

    between = 0.0
    if weigh(between)[2] > 0:
        # The scatter falls as `between` grows. At twice the variance of the means it is below half of `freedom`.
        between = optimize.brentq(lambda variance: weigh(variance)[2], 0.0, 2 * means.var(ddof=1))

    # Knapp and Hartung's factor, scatter / freedom, is left out: it is 1 where `between` is above 0, and where it would
    # be less, the modification makes it 1.
    mean, error, _ = weigh(between)
    half = special.stdtrit(freedom, 0.975) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "tau": between**0.5}


def say_losses(pooled: pd.DataFrame) -> str:
    """Say what is lost, as `12 points [9, 15]† after a tenth of the training and 4 [2, 6]† half-way (…, 12 seeds)`."""
    rows = pooled[_NUMBERS].itertuples(index=False)
    early, late = (round_numbers(mean, low, high, digits=2) for mean, low, high in rows)
    return (
        f"{early[0]} points [{early[1]}, {early[2]}]† after a tenth of the training and {late[0]} [{late[1]}, "
        f"{late[2]}]† half-way (three experiments, {pooled['n'].iloc[0]} seeds)"
    )


if __name__ == "__main__":
    sys.exit(main())
