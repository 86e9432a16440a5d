"""The settings of a job, and the identity of the network that they describe. Their checks: `bnlab.harness.config`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bnlab.files import digest
from bnlab.harness.artifacts.data import Data, own_data
from bnlab.harness.artifacts.data.digits import Digits
from bnlab.harness.artifacts.models import Model, own_model
from bnlab.harness.artifacts.models.cnn import Cnn
from bnlab.harness.artifacts.models.torchvision_models import Torchvision
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.norms.batch import Batch
from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.artifacts.optimizers.sgd import Sgd
from bnlab.harness.artifacts.own import digest_of_source, find_arguments, import_object
from bnlab.harness.artifacts.training import steps_per_epoch
from bnlab.harness.components import COMPONENTS


@dataclass
class Config:
    """One job: a network to train, and the statistics to measure on it."""

    # What determines the network
    data: Data = field(default_factory=Digits)
    model: Model = field(default_factory=Cnn)
    norm: Norm = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Sgd)
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
    population_images: int | None = None  # a sample for statistics and predictions before the last step; None: all
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
    log: str = "none"  # while a network trains: none, tensorboard; see `live.build_live_log`


GROUPS: dict[str, Mapping[str, Any]] = {
    "data": COMPONENTS["data"],
    "model": COMPONENTS["model"],
    "norm": COMPONENTS["norm"],
    "optimizer": COMPONENTS["optimizer"],
}
"""The groups of settings of which one is chosen by name, and what there is to choose from."""


def network(config: Config) -> dict[str, Any]:
    """All settings that the trained network depends on, seed apart, with defaults left off: what it is named by.

    A field that is added later with a default leaves old networks their names.
    """
    length = "epochs" if config.steps is None else "steps"
    found: dict[str, Any] = {"batch_size": config.batch_size, length: getattr(config, length)}
    freezing = [] if config.freeze_at is None else ["freeze_at", "freeze_with"]
    found |= _leave_off_usual(config, ["order", "averaging", *freezing])
    for group in GROUPS:
        chosen = getattr(config, group)
        unread = getattr(chosen, "unread", ())
        keys = [f.name for f in fields(chosen) if f.name not in unread]
        inner = {"name": chosen.name, **_leave_off_usual(chosen, keys)}
        if chosen.is_own:
            inner["source"] = digest_of_source(import_object(chosen.name))
        found[group] = inner
    return found


def list_own_settings(config: Config) -> dict[str, Any]:
    """List the arguments of the user's functions that are settings, by dotted names; not where data are read from."""
    own: dict[str, Any] = {}
    for group in GROUPS:
        arguments = find_arguments(getattr(config, group))
        own |= {f"{group}.{name}": value for name, value in arguments.items()}
    own.pop("data.root", None)
    return own


def _leave_off_usual(chosen: Any, keys: list[str]) -> dict[str, Any]:
    """The keys with their values, without those that have the default."""
    usual = {f.name: f.default for f in fields(chosen)}
    return {key: getattr(chosen, key) for key in keys if getattr(chosen, key) != usual[key]}


def restore_config(values: Mapping[str, Any]) -> Config:
    """Make a configuration of its settings as a run's `config.yaml` has them; what is not among them has its default.

    Raises:
        UserError: a function of the user's own cannot be imported.
    """
    known = {each.name for each in fields(Config)}
    plain = {key: value for key, value in values.items() if key in known and key not in GROUPS}
    groups = {group: _restore_choice(group, values[group]) for group in GROUPS}
    return Config(**plain, **groups)


def _restore_choice(group: str, values: Mapping[str, Any]) -> Any:
    """What was chosen of a group: by its name one of bnlab's choices, or a function of the user's own."""
    name = values["name"]
    choices = [choice for choice in GROUPS[group].values() if choice.name == name]
    if choices:
        choice = choices[0]
    elif "." in name:
        choice = own_data.describe_own(name) if group == "data" else own_model.describe_own(name)
    else:
        choice = Torchvision()
    known = {each.name for each in fields(choice)}
    return replace(choice, **{key: value for key, value in values.items() if key in known})


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
        return sorted({round(steps ** (i / 9)) for i in range(10)})
    return sorted({max(1, round(at * steps)) if isinstance(at, float) else at for at in as_list(wanted)})


def as_list(value: Any) -> list[Any]:
    """The values of a setting that takes one or a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
