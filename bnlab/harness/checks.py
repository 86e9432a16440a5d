"""Checks of a job: settings that do not go together, or do not fit its data, model, norm and device."""

from __future__ import annotations

import importlib.util
import re

import torch

from bnlab.estimators import EMA
from bnlab.harness.artifacts.job_settings import MOMENTUM, Config, as_list, list_steps
from bnlab.harness.artifacts.shifts import check_shifts
from bnlab.harness.errors import UserError, suggest
from bnlab.harness.measurements import Measurement, find_measurement
from bnlab.harness.measurements.subjects import list_subjects
from bnlab.harness.own import import_object
from bnlab.harness.settings import require_within, write_argument
from bnlab.harness.statistic_kinds import Measured
from bnlab.harness.updates import check_order


def check(config: Config) -> None:
    """Raise UserError for what a setting alone cannot tell, before anything is trained or written."""
    # The name becomes a folder beside results/runs, which has all networks, and results/reference.
    if not re.fullmatch(r"\w[\w.-]*", config.name) or config.name.lower() in ("runs", "reference"):
        raise UserError(f"name={config.name}: must be letters, digits, _ . - and not runs or reference")

    config.data.check()
    _check_task(config)
    config.model.check(config.norm)
    check_order(config.order)
    check_shifts(as_list(config.shifts), config.data, as_list(config.evaluate_on))

    # Checked before the steps are counted: a batch that is larger than the training split makes none.
    images = config.data.count_training()
    least = 2 if config.norm.uses_batch else 1
    reason = f"a batch norm needs two, and the training split has {images:,} images"
    require_within("batch_size", config.batch_size, least, images, reason)
    config.norm.check(config.batch_size)
    _check_statistics(config, images)

    steps = config.count_steps()
    _check_steps(config, steps)
    _check_freezing(config, steps)
    _check_measured(config)

    averages = []
    if config.averaging != "none":
        averages.append(f"averaging={config.averaging}")
    if config.decays:
        averages.append(f"weight_averages={','.join(map(str, config.decays))}")
    if averages and config.freeze_at is not None and config.freeze_with == "exact":
        # Buffers are averaged along with the weights, and would be a mixture of frozen and earlier statistics.
        raise UserError(
            f"{averages[0]} freeze_with=exact: the average of the weights has no frozen statistics; leave one of them "
            "out"
        )
    _check_log(config.log)


def _check_log(log: str) -> None:
    """Raise UserError unless there is such a log."""
    if log == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError('log=tensorboard: needs a package; pip install "bnlab[tensorboard]"')
    elif "." in log:
        import_object("log", log)
    elif log != "none":
        raise UserError(f"log={log}: {suggest(log, ['none', 'tensorboard', 'package.module.make_logger'])}")


def _check_task(config: Config) -> None:
    """Raise UserError for labels that the task cannot learn, or that would have to move with the images."""
    fault = config.data.find_label_fault()
    if fault and not config.task.is_own:
        raise UserError(f"data={config.data.name}: has {fault}")
    moving = [each for each in as_list(config.shifts) if each.startswith("translation")]
    if config.data.has_maps and (config.data.shift or config.data.flips or moving):
        raise UserError("data.shift, data.flip, shifts=translation: move images, but not labels that are maps")
    if config.task.is_own:
        config.task.build()
        if config.optimizer.label_smoothing or config.order != "shuffled":
            raise UserError("optimizer.label_smoothing, order: are of classes; leave them out of another task")


