"""Running the jobs of a sweep in this process, or in several of this machine."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache
from typing import Any

from joblib import Parallel, delayed

from bnlab.common.printing import escape_unprintable
from bnlab.harness.artifacts.job_settings import Config, read_config
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import JobResult, attempt
from bnlab.harness.lab.compose import Job, Launcher

_KEPT = "what is finished is kept"


def run_here(jobs: deque[Job], command: str, seconds: float = math.inf) -> Iterator[JobResult]:
    """Run jobs in this process, one after the other, until so many seconds have passed; takes them from the queue."""
    started = time.perf_counter()
    while jobs and time.perf_counter() - started < seconds:
        job = jobs.popleft()
        yield _run(job.config, job.heading, command)


def run_in_processes(jobs: Sequence[Job], launcher: Launcher, command: str) -> Iterator[JobResult]:
    """Run jobs in as many processes as there are cores, or as the launcher's settings say.

    UserError where a process was ended from outside.
    """
    settings = dict(launcher.settings)
    if len(jobs) == 1:
        settings["n_jobs"] = 1  # starting a process would take longer than many a job
    run = delayed(run_in_process)
    # As plain values: classes of own functions' arguments are not known in other processes.
    calls = [run(asdict(job.config), job.heading, command, os.getpid()) for job in jobs]
    try:
        yield from Parallel(**settings, return_as="generator_unordered")(calls)
    except BrokenProcessPool as error:
        reason = "a process of the sweep was ended from outside (out of memory?)"
        raise UserError(f"{reason}; {_KEPT}, the same command continues") from error


def run_in_process(settings: dict[str, Any], heading: str, command: str, parent: int) -> JobResult:
    """Run one job beside others; `parent` is 0 on a cluster."""
    escape_unprintable()
    if parent not in (0, os.getpid()):  # with a single worker joblib runs jobs in the sweep itself
        _end_with(parent)
    return _run(read_config(settings), heading, command)


def _run(config: Config, heading: str, command: str) -> JobResult:
    """Run one job; UserError for what the others would meet too, such as a full disk."""
    try:
        return attempt(config, heading, command)
    except UserError as error:
        raise UserError(f"{error}\n  {_KEPT}") from error
    except OSError as error:
        raise UserError(f"{error}; {_KEPT}") from error


@cache
def _end_with(parent: int) -> None:
    """Let this process end soon after its parent, which may be killed, also while this one begins."""

    def watch() -> None:
        # A process whose parent has ended is given another one by the system.
        while os.getppid() == parent:
            time.sleep(0.5)
        # `sys.exit` would end this thread alone.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
