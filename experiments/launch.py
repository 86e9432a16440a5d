"""Running the jobs of a sweep, one after the other in this process or through one of Hydra's launchers."""

from __future__ import annotations

import copy
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from bnlab.harness.artifacts.settings import Config
from bnlab.harness.errors import UserError
from experiments.compose import Sweep
from experiments.explain import first_line

_SAME_FOR_ALL = ("experiment=", "name=", "results=", "hydra")  # words that do not tell jobs apart


def check_launcher(sweep: Sweep) -> None:
    """Raise UserError if the launcher cannot work here."""
    if sweep.launcher == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError(f"hydra/launcher={sweep.launcher}: there is no Slurm here (no srun); choose basic or joblib")


def launch(sweep: Sweep) -> list[Path]:
    """Run every job; for each that failed the file that says why.

    Raises:
        UserError, OSError: what stops the jobs, or the launcher cannot run them.
    """
    count = len(sweep.configs)
    if sweep.launcher == "basic":
        numbered = enumerate(zip(sweep.configs, sweep.words, strict=True), start=1)
        found = [_run(config, words, number, count) for number, (config, words) in numbered]
        return [path for path in found if path]
    context = HydraContext(_Prepared(), Callbacks())  # type: ignore[arg-type]  # only that one method is called
    jobs = [[json.dumps(asdict(c)), *words] for c, words in zip(sweep.configs, sweep.words, strict=True)]
    try:
        launcher: Any = Plugins.instance().instantiate_launcher(context, partial(_run_launched, count), sweep.hydra)
        if sweep.launcher == "joblib":
            launcher.joblib["initializer"] = partial(_end_with_parent, os.getpid())
        done = launcher.launch(jobs, 0)
    except (HydraException, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(f"hydra/launcher={sweep.launcher}: {first_line(error.__cause__ or error)}") from error
    results = [job.return_value for job in done]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [path for path in results if path]


class _Prepared:
    """Stands in for Hydra's configuration loader, which would compose every job again.

    A job's configuration has been composed and checked: it is the first of its words, as JSON.
    """

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        config = copy.deepcopy(master_config)
        config.hydra.overrides.task = list(sweep_overrides)
        return config


def _run_launched(count: int, _: DictConfig) -> Path | UserError | OSError | None:
    """`_run` in a launcher's process; returns what stops the others too, which Hydra would print if it were raised."""
    hydra = HydraConfig.get()
    text, *words = hydra.overrides.task
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), json.loads(text)))
    try:
        return _run(config, words, int(hydra.job.num) + 1, count)
    except (UserError, OSError) as error:
        return error


def _end_with_parent(parent: int) -> None:
    """Let this process end soon after the one that started it, which may be killed, also before it has sent a job."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(config: Config, words: list[str], number: int, count: int) -> Path | None:
    """One job; if it failed the file that says why."""
    from bnlab.harness.jobs import attempt

    if count > 1:
        settings = [word for word in words if not word.startswith(_SAME_FOR_ALL)]
        print(f"job {number}/{count}  {' '.join(settings)}", flush=True)
    return attempt(config)
