"""Learning rates that are tuned, and the questions that rest on them, on tables with a planted effect."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.reporting.experiment import decide, find_conditions
from bnlab.lab.catalogue import find_experiment
from experiments.questions import norms_tuned
from experiments.tuning import RATE, TUNING_SEEDS, find_collapses, pick_rate, select_tested

TESTED = (103, 104, 105)
RATES = (0.025, 0.1, 0.4)
BEST = 0.1
MOMENTA = (0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
CONSTANT_STEPS = (9, 18, 36, 72, 144, 280, 560, 1120, 2250)

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
    assert find_collapses(frame, ["line"]).tolist() == [False, False, False, True, False, False]


def lose(schedule: str, updates: int, size: int, momentum: float) -> float:
    """Points lost: at a constant rate 2, a little more in small batches; with one-cycle what the start leaves."""
    if schedule == "constant":
        return 2.0 + 1 / size
    return 60 * (1 - momentum) ** updates


def plant_ground() -> Tables:
    """Points lost follow from the mean gap alone, which is a tenth of them."""
    cells: list[Row] = []
    for size in (4, 16, 64, 256):
        cells.append({"batch_size": size, "optimizer.schedule": "constant", "steps": 2250})
        for steps in (36, 144, 560, 2250):
            cells.append({"batch_size": size, "optimizer.schedule": "onecycle", "steps": steps})

    parts = []
    gaps = []
    noise = np.random.default_rng(0)
    for cell, seed in itertools.product(cells, TESTED):
        run = make_run(str(cell), seed, BEST, **cell)
        is_constant = cell["optimizer.schedule"] == "constant"
        rows = []
        for step in CONSTANT_STEPS if is_constant else [cell["steps"]]:
            exact = 0.9 + noise.normal(0, 0.002)
            rows.append(make_row(run, step, "exact", math.nan, exact))
            for momentum in MOMENTA:
                lost = lose(cell["optimizer.schedule"], step, cell["batch_size"], momentum) + noise.normal(0, 0.01)
                row = make_row(run, step, "ema", momentum, exact - lost / 100)
                # The best momentum is the one nearest to 10 / updates.
                row["loss"] = abs(math.log(momentum * step / 10))
                rows.append(row)
                for depth in (1, 2, 3):
                    gap = {key: row[key] for key in ("run", "step", "estimator", "momentum", "statistics_split")}
                    gap |= {"layer": f"layer{depth}", "depth": depth, "channels": 8, "epoch": 1.0}
                    gap |= {"mean_gap": max(lost, 1e-3) / 10, "kl": noise.uniform(), "output_gap": noise.uniform()}
                    gaps.append(gap)
        parts.append((run, rows))
    return {**join(*tune(cells), *parts), "gaps": pd.DataFrame(gaps)}


def plant_norms() -> Tables:
    """Group norm wins at 4 and loses at 32 and 128; renorm wins at 4; gain control keeps up.

    One network with renorm collapses at 32, and one with gain control diverges at each batch size.
    """
    gains: dict[str, dict[int, float]] = {"group": {4: 0.05, 32: -0.05, 128: -0.05}, "renorm": {4: 0.05}}
    cells: list[Row] = []
    for size in (4, 32, 128):
        for norm in ("batch", "group", "gain_control"):
            cells.append({"norm": norm, "norm.momentum": math.nan, "batch_size": size, "steps": 2250})
        for momentum in (0.01, 0.1):
            cells.append({"norm": "renorm", "norm.momentum": momentum, "batch_size": size, "steps": 2250})

    parts = []
    noise = np.random.default_rng(0)
    for cell, seed in itertools.product(cells, (*TESTED, 106)):
        run = make_run(str(cell), seed, BEST, **cell)
        accuracy = 0.9 + gains.get(cell["norm"], {}).get(cell["batch_size"], 0.0) + noise.normal(0, 0.0005)
        if cell["norm"] == "renorm" and cell["batch_size"] == 32 and seed == 106:
            accuracy = 0.1
        rows = []
        if cell["norm"] in ("batch", "renorm"):
            momentum = 0.1 if cell["norm"] == "batch" else cell["norm.momentum"]
            rows.append(make_row(run, 2250, "exact", math.nan, accuracy))
            rows.append(make_row(run, 2250, "ema", momentum, accuracy))
        else:
            rows.append(make_row(run, 2250, "none", math.nan, accuracy))
        if cell["norm"] == "gain_control" and seed == 106:
            run["status"] = "diverged"
            rows = []
        parts.append((run, rows))
    return join(*tune(cells), *parts)


def plant_last_batch() -> Tables:
    """At a constant rate a small last batch costs the weights 3 points right after it, half a batch 1, and at the end 3
    again; averages of 0.1 lose 5 more right after a small one, and nothing later."""
    images = {256: (9964, 10003, 10097, 10239), 64: (9957, 9967, 9991, 10026)}
    steps = {256: (71, 72, 73, 75, 82, 102, 144), 64: (140, 141, 142, 144, 151, 171, 282)}
    parts = []
    noise = np.random.default_rng(0)
    for size, seed, schedule in itertools.product((256, 64), TESTED, ("onecycle", "step", "constant")):
        for number, count in enumerate(images[size]):
            cell = {"batch_size": size, "optimizer.schedule": schedule, "steps": steps[size][-1]}
            run = make_run(f"{cell}{count}", seed, BEST, **cell) | {"data.images": count}
            rows = []
            for step in steps[size]:
                is_constant = schedule == "constant"
                is_right_after = step == steps[size][1] and is_constant
                is_hit = number < 2 and is_right_after
                is_hit_at_the_end = number < 2 and step == steps[size][-1] and is_constant
                is_half_hit = number == 2 and is_right_after
                exact = 0.9 - 0.03 * (is_hit or is_hit_at_the_end) - 0.01 * is_half_hit + noise.normal(0, 0.0003)
                for estimator, momentum in (("ema", 0.1), ("ema", 0.01), ("ema_weighted", 0.1)):
                    lost = 0.05 * is_hit * (estimator == "ema" and momentum == 0.1) + noise.normal(0, 0.0003)
                    rows.append(make_row(run, step, estimator, momentum, exact - lost))
                rows.append(make_row(run, step, "last_full_batch", math.nan, exact))
                rows.append(make_row(run, step, "exact", math.nan, exact))
            parts.append((run, rows))
    return join(*parts)


PLANTED = {"ground": plant_ground, "norms_tuned": plant_norms, "last_batch": plant_last_batch}


@pytest.mark.parametrize("name", PLANTED)
def test_claims_hold_where_they_are_planted(name: str) -> None:
    experiment = find_experiment(name)
    tables = PLANTED[name]()

    verdicts = decide(experiment, tables)

    assert {*verdicts["verdict"]} == {"holds"}, verdicts[verdicts["verdict"] != "holds"].to_string()
    for figure in experiment.figures.values():
        assert len(figure.score(tables))
        for claim, conditions in figure.finding.claims.items() if figure.finding else ():
            assert len(find_conditions(verdicts, claim, conditions))


def test_collapses_are_counted() -> None:
    accuracies = norms_tuned.find_accuracies(plant_norms())
    shares = accuracies.groupby(["line", "batch_size"])["is_collapsed"].mean()
    collapsed = shares[shares > 0]

    assert {line for line, _ in collapsed.index} == {
        "gain control",
        "batch renorm 0.01",
        "batch renorm 0.1",
        "batch renorm 0.01, exact statistics",
        "batch renorm 0.1, exact statistics",
    }
    assert {*collapsed} == {0.25}


def test_a_network_near_chance_is_no_case() -> None:
    tables = plant_ground()
    rows = tables["evaluations"]
    is_of_four = rows["run"].str.contains("'batch_size': 4,") & (rows["split"] == "test")
    tables["evaluations"] = rows.assign(accuracy=rows["accuracy"].mask(is_of_four, rows["accuracy"] - 0.6))

    verdicts = decide(find_experiment("ground"), tables)
    assert not verdicts["condition"].str.contains(r"batch size 4\b").any()
