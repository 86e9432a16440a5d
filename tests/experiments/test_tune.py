"""Learning rates that are tuned: which is picked, what a cell lacks, and the command that trains it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bnlab.harness import load
from experiments.tune import list_lacking, list_tuning, main
from experiments.tuning import RATE, TUNING_SEEDS, pick_rate, select_collapses, select_tested
from tests.helpers import Config, Run, plan_network

RATES = (0.025, 0.1, 0.4)
BEST = 0.1

Row = dict[str, Any]
Tables = dict[str, pd.DataFrame]


def make_run(name: str, seed: int, rate: float, **settings: Any) -> Row:
    usual = {
        "status": "finished",
        "data.classes": 36,
        "data.images": 10_000,
        "norm": "batch",
        "norm.momentum": math.nan,
    }
    return {"run": f"{name}-{rate}-{seed}", "seed": seed, RATE: rate, **usual, **settings}


def make_row(run: Row, step: int, estimator: str, momentum: float, accuracy: float, split: str = "test") -> Row:
    return {
        "run": run["run"],
        "step": step,
        "epoch": 1.0,
        "estimator": estimator,
        "momentum": momentum,
        "statistics_split": "train",
        "split": split,
        "shift": "none",
        "accuracy": accuracy,
        "loss": 1 - accuracy,
    }


def tune(cells: list[Row], best: float = BEST) -> Iterator[tuple[Row, list[Row]]]:
    """Validate three rates of each cell, of which `best` is 10 points better; running averages prefer the largest."""
    for cell, seed, rate in itertools.product(cells, TUNING_SEEDS, RATES):
        run = make_run(str(cell), seed, rate, **cell)
        accuracy = 0.8 if rate == best else 0.7
        yield (
            run,
            [
                make_row(run, cell["steps"], "exact", math.nan, accuracy, "val"),
                make_row(run, cell["steps"], "ema", 0.1, rate, "val"),
            ],
        )


def join(*parts: tuple[Row, list[Row]]) -> Tables:
    runs = [run for run, _ in parts]
    measured = [row for _, rows in parts for row in rows]
    return {"runs": pd.DataFrame(runs), "evaluations": pd.DataFrame(measured)}


CELL = ("batch_size", "optimizer.schedule", "steps")
INSIDE: Row = {"batch_size": 4, "optimizer.schedule": "constant", "steps": 10}


def select_rates(tables: Tables, *cells: Row) -> set[float]:
    """Find the rates of the selected networks; one is tested at each rate of each cell."""
    tested = [make_run(str(cell), 103, rate, **cell) for cell, rate in itertools.product(cells or [INSIDE], RATES)]
    runs = pd.concat([tables["runs"], pd.DataFrame(tested)])
    return {*select_tested({**tables, "runs": runs}, CELL)["runs"][RATE]}


@pytest.mark.parametrize("rates", [(0.025, 0.1, 0.4, 1.6), (1.6, 0.4, 0.1, 0.025)])
def test_of_equally_good_rates_the_smallest_is_picked(rates: tuple[float, ...]) -> None:
    """Neither their order decides nor how a mean was rounded."""
    means = {0.025: 0.5, 0.1: 0.7, 0.4: 0.7000001, 1.6: 0.6}
    assert pick_rate({rate: means[rate] for rate in rates}) == (0.1, None)


def test_where_all_rates_are_alike_no_other_one_is_tried() -> None:
    """As where a network stays at chance: the search for a smaller rate would never end."""
    assert pick_rate({0.025: 0.1, 0.1: 0.1, 0.4: 0.1}) == (0.025, None)
    assert pick_rate({0.00625: 0.1, 0.025: 0.1, 0.1: 0.1, 0.4: 0.09}) == (0.00625, None)
    assert pick_rate({0.1: 0.1}) == (0.1, 0.4)


def test_rates_are_picked_on_the_tuning_seeds_alone() -> None:
    """Under exact statistics: under running averages the largest rate is best. A cell at an edge is not tested."""
    edge = {**INSIDE, "batch_size": 16}

    assert select_rates(join(*tune([INSIDE]), *tune([edge], best=0.4)), INSIDE, edge) == {BEST}
    assert select_rates(join(*tune([INSIDE], best=0.4))) == set()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_rate_that_lacks_a_seed_is_not_picked_and_a_diverged_network_counts_as_chance(status: str) -> None:
    """Of 0.1 and 0.4, which would be inside otherwise: (2 · 0.8 + 1/36) / 3 is less than 0.7, and so is the edge."""
    parts = list(tune([INSIDE]))
    run, _ = parts[1]  # at the best rate
    run["status"] = status
    parts[1] = (run, [])

    assert select_rates(join(*parts)) == set()


def test_a_collapse_is_below_half_of_the_median() -> None:
    frame = pd.DataFrame({"line": ["a"] * 4 + ["b"] * 2, "accuracy": [0.9, 0.8, 0.9, 0.3, 0.2, 0.21]})
    assert select_collapses(frame, ["line"]).tolist() == [False, False, False, True, False, False]


MEANS = {0.025: 0.5, 0.1: 0.7, 0.4: 0.6}


@cache
def list_networks() -> list[Config]:
    """Two networks of one cell. Not to be changed."""
    return [plan_network("steps=10", f"seed={seed}", "optimizer.lr_scaling=none").config for seed in (103, 104)]


def name_validated(accuracies: dict[float, float]) -> dict[str, float]:
    """Give each network of the tuning seeds the accuracy of its rate."""
    return {Run(job).id: value for rate, value in accuracies.items() for job in list_tuning(list_networks(), rate)}


@pytest.mark.parametrize(
    ("accuracies", "description"),
    [
        ({}, "9 networks at rates 0.025, 0.1, 0.4, then 2 at the best"),
        ({0.025: 0.5, 0.4: 0.6}, "3 networks at rates 0.1, then 2 at the best"),
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7}, "3 networks at rates 1.6, then 2 at the best"),
        ({0.025: 0.7, 0.1: 0.6, 0.4: 0.5}, "3 networks at rates 0.00625, then 2 at the best"),
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7, 1.6: 0.8}, "3 networks at rates 6.4, then 2 at the best"),
        (MEANS, "2 networks at the best rate, 0.1"),
    ],
)
def test_what_a_cell_lacks(
    accuracies: dict[float, float], description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no other results are
    lack = list_lacking(list_networks(), set(), name_validated(accuracies))

    assert lack.description == description
    assert len(lack.jobs) == int(description.split()[0])
    assert {job.evaluate_on for job in lack.later + lack.jobs} <= {"val", "test"}


def test_what_is_there_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    validated = name_validated(MEANS)
    missing = Run(list_tuning(list_networks(), 0.4)[1]).id
    wanted = [Run(job).id for job in list_lacking(list_networks(), set(), validated).jobs]

    without_one = {name: value for name, value in validated.items() if name != missing}
    assert [Run(job).id for job in list_lacking(list_networks(), set(), without_one).jobs] == [missing]
    assert [Run(job).id for job in list_lacking(list_networks(), {wanted[0]}, validated).jobs] == wanted[1:]
    assert list_lacking(list_networks(), {*wanted}, validated).description == "complete, at rate 0.1"


@pytest.mark.slow
def test_a_cell_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny networks; a second call trains nothing."""
    words = ["experiment=ground_onecycle", "batch_size=8", "steps=40", "data.images=400", "seed=103,104"]
    words.append(f"results={tmp_path}")

    monkeypatch.setattr("sys.argv", ["tune", *words])

    assert main() == 0
    assert "at the best rate" in capsys.readouterr().out
    assert main() == 0
    assert "nothing is missing" in capsys.readouterr().out
    assert {*load("ground", tmp_path)["runs"]["seed"]} == {100, 101, 102, 103, 104}
