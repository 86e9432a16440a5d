"""What a sweep does with Slurm's signals and queue, without Slurm; `tests/slurm` has real ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from submitit.core.utils import FailedJobError, UncompletedJobError

from bnlab.harness.artifacts import producing
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Progress
from bnlab.harness.errors import TimeLimit
from bnlab.harness.jobs import attempt, list_failures
from bnlab.lab import cluster
from bnlab.lab.cluster import wait_for_others, watch_time_limit
from tests.conftest import small_config

DIED = "Job 7_3 (task: 0) with path /r/7_3_0_result.pkl\nhas not produced any output (state: OUT_OF_MEMORY)"


@pytest.fixture(autouse=True)
def _former_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


def raise_on_signal(error: BaseException) -> None:
    """Handle the signal as submitit does: by an exception where the job is at the time."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise error

    signal.signal(signal.SIGUSR2, handle)


def test_a_job_that_is_back_in_the_queue_ends_without_a_result() -> None:
    raise_on_signal(SystemExit(-1))
    watch_time_limit()

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGUSR2)


def test_a_job_whose_time_is_up_has_failed_for_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_at_freezing = producing.Recorder.end_at_freezing
    job = small_config(tmp_path, measurements=["gaps"])

    def send_signal(recorder: producing.Recorder, progress: Progress) -> None:
        end_at_freezing(recorder, progress)
        if progress.step == 3:
            signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(producing.Recorder, "end_at_freezing", send_signal)
    raise_on_signal(UncompletedJobError("Job not requeued because: timed-out too many times."))
    watch_time_limit()

    attempt(job)

    (path,) = list_failures(Run(job))
    assert path.read_text().startswith("the time limit of its job has come; the same command continues it\n")


def test_a_time_limit_is_no_failure_that_a_measurement_may_take_for_its_own() -> None:
    assert not issubclass(TimeLimit, Exception)


def test_a_process_that_submitit_has_not_started_keeps_its_handler() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    watch_time_limit()

    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_the_others_in_the_queue_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job is in the queue when it is asked for the first time, and not the second time."""
    squeue = tmp_path / "squeue"
    asked = tmp_path / "asked"
    squeue.write_text(f'#!/bin/sh\n[ -e {asked} ] || echo 7_4\necho "$@" >> {asked}\n')
    squeue.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.0)

    wait_for_others(UncompletedJobError(DIED))

    assert asked.read_text() == "--noheader --jobs=7\n" * 2
    assert capsys.readouterr().err == "job 7_3 of the cluster has died (state: OUT_OF_MEMORY)\n"


def test_what_happened_in_a_job_is_shown_as_it_is() -> None:
    error = FailedJobError("Job (task=0) failed during processing with trace:\nModuleNotFoundError")

    with pytest.raises(FailedJobError) as raised:
        wait_for_others(error)

    assert raised.value is error
