"""Learning rates that are picked by validation: the files in conf/experiment, and the committed tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from bnlab.harness import load
from bnlab.harness.errors import UserError
from bnlab.harness.lab.registry import REFERENCE, find_question
from experiments.questions import ground, norms_tuned
from experiments.recipes import RATE, TUNING_SEEDS, select_collapses, select_tested, validate
from tests.helpers import Run, plan_jobs

QUESTIONS: list[tuple[str, Sequence[str]]] = [("ground", ground.CELL), ("norms_tuned", norms_tuned.CELL)]


@pytest.mark.parametrize(("name", "cell"), QUESTIONS)
def test_the_sweeps_train_the_networks_of_the_committed_tables(name: str, cell: Sequence[str]) -> None:
    planned = []
    for sweep in find_question(name).sweeps:
        planned += [Run(config).id for config in plan_jobs([f"experiment={sweep}"]).configs]

    assert sorted(planned) == sorted(load(name, REFERENCE)["runs"]["run"])


@pytest.mark.parametrize(("name", "cell"), QUESTIONS)
def test_the_tested_rates_are_the_best_ones_by_validation(name: str, cell: Sequence[str]) -> None:
    """Of rates that tie, the smallest; the best one lies between two others."""
    tables = load(name, REFERENCE)
    by = [*cell, RATE]
    means = validate(tables).groupby(by, dropna=False)["accuracy"].mean()
    # The committed accuracies are rounded, so that equal ones may differ in the last digits.
    rounded = means.round(5).reset_index()
    cells = rounded.groupby([*cell], dropna=False)
    best = rounded.loc[cells["accuracy"].idxmax()]

    tested = select_tested(tables)["runs"][by].drop_duplicates()
    assert len(tested) == len(best) == len(tested.merge(best, on=by))
    assert (best[RATE] > cells[RATE].transform("min")[best.index]).all()
    assert (best[RATE] < cells[RATE].transform("max")[best.index]).all()


def test_a_cell_without_a_rate_is_named() -> None:
    words = ["experiment=ground_onecycle", "batch_size=8", "steps=36", "seed=103"]

    with pytest.raises(UserError, match=r"optimizer\.lr: the file has no value for .*batch_size=8 steps=36"):
        plan_jobs(words)
    (config,) = plan_jobs([*words, "optimizer.lr=0.2"]).configs
    assert config.optimizer.lr == 0.2


def test_a_diverged_network_counts_as_chance() -> None:
    usual: dict[str, Any] = {"steps": 10, "data.classes": 36}
    runs = pd.DataFrame(
        [
            {"run": "a", "seed": TUNING_SEEDS[0], "status": "finished", **usual},
            {"run": "b", "seed": TUNING_SEEDS[1], "status": "diverged", **usual},
            {"run": "c", "seed": TUNING_SEEDS[2], "status": "failed", **usual},
            {"run": "d", "seed": 103, "status": "finished", **usual},
        ]
    )
    at_end: dict[str, Any] = {"step": 10, "split": "val"}
    evaluations = pd.DataFrame(
        [
            {"run": "a", "estimator": "exact", "accuracy": 0.8, **at_end},
            {"run": "a", "estimator": "ema", "accuracy": 0.7, **at_end},
            {"run": "d", "estimator": "exact", "accuracy": 0.9, **at_end},
        ]
    )

    validated = validate({"runs": runs, "evaluations": evaluations}).set_index("run")["accuracy"]

    assert validated.to_dict() == pytest.approx({"a": 0.8, "b": 1 / 36, "c": math.nan}, nan_ok=True)


def test_a_collapse_is_below_half_of_the_median() -> None:
    frame = pd.DataFrame({"line": ["a"] * 4 + ["b"] * 2, "accuracy": [0.9, 0.8, 0.9, 0.3, 0.2, 0.21]})
    assert select_collapses(frame, ["line"]).tolist() == [False, False, False, True, False, False]
