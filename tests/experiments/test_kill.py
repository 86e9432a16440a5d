"""Sweeps that are killed, interrupted or out of disk, and two at once: nothing half-written is read, no row is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from bnlab.harness import load
from bnlab.harness.artifacts import producing
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import Progress
from bnlab.harness.jobs import attempt, execute, list_failures
from tests.conftest import small_config
from tests.experiments.commands import ROOT, Call, run, start
from tests.harness.kills import assert_same

# Trains with a state after every step, and dies in the middle of writing file number argv[2].
VICTIM = """
import os, pathlib, signal, sys
from bnlab.harness import jobs
from bnlab.harness.artifacts import producing
from tests.conftest import small_config

producing.STATE_SECONDS = 0.0
replace, written = pathlib.Path.replace, []

def lethal_replace(path, target):
    written.append(target)
    if len(written) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

pathlib.Path.replace = lethal_replace
jobs.execute(small_config(sys.argv[1], measurements=["gaps"]))
"""


SWEEP = """
import sys
from bnlab.harness.jobs import execute
from tests.conftest import small_config

for seed in (0, 1):
    execute(small_config(sys.argv[1], seed=seed, steps=100, estimator=["ema", "exact"]))
"""


# A state takes three files: the trace, the log and itself.
@pytest.mark.parametrize(
    "file", [64, *(pytest.param(file, marks=pytest.mark.slow) for file in (*range(1, 13), *range(124, 133)))]
)
def test_killed_and_continued_is_bit_for_bit_the_same(file: int, trained: Run, tmp_path: Path) -> None:
    """In the middle of writing any file."""
    done = subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path), str(file)], cwd=ROOT, timeout=120)
    job = small_config(tmp_path)

    assert done.returncode == -signal.SIGKILL
    assert Run(job).status is None or file > 120

    execute(job)
    assert_same(Run(job), trained)


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


def wait_for_training(results: Path, process: subprocess.Popen[str]) -> Path:
    """The folder of the first network that a command begins to train."""
    while not (found := sorted(results.glob("runs/*/seed_*/config.yaml"))):
        assert process.poll() is None
        time.sleep(0.05)
    return found[0].parent


LONG = ("-m", "batch_size=8", "epochs=100", "evaluate_at=final", "seed=0,1")  # about a minute


def assert_stopped(code: int, err: str, results: Path) -> None:
    """One line is said, nothing half-written stays, and no network counts as whole."""
    assert code == 130
    assert err.strip() == "stopped; the same command continues"
    assert not list(results.rglob(".*.part"))
    assert not list(results.rglob("status.json"))


def test_interrupted_in_training(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end_at_freezing = producing.Recorder.end_at_freezing

    def interrupt(recorder: producing.Recorder, progress: Progress) -> None:
        end_at_freezing(recorder, progress)
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(producing.Recorder, "end_at_freezing", interrupt)
    # What runs in the background of a script ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    done = call("sweep", *LONG, "hydra/launcher=basic", f"results={tmp_path}")

    signal.signal(signal.SIGINT, before)
    assert_stopped(done.code, done.err, tmp_path)
    assert list(tmp_path.glob("runs/*/seed_0"))
    assert not list(tmp_path.glob("runs/*/seed_1"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_interrupted_from_outside(launcher: str, tmp_path: Path) -> None:
    # What runs in the background of a script ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("sweep", *LONG, f"hydra/launcher={launcher}", f"results={tmp_path}")
    signal.signal(signal.SIGINT, before)
    wait_for_training(tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert_stopped(process.returncode, err, tmp_path)


@pytest.mark.slow
def test_processes_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    """A killed sweep leaves nobody behind who goes on training."""
    process = start("sweep", *LONG, "hydra/launcher=joblib", f"results={tmp_path}")
    begun = wait_for_training(tmp_path, process)
    process.kill()
    process.communicate(timeout=60)  # its output is open as long as a worker lives
    lock = Run(Config(batch_size=8, epochs=100, seed=int(begun.name[-1]), results=str(tmp_path))).lock
    with lock.acquire(timeout=30):
        pass


def test_two_sweeps_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each network is trained once, and no row is lost; the second sweep begins while the first one trains."""
    other = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for_training(tmp_path, other)
    for seed in (0, 1):
        execute(small_config(tmp_path, seed=seed, steps=100, estimator=["cumulative", "exact"]))
    out, _ = other.communicate(timeout=120)
    out += capsys.readouterr().out

    assert other.returncode == 0
    assert out.count("trained in") == 2

    found = load("adhoc", tmp_path)
    assert list(found["runs"]["status"]) == ["finished"] * 2

    sizes = found["gaps"].groupby(["run", "estimator"]).size()
    assert len(sizes) == 6
    assert sizes.nunique() == 1


@pytest.mark.parametrize("written", [0, 3, 9])
def test_full_disk(trained: Run, tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the sweep; the same command continues."""
    left = iter(range(written))
    fsync = os.fsync
    job = small_config(tmp_path)

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched, contextlib.suppress(StopIteration):
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            attempt(job)

    assert not list(tmp_path.rglob(".*.part"))
    assert not list_failures(Run(job))

    attempt(job)
    assert_same(Run(job), trained)
