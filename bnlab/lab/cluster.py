"""Jobs on a cluster: what a job does when its time is up, and what the sweep does when a job has died."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from types import FrameType

from submitit import JobEnvironment
from submitit.core.utils import UncompletedJobError

from bnlab.harness.errors import TimeLimit

_DIED = re.compile(r"Job (?P<job>(?P<first>\d+)\S*) .*\(state: (?P<state>.*?)\)", re.DOTALL)  # as submitit says it
_POLL_SECONDS = 5.0


def watch_time_limit() -> None:
    """Let the signal that Slurm sends before a job's time limit end the job, whatever it is doing.

    submitit's handler raises SystemExit once it has put the job back into the queue, and UncompletedJobError if it has
    not. A measurement would take either for a failure of the user's code, and go on.
    """
    number = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
    handler = signal.getsignal(number)
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


def wait_for_others(error: UncompletedJobError) -> None:
    """Say which job has died, and wait until no other one of the sweep is in the queue.

    Raises:
        UncompletedJobError: it tells of something else.
    """
    died = _DIED.search(str(error))
    if died is None:
        raise error
    print(f"job {died['job']} of the cluster has died (state: {died['state']})", file=sys.stderr, flush=True)
    while _is_queued(died["first"]):
        time.sleep(_POLL_SECONDS)


def _is_queued(job: str) -> bool:
    """Find out if a job, or one of an array, waits or runs."""
    done = subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True)
    return bool(done.stdout.strip())
