"""The count of configurations that lose little: of tables with planted losses."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bnlab.harness.reporting.question import Tables
from experiments.count_losses import compute_losses, say_count, say_others

STEPS = 560
COUNTED: dict[str, Any] = {
    "norm": "batch",
    "optimizer": "sgd",
    "batch_size": 16,
    "order": "shuffled",
    "optimizer.schedule": "onecycle",
    "optimizer.lr": 0.1,
    "status": "finished",
    "freeze_at": 1.0,
    "averaging": "none",
    "steps": STEPS,
}


def make_tables(points: dict[str, float], momentum: float = 0.1, **settings: Any) -> Tables:
    """Make the tables of networks, by name, that lose so many points at their end."""
    runs = []
    evaluations = []
    for run, lost in points.items():
        network = {**COUNTED, "run": run, "seed": int(run.partition("seed_")[2]), **settings}
        runs.append(network)
        place = {"run": run, "step": network["steps"], "split": "test", "shift": "none", "statistics_split": "train"}
        evaluations.append({**place, "estimator": "exact", "momentum": None, "accuracy": 0.9})
        evaluations.append({**place, "estimator": "ema", "momentum": momentum, "accuracy": 0.9 - lost / 100})
    return {"runs": pd.DataFrame(runs), "evaluations": pd.DataFrame(evaluations)}


def test_losses_are_averaged_over_seeds_and_sorted() -> None:
    tables = make_tables({"a/seed_0": 3.0, "a/seed_1": 4.0, "b/seed_0": 0.1, "b/seed_1": -0.1})

    losses = compute_losses({"one": tables})

    assert list(losses["mean"]) == pytest.approx([0.0, 3.5])
    assert list(losses["n"]) == [2, 2]
    assert list(losses["batch_size"]) == [16, 16]
    # Two seeds: Student's t of one degree of freedom, times half their distance.
    assert losses["high"].iloc[1] == pytest.approx(3.5 + 12.7062 * 0.5, rel=1e-4)
    assert say_count(losses) == "less than 0.2 points in 1 of 2 configurations"
    assert say_others(losses) == "3.5 points"


def test_a_network_that_two_experiments_share_counts_once() -> None:
    once = make_tables({"a/seed_0": 1.0, "a/seed_1": 2.0})
    again = make_tables({"a/seed_1": 4.0, "a/seed_2": 5.0})

    (row,) = compute_losses({"one": once, "two": again}).to_dict("records")

    assert row["mean"] == pytest.approx((1 + 3 + 5) / 3)
    assert row["n"] == 3
    assert row["experiments"] == "one, two"


@pytest.mark.parametrize(
    "other",
    [
        {"norm": "ghost"},
        {"optimizer": "adamw"},
        {"batch_size": 8},
        {"batch_size": 512},
        {"order": "sorted"},
        {"optimizer.schedule": "constant"},
        {"optimizer.schedule": "step"},
        {"steps": STEPS - 1},
        {"status": "diverged"},
        {"freeze_at": 0.8},
        {"averaging": "swa"},
        {"momentum": 0.01},
    ],
    ids=str,
)
def test_other_networks_are_not_counted(other: dict[str, Any]) -> None:
    counted = make_tables({"a/seed_0": 0.0, "a/seed_1": 0.0})
    left_out = make_tables({"b/seed_0": 50.0, "b/seed_1": 50.0}, **other)

    losses = compute_losses({"one": counted, "two": left_out})

    assert list(losses["experiments"]) == ["one"]


def test_where_training_augments_exact_statistics_are_of_augmented_images() -> None:
    tables = make_tables({"a/seed_0": 1.0, "a/seed_1": 1.0})
    evaluations = tables["evaluations"]
    is_exact = evaluations["estimator"] == "exact"
    augmented = evaluations[is_exact].assign(statistics_split="train_augmented", accuracy=0.95)

    losses = compute_losses({"one": {**tables, "evaluations": pd.concat([evaluations, augmented])}})

    assert list(losses["mean"]) == pytest.approx([6.0])
