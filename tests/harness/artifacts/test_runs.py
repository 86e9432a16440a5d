"""A network on disk: what it consists of, what is made again, and that unreadable files are set aside once."""

from __future__ import annotations

import itertools
import json
import pkgutil
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

import bnlab
from bnlab.harness import load
from bnlab.harness.artifacts import training_runner
from bnlab.harness.artifacts.run import Run, find_commit
from bnlab.harness.artifacts.training import Diverged, TrainingState
from bnlab.harness.records import read_records
from tests.conftest import small_config
from tests.harness.kills import assert_same, interrupted_at, load_at, read_trace
from tests.helpers import Config, find_network, run_job, sweep_small

BOTH = ("estimator=[ema,exact]", "measurements=gaps")


@cache
def plan_both() -> Config:
    """The job of the small network under both statistics. Not to be changed."""
    return small_config(Path(), *BOTH)


def run_both(results: Path, **changes: Any) -> None:
    """Run that job in a folder of results, with other settings where they are given."""
    run_job(plan_both(), results=str(results), **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with the small network and what is measured on it. Not to be changed."""
    results = tmp_path_factory.mktemp("whole")
    sweep_small(results, *BOTH)
    return results


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def list_steps(results: Path) -> list[int]:
    """The steps of which there are checkpoints."""
    return sorted(int(path.stem[-7:]) for path in (find_network(results) / "checkpoints").iterdir())


def assert_same_rows(found: Path, expected: Path) -> None:
    assert_frame_equal(load("adhoc", found)["gaps"], load("adhoc", expected)["gaps"])


def test_what_a_network_consists_of(whole: Path) -> None:
    folder = find_network(whole)
    names = {path.name for path in folder.iterdir()} - {"statistics", "rows"}

    assert names == {"config.yaml", "environment.json", "log.parquet", "trace", "checkpoints", "status.json"}
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert (status["status"], status["step"]) == ("finished", 40)
    assert list(pd.read_parquet(folder / "log.parquet")["step"]) == list(range(1, 41))
    assert list_steps(whole) == [1, 7, 20, 40]
    trace = read_trace(folder)
    assert (trace.first_step, trace.last_step) == (0, 40)
    text = (folder / "environment.json").read_text(encoding="utf-8")
    environment = json.loads(text)
    assert environment["threads"] == 1
    assert environment["vector_instructions"] == torch.backends.cpu.get_cpu_capability()
    assert str(Path.cwd()) not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_a_clone(tmp_path: Path) -> None:
    """A folder inside of a clone, as an environment with a wheel, is none."""

    def call_git(*words: str) -> str:
        author = ("-c", "user.name=bnlab", "-c", "user.email=bnlab@localhost")
        return subprocess.run(["git", *author, *words], cwd=tmp_path, capture_output=True, check=True).stdout.decode()

    (tmp_path / "inside").mkdir()
    (tmp_path / "file").write_text("1", encoding="utf-8")
    call_git("init")
    call_git("add", "file")
    call_git("commit", "--message=first")
    commit = call_git("rev-parse", "HEAD").strip()

    assert find_commit(tmp_path) == commit
    assert find_commit(tmp_path / "inside") is None
    (tmp_path / "file").write_text("2", encoding="utf-8")
    assert find_commit(tmp_path) == f"{commit}-dirty"


@pytest.mark.parametrize(
    "writes", ["recording.trace.MomentTrace.save", "harness.artifacts.training_runner._save_state"]
)
def test_a_kill_between_the_files_of_a_part(
    writes: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the training leaves its trace, then its state; what follows on the last state is made again."""
    write = pkgutil.resolve_name(f"bnlab.{writes}")
    calls = itertools.count(1)

    def write_twice(*arguments: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training_runner, "STATE_SECONDS", 0.0)
        patch.setattr(f"bnlab.{writes}", write_twice)
        with pytest.raises(KeyboardInterrupt):
            run_both(tmp_path)
    run_both(tmp_path)
    run_both(tmp_path, evaluate_at=[2])  # trained again from the start, not from the last state

    assert list_steps(tmp_path) == [1, 2, 7, 20, 40]
    assert_same(find_network(tmp_path), find_network(whole))
    assert not [*tmp_path.glob("runs/*/*damaged*")]  # it went on, and was not trained again


FILES = {
    "checkpoint": "checkpoints/step_0000007.safetensors",
    "trace": "trace/*.safetensors",
    "log": "log.parquet",
    "status": "status.json",
    "statistics": "statistics/exact-train-all-0000007-*.safetensors",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_read(kind: str, whole: Path, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is named; the network is set aside, trained again and measured by the same sweep, with the same rows."""
    (path,) = find_network(copied).glob(FILES[kind])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(find_network(copied) / "rows")

    run_both(copied)

    (said,) = caplog.messages
    assert said.startswith(str(path))
    assert "set aside as seed_0.damaged-1" in said
    assert_same_rows(copied, whole)


def test_rows_that_cannot_be_read_are_measured_again(
    whole: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = find_network(copied).glob("rows/gaps/*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(copied / "adhoc")  # what was asked for, so that rows are looked for
    status = find_network(copied) / "status.json"
    before = status.stat().st_mtime_ns

    run_both(copied)

    (said,) = caplog.messages
    assert said.startswith(str(path))
    assert status.stat().st_mtime_ns == before, "nothing is trained"
    assert_same_rows(copied, whole)


def test_a_state_that_cannot_be_read(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        run_both(tmp_path)
    (find_network(tmp_path) / "resume.pt").write_bytes(b"nonsense")

    run_both(tmp_path)

    assert "resume.pt: cannot be read" in caplog.text
    assert_same(find_network(tmp_path), find_network(whole))


def test_a_checkpoint_that_is_wanted_later(whole: Path, copied: Path) -> None:
    """The network is trained again from the start, and keeps all checkpoints; what was measured stays."""
    run_both(copied, evaluate_at=[10, 20])

    assert list_steps(copied) == [1, 7, 10, 20, 40]
    assert_same(find_network(copied), find_network(whole))
    after = load("adhoc", copied)["gaps"]
    assert_frame_equal(after[after["step"] != 10].reset_index(drop=True), load("adhoc", whole)["gaps"])


def test_the_initial_weights_are_step_0(tmp_path: Path) -> None:
    """Running averages are what layers begin with, and exact statistics those of the weights before any update."""
    run_both(tmp_path, evaluate_at=[0, 40])

    assert list_steps(tmp_path) == [0, 40]
    initial = load_at(tmp_path, 0)
    built = Run(plan_both()).new_model()
    # An optimizer may begin with weights that are changed in their last bits, see tests/elsewhere/nudge.py.
    torch.testing.assert_close([*initial.parameters()], [*built.parameters()], rtol=1e-5, atol=0)
    rows = load("adhoc", tmp_path)["gaps"].query("step == 0 and estimator == 'ema'")
    exact = bnlab.running_statistics(load_at(tmp_path, 0, "exact"))
    expected = bnlab.gap(exact, bnlab.running_statistics(initial)).set_index("layer")["mean_gap"]
    assert rows.set_index("layer")["mean_gap"].to_dict() == pytest.approx(expected.to_dict(), abs=1e-5)


def test_a_training_that_was_saved_on_its_way_leaves_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runner, "STATE_SECONDS", 0.0)

    run_both(tmp_path, steps=4, evaluate_at="final", measurements="log")

    assert not (find_network(tmp_path) / "resume.pt").exists()


def test_a_state_that_a_kill_has_left_beside_the_status_is_not_gone_on_from(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = find_network(copied) / "resume.pt"
    state.write_bytes(b"nonsense")

    run_both(copied, evaluate_at=[10, 20])

    assert "cannot be read" not in capsys.readouterr().err
    assert list_steps(copied) == [1, 7, 10, 20, 40]
    assert not state.exists()


def test_a_network_that_diverges_is_predicted_at_its_last_step_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which step that is nobody knows before: it is trained once more for the checkpoint, and not for ever."""
    trainings = []

    def diverge(progress: TrainingState, is_finite: object) -> None:
        if progress.step == 3:
            trainings.append(progress)
            assert len(trainings) <= 2
            raise Diverged("a weight is not finite")

    monkeypatch.setattr(TrainingState, "require_finite", diverge)
    run_both(tmp_path, measurements="evaluations", evaluate_at=[1, 2, 40])

    tables = load("adhoc", tmp_path)
    assert tables["runs"][["status", "last_step"]].values.tolist() == [["diverged", 3]]
    assert {*tables["evaluations"]["step"]} == {2}


def test_of_a_network_that_diverges_nothing_of_an_earlier_training_is_left(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine a training may end where it did not before."""

    def diverge(progress: TrainingState, is_finite: object) -> None:
        if progress.step == 12:
            raise Diverged("a weight is not finite")

    monkeypatch.setattr(TrainingState, "require_finite", diverge)
    run_both(copied, evaluate_at=[5, 20])

    (run,) = load("adhoc", copied)["runs"].itertuples()
    assert (run.status, run.last_step) == ("diverged", 12)
    assert max(list_steps(copied)) < 12


def test_another_training_is_measured_again(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with other threads or versions: nothing of both is mixed."""
    train_elsewhere(monkeypatch)
    shutil.rmtree(find_network(copied))

    run_both(copied)
    run_both(tmp_path / "alone")

    assert_same_rows(copied, tmp_path / "alone")


def train_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on trainings have other numbers, as on other threads or with other versions."""
    start_training = training_runner.start_training

    def start(run: Any) -> Any:
        progress = start_training(run)
        next(progress.model.parameters()).data.mul_(1.001)
        return progress

    monkeypatch.setattr(training_runner, "start_training", start)


def test_rows_of_two_trainings_are_never_in_one_table(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later sweep wants another checkpoint and another estimator: what the first has measured is left out, and said.

    The first sweep, given again, measures its rows on the network that is there now.
    """
    train_elsewhere(monkeypatch)
    capsys.readouterr()
    run_both(copied, estimator="cumulative", evaluate_at=[10, 20])

    tables = load("adhoc", copied)
    assert {*tables["gaps"]["estimator"]} == {"cumulative"}
    (note,) = tables.notes
    assert "1 network " in note
    assert "estimator=[ema,exact]" in note

    run_both(copied)
    run_both(tmp_path / "alone")

    tables = load("adhoc", copied)
    assert not tables.notes
    assert {*tables["gaps"]["estimator"]} == {"cumulative", "ema", "exact"}
    alone = load("adhoc", tmp_path / "alone")["gaps"]
    both = tables["gaps"]
    of_alone = both[both["estimator"].isin(["ema", "exact"])].reset_index(drop=True)
    assert_frame_equal(of_alone, alone)


def test_another_sweep_of_the_same_network_measures_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("adhoc", copied)["runs"]["final_loss"].item()
    train_elsewhere(monkeypatch)
    run_both(copied, name="other", estimator="ema", evaluate_at=[10, 20])
    assert load("adhoc", copied)["runs"]["final_loss"].item() == before

    sweep_small(copied, *BOTH)  # whose job is done, but for the training

    of_other = load("other", copied)["runs"]["final_loss"].item()
    assert load("adhoc", copied)["runs"]["final_loss"].item() == of_other != before


def test_a_network_that_was_copied_to_another_seed_is_not_taken_for_it(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = find_network(copied)
    shutil.copytree(network, network.with_name("seed_1"))

    run_both(copied, seed=1)

    assert "it is the network of seed=0" in caplog.text
    losses = load("adhoc", copied)["runs"].set_index("seed")["final_loss"]
    assert losses[0] != losses[1]


def test_the_latest_part_is_the_newest_whatever_clocks_say(copied: Path) -> None:
    """That of a machine whose clock was ahead is not the newest for ever."""
    (path,) = (copied / "adhoc" / "jobs").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in record["parts"]["gaps"].values():
        part["written"] += 10**18
    path.write_text(json.dumps(record), encoding="utf-8")

    run_both(copied, estimator="cumulative")

    (after,) = read_records(copied / "adhoc")
    written = {estimator: part.written for estimator, part in after.parts["gaps"].items()}
    assert written["cumulative"] > max(written["ema"], written["exact"])


def test_a_job_that_fails_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(training_runner, "train", fail)

    sweep_small(tmp_path, expect=1)

    (path,) = (tmp_path / "adhoc" / "failures").iterdir()
    assert "no luck" in path.read_text(encoding="utf-8")
    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert row["status"] == "failed"
    assert pd.isna(row["final_loss"])
