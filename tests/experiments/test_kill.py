"""Runs that are killed, interrupted or out of disk: nothing half-written is read, and the same command continues."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal

from bnlab import storage
from bnlab.harness import load, schema
from bnlab.harness.artifacts import producing, reproducing, states
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import Callback, Progress
from bnlab.harness.errors import JobError
from bnlab.harness.jobs import attempt, execute, list_failures
from tests.experiments.commands import ROOT, files, run, start

# Trains with a state after every step, and dies in the middle of writing file number argv[2] or at step argv[3].
VICTIM = """
import os, pathlib, signal, sys
from bnlab.harness.artifacts import producing
from bnlab.harness import jobs
from bnlab.harness.artifacts.settings import Config

producing.STATE_SECONDS = 0.0
results, file, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
replace, log, written = pathlib.Path.replace, producing.Recorder.log, []

def lethal_replace(path, target):
    written.append(target)
    if len(written) == file:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

def lethal_log(self, progress):
    log(self, progress)
    if progress.step == step:
        os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.replace, producing.Recorder.log = lethal_replace, lethal_log
jobs.execute(Config(batch_size=256, epochs=2, threads=1, device="cpu",
                    measurements=["gaps"], results=results))
"""


def config(results: Path, **changes: object) -> Config:
    fixed = {"batch_size": 256, "epochs": 2, "threads": 1, "device": "cpu"}
    return Config(**{**fixed, "results": str(results), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody has interrupted."""
    results = tmp_path_factory.mktemp("whole")
    execute(config(results))
    return Run(config(results))


def assert_same(found: Run, expected: Run) -> None:
    """Weights, buffers, optimizer and random state, log and trace are bit for bit the same."""
    assert found.wanted == expected.wanted
    pairs = [(found.checkpoint(step), expected.checkpoint(step)) for step in expected.wanted]
    for mine, theirs in [*pairs, (found.folder / "state.safetensors", expected.folder / "state.safetensors")]:
        kind = "bnlab.state/1" if "state." in mine.name else "bnlab.checkpoint/1"
        a, b = (storage.load_tensors(path, kind)[0] for path in (mine, theirs))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert_frame_equal(*(schema.read_frame(run.folder / "log.parquet") for run in (found, expected)))
    for name, layer in expected.trace.layers.items():
        other = found.trace.layers[name]
        assert torch.equal(other.moments, layer.moments) and torch.equal(other.start, layer.start)
        assert (other.steps, other.counts, other.updates) == (layer.steps, layer.counts, layer.updates)


