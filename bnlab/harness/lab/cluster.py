"""Running the jobs of a sweep on a cluster, by submitit; imported only where that is asked for."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from bnlab.harness.errors import TimeLimit, UserError
from bnlab.harness.jobs import JobResult
from bnlab.harness.lab.compose import Job, Launcher
from bnlab.harness.lab.launch import run_in_process

_LOOKS = 1.0  # seconds between two looks for jobs that have ended
_QUEUE = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout")
"""Settings that submitit calls the same for every kind of cluster; others begin with the kind's name."""


def run_on_cluster(jobs: Sequence[Job], launcher: Launcher, command: str) -> Iterator[JobResult]:
    """Send each job to the queue, and wait until all have ended; UserError for what all of them would meet."""
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
    heading_of = {job.job_id: heading for job, heading in zip(sent, headings, strict=True)}
    problems: list[Exception] = []
    for job in submitit.helpers.as_completed(sent, poll_frequency=_LOOKS):
        try:
            result = job.result()
        except FailedJobError as error:  # what happened in it is shown as it is
            problems.append(error)
        except UncompletedJobError:
            # No problem of the sweep: at its end the network is named as not finished, and the same command
            # continues it.
            died = f"job {job.job_id} of the cluster has died (state: {job.state})"
            yield JobResult(heading_of[job.job_id], problems=[died])
        else:
            if isinstance(result, str):
                problems.append(UserError(result))
            else:
                yield result
    # All jobs have ended by now, and none is left behind in the queue.
    if problems:
        raise problems[0]


class _ClusterJob(submitit.helpers.Checkpointable):  # type: ignore[misc]  # submitit is not typed
    """One job on a cluster, which is sent again as it was if it is put back into the queue."""

    def __call__(self, settings: dict[str, Any], heading: str, command: str) -> JobResult | str:
        """Run the job; a text says what the other jobs would meet too."""
        watch_time_limit()
        try:
            return run_in_process(settings, heading, command, parent=0)
        except UserError as error:
            # submitit would wrap an exception in its traceback.
            return str(error)


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
