"""The row of a network in the table `runs`, whose columns `run_table` describes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bnlab.harness.artifacts.job_settings import Config, flatten_settings, list_own
from bnlab.harness.artifacts.run import Run, describe_environment
from bnlab.harness.artifacts.tasks import OwnTask
from bnlab.harness.done import locate_failure_of
from bnlab.harness.run_table import LARGER_IS_BETTER, METRIC_NAME, METRIC_UNIT, RUNS
from bnlab.harness.updates import steps_per_epoch
from bnlab.harness.user_code import SOURCE

UNTRAINED: dict[str, Any] = {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan}
"""What stands in place of `Run.status` before the end of a training."""


def describe_run(run: Run) -> dict[str, object]:
    """Describe a network in a row of the table `runs`, with the settings of the user's own functions."""
    config = run.config
    status = run.status or UNTRAINED
    # Before the end of its training, a network may have no environment.json to read.
    environment = run.environment if run.finished else describe_environment(run.device)
    # `run.unseen` builds the network, which may be what has failed.
    unseen = run.unseen if run.finished else []
    images = config.data.count_training()
    # What comes last counts: values that were used take the place of settings that were left open.
    values = {
        **flatten_settings(asdict(config)),
        **status,
        **environment,
        "run": run.id,
        "seed": config.seed,
        "norm_batch_size": config.norm.count_images(config.batch_size),
        "data.images": config.data.count_used(),
        "lr_effective": config.optimizer.peak_lr(config.batch_size),
        "freeze_at": 1.0 if config.freeze_at is None else config.freeze_at,
        "freeze_with": "none" if config.freeze_at is None else config.freeze_with,
        "epochs": run.steps / steps_per_epoch(images, config.batch_size, config.last_batch),
        "steps": run.steps,
        "status": "failed" if locate_failure_of(run).exists() else status["status"],
        "last_step": status["step"],
        "unseen": ", ".join(unseen) or None,
        "settings": json.dumps(run.settings, sort_keys=True),
        "versions": json.dumps(environment["versions"], sort_keys=True),
    }
    # A setting that the network does not read is no column unless another network of the table reads it.
    row = {column: values[column] for column in RUNS.columns if column in values}
    return row | _list_own_settings(config, run.settings)


def _list_own_settings(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """List the arguments of the user's functions that are settings, and the digests in the settings that name it."""
    columns: dict[str, Any] = {}
    for key, chosen in list_own(config).items():
        digests = {name: settings[key][name] for name in ("content", SOURCE) if name in settings[key]}
        for name, value in {**chosen.arguments, **digests}.items():
            columns[f"{key}.{name}"] = value
    if isinstance(config.task, OwnTask):
        columns |= {METRIC_NAME: config.task.metric, METRIC_UNIT: config.task.unit}
        columns[LARGER_IS_BETTER] = config.task.larger_is_better
    return columns
