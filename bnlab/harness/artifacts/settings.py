"""The settings of a job, and the identity of the network that they describe. Their checks: `bnlab.harness.config`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from bnlab.files import digest
from bnlab.harness.artifacts import data, models, norms, training
from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.models import ModelConfig
from bnlab.harness.artifacts.norms import NormConfig
from bnlab.harness.artifacts.training import OptimizerConfig, steps_per_epoch


@dataclass
class Config:
    """One job: a network to train, and the statistics to measure on it."""

    # What determines the network
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 128
    epochs: int = 10
    steps: int | None = None  # instead of epochs
    order: str = "shuffled"  # of an epoch: shuffled, replacement, sorted, blocks, blocks:16; see `training.Batches`
    freeze_at: float | None = None  # share of the training from which on batch norm is in eval mode
    freeze_with: str = "ema"  # with which statistics, those of that step: ema (its own running averages), exact
    averaging: str = "none"  # of the weights that are measured: none, swa, ema; see `averaging.begin_average`
    seed: int = 0
    # What is measured on it: any of these may change without training again
    momentum: Any = 0.1  # weight of the new batch, one value or a list
    estimator: Any = "ema"  # one name or a list: ema, ema_debiased, cumulative, last_batch, precise, exact, or yours
    population: Any = "train"  # data of exact and precise statistics, one or a list: train, train_augmented, val
    evaluate_at: Any = "log"  # log, final, or a list of steps (integers) and shares of the training (0.1)
    accuracy_at: Any = "final"  # final, all steps of evaluate_at, or a list of some of them
    evaluate_on: Any = "test"  # images that are predicted, one split or a list: test, val, train (as many as test has)
    shifts: Any = "none"  # how these are changed, one or a list: none, noise:1 (see `artifacts.shifts`), fonts:dejavu
    measurements: Any = field(default_factory=lambda: ["gaps", "evaluations"])  # one name or a list
    # How and where
    name: str = "adhoc"  # results/<name>/; set by experiment=
    results: str = "results"
    device: str = "auto"
    threads: int | None = None  # CPU threads of torch; None: all, or one in each process of a parallel launcher
    dry_run: bool = False  # only say how many networks and how long
    csv: bool = False  # tables as CSV too


_DEFAULTS = Config()


def training_settings(config: Config) -> dict[str, Any]:
    """All settings that the trained network depends on, seed apart.

    What its data set, model or optimizer ignores is not among them, nor what is only evaluated with.
    """
    return {
        "data": data.training_settings(config.data),
        "model": models.training_settings(config.model),
        "norm": norms.training_settings(config.norm),
        "optimizer": training.training_settings(config.optimizer),
        "batch_size": config.batch_size,
        **({"epochs": config.epochs} if config.steps is None else {"steps": config.steps}),
        "order": config.order,
        "averaging": config.averaging,
        **({} if config.freeze_at is None else {"freeze_at": config.freeze_at, "freeze_with": config.freeze_with}),
    }


def network(config: Config) -> dict[str, Any]:
    """`training_settings` with defaults left off: what a network is named by.

    A field that is added later with a default leaves old networks their names.
    """
    return _leave_off(training_settings(config), asdict(_DEFAULTS))


def _leave_off(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The values that the other dictionary, nested in the same way, does not have."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {key: inner} if (inner := _leave_off(value, others[key])) else {}
        elif key not in others or value != others[key]:
            found[key] = value
    return found


def changed_settings(config: Config, saved: dict[str, Any]) -> list[str]:
    """What the network depends on and what a configuration saved earlier has another value of; a phrase for each.

    A setting that the saved one does not have came later, with a default that leaves old networks as they are.
    """
    return describe_differences(saved, training_settings(config))


def describe_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A phrase for each key, dotted, that both have with different values."""
    before, after = flatten(then), flatten(now)
    changed = [key for key in after if key in before and before[key] != after[key]]
    return [f"{key}={before[key]} then, {after[key]} now" for key in changed]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def network_hash(config: Config) -> str:
    """Ten hexadecimal digits that name the network's settings."""
    return digest(json.dumps(network(config), sort_keys=True), digits=10)


def total_steps(config: Config, images: int) -> int:
    """Updates in the whole training."""
    return config.steps if config.steps is not None else config.epochs * steps_per_epoch(images, config.batch_size)


def freezing_step(config: Config, steps: int) -> int | None:
    """The updates of `steps` after which batch norm is frozen; None: it never is."""
    return None if config.freeze_at is None else max(1, round(config.freeze_at * steps))


def list_steps(wanted: Any, steps: int) -> list[int]:
    """The steps that a setting such as `evaluate_at` means, ascending, all in 1..`steps`."""
    if wanted == "final":
        return [steps]
    if wanted == "log":
        points = 10
        return sorted({round(steps ** (i / (points - 1))) for i in range(points)})
    found = {max(1, round(at * steps)) if isinstance(at, float) else at for at in as_list(wanted)}
    return sorted(found)


def as_list(value: Any) -> list[Any]:
    """The values of a setting that takes one or a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def field_names(cls: type, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted, for suggestions."""
    found: list[str] = []
    for f in fields(cls):
        inner = f.default_factory() if callable(f.default_factory) else f.default
        found.append(prefix + f.name)
        if is_dataclass(inner):
            found += field_names(type(inner), f"{prefix}{f.name}.")
    return found
