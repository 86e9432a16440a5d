"""What a job does with Slurm's signals, without Slurm; `tests/slurm` has a real one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from submitit.core.utils import UncompletedJobError

from bnlab.harness.lab.cluster import watch_time_limit
from tests.harness.kills import signals_at
from tests.helpers import sweep_small


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
    signals_at(3, signal.SIGUSR2, monkeypatch)
    raise_on_signal(UncompletedJobError("Job not requeued because: timed-out too many times."))
    watch_time_limit()

    sweep_small(tmp_path, "measurements=gaps", expect=1)

    (path,) = (tmp_path / "adhoc" / "failures").iterdir()
    reason, *_ = path.read_text(encoding="utf-8").splitlines()
    assert "time limit" in reason


def test_a_process_that_submitit_has_not_started_keeps_its_handler() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    watch_time_limit()

    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_submitit_is_needed_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    short = ("steps=1", "evaluate_at=final", "measurements=log")

    sweep_small(tmp_path, *short)
    sweep_small(tmp_path, *short, "seed=1", "hydra/launcher=submitit_slurm", expect=2)

    expected = 'error: hydra/launcher=submitit_slurm: needs submitit; pip install "bnlab[slurm]"\n'
    assert capsys.readouterr().err == expected
