"""The configuration as Hydra knows it, and the checks of a job's settings before anything is trained or written."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bnlab.estimators import EMA
from bnlab.harness.artifacts import shifts, training
from bnlab.harness.artifacts.data import Data, own_data
from bnlab.harness.artifacts.models import Model, own_model
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.artifacts.settings import GROUPS, MOMENTUM, Config, as_list, list_steps
from bnlab.harness.checks import require_within
from bnlab.harness.components import check_settings
from bnlab.harness.errors import UserError
from bnlab.harness.help import describe_settings
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.sources import FrozenWeights, RunningAverage, find_sources

_OWN: dict[str, dict[str, Any]] = {"data": {}, "model": {}}


def register() -> None:
    """Make the configuration, `schema`, and what its groups choose from known to Hydra."""
    OmegaConf.register_new_resolver("describe_settings", describe_settings, replace=True)
    store = ConfigStore.instance()
    # Of the groups' base classes, so that any choice can take their place.
    open_groups = replace(Config(), data=Data(), model=Model(), norm=Norm(), optimizer=Optimizer())
    store.store(name="schema", node=open_groups)
    for group, choices in GROUPS.items():
        for name, choice in choices.items():
            store.store(group=group, name=name, node=choice)


def register_own(group: str, path: str) -> None:
    """Let `data=` or `model=` take the import path of a function of the user's own, with its arguments as settings."""
    node = own_data.describe_own(path) if group == "data" else own_model.describe_own(path)
    _OWN[group][path] = node
    ConfigStore.instance().store(group=group, name=path, node=node)


def list_choices(group: str) -> dict[str, Any]:
    """List the choices of a group, those of the user's own among them, with their settings."""
    return {**GROUPS.get(group, {}), **_OWN.get(group, {})}


def check(config: Config) -> None:
    """Raise UserError for whatever is out of range, before anything is trained or written."""
    _check_choices(config)
    check_settings(config)
    for group in GROUPS:
        check_settings(getattr(config, group), group)
    config.data.check()
    images = config.data.count_training()
    config.model.check(config.norm)
    training.check_order(config.order)
    _check_numbers(config, images)
    _check_statistics(config, images)
    shifts.check(as_list(config.shifts), config.data, as_list(config.evaluate_on))
    steps = config.count_steps()
    _check_steps(config, steps)
    _check_freezing(config, steps)
    _check_measured(config)
    _check_device(config.device)
    if config.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("log=tensorboard: needs a package; pip install tensorboard")


def _check_choices(config: Config) -> None:
    for group, choices in GROUPS.items():
        chosen = getattr(config, group)
        if not chosen.has_any_name and type(choices.get(chosen.name)) is not type(chosen):
            raise UserError(f"{group}.name={chosen.name}: choose by {group}=, from {', '.join(choices)}")
    if not re.fullmatch(r"\w[\w.-]*", config.name) or config.name in ("runs", "reference"):
        raise UserError(f"name={config.name}: must be letters, digits, _ . - and not runs or reference")


def _check_numbers(config: Config, images: int) -> None:
    least = 2 if config.norm.uses_batch else 1
    reason = f"a batch norm needs two, and the training split has {images:,} images"
    require_within("batch_size", config.batch_size, least, images, reason)
    config.norm.check(config.batch_size)
    if config.population_images is not None:
        require_within("population_images", config.population_images, 2, images)


def _check_statistics(config: Config, images: int) -> None:
    own = config.norm.own_average()
    key = f"norm={config.norm.name}"
    if config.freeze_at is not None:
        own = EMA(MOMENTUM)
        key = "freeze_at"
    for source in find_sources(config):
        if own and isinstance(source, RunningAverage) and source.average != own:
            raise UserError(
                f"estimator={source.estimator}, momentum={source.momentum}: a network with {key} reads its running "
                f"averages while it is trained, so that another average means another training; use ema with momentum="
                f"{own.momentum}, or statistics of frozen weights (exact, precise)"
            )
        if isinstance(source, FrozenWeights) and source.images is not None:
            most = config.data.count_used() - images if source.split == "val" else images
            require_within(f"estimator={source.estimator}: images", source.images, 2, most)


def _check_steps(config: Config, steps: int) -> None:
    """UserError unless `evaluate_at` is log, final or a list, and `accuracy_at` final, all or some of that list."""
    for key, words in (("evaluate_at", ("log", "final")), ("accuracy_at", ("final", "all"))):
        value = getattr(config, key)
        for at in [] if value in words else as_list(value):
            is_share = isinstance(at, float) and 0 < at <= 1
            if not is_share and (not isinstance(at, int) or not 1 <= at <= steps):
                allowed = f"{', '.join(words)}, or a list of steps (1 to {steps:,}) and shares (0.1)"
                raise UserError(f"{key}={at}: must be {allowed}")
    if config.accuracy_at in ("final", "all"):
        return
    measured = list_steps(config.evaluate_at, steps)
    for at in as_list(config.accuracy_at):
        if list_steps(at, steps)[0] not in measured:
            raise UserError(f"accuracy_at={at}: is not among evaluate_at; list it there too")


def _check_freezing(config: Config, steps: int) -> None:
    if config.freeze_at is None:
        return
    if not 0 < config.freeze_at < 1 or config.find_freezing_step() == steps:
        raise UserError(f"freeze_at={config.freeze_at}: must be a share of the {steps:,} steps that leaves some")
    if not config.norm.is_plain:
        raise UserError(f"freeze_at={config.freeze_at}: norm={config.norm.name} cannot be frozen; use norm=batch")


def _check_measured(config: Config) -> None:
    """UserError for measurements that do not exist, share a table, or have no rows of this network."""
    chosen = {}
    for name in as_list(config.measurements):
        measurement = find_measurement(name)
        if measurement.name in chosen:
            raise UserError(f"measurements={name}: there is another table {measurement.name}; give it another name")
        chosen[measurement.name] = measurement

    if not any(measurement.covers(config.norm) for measurement in chosen.values()):
        raise UserError(f"measurements={config.measurements}: need batch norm, found norm={config.norm.name}")
    for measurement in chosen.values():
        if measurement.about_batches and (config.averaging != "none" or config.freeze_at is not None):
            raise UserError(
                f"measurements={measurement.name}: is about what batches make of running averages, which networks with "
                "freeze_at or averaging do not have to the end"
            )


def _check_device(name: str) -> None:
    if name == "auto":
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error
