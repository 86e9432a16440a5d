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
from bnlab.harness.components import COMPONENTS, setting


@dataclass
class Config:
    """One job: a network to train, and the statistics to measure on it."""

    # What determines the network
    data: Data = field(default_factory=Digits)
    model: Model = field(default_factory=Cnn)
    norm: Norm = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = setting(128, "images in a batch of training")
    epochs: int = setting(10, "length of the training in passes over the training split", at_least=1)
    steps: int | None = setting(None, "length of the training in updates, instead of epochs", at_least=1)
    order: str = setting(
        "shuffled",
        "of the images in an epoch: shuffled; replacement, drawn with replacement; sorted, class after class; blocks, "
        "class after class with the classes in random order; blocks:16, blocks of 16 images of a class in random order",
    )
    freeze_at: float | None = setting(
        None,
        "share of the training (0.8) from which on batch norm is in eval mode, with the statistics of that step; the "
        "estimator ema (momentum=0.1) is then what the network holds; of norm=batch only",
    )
    freeze_with: str = setting(
        "ema", "those statistics: ema, the network's own running averages, or exact", choices=("ema", "exact")
    )
    averaging: str = setting(
        "none",
        "of the weights that are measured: none; swa, from 75% of the training on; ema, with decay 0.99; estimators of "
        "the trained network are then stale, its running averages, and averaged, its buffers averaged as the weights",
        choices=("none", "swa", "ema"),
    )
    seed: int = setting(0, "initialization, order and augmentation are derived from it", at_least=0)
    # What is measured on it: any of these may change without training again
    momentum: Any = setting(0.1, "weight of the new batch, or a list", is_weight=True, is_list=True)
    estimator: Any = setting("ema", "which statistics, or a list; see below", is_list=True)
    population: Any = setting(
        "train",
        "images that statistics of frozen weights are of, or a list: train, train_augmented, val",
        choices=("train", "train_augmented", "val"),
        is_list=True,
    )
    population_images: int | None = setting(
        None,
        "of a large data set so many of them, and of those that are predicted, before the last step: a sample that is "
        'always the same; "exact(images=10000)" among the estimators shows its error; keep it in all sweeps of a name',
        at_least=2,
    )
    evaluate_at: Any = setting(
        "log",
        "steps that are measured: log, final, or a list of steps and of shares of the training (0.1)",
        is_list=True,
    )
    accuracy_at: Any = setting(
        "final",
        "where predictions are measured too: final, all of evaluate_at, or a list of some of them",
        is_list=True,
    )
    evaluate_on: Any = setting(
        "test",
        "images that are predicted, or a list: test, val, train (as many as test has)",
        choices=("test", "val", "train"),
        is_list=True,
    )
    shifts: Any = setting(
        "none",
        "how these are changed, or a list: none; noise, blur, contrast, translation or occlusion with a strength of 1, "
        "2 or 3, as noise:1; of glyphs trained on other fonts also fonts:dejavu, fonts:stix_cm, fonts:all",
        is_list=True,
    )
    measurements: Any = setting(["gaps", "evaluations"], "tables that are measured, or one; see below", is_list=True)
    # How and where
    name: str = setting("adhoc", "of the sweep: its tables lie in results/<name>/; an experiment sets it")
    results: str = setting("results", "folder of all networks and tables")
    device: str = setting("auto", "cpu, cuda, cuda:1; auto: an accelerator if there is one")
    threads: int | None = setting(
        None, "CPU threads of torch; null: all, or one in each process of a parallel launcher", at_least=1
    )
    dry_run: bool = setting(False, "only say how many networks, how long, and how much disk space")
    csv: bool = setting(False, "write tables as CSV too")
    log: str = setting("none", "what shows a training while it goes on", choices=("none", "tensorboard"))


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
