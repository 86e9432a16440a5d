"""Running the jobs of a sweep: one after the other, in processes of this machine, or on a cluster."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache
from types import FrameType
from typing import Any

import submitit
from joblib import Parallel, delayed
from submitit.core.utils import FailedJobError, UncompletedJobError

from bnlab.common.printing import escape_unprintable
from bnlab.harness.artifacts.job_settings import Config, restore_config
from bnlab.harness.errors import TimeLimit, UserError
from bnlab.harness.jobs import attempt
from bnlab.harness.lab.compose import Job, Launcher
from bnlab.harness.progress import say_off_terminal, say_problem

_KEPT = "what is finished is kept"
_QUEUE = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout")
"""Settings that submitit calls the same for every kind of cluster; others begin with the kind's name."""


def run_jobs(jobs: Sequence[Job], launcher: Launcher, command: str) -> None:
    """Run jobs of a command to their end. One that fails leaves the others alone.

    UserError for what all jobs would meet, such as a full disk, or where a process was ended from outside.
    """
    if launcher.name == "basic":
        run_here(jobs, command, math.inf)
    elif launcher.name == "joblib":
        _run_in_processes(jobs, launcher, command)
    else:
        _run_on_cluster(jobs, launcher, command)


def run_here(jobs: Sequence[Job], command: str, seconds: float) -> Sequence[Job]:
    """Run jobs in this process, one after the other, until so many seconds have passed; those that are left."""
    started = time.perf_counter()
    for number, job in enumerate(jobs):
        if time.perf_counter() - started >= seconds:
            return jobs[number:]
        _run(job.config, job.heading, command)
    return []


def _run(config: Config, heading: str, command: str) -> None:
    """Run one job, under its heading if it has one; UserError for what the other jobs would meet too."""
    if heading:
        say_off_terminal(heading, config.quiet)
    try:
        attempt(config, command)
    except UserError as error:
        raise UserError(f"{error}\n  {_KEPT}") from error
    except OSError as error:
        raise UserError(f"{error}; {_KEPT}") from error


def _run_in_processes(jobs: Sequence[Job], launcher: Launcher, command: str) -> None:
    """Run jobs in as many processes as there are cores, or as the launcher's settings say."""
    settings = dict(launcher.settings)
    if len(jobs) == 1:
        settings["n_jobs"] = 1  # starting a process would take longer than many a job
    run = delayed(_run_in_process)
    # As plain values: classes of own functions' arguments are not known in other processes.
    calls = [run(asdict(job.config), job.heading, command, os.getpid()) for job in jobs]
    try:
        Parallel(**settings)(calls)
    except BrokenProcessPool as error:
        reason = "a process of the sweep was ended from outside (out of memory?)"
        raise UserError(f"{reason}; {_KEPT}, the same command continues") from error


def _run_in_process(settings: dict[str, Any], heading: str, command: str, parent: int) -> None:
    """Run one job beside others; `parent` is 0 on a cluster."""
    escape_unprintable()
    if parent not in (0, os.getpid()):  # with a single worker joblib runs jobs in the sweep itself
        _end_with(parent)
    _run(restore_config(settings), heading, command)


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


def _run_on_cluster(jobs: Sequence[Job], launcher: Launcher, command: str) -> None:
    """Send each job to the queue, and wait until all have ended."""
    folder = jobs[0].config.folder / "cluster" / "%j"
    folder.parent.mkdir(parents=True, exist_ok=True)
    kind = launcher.name.removeprefix("submitit_")
    settings = dict(launcher.settings)
    retries = {}
    if "max_num_timeout" in settings:  # of the executor itself, not of its jobs
        retries[f"{kind}_max_num_timeout"] = settings.pop("max_num_timeout")
    executor = submitit.AutoExecutor(cluster=kind, folder=folder, **retries)

    named = {key if key in _QUEUE else f"{kind}_{key}": value for key, value in settings.items()}
    executor.update_parameters(name="bnlab", **named)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # modules of the current folder are found there too

    settings_of_jobs = [asdict(job.config) for job in jobs]
    headings = [job.heading for job in jobs]
    sent = executor.map_array(_ClusterJob(), settings_of_jobs, headings, [command] * len(jobs))
    problems: list[Exception] = []
    for job in sent:
        try:
            reason = job.result()
            if reason:
                problems.append(UserError(reason))
        except FailedJobError as error:  # what happened in it is shown as it is
            problems.append(error)
        except UncompletedJobError:
            # No problem of the sweep: at its end the network is named as not finished, and the same command
            # continues it.
            say_problem(f"job {job.job_id} of the cluster has died (state: {job.state})")
    # All jobs have ended by now, and none is left behind in the queue.
    if problems:
        raise problems[0]


class _ClusterJob(submitit.helpers.Checkpointable):  # type: ignore[misc]  # submitit is not typed
    """One job on a cluster, which is sent again as it was if it is put back into the queue."""

    def __call__(self, settings: dict[str, Any], heading: str, command: str) -> str:
        """Run the job, and return what the other jobs would meet too; the command needs no accounting to read it."""
        watch_time_limit()
        try:
            _run_in_process(settings, heading, command, parent=0)
        except UserError as error:
            return str(error)
        return ""


def watch_time_limit() -> None:
    """Let the signal that Slurm sends before a job's time limit end the job, whatever it is doing.

    submitit's handler raises SystemExit once it has put the job back into the queue, and UncompletedJobError if it has
    not. A measurement would take either for a failure of the user's code, and go on.
    """
    number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
    handler = signal.getsignal(number)
    # Nothing is to be wrapped in a process that submitit has not started.
    if not callable(handler):
        return

    def end_job(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except SystemExit as end:  # without a result, which the sweep would read although the job runs again
            raise KeyboardInterrupt from end
        except UncompletedJobError as end:
            raise TimeLimit("the time limit of its job has come; the same command continues it") from end

    signal.signal(number, end_job)
