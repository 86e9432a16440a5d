"""Which checkpoints are kept: those that a measurement reads, and always the last one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnlab.harness import load
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import execute, find_failure, list_needed_checkpoints
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.subjects import find_subjects
from bnlab.lab.catalogue import list_measurements
from tests.conftest import small_config
from tests.harness.kills import assert_same, killed_at


@pytest.mark.parametrize("name", list(list_measurements()))
def test_a_measurement_reads_no_other_checkpoints_than_it_says(
    name: str, copied: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    job = replace(copied, measurements=name, estimator=["ema", "exact"])
    run = Run(job)
    shutil.rmtree(run.folder / "statistics", ignore_errors=True)
    for step in {*run.list_checkpoints()} - {*list_needed_checkpoints(run)}:
        run.checkpoint(step).unlink()

    execute(job)

    said = capsys.readouterr()

    assert "trained in" not in said.out
    assert not said.err
    assert not find_failure(Run(job)).exists()
    measurement = find_measurement(name)
    has_rows = measurement.name in {*load("adhoc", copied.results)}
    assert has_rows == bool(measurement.scope(run, find_subjects(job)))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"measurements": ["drift", "log"]}, [40]),
        ({"measurements": "log", "evaluate_at": [7]}, [40]),
        ({"measurements": "traces"}, [40]),
        ({"measurements": "traces", "estimator": "exact"}, [1, 7, 20, 40]),
        ({"measurements": "evaluations", "accuracy_at": [7, 20]}, [7, 20, 40]),
        ({"measurements": "gaps", "evaluate_at": [7, 20]}, [7, 20, 40]),
    ],
)
def test_what_is_kept(changes: dict[str, Any], kept: list[int], tmp_path: Path) -> None:
    job = small_config(tmp_path, **changes)

    execute(job)

    assert Run(job).list_checkpoints() == kept
    assert not find_failure(Run(job)).exists()


@pytest.mark.parametrize(("name", "kept"), [("traces", [30, 40]), ("evaluations", [20, 30, 40])])
def test_frozen_exact_statistics_are_read_from_the_last_measured_step(
    name: str, kept: list[int], tmp_path: Path
) -> None:
    frozen = {"freeze_at": 0.25, "freeze_with": "exact", "evaluate_at": [20, 30], "accuracy_at": [20]}
    job = small_config(tmp_path, measurements=name, **frozen)

    execute(job)

    assert Run(job).list_checkpoints() == kept
    assert len(load("adhoc", tmp_path)[name])


def test_a_measurement_that_needs_more_trains_again(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the union of the steps, also after a kill; the network is the same."""
    few = small_config(tmp_path, measurements="evaluations", accuracy_at=[20])
    execute(few)
    with killed_at(15):
        execute(replace(few, measurements="gaps", evaluate_at=[7]))

    execute(replace(few, measurements=["gaps", "evaluations"]))

    assert Run(few).list_checkpoints() == [1, 7, 20, 40]
    at_all_steps = replace(few, evaluate_at=trained.config.evaluate_at)
    assert_same(Run(at_all_steps), trained)
