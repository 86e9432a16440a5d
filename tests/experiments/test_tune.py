"""What a cell lacks, and the command that trains it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.artifacts.runs import Run
from experiments.tune import list_lacking, list_tuning
from tests.experiments.commands import run
from tests.helpers import plan_network

CELL = [plan_network("steps=10", f"seed={seed}", "optimizer.lr_scaling=none").config for seed in (103, 104)]
INSIDE = {0.025: 0.5, 0.1: 0.7, 0.4: 0.6}


def name_validated(accuracies: dict[float, float]) -> dict[str, float]:
    """Give each network of the tuning seeds the accuracy of its rate."""
    return {Run(job).id: value for rate, value in accuracies.items() for job in list_tuning(CELL, rate)}


@pytest.mark.parametrize(
    ("accuracies", "description"),
    [
        ({}, "9 networks at rates 0.025, 0.1, 0.4, then 2 at the best"),
        ({0.025: 0.5, 0.4: 0.6}, "3 networks at rates 0.1, then 2 at the best"),
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7}, "3 networks at rates 1.6, then 2 at the best"),
        ({0.025: 0.7, 0.1: 0.6, 0.4: 0.5}, "3 networks at rates 0.00625, then 2 at the best"),
        ({0.025: 0.5, 0.1: 0.6, 0.4: 0.7, 1.6: 0.8}, "3 networks at rates 6.4, then 2 at the best"),
        (INSIDE, "2 networks at the best rate, 0.1"),
    ],
)
def test_what_a_cell_lacks(
    accuracies: dict[float, float], description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no other results are
    lack = list_lacking(CELL, set(), name_validated(accuracies))

    assert lack.description == description
    assert len(lack.jobs) == int(description.split()[0])
    assert {job.evaluate_on for job in lack.later + lack.jobs} <= {"val", "test"}


def test_what_is_there_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    validated = name_validated(INSIDE)
    missing = Run(list_tuning(CELL, 0.4)[1]).id
    wanted = [Run(job).id for job in list_lacking(CELL, set(), validated).jobs]

    without_one = {name: value for name, value in validated.items() if name != missing}
    assert [Run(job).id for job in list_lacking(CELL, set(), without_one).jobs] == [missing]
    assert [Run(job).id for job in list_lacking(CELL, {wanted[0]}, validated).jobs] == wanted[1:]
    assert list_lacking(CELL, {*wanted}, validated).description == "complete, at rate 0.1"


@pytest.mark.slow
def test_a_cell_is_completed(tmp_path: Path) -> None:
    """Tiny networks; a second call trains nothing."""
    words = ["experiment=ground_onecycle", "batch_size=8", "steps=40", "data.images=400", "seed=103,104"]
    words += ["again=true", f"results={tmp_path}"]

    first = run("tune", *words)
    second = run("tune", *words)

    assert "at the best rate" in first.stdout
    assert "nothing is missing" in second.stdout
    assert {*load("ground", tmp_path)["runs"]["seed"]} == {100, 101, 102, 103, 104}
