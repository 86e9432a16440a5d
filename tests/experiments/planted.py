"""Tables as a sweep writes them, with gaps and accuracies that a test plants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

Value = Callable[[dict[str, Any]], float]


def planted(
    estimators: Iterable[tuple[str, float | None]],
    gap: Value = lambda row: 0.1,
    accuracy: Value = lambda row: 0.9,
    *,
    drift: Value = lambda row: 1e-3,
    seeds: Sequence[int] = (0, 1, 2, 3),
    sizes: Sequence[int] = (4, 256),
    shares: Sequence[float] = (0.1, 0.5, 0.55, 1.0),
) -> dict[str, pd.DataFrame]:
    """The tables of one network for each batch size and seed, of 1,000 steps and two layers.

    Args:
        estimators: names and momenta (None where there is none).
        gap: of a row with its network's settings, the mean's gap.
        accuracy: the same, a fraction.
        drift: the same, noise and drift of the table `drift`.
        seeds, sizes, shares: networks and measured shares of the training.
    """
    runs = [{"run": f"{size}/{seed}", "seed": seed, "batch_size": size, "steps": 1000, "epochs": 2.0}
            for size, seed in itertools.product(sizes, seeds)]  # fmt: skip
    gaps, evaluations, drifts = [], [], []
    for run, share in itertools.product(runs, shares):
        when = {"run": run["run"], "step": round(1000 * share), "epoch": 2 * share}
        for (name, momentum), layer in itertools.product(estimators, "xy"):
            row = when | {"estimator": name, "momentum": momentum, "statistics_split": "train"}
            gaps.append(row | {"layer": layer, "mean_gap": gap(run | row | {"layer": layer})})
            if layer == "x":
                evaluations.append(row | {"split": "test", "shift": "none", "accuracy": accuracy(run | row)})
        for layer in "xy":
            level = {"mean_level": 1.0, "mean_noise": drift(run | when), "mean_drift": drift(run | when)}
            drifts.append(when | {"layer": layer, **level})
    tables = {"runs": runs, "gaps": gaps, "evaluations": evaluations, "drift": drifts}
    return {name: pd.DataFrame(rows).astype({"momentum": float} if name in ("gaps", "evaluations") else {})
            for name, rows in tables.items()}  # fmt: skip
