"""The jobs of a sweep: train what is missing, measure, leave the rows in the experiment's folder."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bnlab.harness import data, tables
from bnlab.harness.config import Config, network, statistics_settings, total_steps
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.measurements import measurement
from bnlab.harness.measurements.frozen import VERSION
from bnlab.harness.measurements.sources import Setting
from bnlab.harness.producing import ensure_trained
from bnlab.harness.runs import Run, environment, write_text
from bnlab.harness.training import peak_lr, steps_per_epoch
from bnlab.memory import keep_freed_memory
from bnlab.storage import set_aside

_ALL_THREADS = torch.get_num_threads()


def prepare(planned: list[Config]) -> None:
    """Before the first job: find what would stop them all, and forget the failures of earlier sweeps.

    Raises:
        UserError: the results folder cannot be written, data is corrupt or a network cannot take it.
    """
    _require_writable(Path(planned[0].results))
    tried: list[object] = []
    for config in planned:
        run, kind = Run(config), (config.data, config.model)
        if kind not in tried and not run.finished:
            tried.append(kind)
            run.new_model()
        for path in failures(config):
            path.unlink(missing_ok=True)


def _require_writable(results: Path) -> None:
    existing = next(path for path in (results, *results.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"results={results}: {existing} is not a folder that can be written")


def failures(config: Config) -> list[Path]:
    """Why jobs on this configuration's network failed in the last sweep, a file for each."""
    folder = Path(config.results) / config.name / "failures"
    return sorted(folder.glob(f"{Run(config).id.replace('/', '-')}-*.txt"))


def attempt(config: Config) -> None:
    """`execute`, but what fails is written down and does not end the sweep: status `failed`, with the reason.

    Raises:
        UserError, OSError: what the other jobs would meet too, such as a full disk.
    """
    try:
        execute(config)
    except (UserError, OSError):
        raise
    except (Exception, SystemExit) as error:  # an estimator of the user's own may raise either
        _fail(config, error)


def _fail(config: Config, error: BaseException) -> None:
    run, folder = Run(config), Path(config.results) / config.name
    settings = tables.digest(json.dumps(asdict(config), sort_keys=True))
    path = folder / "failures" / f"{run.id.replace('/', '-')}-{settings}.txt"
    print(f"{run.id}: failed, {where_raised(error)}\n  more in {path}", file=sys.stderr)
    write_text(path, "".join(traceback.format_exception(error)))
    _write_row(run)


def execute(config: Config) -> None:
    """Train the configuration's network unless it is there, measure it, write the parts of the tables."""
    prepare_process(config)
    run = Run(config)
    ensure_trained(run)
    folder = Path(config.results) / config.name
    settings = statistics_settings(config)
    described = [_identity(s) for s in settings]
    for name in config.measurements:
        columns = list(tables.TABLES[name].types)
        identity = json.dumps([VERSION, name, columns, described, run.wanted, config.accuracy_at])
        tables.write_part(folder, name, run.id, identity, _measured(run, name, identity, settings))
    _write_row(run)


def prepare_process(config: Config) -> None:
    """Set torch's threads, explicitly, because an earlier job of this process may have set others; and malloc."""
    torch.set_num_threads(config.threads or _ALL_THREADS)
    keep_freed_memory()


def _identity(setting: Setting) -> list[object]:
    running = setting.running
    own = running is not None and not type(running).__module__.startswith("bnlab.")
    # The user's own estimator changes without our version changing.
    source = tables.digest(inspect.getsource(type(running))) if own else ""
    return [setting.estimator, setting.momentum, setting.split, repr(running), setting.images, source]


def _measured(run: Run, name: str, identity: str, settings: list[Setting]) -> pd.DataFrame:
    """The rows of one measurement, from the run's cache if they are there."""
    path = run.folder / "measurements" / f"{name}-{tables.digest(identity)}.parquet"
    if path.exists():
        try:
            return tables.read_table(name, path)
        except ValueError as error:
            set_aside(path, error, "measured again")
    frame = tables.conform(name, measurement(name)(run, settings)) if run.wanted else tables.empty(name)
    tables.write_frame(path, frame, tables.TABLES[name].schema)
    return frame


def _write_row(run: Run) -> None:
    """The run's row of the table `runs`; `failed` as long as one of this sweep's jobs on it has."""
    # Two jobs on one network may end at once, and the second has to see what the first has left.
    with run.lock:
        found = run.status if run.finished else None
        row = _run_row(run, found or {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan})
        if failures(run.config):
            row["status"] = "failed"
        tables.write_part(Path(run.config.results) / run.config.name, "runs", run.id, "", row)


def _run_row(run: Run, status: dict[str, Any]) -> pd.DataFrame:
    config, optimizer = run.config, asdict(run.config.optimizer)
    images = data.check(config.data)
    steps = total_steps(config, images)
    trained = run.folder / "environment.json"
    described = json.loads(trained.read_text()) if trained.exists() else environment(run.device)
    row = {
        "run": run.id,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "norm": "batch",
        "batch_size": config.batch_size,
        "norm_batch_size": config.batch_size,
        **{f"data.{key}": value for key, value in asdict(config.data).items()},
        "data.images": data.images_used(config.data),
        **{f"model.{key}": value for key, value in asdict(config.model).items()},
        "lr_effective": peak_lr(config.optimizer, config.batch_size),
        "optimizer": optimizer.pop("name"),
        "sgd_momentum": optimizer.pop("momentum"),
        **optimizer,
        "epochs": steps / steps_per_epoch(images, config.batch_size),
        "steps": steps,
        "status": status["status"],
        "last_step": status["step"],
        "train_seconds": status["train_seconds"],
        "final_loss": status["final_loss"],
        "settings": json.dumps(network(config), sort_keys=True),
        "versions": json.dumps(described["versions"], sort_keys=True),
        "device": described["device"],
        "threads": described["threads"],
    }
    return pd.DataFrame([row])
