"""Running the jobs of a sweep through Hydra, and how far it has come."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from submitit.core.utils import UncompletedJobError
from tqdm import tqdm

from bnlab.harness.artifacts.settings import Config
from bnlab.harness.errors import UserError
from experiments.cluster import wait_for_others, watch_time_limit
from experiments.compose import register_all
from experiments.folders import CONF, search_folders

_SWEEP = "BNLAB_SWEEP"  # the number of the process of the sweep, for those that it starts
_A_LINE = 60.0  # seconds between two lines where there is no terminal
_SAME_FOR_ALL = ("experiment=", "name=", "results=", "hydra")  # words that do not tell jobs apart


def run_with_hydra(words: list[str]) -> None:
    """Let Hydra do what the words of a command line say: print its help, or run all jobs through its launcher."""
    register_all()
    os.environ[_SWEEP] = str(os.getpid())
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here
    sys.argv = [sys.argv[0], *search_folders(words)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
    except BrokenProcessPool as error:
        kept = "what is finished is kept, the same command continues"
        raise UserError(f"a process of the sweep was ended from outside (out of memory?); {kept}") from error
    except UncompletedJobError as error:
        wait_for_others(error)


@cache
def _end_with_parent() -> None:
    """Let this process end soon after the sweep, which may be killed, also while this one begins."""

    def watch() -> None:
        while os.getppid() == int(os.environ[_SWEEP]):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_job(composed: DictConfig) -> None:
    """Run one job, in this process or a launcher's; what the other jobs would meet too ends the sweep."""
    from bnlab.harness.jobs import attempt

    config: Any = OmegaConf.to_object(composed)
    job = HydraConfig.get()
    launcher = job.runtime.choices["hydra/launcher"]
    runs_elsewhere = os.getpid() != int(os.environ[_SWEEP])  # joblib runs the jobs of one worker in the sweep itself
    if launcher == "joblib" and runs_elsewhere:
        _end_with_parent()
    on_cluster = launcher.startswith("submitit")
    if on_cluster:
        watch_time_limit()
    if launcher != "basic":
        config.threads = config.threads or 1  # the processes share the cores
    if job.mode == RunMode.MULTIRUN:
        settings = [word for word in job.overrides.task if not word.startswith(_SAME_FOR_ALL)]
        print(f"job {job.job.num + 1}  {' '.join(settings)}", flush=True)
    try:
        attempt(config)
    except (UserError, OSError) as error:
        # On a cluster the command finds it in the result of the job, and needs no accounting to learn of its end.
        if on_cluster:
            raise
        print(f"error: {error}\n  what is finished is kept, the same command continues", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def show_progress(configs: list[Config]) -> Iterator[None]:
    """Show in the block how many jobs are done and the time left: a bar in a terminal, else a line a minute."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(configs, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(configs: list[Config], ended: threading.Event) -> None:
    """Show progress until the sweep has ended; of a single job there is nothing to show."""
    from bnlab.harness.jobs import list_waiting

    waiting = list_waiting(configs)
    total = len(waiting)
    if total < 2:
        return

    started = time.monotonic()
    last_line = started
    in_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="job", leave=False, smoothing=0, disable=not in_terminal) as bar:
        while not ended.wait(1.0):
            waiting = list_waiting(waiting)
            done = total - len(waiting)
            bar.update(done - bar.n)

            now = time.monotonic()
            is_due = now - last_line >= _A_LINE
            if done and is_due and not in_terminal:
                last_line = now
                _print_progress(done, total, now - started)


def _print_progress(done: int, total: int, seconds: float) -> None:
    """Print how many jobs are done, and about how long the others will take."""
    from bnlab.harness.artifacts.producing import format_seconds

    left = seconds / done * (total - done)
    print(f"{done} of {total} jobs done, about {format_seconds(left)} left", flush=True)
