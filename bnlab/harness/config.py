"""What can be varied: the typed configuration, its checks, and the identity of a network that it describes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from bnlab.harness import data, measurements, models, training
from bnlab.harness.data import DataConfig
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.sources import Setting, settings
from bnlab.harness.models import ModelConfig
from bnlab.harness.training import OptimizerConfig, steps_per_epoch

POPULATIONS = ("train", "train_augmented", "val")


@dataclass
class Config:
    """One job: a network to train, and the statistics to measure on it."""

    # What determines the network
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 128
    epochs: int = 10
    steps: int | None = None  # instead of epochs
    seed: int = 0
    # What is measured on it: any of these may change without training again
    momentum: Any = 0.1  # weight of the new batch, one value or a list
    estimator: Any = "ema"  # one name or a list: ema, ema_debiased, cumulative, last_batch, precise, exact, or yours
    population: str = "train"  # data of exact and precise statistics: train, train_augmented, val
    evaluate_at: Any = "log"  # log, final, or a list of steps (integers) and shares of the training (0.1)
    accuracy_at: str = "final"  # final, or all steps of evaluate_at
    measurements: list[str] = field(default_factory=lambda: ["gaps", "evaluations"])
    # How and where
    name: str = "adhoc"  # results/<name>/; set by experiment=
    results: str = "results"
    device: str = "auto"
    threads: int | None = None  # CPU threads of torch; None: all, or one in each process of a parallel launcher
    dry_run: bool = False  # only say how many networks and how long
    csv: bool = False  # tables as CSV too


_DEFAULTS = Config()
_MOST_STEPS = 10**7  # file names hold seven digits


def training_settings(config: Config) -> dict[str, Any]:
    """All settings that the trained network depends on, seed apart.

    What its data set, model or optimizer ignores is not among them, nor what is only evaluated with.
    """
    return {
        "data": data.training_settings(config.data),
        "model": models.training_settings(config.model),
        "optimizer": training.training_settings(config.optimizer),
        "batch_size": config.batch_size,
        **({"epochs": config.epochs} if config.steps is None else {"steps": config.steps}),
    }


def network(config: Config) -> dict[str, Any]:
    """`training_settings` with defaults left off: what a network is named by.

    A field that is added later with a default leaves old networks their names.
    """
    return _differing(training_settings(config), asdict(_DEFAULTS))


def _differing(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The values that the other dictionary, nested in the same way, does not have."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {key: inner} if (inner := _differing(value, others[key])) else {}
        elif key not in others or value != others[key]:
            found[key] = value
    return found


def changed_settings(config: Config, saved: dict[str, Any]) -> list[str]:
    """What the network depends on and what a configuration saved earlier has another value of; a phrase for each.

    A setting that the saved one does not have came later, with a default that leaves old networks as they are.
    """
    return differences(saved, training_settings(config))


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A phrase for each key, dotted, that both have with different values."""
    before, after = _flat(then), _flat(now)
    changed = [key for key in after if key in before and before[key] != after[key]]
    return [f"{key}={before[key]} then, {after[key]} now" for key in changed]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def network_hash(config: Config) -> str:
    """Ten hexadecimal digits that name the network's settings."""
    return hashlib.sha256(json.dumps(network(config), sort_keys=True).encode()).hexdigest()[:10]


def total_steps(config: Config, images: int) -> int:
    """Updates in the whole training."""
    return config.steps if config.steps is not None else config.epochs * steps_per_epoch(images, config.batch_size)


def statistics_settings(config: Config) -> list[Setting]:
    """Every estimator with every momentum, each once."""
    return settings(_listed(config.estimator), _listed(config.momentum), config.population)


def checkpoints(config: Config, steps: int) -> list[int]:
    """The steps at which the network is measured, ascending, all in 1..`steps`."""
    wanted = config.evaluate_at
    if wanted == "final":
        return [steps]
    if wanted == "log":
        points = 10
        return sorted({round(steps ** (i / (points - 1))) for i in range(points)})
    found = {max(1, round(at * steps)) if isinstance(at, float) else at for at in _listed(wanted)}
    return sorted(found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check(config: Config) -> None:
    """Raise UserError for whatever is out of range, before anything is trained or written."""
    images = data.check(config.data)
    models.check(config.model)
    training.check(config.optimizer)
    _check_numbers(config, images)
    _check_statistics(config, images)
    for key, allowed in (("population", POPULATIONS), ("accuracy_at", ("final", "all"))):
        if getattr(config, key) not in allowed:
            raise UserError(f"{key}={getattr(config, key)}: must be one of {', '.join(allowed)}")
    unknown = [name for name in config.measurements if name not in measurements.NAMES]
    if unknown or not config.measurements:
        raise UserError(f"measurements={config.measurements}: choose from {', '.join(measurements.NAMES)}")
    _check_evaluate_at(config.evaluate_at, total_steps(config, images))
    _check_device(config.device)
    check_name(config)


def check_name(config: Config) -> None:
    """Raise UserError unless `results` and `name` are folders."""
    if not config.results.strip():
        raise UserError("results=: must be a folder; results is the usual one")
    if not re.fullmatch(r"\w[\w.-]*", config.name) or config.name in ("runs", "reference"):
        raise UserError(f"name={config.name!r}: must be letters, digits, _ . - and not runs or reference")


def _check_numbers(config: Config, images: int) -> None:
    if not 2 <= config.batch_size <= images:
        reason = "batch norm needs at least 2" if config.batch_size < 2 else f"the training split has {images:,} images"
        raise UserError(f"batch_size={config.batch_size}: must be 2 to {images} ({reason})")
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
        values = _listed(getattr(config, key))
        if not values:
            raise UserError(f"{key}=[]: give at least one value")
        kinds, named = ((int, float), "a number") if key == "momentum" else ((str,), "a name")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UserError(f"{key}={value}: must be {named} or a list")
    for value in _listed(config.momentum):
        if not 0 < value <= 1:
            raise UserError(f"momentum={value}: is the weight of the new batch; must be above 0 and at most 1")
    for setting in statistics_settings(config):
        if setting.rule is not None or setting.images is None:
            continue
        is_val = setting.split == "val"
        split, most = ("validation", data.images_used(config.data) - images) if is_val else ("training", images)
        if setting.images > most:
            raise UserError(f"estimator={setting.estimator}: the {split} split has {most:,} images")


def _check_evaluate_at(value: Any, steps: int) -> None:
    if value in ("log", "final"):
        return
    values = _listed(value)
    for at in values:
        share = isinstance(at, float) and 0 < at <= 1
        if not share and (isinstance(at, bool) or not isinstance(at, int) or at < 1):
            raise UserError(f"evaluate_at={at}: must be log, final, or a list of steps (1, 100) and shares (0.1)")
        if not share and at > steps:
            raise UserError(f"evaluate_at={at}: the training has {steps:,} steps; shares such as 0.5 fit any length")
    if not values:
        raise UserError("evaluate_at=[]: give at least one step")


def _check_device(name: str) -> None:
    import torch

    if name == "auto":
        return
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={name}: must be auto, cpu, cuda or cuda:1 and so on")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error


def field_names(cls: type, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted, for suggestions."""
    found: list[str] = []
    for f in fields(cls):
        inner = f.default_factory() if callable(f.default_factory) else f.default
        found.append(prefix + f.name)
        if is_dataclass(inner):
            found += field_names(type(inner), f"{prefix}{f.name}.")
    return found
