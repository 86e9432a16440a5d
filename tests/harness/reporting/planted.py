"""A small table set with values that can be computed in the head."""

from __future__ import annotations

import itertools

import pandas as pd

SEEDS = (0, 1, 2)
SIZES = (4, 32)
STEPS = (1, 5, 10)
LAYERS = ("2", "10")


def plant() -> dict[str, pd.DataFrame]:
    """Six networks of ten steps: `mean_gap` = 2^seed · momentum, 4 times as much in layer 10; accuracies in points.

    An EMA of momentum 0.1 loses 2 + seed points against exact statistics, one of momentum 0.5 loses 1.
    """
    runs = []
    gaps = []
    evaluations = []
    for size, seed in itertools.product(SIZES, SEEDS):
        run = f"{size}/{seed}"
        runs.append(plant_run(run, size, seed))
        for step in STEPS:
            gaps += plant_gaps(run, step, seed)
            evaluations += plant_evaluations(run, step, seed)

    return {
        "runs": pd.DataFrame(runs),
        "gaps": pd.DataFrame(gaps),
        "evaluations": pd.DataFrame(evaluations),
        "drift": pd.DataFrame(),
    }


def plant_run(run: str, size: int, seed: int) -> dict[str, object]:
    return {
        "run": run,
        "seed": seed,
        "batch_size": size,
        "steps": 10,
        "epochs": 2.0,
        "data": "digits",
        "status": "finished",
        "optimizer.schedule": "constant",
    }


def plant_gaps(run: str, step: int, seed: int) -> list[dict[str, object]]:
    rows = []
    for momentum in (0.1, 0.5):
        for depth, layer in enumerate(LAYERS, start=1):
            gap = 2**seed * momentum * 4 ** (depth - 1)
            row = locate(run, step, "ema", momentum)
            rows.append({**row, "layer": layer, "depth": depth, "mean_gap": gap})
    return rows


def plant_evaluations(run: str, step: int, seed: int) -> list[dict[str, object]]:
    lost = [("ema", 0.1, 2 + seed), ("ema", 0.5, 1), ("exact", None, 0)]
    rows = []
    for estimator, momentum, points in lost:
        row = locate(run, step, estimator, momentum)
        accuracy = 0.9 - points / 100
        rows.append({**row, "split": "test", "shift": "none", "accuracy": accuracy})
    return rows


def locate(run: str, step: int, estimator: str, momentum: float | None) -> dict[str, object]:
    """The columns that say which statistics a row is about."""
    return {
        "run": run,
        "step": step,
        "epoch": step / 5,
        "statistics_split": "train",
        "estimator": estimator,
        "momentum": momentum,
    }
