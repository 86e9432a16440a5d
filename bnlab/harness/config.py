"""The configuration as Hydra knows it, and the checks of a job's settings before anything is trained or written."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from hydra.core.config_store import ConfigStore

from bnlab.estimators import EMA
from bnlab.harness import measurements
from bnlab.harness.artifacts import data, models, shifts, training
from bnlab.harness.artifacts.averaging import AVERAGINGS
from bnlab.harness.artifacts.data import DataConfig, OwnData
from bnlab.harness.artifacts.freezing import FREEZE_WITH, MOMENTUM
from bnlab.harness.artifacts.models import ModelConfig, OwnModel
from bnlab.harness.artifacts.norms import BatchStatistics, Ghost, NormConfig, Renorm
from bnlab.harness.artifacts.settings import GROUPS, Config, as_list, freezing_step, list_steps, total_steps
from bnlab.harness.artifacts.training import OptimizerConfig
from bnlab.harness.checks import require_one_of, require_weight, require_within
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, RunningAverage, find_sources

POPULATIONS = ("train", "train_augmented", "val")
SPLITS = {"test": "test", "val": "validation", "train": "training"}  # with their names in messages

_MOST_STEPS = 10**7  # file names hold seven digits


def register() -> None:
    """Make the configuration, `schema`, and what its groups choose from known to Hydra."""
    store = ConfigStore.instance()
    # Of the groups' base classes, so that any choice can take their place.
    open_groups = replace(
        Config(), data=DataConfig(), model=ModelConfig(), norm=NormConfig(), optimizer=OptimizerConfig()
    )
    store.store(name="schema", node=open_groups)
    for group, choices in GROUPS.items():
        for name, choice in choices.items():
            store.store(group=group, name=name, node=choice)


def register_own(group: str, path: str) -> None:
    """Let `data=` or `model=` take the import path of a function of the user's own."""
    node = OwnData(name=path) if group == "data" else OwnModel(name=path)
    ConfigStore.instance().store(group=group, name=path, node=node)


def check(config: Config) -> None:
    """Raise UserError for whatever is out of range, before anything is trained or written."""
    _check_names(config)
    images = data.check(config.data)
    models.check(config.model, config.norm)
    training.check(config.optimizer)
    if not training.is_order(config.order):
        orders = ", ".join(training.ORDERS)
        raise UserError(f"order={config.order}: must be one of {orders}, or blocks:16 for blocks of so many images")
    require_one_of("averaging", config.averaging, AVERAGINGS)
    require_one_of("freeze_with", config.freeze_with, FREEZE_WITH)
    _check_numbers(config, images)
    for key, known in (("population", POPULATIONS), ("measurements", measurements.NAMES), ("evaluate_on", SPLITS)):
        chosen = as_list(getattr(config, key))
        if not chosen or any(name not in known for name in chosen):
            raise UserError(f"{key}={getattr(config, key)}: choose from {', '.join(known)}")
    _check_statistics(config, images)
    shifts.check(as_list(config.shifts), config.data, as_list(config.evaluate_on))
    steps = total_steps(config, images)
    _check_steps(config, steps)
    _check_freezing(config, steps)
    _check_measured(config)
    _check_device(config.device)
    check_folders(config.results, config.name)


def check_folders(results: str, name: str) -> None:
    """Raise UserError unless these can be names of folders."""
    if not results.strip():
        raise UserError("results=: must be a folder; results is the usual one")
    if not re.fullmatch(r"\w[\w.-]*", name) or name in ("runs", "reference"):
        raise UserError(f"name={name}: must be letters, digits, _ . - and not runs or reference")


def _check_names(config: Config) -> None:
    """UserError for a choice that has been given the name of another one."""
    for group, choices in GROUPS.items():
        chosen = getattr(config, group)
        names = [choice.name for choice in choices.values() if type(choice) is type(chosen)]
        if names and chosen.name not in names and not isinstance(chosen, models.Torchvision):
            raise UserError(
                f"{group}.name={chosen.name}: is not of {group}={names[0]}; choose by {group}=, a torchvision "
                "classifier by model=torchvision model.name="
            )


