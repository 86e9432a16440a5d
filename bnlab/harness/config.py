"""Checks of a job's settings, before anything is trained or written."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from bnlab.estimators import EMA
from bnlab.harness import measurements
from bnlab.harness.artifacts import data, models, shifts, training
from bnlab.harness.artifacts.averaging import AVERAGINGS
from bnlab.harness.artifacts.freezing import FREEZE_WITH, MOMENTUM
from bnlab.harness.artifacts.norms import RECORDED
from bnlab.harness.artifacts.settings import Config, as_list, freezing_step, list_steps, total_steps
from bnlab.harness.errors import Note, UserError
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, find_sources

POPULATIONS = ("train", "train_augmented", "val")
SPLITS = {"test": "test", "val": "validation", "train": "training"}  # with their names in messages

_MOST_STEPS = 10**7  # file names hold seven digits


def check(config: Config) -> None:
    """Raise UserError for whatever is out of range, before anything is trained or written."""
    images = data.check(config.data)
    models.check(config.model, config.norm)
    training.check(config.optimizer)
    if not training.is_order(config.order):
        orders = ", ".join(training.ORDERS)
        raise UserError(f"order={config.order}: must be one of {orders}, or blocks:16 for blocks of so many images")
    for key, allowed in (("averaging", AVERAGINGS), ("freeze_with", FREEZE_WITH)):
        if getattr(config, key) not in allowed:
            raise UserError(f"{key}={getattr(config, key)}: must be one of {', '.join(allowed)}")
    _check_numbers(config, images)
    names = as_list(config.measurements)
    for key, known in (("population", POPULATIONS), ("measurements", measurements.NAMES), ("evaluate_on", SPLITS)):
        chosen = as_list(getattr(config, key))
        if not chosen or any(name not in known for name in chosen):
            raise UserError(f"{key}={getattr(config, key)}: choose from {', '.join(known)}")
    _check_statistics(config, images)
    shifts.check(as_list(config.shifts), config.data, as_list(config.evaluate_on))
    norms = [norm for name in names for norm in measurements.find_norms(name)]
    if config.norm.name not in norms:
        raise UserError(
            f"measurements={config.measurements}: need batch norm (norm={', '.join(dict.fromkeys(norms))}); "
            "evaluations do not"
        )
    _check_steps(config, total_steps(config, images))
    _check_freezing(config, total_steps(config, images))
    _check_measured(config)
    _check_device(config.device)
    check_folders(config.results, config.name)


def check_folders(results: str, name: str) -> None:
    """Raise UserError unless these can be names of folders."""
    if not results.strip():
        raise UserError("results=: must be a folder; results is the usual one")
    if not re.fullmatch(r"\w[\w.-]*", name) or name in ("runs", "reference"):
        raise UserError(f"name={name!r}: must be letters, digits, _ . - and not runs or reference")


def _check_numbers(config: Config, images: int) -> None:
    least = 2 if config.norm.name in RECORDED else 1
    if not least <= config.batch_size <= images:
        reason = f"the training split has {images:,} images"
        if config.batch_size < least == 2:
            reason = f"norm={config.norm.name} needs at least 2 images"
        raise UserError(f"batch_size={config.batch_size}: must be {least} to {images:,} ({reason})")
    if config.norm.name == "ghost" and config.norm.batch_size > config.batch_size:
        raise UserError(
            f"norm.batch_size={config.norm.batch_size}: is larger than the batch, of which it is a part (batch_size="
            f"{config.batch_size})"
        )
    for key, low, high in (
        ("epochs", 1, _MOST_STEPS),
        ("steps", 1, _MOST_STEPS),
        ("threads", 1, 1024),
        ("seed", 0, 2**32 - 1),
    ):
        value = getattr(config, key)
        if value is not None and not low <= value <= high:
            raise UserError(f"{key}={value}: must be {low} to {high:,}")


def _check_statistics(config: Config, images: int) -> None:
    for key in ("momentum", "estimator"):
        values = as_list(getattr(config, key))
        if not values:
            raise UserError(f"{key}=[]: give at least one value")
        kinds, expected = ((int, float), "a number") if key == "momentum" else ((str,), "a name")
        for value in values:  # True is an int too
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UserError(f"{key}={value}: must be {expected} or a list")
    for value in as_list(config.momentum):
        if not 0 < value <= 1:
            raise UserError(f"momentum={value}: is the weight of the new batch; must be above 0 and at most 1")
    own = _find_own_average(config)
    for source in find_sources(config):
        if own and isinstance(source, RunningAverage):
            _check_average(source, own, config.norm.name)
        if isinstance(source, InferenceRule):
            _check_rule(source, config)
        if not isinstance(source, FrozenWeights) or source.images is None:
            continue
        split = "val" if source.split == "val" else "train"
        most = images if split == "train" else data.images_used(config.data) - images
        if source.images > most:
            raise UserError(f"estimator={source.estimator}: the {SPLITS[split]} split has {most:,} images")


def _check_rule(source: InferenceRule, config: Config) -> None:
    """UserError for a test batch of more images than are predicted: there is none."""
    for split in as_list(config.evaluate_on):
        most = data.predicted_images(config.data, split)
        if source.images > most:
            raise UserError(
                f"estimator={source.estimator}: only {most:,} images of the {SPLITS[split]} split are predicted; take "
                "fewer at once"
            )


def _find_own_average(config: Config) -> EMA | None:
    """The running average that the network reads in training; None: it reads none."""
    if config.norm.name == "renorm":
        return EMA(config.norm.momentum)
    return None if config.freeze_at is None else EMA(MOMENTUM)


def _check_average(source: RunningAverage, own: EMA, norm: str) -> None:
    """UserError for a running average other than the network's own."""
    if source.average == own:
        return
    words = f"momentum={source.momentum}" if source.estimator == "ema" else f"estimator={source.estimator}"
    key, hint = ("norm=renorm", " (norm.momentum)") if norm == "renorm" else ("freeze_at", "")
    raise UserError(
        f"{words}: a network with {key} reads its running averages while it is trained, so that another average means "
        f"another training; use estimator=ema with momentum={own.momentum}{hint}, or statistics of frozen weights "
        "(exact, precise)"
    )


