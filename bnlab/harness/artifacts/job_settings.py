"""The settings of a job, and the identity of the network that they describe. Their checks: `bnlab.harness.config`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bnlab.common.files import digest
from bnlab.harness.artifacts.data import Data, Digits
from bnlab.harness.artifacts.models import Cnn, Layered, Model
from bnlab.harness.artifacts.norms import Batch, Norm
from bnlab.harness.artifacts.optimizers import Optimizer, Sgd
from bnlab.harness.artifacts.shifts import CORRUPTIONS
from bnlab.harness.artifacts.tasks import Classification, OwnTask, Task
from bnlab.harness.components import COMPONENTS, leave_off_defaults, setting
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, make_own
from bnlab.harness.trained_with import LARGER_IS_BETTER, METRIC_NAME, METRIC_UNIT, TRAINED_WITH
from bnlab.harness.updates import steps_per_epoch
from bnlab.harness.user_code import SOURCE

MOMENTUM = 0.1
"""PyTorch's, of a network's own running averages."""


@dataclass
class Config:
    """One job: a network to train, and the statistics to measure on it."""

    # What determines the network
    data: Data = field(default_factory=Digits)
    task: Task = field(default_factory=Classification)
    model: Model = field(default_factory=Cnn)
    norm: Norm = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = setting(128, "images in a batch of training")
    epochs: int = setting(10, "length of the training in passes over the training split", at_least=1)
    steps: int | None = setting(None, "length of the training in updates, instead of epochs", at_least=1)
    order: str = setting(
        "shuffled",
        "of the images in an epoch: shuffled; sorted, class after class; blocks:16, blocks of 16 images of a class in "
        "random order",
    )
    last_batch: str = setting(
        "keep",
        "of an epoch, where images are left that do not fill a batch: keep, as a smaller batch (PyTorch's "
        "drop_last=False; a single image is left out), whose update is as large as that of a full one; drop",
        choices=("keep", "drop"),
    )
    freeze_at: float | None = setting(
        None,
        "share of the training (0.8) from which on batch norm is in eval mode, with the statistics of that step; the "
        "estimator ema (momentum=0.1) is then what the network holds; of norm=batch only",
    )
    freeze_with: str = setting(
        "ema", "those statistics: ema, the network's own running averages, or exact", choices=("ema", "exact")
    )
    precision: str = setting(
        "float32",
        "of forward passes in training: float32; bfloat16, by autocast, where weights and running averages stay "
        "float32, as does evaluation",
        choices=("float32", "bfloat16"),
    )
    averaging: str = setting(
        "none",
        "of the weights that are measured: none; swa, from 75% of the training on; ema, with decay 0.99; estimators of "
        "the trained network are then stale, its running averages, and averaged, its buffers averaged as the weights",
        choices=("none", "swa", "ema"),
    )
    weight_averages: Any = setting(
        None,
        "decays of averages of weights and buffers, or a list, which are kept beside the trained network: with 0.99 "
        "new = 0.99·old + 0.01·weights after each update; measurements of a question's own read them",
        at_least=0,
        at_most=0.999999,
        is_list=True,
    )
    seed: int = setting(0, "initialization, order and augmentation are derived from it", at_least=0, at_most=2**32 - 1)
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
        'always the same; "exact(images=10000)" among the estimators shows its error; the same in all sweeps of a name',
        at_least=2,
    )
    evaluate_at: Any = setting(
        "log",
        "steps that are measured: log, final, or a list of steps (0: the initial weights) and of shares of the "
        "training (0.1)",
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
        f"how these are changed, or a list: none; a corruption ({', '.join(CORRUPTIONS)}) with a strength of 1, "
        "2 or 3, as noise:1; of glyphs also fonts:dejavu, fonts:stix_cm, fonts:all, unless they are those of training",
        is_list=True,
    )
    measurements: Any = setting(["gaps", "evaluations"], "tables that are measured, or one; see below", is_list=True)
    # How and where
    name: str = setting("adhoc", "of the sweep: its tables lie in results/<name>/; an experiment sets it")
    results: str = setting("results", "folder of all networks and tables")
    device: str = setting("auto", "cpu, cuda, cuda:1; auto: cuda if there is one")
    # One thread of each network, and no more on idle cores: their number changes the last bits of results, so that it
    # may depend neither on the machine nor on what else runs there. Small networks gain nothing from more.
    threads: int = setting(1, "CPU threads of torch for a network", at_least=1)
    dry_run: bool = setting(False, "only say how many networks, how long training takes, and how much disk space")
    quiet: bool = setting(False, "print nothing but failures, and what dry_run says")
    log: str = setting(
        "none",
        "what shows a training while it goes on: none; tensorboard, in the network's folder; a function of yours, as "
        "mine.make_logger",
    )

    def __post_init__(self) -> None:
        if isinstance(self.model, Layered):
            # Only a layer shows what a norm of the user's own is, and to make one takes a number of channels.
            self.norm = self.norm.place(self.model.width)

    @property
    def folder(self) -> Path:
        """Where the sweep's tables lie, and what its jobs asked for."""
        return Path(self.results, self.name)

    def count_steps(self) -> int:
        """Count the updates in the whole training."""
        if self.steps is not None:
            return self.steps
        return self.epochs * steps_per_epoch(self.data.count_training(), self.batch_size, self.last_batch)

    @property
    def decays(self) -> list[float]:
        """The decays of `weight_averages`, each once."""
        kept = [] if self.weight_averages is None else as_list(self.weight_averages)
        return list(dict.fromkeys(float(decay) for decay in kept))

    def compute_freezing_step(self) -> int | None:
        """Compute the step from which on batch norm is frozen; None: it never is."""
        if self.freeze_at is None:
            return None
        # Freezing follows an update, so that step 1 is the earliest.
        return max(1, round(self.freeze_at * self.count_steps()))


