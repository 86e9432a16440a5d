"""One job of a sweep: train what is missing, measure, leave the rows in the experiment's folder."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bnlab.harness import data, tables
from bnlab.harness.config import Config, network, statistics_settings, total_steps
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.drift import drift
from bnlab.harness.measurements.evaluations import evaluations
from bnlab.harness.measurements.gaps import gaps
from bnlab.harness.measurements.sources import Setting
from bnlab.harness.producing import ensure_trained
from bnlab.harness.runs import Run, environment, write_text
from bnlab.harness.training import steps_per_epoch

_MEASUREMENTS: dict[str, Callable[[Run, list[Setting]], pd.DataFrame]] = {
    "gaps": gaps,
    "evaluations": evaluations,
    "drift": drift,
}
_VERSION = 1  # of the measurements: another one makes cached frames count as missing


def attempt(config: Config) -> None:
    """`execute`, but what fails is written down and does not end the sweep: status `failed`, with the reason."""
    try:
        execute(config)
    except UserError as error:
        _write_failure(config, f"error: {error}")
    except Exception:
        _write_failure(config, traceback.format_exc())


def _write_failure(config: Config, reason: str) -> None:
    run = Run(config)
    path = Path(config.results) / config.name / "failures" / f"{run.id.replace('/', '-')}.txt"
    write_text(path, reason)
    print(f"{run.id}: failed, {reason.strip().splitlines()[-1]}\n  more in {path}", file=sys.stderr)
    status = {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan}
    tables.write_part(Path(config.results) / config.name, "runs", run.id, "", _run_row(run, status))


def execute(config: Config) -> None:
    """Train the configuration's network unless it is there, measure it, write the parts of the tables."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    run = Run(config)
    ensure_trained(run)
    folder = Path(config.results) / config.name
    settings = statistics_settings(config)
    for name in config.measurements:
        identity = json.dumps([_VERSION, name, [_identity(s) for s in settings], run.wanted, config.accuracy_at])
        tables.write_part(folder, name, run.id, identity, _measured(run, name, identity, settings))
    tables.write_part(folder, "runs", run.id, "", _run_row(run, run.status or {}))


def _identity(setting: Setting) -> list[object]:
    return [setting.estimator, setting.momentum, setting.split, repr(setting.running), setting.images]


def _measured(run: Run, name: str, identity: str, settings: list[Setting]) -> pd.DataFrame:
    """The rows of one measurement, from the run's cache if they are there."""
    path = run.folder / "measurements" / f"{name}-{tables.digest(identity)}.parquet"
    if path.exists():
        try:
            return tables.read_frame(path)
        except ValueError as error:
            print(f"{error}\n  measured again")
    frame = tables.conform(name, _MEASUREMENTS[name](run, settings)) if run.wanted else tables.empty(name)
    tables.write_frame(path, frame, tables.TABLES[name].schema)
    return frame


def _run_row(run: Run, status: dict[str, Any]) -> pd.DataFrame:
    config, optimizer = run.config, asdict(run.config.optimizer)
    images = data.check(config.data)
    steps = total_steps(config, images)
    described = environment(run.device)
    row = {
        "run": run.id,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "norm": "batch",
        "batch_size": config.batch_size,
        "norm_batch_size": config.batch_size,
        "optimizer": optimizer.pop("name"),
        "sgd_momentum": optimizer.pop("momentum"),
        **optimizer,
        "epochs": steps / steps_per_epoch(images, config.batch_size),
        "steps": steps,
        "status": status["status"],
        "train_seconds": status["train_seconds"],
        "final_loss": status["final_loss"],
        "settings": json.dumps(network(config), sort_keys=True),
        "versions": json.dumps(described["versions"], sort_keys=True),
        "device": described["device"],
        "threads": described["threads"],
    }
    return pd.DataFrame([row])
