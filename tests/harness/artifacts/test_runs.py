"""A run on disk: what it consists of, what is made again, and that unreadable files are set aside once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from bnlab.harness import load
from bnlab.harness.artifacts import producing, runs, states
from bnlab.harness.artifacts.optimizers import Sgd
from bnlab.harness.artifacts.producing import build_announcer, ensure_trained, format_seconds
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.jobs import attempt, execute, list_failures
from tests.conftest import small_config
from tests.harness.kills import assert_same, killed_at


@pytest.fixture(scope="module")
def whole(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The small network and what is measured on it. Not to be changed."""
    results = tmp_path_factory.mktemp("whole")
    shutil.copytree(trained.config.results, results, dirs_exist_ok=True)
    job = small_config(results, estimator=["ema", "exact"])
    execute(job)
    return job


def test_what_a_run_consists_of(trained: Run) -> None:
    names = {path.name for path in trained.folder.iterdir()} - {"statistics"}

    assert names == {"config.yaml", "environment.json", "log.parquet", "trace", "checkpoints", "status.json"}
    assert trained.status is not None
    assert trained.status["status"] == "finished"
    assert trained.status["step"] == 40
    assert list(trained.read_log()["step"]) == list(range(1, 41))
    assert trained.list_checkpoints() == trained.wanted == [1, 7, 20, 40]
    assert trained.trace.first_step == 0
    assert trained.trace.last_step == 40
    assert trained.environment["threads"] == 1
    assert str(Path.cwd()) not in str(trained.environment)


FILES = {
    "checkpoint": "runs/*/seed_0/checkpoints/step_0000007.safetensors",
    "trace": "runs/*/seed_0/trace/*.safetensors",
    "log": "runs/*/seed_0/log.parquet",
    "status": "runs/*/seed_0/status.json",
    "statistics": "runs/*/seed_0/statistics/exact-train-all-0000007-*.safetensors",
    "measurement": "runs/*/seed_0/measurements/gaps/*.parquet",
}


@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_that_cannot_be_read(
    kind: str, whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is named; the run is set aside, trained again and measured by the same job, with the same rows in the end."""
    job = replace(whole, results=str(shutil.copytree(whole.results, tmp_path / "results")))
    (path,) = (tmp_path / "results").glob(FILES[kind])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if kind != "measurement":  # what is measured already needs no network
        shutil.rmtree(Run(job).folder / "measurements")
    attempt(job)
    err = capsys.readouterr().err

    assert err.startswith(str(path))
    assert "set aside as seed_0.damaged-1" in err
    assert err.count("\n") == 2

    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", job.results)[name], load("adhoc", whole.results)[name])
    attempt(job)
    assert not capsys.readouterr().err


def test_a_state_that_cannot_be_read(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(trained.config, results=str(tmp_path))
    with killed_at(30):
        ensure_trained(Run(job))
    (Run(job).folder / "state.safetensors").write_bytes(b"nonsense")
    attempt(job)

    assert "state.safetensors: cannot be read" in capsys.readouterr().err
    assert_same(Run(job), trained)


def test_a_checkpoint_that_is_wanted_later(trained: Run, copied: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The network is trained again from the start, and keeps all checkpoints; what was measured stays."""
    execute(copied)
    before = load("adhoc", copied.results)["gaps"]
    capsys.readouterr()
    later = replace(copied, evaluate_at=[10, 20])
    execute(later)

    assert "step 40 of 40" in capsys.readouterr().out
    assert Run(copied).list_checkpoints() == [1, 7, 10, 20, 40]
    assert_same(Run(copied), trained)
    after = load("adhoc", copied.results)["gaps"]
    assert_frame_equal(after[after["step"] != 10].reset_index(drop=True), before)
    with killed_at(15):  # and so it is where that training is killed
        execute(replace(copied, evaluate_at=[3]))
    execute(replace(copied, evaluate_at=[5]))
    assert {1, 3, 5, 7, 10, 20, 40} <= {*Run(copied).list_checkpoints()}
    assert_same(Run(copied), trained)


def test_another_training_is_measured_again(copied: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As with other threads or versions: nothing of both is mixed."""
    execute(copied)
    start_training = states.start_training

    def start_elsewhere(run: Run) -> Progress:
        progress = start_training(run)
        next(progress.model.parameters()).data.mul_(1.001)
        return progress

    monkeypatch.setattr(states, "start_training", start_elsewhere)
    shutil.rmtree(Run(copied).folder)
    execute(copied)
    alone = replace(copied, results=str(tmp_path / "alone"))
    execute(alone)
    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", copied.results)[name], load("adhoc", alone.results)[name])


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PACKAGES", ("nowhere-to-be-found", "torch"))

    versions = runs.describe_environment(torch.device("cpu"))["versions"]

    assert versions["nowhere-to-be-found"] == "unknown"
    assert versions["torch"][0].isdigit()


def test_a_training_that_diverges(tmp_path: Path) -> None:
    """Rows before it are kept."""
    too_fast = Sgd(lr=1e4, schedule="constant")
    job = small_config(tmp_path, optimizer=too_fast, evaluate_at=[1, 1.0])

    execute(job)

    run = Run(job)
    tables = load("adhoc", tmp_path)
    (row,) = tables["runs"].to_dict("records")
    assert row["status"] == "diverged"
    assert row["last_step"] == len(run.read_log()) < 40
    assert run.wanted == [1]
    assert set(tables["gaps"]["step"]) == {1}


def test_a_job_that_fails_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    job = small_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(producing, "train", fail)
        attempt(job)

    assert "no luck" in list_failures(Run(job))[0].read_text()

    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert row["status"] == "failed"
    assert np.isnan(row["final_loss"])


def test_what_is_said_while_a_network_is_trained(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a minute, with the time that is left, and one at the end."""
    now = iter([0.0, *range(20, 201, 20)])
    monkeypatch.setattr(producing.time, "monotonic", lambda: next(now))
    progress = states.start_training(trained)
    progress.step = 30
    progress.log.append((30, 1.0, 0.5))
    announce = build_announcer(trained, progress)
    for progress.step in range(31, 41):
        announce(progress)

    assert capsys.readouterr().out.splitlines() == [
        f"{trained.id}  step {step} of 40  loss 1.000  {end}"
        for step, end in ((33, "about 2 min left"), (36, "about 80 s left"), (39, "about 20 s left"),
                          (40, "trained in 3 min"))
    ]  # fmt: skip
    assert format_seconds(7300) == "2.0 h"