GROUPS: dict[str, Mapping[str, Any]] = {
    "data": COMPONENTS["data"],
    "task": COMPONENTS["task"],
    "model": COMPONENTS["model"],
    "norm": COMPONENTS["norm"],
    "optimizer": COMPONENTS["optimizer"],
}
"""The groups of settings of which one is chosen by name, and what there is to choose from."""


def list_naming_settings(config: Config) -> dict[str, Any]:
    """Collect all settings that the trained network depends on, seed apart: they name it.

    Defaults are left off: a field that is added later with a default leaves old networks their names.
    """
    # Where `steps` is set nothing reads `epochs`, so that the name has one of the two.
    length = "epochs" if config.steps is None else "steps"
    settings: dict[str, Any] = {"batch_size": config.batch_size, length: getattr(config, length)}

    keys = [key for key in TRAINED_WITH if key not in ("batch_size", "epochs", "steps")]
    if config.freeze_at is None:
        keys.remove("freeze_with")  # nothing reads it then
    settings |= leave_off_defaults(config, keys)
    groups = {group: getattr(config, group).identify() for group in GROUPS}
    if not config.task.is_own:  # networks that classify are named without it
        del groups["task"]
    return settings | groups


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Digest the naming settings of a network to ten hexadecimal digits, which name it."""
    return digest(json.dumps(settings, sort_keys=True), digits=10)


def list_own(config: Config) -> dict[str, Own]:
    """List what a network has of the user's own, by the setting that chooses it."""
    return {group: getattr(config, group) for group in GROUPS if getattr(config, group).is_own}


def list_own_settings(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
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


def restore_config(values: Mapping[str, Any]) -> Config:
    """Make a configuration of a run's `config.yaml`, with defaults for what is missing; UserError if it cannot."""
    known = {each.name for each in fields(Config)}
    plain = {key: value for key, value in values.items() if key in known and key not in GROUPS}
    groups = {group: _restore_choice(group, values[group]) for group in GROUPS if group in values}
    return Config(**plain, **groups)


def _restore_choice(group: str, values: Mapping[str, Any]) -> Any:
    """Restore the choice of a group: one of bnlab's by its name, or a function of the user's own."""
    name = values["name"]
    # `config.yaml` has the name of the component, which may differ from the word that chose it: `plain` is a
    # `cnn` with other settings.
    choices = [choice for choice in GROUPS[group].values() if choice.name == name]
    if choices:
        choice = choices[0]
    elif "." in name:
        choice = make_own(group, name)
    else:
        raise UserError(f"{group}={name}: this version of bnlab has none of this name")
    # A setting that this version does not have is left out; `open_run` notices if the network has another name without
    # it.
    known = {each.name for each in fields(choice)}
    changes = {key: value for key, value in values.items() if key in known}
    return replace(choice, **changes)


def list_steps(wanted: Any, steps: int) -> list[int]:
    """List the steps that a setting such as `evaluate_at` means, ascending; 0 are the initial weights."""
    if wanted == "final":
        return [steps]
    if wanted == "log":
        # Ten steps, equally far apart on a logarithmic axis; in a short training some of them coincide.
        points = [round(steps ** (ninths / 9)) for ninths in range(10)]
        return sorted(set(points))

    chosen = set()
    for at in as_list(wanted):
        # The type decides, because 1 is the first step and 1.0 the end of the training. A small share may be
        # rounded to 0, which would mean the initial weights.
        is_share = isinstance(at, float)
        chosen.add(max(1, round(at * steps)) if is_share else at)
    return sorted(chosen)


def as_list(value: Any) -> list[Any]:
    """List the values of a setting that takes one or a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
