"""What a cell lacks, and the command that trains it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bnlab.harness.artifacts.optimizers import Sgd
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.reporting.tables import load
from experiments.tune import Cell, Trained, list_lacking
from experiments.tuning import FIRST_RATES, TUNING_SEEDS
from tests.experiments.commands import run

CELL = Cell(tuple(Config(steps=10, seed=seed, optimizer=Sgd(lr_scaling="none")) for seed in (103, 104)))
NOTHING = Trained(frozenset(), {})


def validate(accuracies: dict[float, float]) -> dict[str, float]:
    """Give each network of the tuning seeds the accuracy of its rate."""
    return {Run(job).id: value for rate, value in accuracies.items() for job in CELL.list_tuning(rate)}


def list_rates(jobs: list[Config]) -> list[float]:
    return sorted({job.optimizer.lr for job in jobs})


def test_first_all_rates_are_validated() -> None:
    step = list_lacking(CELL, NOTHING)
    assert list_rates(step.jobs) == list(FIRST_RATES)
    assert {job.seed for job in step.jobs} == {*TUNING_SEEDS}
    assert {job.evaluate_on for job in step.jobs} == {"val"}
    assert [job.seed for job in step.later] == [103, 104]


def test_what_is_there_is_not_trained_again() -> None:
    validated = validate({0.025: 0.5, 0.1: 0.7, 0.4: 0.6})
    name = Run(CELL.list_tuning(0.4)[1]).id
    del validated[name]

    step = list_lacking(CELL, Trained(frozenset(validated), validated))

    assert [Run(job).id for job in step.jobs] == [name]


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7}, 1.6),
        ({0.025: 0.7, 0.1: 0.6, 0.4: 0.5}, 0.00625),
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7, 1.6: 0.8}, 6.4),
    ],
)
def test_an_edge_is_extended(accuracies: dict[float, float], rate: float) -> None:
    step = list_lacking(CELL, Trained(frozenset(), validate(accuracies)))
    assert list_rates(step.jobs) == [rate]
    assert len(step.jobs) == len(TUNING_SEEDS)


def test_then_the_best_rate_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = validate({0.025: 0.5, 0.1: 0.7, 0.4: 0.6})
    wanted = CELL.list_tested(0.1)
    half = Trained(frozenset({Run(wanted[0]).id}), validated)
    whole = Trained(frozenset(Run(job).id for job in wanted), validated)

    monkeypatch.chdir(tmp_path)  # where no other results are

    assert list_lacking(CELL, half).jobs == [wanted[1]]
    assert list_lacking(CELL, whole).description == "complete, at rate 0.1"


@pytest.mark.slow
def test_a_cell_is_completed(tmp_path: Path) -> None:
    """Tiny networks; a second call trains nothing."""
    words = ["experiment=ground_onecycle", "batch_size=8", "steps=40", "data.images=400", "seed=103,104"]
    words += ["again=true", f"results={tmp_path}"]

    first = run("tune", *words)
    second = run("tune", *words)

    assert "at the best rate" in first.stdout
    assert "nothing is missing" in second.stdout
    runs: pd.DataFrame = load("ground", tmp_path)["runs"]
    assert {*runs["seed"]} == {*TUNING_SEEDS, 103, 104}
