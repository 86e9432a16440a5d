"""Which checkpoints are kept: those that a measurement reads, and always the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bnlab.harness import load, load_model
from bnlab.harness.artifacts import training_runner
from bnlab.harness.lab.registry import list_measurements
from tests.conftest import small_config
from tests.helpers import find_network, run_job

NOT_OF_DIGITS = ("AugmentedGaps", "FineTuning", "Followed", "KeptAverages")
"""Measurements without rows of images as they are, of images without fonts, or where no averages are kept."""

FEWER = {
    "averaging_windows.averaged.WINDOWS": (0.2,),
    "changed_weights.changed.SAMPLES": (32,),
    "clients.federated.LOCAL_STEPS": (10,),
    "clients.federated.TRAININGS": ((6, "batch"),),
}
"""Parts of the longest measurements, which read the same checkpoints as the whole."""

PARTS = 4
"""Tests among which the measurements are divided, as several processes may run them."""


def list_kept(results: Path) -> list[int]:
    """The steps of the checkpoints of the only network in a folder of results."""
    return sorted(int(path.stem.removeprefix("step_")) for path in find_network(results).glob("checkpoints/*"))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_measurement_reads_no_other_checkpoints_than_it_says(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only those that it says are kept, and a network without another one would be trained again."""
    for path, value in FEWER.items():
        monkeypatch.setattr(f"experiments.questions.{path}", value)
    config = small_config(tmp_path, estimator=["ema", "exact"], steps=20, evaluate_at=[1, 7, 20])

    for name in [*list_measurements()][part::PARTS]:
        results = tmp_path / name
        with patch.object(training_runner, "start_training", wraps=training_runner.start_training) as start:
            run_job(config, measurements=name, results=str(results))

        assert start.call_count == 1, name
        assert not caplog.messages, name
        has_rows = name.rpartition(".")[2] not in NOT_OF_DIGITS
        assert len(load("adhoc", results)) == 1 + has_rows, name


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"measurements": ["drift", "log"]}, [40]),
        ({"measurements": "traces"}, [40]),
        ({"measurements": "traces", "estimator": "exact"}, [1, 7, 20, 40]),
        ({"measurements": "evaluations", "accuracy_at": [7, 20]}, [7, 20, 40]),
        ({"measurements": "gaps", "evaluate_at": [7, 20]}, [7, 20, 40]),
    ],
)
def test_what_is_kept(changes: dict[str, Any], kept: list[int], tmp_path: Path) -> None:
    run_job(small_config(tmp_path, **changes))

    assert list_kept(tmp_path) == kept
    assert "runs" in load("adhoc", tmp_path), "it has not failed"


@pytest.mark.parametrize(("name", "kept"), [("traces", [30, 40]), ("evaluations", [20, 30, 40])])
def test_frozen_exact_statistics_are_read_from_the_last_measured_step(
    name: str, kept: list[int], tmp_path: Path
) -> None:
    frozen = {"freeze_at": 0.25, "freeze_with": "exact", "evaluate_at": [20, 30], "accuracy_at": [20]}
    run_job(small_config(tmp_path, measurements=name, **frozen))

    assert list_kept(tmp_path) == kept
    assert len(load("adhoc", tmp_path)[name])


def test_frozen_exact_statistics_are_those_of_the_last_step_also_where_only_earlier_ones_were_measured(
    tmp_path: Path,
) -> None:
    run_job(small_config(tmp_path, freeze_at=0.5, freeze_with="exact", evaluate_at=[1], measurements="gaps"))
    (run,) = load("adhoc", tmp_path)["runs"]["run"]

    held = load_model("adhoc", run, results=tmp_path)
    averages = load_model("adhoc", run, statistics="ema", results=tmp_path)

    for name, buffer in held.named_buffers():
        assert torch.allclose(buffer, averages.get_buffer(name)), name
