"""Sweeps that are killed, interrupted or out of disk, and two at once: nothing half-written is read, no row is lost."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from bnlab.harness import load
from tests.experiments.commands import ROOT, Call, start
from tests.harness.kills import assert_same, signals_at
from tests.helpers import find_network, sweep_small

# Trains with a state after every step, and dies in the middle of writing file number argv[2].
VICTIM = """
import os, pathlib, signal, sys
from bnlab.harness.artifacts import training_runner
from tests.helpers import sweep_small

training_runner.STATE_SECONDS = 0.0
replace, written = pathlib.Path.replace, []

def lethal_replace(path, target):
    written.append(target)
    if len(written) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

pathlib.Path.replace = lethal_replace
sweep_small(pathlib.Path(sys.argv[1]), "measurements=gaps")
"""

SWEEP = """
import pathlib, sys
from tests.helpers import sweep_small

sweep_small(pathlib.Path(sys.argv[1]), "-m", "seed=0,1", "steps=100", "estimator=[ema,exact]")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small network. Not to be changed."""
    results = tmp_path_factory.mktemp("whole")
    sweep_small(results, "measurements=gaps")
    return find_network(results)


# The files of the sweep, of the network, of each part of it: its trace, the log, its state; of what is measured.
@pytest.mark.slow  # where a disk is full, writing a file ends in this process
@pytest.mark.parametrize("file", [*range(1, 13), 64, *range(123, 137)])
def test_killed_and_continued_is_bit_for_bit_the_same(file: int, whole: Path, tmp_path: Path) -> None:
    """In the middle of writing any file."""
    done = subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path), str(file)], cwd=ROOT, timeout=120)

    assert done.returncode == -signal.SIGKILL
    assert file > 127 or not list(tmp_path.glob("runs/*/seed_0/status.json"))

    sweep_small(tmp_path, "measurements=gaps")
    assert_same(find_network(tmp_path), whole)


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
    assert len(err.strip().splitlines()) == 1
    assert not list(results.rglob(".*.part"))
    assert not list(results.rglob("status.json"))


def test_interrupted_in_training(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signals_at(3, signal.SIGINT, monkeypatch)
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
    with FileLock(begun.with_name(f"{begun.name}.lock")).acquire(timeout=30):
        pass


def test_two_sweeps_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each network is trained once, and no row is lost; the second sweep begins while the first one trains."""
    other = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    )
    wait_for_training(tmp_path, other)
    sweep_small(tmp_path, "-m", "seed=0,1", "steps=100", "estimator=[cumulative,exact]")
    out, _ = other.communicate(timeout=120)
    out += capsys.readouterr().out

    assert other.returncode == 0
    assert out.count("trained in") == 2

    found = load("adhoc", tmp_path)
    assert list(found["runs"]["status"]) == ["finished"] * 2

    sizes = found["gaps"].groupby(["run", "estimator"]).size()
    assert len(sizes) == 6
    assert sizes.nunique() == 1


@pytest.mark.parametrize("written", [0, 9])
def test_full_disk(
    whole: Path, tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends the sweep and names the file; once there is room, the same command continues."""
    left = iter(range(written))
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "refused")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        sweep_small(tmp_path, "measurements=gaps", expect=2)

    said = capsys.readouterr().err
    assert said.startswith(f"error: [Errno {errno.ENOSPC}] ")
    assert str(tmp_path) in said
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob(".*.part"))
    assert not list(tmp_path.rglob("failures/*"))

    sweep_small(tmp_path, "measurements=gaps")
    assert_same(find_network(tmp_path), whole)


def test_too_little_memory_is_said_before_torch_crashes(tmp_path: Path) -> None:
    sweep = [sys.executable, "-m", "bnlab", "sweep", "experiment=quickstart", f"results={tmp_path}/r"]
    command = f"ulimit -v 1200000; exec {shlex.join(sweep)}"

    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100)

    assert done.returncode == 2
    assert re.search(r"\b1\.6 GB\b.*\b1\.2 GB \(ulimit -v\)", done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()