def _check_numbers(config: Config, images: int) -> None:
    least = 2 if isinstance(config.norm, BatchStatistics) else 1
    reason = f"a batch norm needs two, and the training split has {images:,} images"
    require_within("batch_size", config.batch_size, least, images, reason)
    if isinstance(config.norm, Ghost):
        require_within("norm.batch_size", config.norm.batch_size, 2, config.batch_size, "a part of the batch")
    bounds = {"epochs": (1, _MOST_STEPS), "steps": (1, _MOST_STEPS), "threads": (1, 1024), "seed": (0, 2**32 - 1)}
    for key, allowed in bounds.items():
        if (value := getattr(config, key)) is not None:
            require_within(key, value, *allowed)


def _check_statistics(config: Config, images: int) -> None:
    for key, kinds, expected in (("momentum", (int, float), "a number"), ("estimator", (str,), "a name")):
        values = as_list(getattr(config, key))
        if not values:
            raise UserError(f"{key}=[]: give at least one value")
        for value in values:  # True is an int too
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UserError(f"{key}={value}: must be {expected} or a list")
    for value in as_list(config.momentum):
        require_weight("momentum", value)
    own = _find_own_average(config)
    for source in find_sources(config):
        if own and isinstance(source, RunningAverage) and source.average != own:
            key = "norm=renorm" if isinstance(config.norm, Renorm) else "freeze_at"
            raise UserError(
                f"estimator={source.estimator}, momentum={source.momentum}: a network with {key} reads its running "
                f"averages while it is trained, so that another average means another training; use ema with momentum="
                f"{own.momentum}, or statistics of frozen weights (exact, precise)"
            )
        if isinstance(source, InferenceRule):
            for split in as_list(config.evaluate_on):
                most = data.predicted_images(config.data, split)
                require_within(f"estimator={source.estimator}: images", source.images, 1, most)
        if isinstance(source, FrozenWeights) and source.images is not None:
            most = data.images_used(config.data) - images if source.split == "val" else images
            require_within(f"estimator={source.estimator}: images", source.images, 2, most)


def _find_own_average(config: Config) -> EMA | None:
    """The running average that the network reads in training; None: it reads none."""
    if isinstance(config.norm, Renorm):
        return EMA(config.norm.momentum)
    return None if config.freeze_at is None else EMA(MOMENTUM)


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


def _check_list(key: str, words: str, value: Any, steps: int) -> None:
    if not as_list(value):
        raise UserError(f"{key}=[]: give at least one step")
    for at in as_list(value):
        share = isinstance(at, float) and 0 < at <= 1
        if not share and (isinstance(at, bool) or not isinstance(at, int) or at < 1):
            raise UserError(f"{key}={at}: must be {words}, or a list of steps (1, 100) and shares (0.1)")
        if not share and at > steps:
            raise UserError(f"{key}={at}: the training has {steps:,} steps; shares such as 0.5 fit any length")


def _check_freezing(config: Config, steps: int) -> None:
    """UserError for a freezing that cannot be."""
    if config.freeze_at is None:
        return
    if not 0 < config.freeze_at < 1 or freezing_step(config, steps) == steps:
        raise UserError(
            f"freeze_at={config.freeze_at}: is a share of the training, {steps:,} steps; take more than 0, leave some"
        )
    if config.norm.name != "batch":
        raise UserError(f"freeze_at={config.freeze_at}: norm={config.norm.name} cannot be frozen; use norm=batch")


def _check_measured(config: Config) -> None:
    """UserError for measurements that this network has no rows of."""
    reason = "later steps have no batch statistics" if config.freeze_at is not None else ""
    if config.averaging != "none":
        reason = f"averaging={config.averaging} measures an average, which was not trained on batches"
    names = as_list(config.measurements)
    if not any(config.norm.name in measurements.find_norms(name) for name in names):
        raise UserError(f"measurements={config.measurements}: need batch norm, found norm={config.norm.name}")
    for name in names:
        if reason and measurements.is_of_batches(name):
            raise UserError(f"measurements={name}: is about what batches make of running averages; {reason}")


def _check_device(name: str) -> None:
    if name == "auto":
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error