def killed(results: Path, file: int = 0, step: int = 0) -> None:
    done = subprocess.run([sys.executable, "-c", VICTIM, str(results), str(file), str(step)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_killed_and_continued_is_bit_for_bit_the_same(whole: Run, tmp_path: Path) -> None:
    killed(tmp_path, step=3)  # between two steps
    killed(tmp_path, file=6)  # while writing
    killed(tmp_path, file=9)
    found = Run(config(tmp_path))
    assert found.status is None
    assert list(tmp_path.rglob(".*.part"))
    execute(config(tmp_path))
    assert_same(found, whole)
    assert_frame_equal(load("adhoc", tmp_path)["gaps"], load("adhoc", whole.config.results)["gaps"])


@pytest.mark.slow
def test_killed_while_writing_any_file(whole: Run, tmp_path: Path) -> None:
    for file in range(1, 14):
        folder = tmp_path / str(file)
        killed(folder, file=file)
        execute(config(folder))
        assert_same(Run(config(folder)), whole)


@pytest.mark.slow
def test_command_killed_at_random_times(tmp_path: Path) -> None:
    words = ("-m", "batch_size=16,64", "seed=0,1", "epochs=8", "estimator=[ema,exact]", "accuracy_at=all")
    run("sweep", *words, f"results={tmp_path}/whole")
    generator = random.Random(0)
    for _ in range(12):
        process = start("sweep", *words, f"results={tmp_path}/killed")
        time.sleep(generator.uniform(2, 8))
        process.kill()
        process.communicate()
    run("sweep", *words, f"results={tmp_path}/killed")
    for size, seed in ((16, 0), (16, 1), (64, 0), (64, 1)):
        pair = (Config(batch_size=size, epochs=8, seed=seed, device="cpu", results=str(tmp_path / name))
                for name in ("killed", "whole"))  # fmt: skip
        assert_same(*map(Run, pair))
    for name in ("gaps", "evaluations"):
        assert_frame_equal(load("adhoc", tmp_path / "killed")[name], load("adhoc", tmp_path / "whole")[name])


def list_workers(pid: int) -> list[Path]:
    """Processes that this one has started to run jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            found += [process] * (parent == pid and b"LokyProcess" in (process / "cmdline").read_bytes())
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_workers_whose_sweep_is_killed_before_their_first_job_end(tmp_path: Path) -> None:
    """They waited for ever for the rest of a job that had not been sent whole."""
    process = start(
        "sweep", "-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"results={tmp_path}"
    )
    while len(list_workers(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)  # its output is open as long as a worker lives


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_interrupted(launcher: str, tmp_path: Path) -> None:
    """Nothing else is said. Python warned of a lock of tqdm's for each worker that was ended."""
    settings = ("batch_size=256", "epochs=60", "evaluate_at=final", "seed=0,1")  # long enough
    words = ("-m", *settings, f"hydra/launcher={launcher}", f"results={tmp_path}")
    # What runs in the background of a script ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("sweep", *words)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    while "epoch 1/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "stopped; the same command continues"
    assert not list(tmp_path.rglob(".*.part"))
    run("sweep", *words)
    assert list(load("adhoc", tmp_path)["runs"]["status"]) == ["finished"] * 2


def test_a_later_checkpoint_changes_nothing_else(whole: Run, tmp_path: Path) -> None:
    execute(config(tmp_path, evaluate_at="final"))
    before = files(tmp_path / "runs")
    execute(config(tmp_path, evaluate_at=[2, 5]))
    after = files(tmp_path / "runs")
    found = Run(config(tmp_path))
    environment = f"{found.id}/environment.json"
    assert {k: after[k] for k in before if k != environment} == {k: v for k, v in before.items() if k != environment}
    assert [entry["checkpoints"] for entry in json.loads(after[environment])["later"]] == [[2], [5]]
    for step in (2, 5):
        a, b = (storage.load_tensors(r.checkpoint(step), "bnlab.checkpoint/1")[0] for r in (found, whole))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def count_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from now on."""
    steps: list[int] = []
    original = reproducing.train

    def counted(progress: Progress, batches: object, optimizer: object, total: int, callbacks: list[Callback],
                **more: int) -> None:  # fmt: skip
        original(progress, batches, optimizer, total, [*callbacks, lambda p: steps.append(p.step)], **more)  # type: ignore[arg-type]

    monkeypatch.setattr(reproducing, "train", counted)
    return steps


def test_a_later_checkpoint_starts_at_the_nearest_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(config(tmp_path, evaluate_at="final"))  # of 12 steps, whose state is kept at 3, 6, 9 and the end
    steps = count_updates(monkeypatch)
    execute(config(tmp_path, evaluate_at=[1, 7, 11, 12]))
    # To each of them, and one more whose loss shows that the weights are those of the first training.
    assert steps == [1, 2, 7, 8, 10, 11, 12]
    steps.clear()
    Run(config(tmp_path)).checkpoint(12).unlink()
    execute(config(tmp_path, evaluate_at=[1, 7, 11, 12]))
    assert steps == []
    Run(config(tmp_path)).checkpoint(6).unlink(missing_ok=True)
    execute(config(tmp_path, evaluate_at=[6]))
    assert steps == [7]


def test_what_was_written_after_the_state_is_not_kept(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training may take another course from there: a checkpoint of the first would be of another network."""
    monkeypatch.setattr(producing, "STATE_SECONDS", 0.0)
    execute(config(tmp_path, evaluate_at=[2, 5, 7]))
    run = Run(config(tmp_path))
    (run.folder / "status.json").unlink()
    shutil.copy(run.state(3), run.folder / "state.safetensors")  # as if killed after 7 steps, with a state of 3
    for step in (6, 9):
        run.state(step).unlink()
    execute(config(tmp_path, evaluate_at="final"))
    assert [path.name for path in run.checkpoints(12)] == ["step_0000002.safetensors", "step_0000012.safetensors"]
    assert [path.name for path in run.states(12)] == [f"step_{step:07d}.safetensors" for step in (3, 6, 9)]
    execute(config(tmp_path))
    assert_same(Run(config(tmp_path)), whole)


def test_another_trajectory_is_refused(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that differs in its last bit is another training; what was made before that stays."""
    execute(config(tmp_path, evaluate_at="final"))
    run = Run(config(tmp_path))
    path = run.folder / "log.parquet"
    log = schema.read_frame(path)
    log.loc[log["step"] == 5, "loss"] += 1e-7
    schema.write_frame(path, log)
    path = run.folder / "environment.json"
    path.write_text(path.read_text().replace('"torch": "2.', '"torch": "1.'))
    before = files(tmp_path / "runs")
    message = r"cannot be trained again as it was: the loss of step 5 was .* \(versions.torch=1\..* then, .* now\)"
    with pytest.raises(JobError, match=message):
        execute(config(tmp_path, evaluate_at=[3, 4, 5, 12]))
    after = files(tmp_path / "runs")
    assert [name for name in after.keys() - before.keys() if "checkpoints" in name] == [
        str(run.checkpoint(3).relative_to(tmp_path / "runs"))
    ]
    assert all(after[key] == value for key, value in before.items() if not key.endswith("environment.json"))
    attempt(config(tmp_path, evaluate_at=[3, 4, 5, 12]))  # others of a sweep would go on
    assert len(list_failures(config(tmp_path))) == 1
    execute(config(tmp_path, evaluate_at=[3, 12]))


def test_other_weights_are_another_trajectory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(config(tmp_path, evaluate_at="final"))

    def other_initialization(run: Run) -> Progress:
        progress = start_training(run)
        list(progress.model.parameters())[-1].data[0].add_(1e-2)  # one logit: a softmax does not see a shift of all
        return progress

    start_training = states.start_training
    monkeypatch.setattr(states, "start_training", other_initialization)
    with pytest.raises(JobError, match="the loss of step 1 was"):
        execute(config(tmp_path, evaluate_at=[1]))
    assert not Run(config(tmp_path)).checkpoint(1).exists()


def test_checkpoints_are_made_again_with_the_threads_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "STATE_SECONDS", 0.0)
    execute(config(tmp_path, evaluate_at="final", threads=2))
    run = Run(config(tmp_path))
    (run.folder / "status.json").unlink()
    shutil.copy(run.state(6), run.folder / "state.safetensors")  # as if killed after 6 steps
    execute(config(tmp_path, evaluate_at="final"))
    assert [(e["step"], e["threads"]) for e in run.environments] == [(0, 2), (6, 1)]
    used: list[int] = []
    monkeypatch.setattr(reproducing._CheckpointKeeper, "compare", lambda *_: used.append(torch.get_num_threads()))
    with contextlib.suppress(JobError):  # nothing is written without the comparison
        execute(config(tmp_path, evaluate_at=[4, 8]))
    assert used[:2] == [2, 2]
    monkeypatch.undo()
    execute(config(tmp_path, evaluate_at=[2, 7]))
    assert run.checkpoint(2).exists() and run.checkpoint(7).exists() and torch.get_num_threads() == 1


@pytest.mark.parametrize("written", [0, 4, 9, 14, 17])
def test_full_disk(whole: Run, tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, fsync = iter(range(written)), os.fsync

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            attempt(config(tmp_path))
    assert not list(tmp_path.rglob(".*.part")) and not list_failures(config(tmp_path))
    attempt(config(tmp_path))
    assert_same(Run(config(tmp_path)), whole)


FULL = """
import errno, os, runpy

def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

os.fsync = full
runpy.run_module("experiments.sweep", run_name="__main__", alter_sys=True)
"""


def test_full_disk_ends_the_sweep(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "batch_size=256", "epochs=1", "threads=1", f"results={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", FULL, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    *hydra, line = done.stderr.splitlines()  # Hydra names the job
    assert done.returncode == 2 and len(hydra) <= 1
    assert "No space left on device" in line and "the same command continues" in line


def test_processes_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    """A killed sweep leaves nobody behind who goes on training; the same command continues."""
    words = ("-m", "batch_size=4", "seed=0,1", "epochs=400", f"results={tmp_path}")
    process = start("sweep", *words)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    begun = next(line for line in lines if "epoch 1/400" in line)
    process.kill()
    process.communicate(timeout=60)
    lock = Run(Config(batch_size=4, epochs=400, seed=int(begun.split()[0][-1]), results=str(tmp_path))).lock
    with lock.acquire(timeout=30):
        pass