def _check_statistics(config: Config, images: int) -> None:
    """Raise UserError for more images than there are, or other averages than the network reads while it is trained."""
    if config.population_images is not None:
        require_within("population_images", config.population_images, 2, images)

    expected = config.norm.get_training_average()
    key = f"norm={config.norm.name}"
    if config.freeze_at is not None:
        # Frozen layers normalize with their buffers, which tables list as this running average.
        expected = EMA(MOMENTUM)
        key = "freeze_at"
    for subject in list_subjects(config):
        if expected is not None and subject.running_average not in (None, expected):
            raise UserError(
                f"estimator={subject.label}, momentum={subject.momentum}: a network with {key} reads its running "
                "averages while it is trained, so a different average would mean a different training run; use ema "
                f"with momentum={expected.momentum}, or statistics of a checkpoint (exact, precise)"
            )
        estimator = subject.estimator
        if isinstance(estimator, Measured) and estimator.images is not None:
            # Validation images are those that are used and not trained on.
            most = config.data.count_used() - images if subject.split == "val" else images
            require_within(f"estimator={subject.label}: images", estimator.images, 2, most)


def _check_steps(config: Config, steps: int) -> None:
    """Raise UserError unless `evaluate_at` is log, final or a list, `accuracy_at` final, all or some of that list."""
    for key, words in (("evaluate_at", ("log", "final")), ("accuracy_at", ("final", "all"))):
        value = getattr(config, key)
        if value in words:
            continue
        for at in as_list(value):
            # The type decides, as in `list_steps`: 1 is the first step, and 1.0 the end of the training.
            is_share = isinstance(at, float) and 0 < at <= 1
            # True is an int in Python, and would pass as 1.
            is_step = isinstance(at, int) and not isinstance(at, bool) and 0 <= at <= steps
            if not is_share and not is_step:
                allowed = f"{', '.join(words)}, or a list of steps (0 to {steps:,}) and shares (0.1)"
                raise UserError(f"{key}={at}: must be {allowed}")

    if config.accuracy_at in ("final", "all"):
        return
    measured = list_steps(config.evaluate_at, steps)
    for at in as_list(config.accuracy_at):
        # Compared as steps, because a share and a number may mean the same one.
        if list_steps(at, steps)[0] not in measured:
            raise UserError(f"accuracy_at={at}: is not among evaluate_at; list it there too")


def _check_freezing(config: Config, steps: int) -> None:
    """Raise UserError unless the norm can be frozen, and some steps are left then."""
    if config.freeze_at is None:
        return
    # A share close to 1 may be rounded to the last step, after which nothing is left to be trained.
    if not 0 < config.freeze_at < 1 or config.compute_freezing_step() == steps:
        raise UserError(f"freeze_at={config.freeze_at}: must be a share of the {steps:,} steps that leaves some")
    if not config.norm.is_plain:
        raise UserError(f"freeze_at={config.freeze_at}: norm={config.norm.name} cannot be frozen; use norm=batch")


def _check_measured(config: Config) -> None:
    """Raise UserError for measurements that do not exist, share a table, or have no rows of this network."""
    chosen: dict[str, Measurement] = {}
    for name in as_list(config.measurements):
        measurement = find_measurement(name)
        # Without case, because on many disks Mine and mine are one file.
        file_name = measurement.name.lower()
        if file_name in chosen:
            other = chosen[file_name].name
            raise UserError(f"measurements={name}: there is another table {other}; give it another name")
        chosen[file_name] = measurement
        if measurement.about_batches and (config.averaging != "none" or config.freeze_at is not None):
            raise UserError(
                f"measurements={measurement.name}: is about what batches make of running averages, which networks with "
                "freeze_at or averaging do not have to the end"
            )
    if not any(measurement.covers(config.norm) for measurement in chosen.values()):
        typed = write_argument(config.measurements)
        raise UserError(f"measurements={typed}: measures nothing of a network with norm={config.norm.name}")


def check_device(name: str) -> None:
    """Raise UserError unless this machine has the device."""
    if name == "auto":
        return
    try:
        # Not torch.device(name), which does not look whether there is such a device. Sweeps add up in float64.
        torch.empty(0, dtype=torch.float64, device=name)
    # A build of torch without CUDA raises AssertionError, a Mac's device TypeError, as it has no float64.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error
