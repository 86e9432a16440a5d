"""A small table set with values that can be computed in the head."""

from __future__ import annotations

import itertools

import pandas as pd

SEEDS, SIZES, STEPS, LAYERS = (0, 1, 2), (4, 32), (1, 5, 10), ("2", "10")


def plant() -> dict[str, pd.DataFrame]:
    """Six networks of ten steps: `mean_gap` = 2^seed · momentum, 4 times as much in layer 10; accuracies in points.

    An EMA of momentum 0.1 loses 2 + seed points against exact statistics, one of momentum 0.5 loses 1.
    """
    runs = [{"run": f"{size}/{seed}", "seed": seed, "batch_size": size, "steps": 10, "epochs": 2.0, "data": "digits",
             "status": "finished", "optimizer.schedule": "constant"}
            for size, seed in itertools.product(SIZES, SEEDS)]  # fmt: skip
    gaps, evaluations = [], []
    for run, step in itertools.product(runs, STEPS):
        place = {"run": run["run"], "step": step, "epoch": step / 5, "statistics_split": "train"}
        for momentum, (depth, layer) in itertools.product((0.1, 0.5), enumerate(LAYERS, start=1)):
            gap = 2 ** run["seed"] * momentum * 4 ** (depth - 1)
            gaps.append({**place, "estimator": "ema", "momentum": momentum, "layer": layer, "depth": depth,
                         "mean_gap": gap})  # fmt: skip
        for estimator, momentum, lost in (("ema", 0.1, 2 + run["seed"]), ("ema", 0.5, 1), ("exact", None, 0)):
            evaluations.append({**place, "estimator": estimator, "momentum": momentum, "split": "test",
                                "shift": "none", "accuracy": 0.9 - lost / 100})  # fmt: skip
    tables = {"runs": runs, "gaps": gaps, "evaluations": evaluations}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()} | {"drift": pd.DataFrame()}