def _check_steps(config: Config, steps: int) -> None:
    """UserError unless `evaluate_at` is log, final or a list, and `accuracy_at` final, all or some of that list."""
    if steps > _MOST_STEPS:
        raise UserError(f"epochs={config.epochs}: is {steps:,} steps; must be {_MOST_STEPS:,} or fewer")
    if config.evaluate_at not in ("log", "final"):
        _check_list("evaluate_at", "log, final", config.evaluate_at, steps)
    if config.accuracy_at in ("final", "all"):
        return
    _check_list("accuracy_at", "final, all", config.accuracy_at, steps)
    measured = list_steps(config.evaluate_at, steps)
    for at in as_list(config.accuracy_at):
        if list_steps(at, steps)[0] not in measured:
            raise UserError(f"accuracy_at={at}: is not among evaluate_at; list it there too")


def _check_freezing(config: Config, steps: int) -> None:
    """UserError for a freezing that cannot be."""
    if config.freeze_at is None:
        return
    if not 0 < config.freeze_at < 1:
        raise UserError(f"freeze_at={config.freeze_at}: is a share of the training; must be above 0 and below 1")
    if freezing_step(config, steps) == steps:
        raise UserError(f"freeze_at={config.freeze_at}: nothing of {steps:,} steps is left after it; take less")
    if config.norm.name != "batch":
        raise UserError(
            f"freeze_at={config.freeze_at}: norm.name={config.norm.name} cannot be frozen; use norm=batch, or leave "
            "freeze_at out"
        )


def _check_measured(config: Config) -> None:
    """UserError for measurements of batches that the network that is measured has not been trained on."""
    reason = "later steps have no batch statistics" if config.freeze_at is not None else ""
    if config.averaging != "none":
        reason = "the network that is measured is an average and was not trained on batches"
    for name in as_list(config.measurements):
        if reason and measurements.is_of_batches(name):
            key = "freeze_at" if config.averaging == "none" else f"averaging={config.averaging}"
            raise UserError(f"measurements={name}: is about what batches make of running averages; with {key} {reason}")


def _check_list(key: str, words: str, value: Any, steps: int) -> None:
    values = as_list(value)
    for at in values:
        share = isinstance(at, float) and 0 < at <= 1
        if not share and (isinstance(at, bool) or not isinstance(at, int) or at < 1):
            raise UserError(f"{key}={at}: must be {words}, or a list of steps (1, 100) and shares (0.1)")
        if not share and at > steps:
            raise UserError(f"{key}={at}: the training has {steps:,} steps; shares such as 0.5 fit any length")
    if not values:
        raise UserError(f"{key}=[]: give at least one step")
    shares = [at for at in values if isinstance(at, float)]
    if 1 in values and 1.0 not in shares and (shares or len(values) == 1) and steps > 1:
        warnings.warn(f"{key}={value}: 1 is the first step, 1.0 the end of the training", Note, stacklevel=2)


def _check_device(name: str) -> None:
    if name == "auto":
        return
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={name}: must be auto, cpu, cuda or cuda:1 and so on")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error
