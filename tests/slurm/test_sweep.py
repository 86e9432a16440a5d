"""Sweeps on a real Slurm: jobs that are killed, put back into the queue, or run into their time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from bnlab.harness import load
from tests.experiments.commands import list_trained, run, start
from tests.harness.kills import assert_same
from tests.helpers import plan_network
from tests.slurm.cluster import Cluster, describe_missing, start_cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(describe_missing()), reason=describe_missing())]

SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu")
EIGHT = ("-m", "batch_size=8,128,256,512", "seed=0,1", "epochs=40", "evaluate_at=final", "estimator=[ema,exact]")
"""Two networks that train for many seconds, which are the first two jobs, and six that train for few."""
ONE = ("-m", "batch_size=8", "seed=0", "epochs=40", "evaluate_at=final", "hydra.launcher.timeout_min=10")

FULL_DISK = """
import errno, os
from torch import nn

def make_model(channels, image_size, classes):
    if "SLURM_JOB_ID" in os.environ:
        raise OSError(errno.ENOSPC, "No space left on device")
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes), nn.BatchNorm1d(classes))
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with start_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster that commands of the test find."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, running.environment[name])
    return running


def find_run(results: Path, seed: int) -> Path:
    """Find the folder of one of the networks that train for many seconds."""
    words = ["batch_size=8", f"seed={seed}", "epochs=40", "evaluate_at=final", f"results={results}", "device=cpu"]
    return plan_network(*words).folder


def name_run(folder: Path) -> str:
    """Name a network as commands do."""
    return f"{folder.parent.name}/{folder.name}"


def wait_for_state(network: Path, command: subprocess.Popen[str]) -> None:
    """Wait until a training has saved its state, from which another process can continue."""
    state = network / "resume.pt"
    wait_until(lambda: state.exists() or command.poll() is not None, seconds=120)
    assert command.poll() is None, command.communicate()


def find_jobs(results: Path) -> str:
    """Find the number of the one array, or the one job, that has been sent."""
    (number,) = [path.name for path in (results / "adhoc" / "cluster").iterdir() if path.name.isdigit()]
    return number


def list_continued(out: str) -> list[str]:
    """List the networks whose training was continued from a saved state."""
    return sorted(re.findall(r"(\S+): continuing from step", out))


def test_a_sweep_goes_on_after_a_kill_and_a_requeue(cluster: Cluster, tmp_path: Path) -> None:
    results = tmp_path / "slurm"
    requeued = find_run(results, seed=0)
    killed = find_run(results, seed=1)

    command = start("sweep", *EIGHT, *SLURM, f"results={results}")
    wait_for_state(requeued, command)
    wait_for_state(killed, command)
    jobs = find_jobs(results)
    cluster.call("scontrol", "requeue", f"{jobs}_0")
    os.kill(cluster.find_process(f"{jobs}_1"), signal.SIGKILL)
    out, err = command.communicate(timeout=600)

    assert command.returncode == 1, err
    assert f"job {jobs}_1 of the cluster has died (state: FAILED)" in err
    assert re.findall("not finished: (.*), whose job was ended from outside", out) == [name_run(killed)]
    assert len(load("adhoc", results)["runs"]) == 7

    again = run("sweep", *EIGHT, *SLURM, f"results={results}")
    alone = run("sweep", *EIGHT, "hydra/launcher=basic", "threads=1", f"results={tmp_path}/basic")

    trained = [*list_trained(out), *list_trained(again.stdout)]
    assert sorted(trained) == list_trained(alone.stdout)
    assert len(trained) == 8
    assert list_continued(out) == [name_run(requeued)]
    assert list_continued(again.stdout) == [name_run(killed)]
    assert_same_tables(results, tmp_path / "basic")
    for seed in (0, 1):
        assert_same(find_run(results, seed), find_run(tmp_path / "basic", seed))


def assert_same_tables(results: Path, expected: Path) -> None:
    """Both have rows of the same networks, with the same numbers."""
    tables = load("adhoc", results)
    others = load("adhoc", expected)
    assert list(tables["runs"]["run"]) == list(others["runs"]["run"])
    assert list(tables["runs"]["status"]) == ["finished"] * 8
    for name in ("gaps", "evaluations"):
        assert_frame_equal(tables[name], others[name])


def test_a_job_that_runs_into_its_time_limit_is_continued_by_the_same_command(cluster: Cluster, tmp_path: Path) -> None:
    words = (*ONE, *SLURM, f"results={tmp_path}")
    network = find_run(tmp_path, seed=0)

    command = start("sweep", *words)
    wait_for_state(network, command)
    cluster.call("scancel", "--signal=USR2", find_jobs(tmp_path))
    out, err = command.communicate(timeout=300)

    assert command.returncode == 1, err
    (failure,) = re.findall("failed: (.*)", out)
    assert (
        Path(failure)
        .read_text(encoding="utf-8")
        .startswith("the time limit of its job has come; the same command continues it\n")
    )

    again = run("sweep", *words)

    assert list_continued(again.stdout) == [name_run(network)]


def test_a_job_that_runs_into_its_time_limit_goes_back_into_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    network = find_run(tmp_path, seed=0)

    command = start("sweep", *ONE, *SLURM, "hydra.launcher.max_num_timeout=1", f"results={tmp_path}")
    wait_for_state(network, command)
    cluster.call("scancel", "--signal=USR2", find_jobs(tmp_path))
    out, err = command.communicate(timeout=300)

    assert command.returncode == 0, err
    assert list_continued(out) == list_trained(out) == [name_run(network)]
    assert list(load("adhoc", tmp_path)["runs"]["status"]) == ["finished"]


def test_what_other_jobs_would_meet_too_is_said_by_the_command(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL_DISK, encoding="utf-8")

    words = ("-m", "model=full.make_model", "seed=0,1", *SLURM, f"results={tmp_path}")
    done = run("sweep", *words, path=tmp_path, expect=2)

    reason, kept = done.stderr.splitlines()[-2:]
    assert reason.startswith("error: model=full.make_model: ")
    assert reason.endswith("OSError: [Errno 28] No space left on device")
    assert kept == "  what is finished is kept"
    assert "Traceback" not in done.stderr
