"""Running the jobs of a sweep through Hydra, and how far it has come."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from bnlab.harness.artifacts.settings import Config
from bnlab.harness.errors import UserError
from experiments.compose import CONF, register_all

_SWEEP = "BNLAB_SWEEP"  # the number of the process of the sweep, for those that it starts
_SAME_FOR_ALL = ("experiment=", "name=", "results=", "hydra")  # words that do not tell jobs apart


def run_with_hydra(words: list[str]) -> None:
    """What Hydra makes of the words of a command line: its help, or all jobs, through its launcher."""
    register_all()
    os.environ[_SWEEP] = str(os.getpid())
    sys.argv = [sys.argv[0], *words]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()


@cache
def _end_with_parent() -> None:
    """Let this process end soon after the sweep, which may be killed, also while this one begins."""

    def watch() -> None:
        while os.getppid() == int(os.environ[_SWEEP]):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_job(composed: DictConfig) -> None:
    """One job, in this process or a launcher's; what the other jobs would meet too ends the sweep."""
    from bnlab.harness.jobs import attempt

    config: Any = OmegaConf.to_object(composed)
    job = HydraConfig.get()
    launcher = job.runtime.choices["hydra/launcher"]
    if launcher == "joblib":
        _end_with_parent()
    if launcher != "basic":
        config.threads = config.threads or 1  # the processes share the cores
    if job.mode == RunMode.MULTIRUN:
        settings = [word for word in job.overrides.task if not word.startswith(_SAME_FOR_ALL)]
        print(f"job {job.job.num + 1}  {' '.join(settings)}", flush=True)
    try:
        attempt(config)
    except (UserError, OSError) as error:
        print(f"error: {error}\n  what is finished is kept, the same command continues", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def show_progress(configs: list[Config]) -> Iterator[None]:
    """While the block runs, show in a terminal how many jobs are done and the time left."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(configs, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(configs: list[Config], ended: threading.Event) -> None:
    from bnlab.harness.jobs import is_done

    if len(configs) == 1 or not sys.stderr.isatty():
        return
    waiting = [config for config in configs if not is_done(config)]
    with tqdm(total=len(waiting), unit="job", leave=False, smoothing=0) as bar:
        while waiting and not ended.wait(1.0):
            still = [config for config in waiting if not is_done(config)]
            bar.update(len(waiting) - len(still))
            waiting = still
