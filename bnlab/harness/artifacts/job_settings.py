"""The settings of a job, and the identity of the network that they describe. What a setting alone
cannot tell is checked in `bnlab.harness.checks`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bnlab.common.files import digest
from bnlab.harness.artifacts.data import Data, Digits
from bnlab.harness.artifacts.models import Cnn, Layered, Model
from bnlab.harness.artifacts.norms import Batch, Norm
from bnlab.harness.artifacts.optimizers import Optimizer, Sgd
from bnlab.harness.artifacts.shifts import CORRUPTIONS
from bnlab.harness.artifacts.tasks import Classification, Task
from bnlab.harness.errors import UserError, suggest
from bnlab.harness.own import Own, make_own
from bnlab.harness.settings import (
    COMPONENTS,
    explain_unknown,
    leave_off_defaults,
    list_names,
    read_settings,
    setting,
    write_argument,
)
from bnlab.harness.updates import steps_per_epoch

USUAL_TABLES = ("gaps", "evaluations")
"""Those that are measured unless others are named, and that any sweep is drawn by."""

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
        "order of the images in an epoch: shuffled; sorted, class after class; blocks:16, blocks of 16 images of a "
        "class in random order",
    )
    last_batch: str = setting(
        "keep",
        "what becomes of images that do not fill the last batch of an epoch: keep, as a smaller batch (PyTorch's "
        "drop_last=False; a single image is left out), whose update is as large as that of a full one; drop",
        choices=("keep", "drop"),
    )
    freeze_at: float | None = setting(
        None,
        "share of the training (0.8) from which on batch norm is in eval mode, with the statistics of that step; the "
        "estimator ema (momentum=0.1) is then what the network holds; of norm=batch only",
    )
    freeze_with: str = setting(
        "ema",
        "statistics that freeze_at keeps: ema, the network's own running averages, or exact",
        choices=("ema", "exact"),
    )
    precision: str = setting(
        "float32",
        "number format of forward passes in training: float32; bfloat16, by autocast, where weights and running "
        "averages stay float32, as does evaluation",
        choices=("float32", "bfloat16"),
    )
    averaging: str = setting(
        "none",
        "average of the weights that is measured: none; swa, from 75% of the training on; ema, with decay 0.99; the "
        "estimators are then stale, running averages of the trained network, and averaged, its buffers averaged as the "
        "weights",
        choices=("none", "swa", "ema"),
    )
    weight_averages: float | list[float] | None = setting(
        None,
        "decays of averages of weights and buffers, or a list, which are kept beside the trained network: with 0.99 "
        "new = 0.99·old + 0.01·weights after each update; measurements of a question's own read them",
        at_least=0,
        at_most=0.999999,
    )
    seed: int = setting(0, "initialization, order and augmentation are derived from it", at_least=0, at_most=2**32 - 1)

    # What is measured on it: any of these may change without training again
    momentum: float | list[float] = setting(
        0.1, "weight of the new batch, or a list", more_than=0, at_most=1, role="measuring"
    )
    estimator: str | list[str] = setting("ema", "which statistics, or a list; see below", role="measuring")
    population: str | list[str] = setting(
        "train",
        "images that statistics of frozen weights are of, or a list: train, train_augmented, val",
        choices=("train", "train_augmented", "val"),
        role="measuring",
    )
    population_images: int | None = setting(
        None,
        "number of images in a sample, always the same, that stands for a large data set at all steps but the last, "
        'for statistics and for predictions; "exact(images=10000)" among the estimators shows its error; the same in '
        "all sweeps of a name",
        at_least=2,
        role="measuring",
    )
    evaluate_at: Any | list[Any] = setting(
        "log",
        "steps that are measured: log, final, or a list of steps (0: the initial weights) and of shares of the "
        "training (0.1)",
        role="measuring",
    )
    accuracy_at: Any | list[Any] = setting(
        "final",
        "where predictions are measured too: final, all of evaluate_at, or a list of some of them",
        role="measuring",
    )
    evaluate_on: str | list[str] = setting(
        "test",
        "images that are predicted, or a list: test, val, train (as many as test has)",
        choices=("test", "val", "train"),
        role="measuring",
    )
    shifts: str | list[str] = setting(
        "none",
        f"changes of the images that are predicted, or a list: none; a corruption ({', '.join(CORRUPTIONS)}) with a "
        "strength of 1, 2 or 3, as noise:1; of glyphs also fonts:dejavu, fonts:stix_cm, fonts:all, unless they are "
        "those of training",
        role="measuring",
    )
    measurements: str | list[str] = setting(
        [*USUAL_TABLES], "tables that are measured, or one; see below", role="measuring"
    )

    # How and where
    name: str = setting(
        "adhoc", "name of the sweep; its tables lie in results/<name>/; an experiment sets it", role="running"
    )
    results: str = setting("results", "folder of all networks and tables", role="running")
    device: str = setting("auto", "cpu, cuda, cuda:1; auto: cuda if there is one", role="running")
    # One thread of each network, and no more on idle cores: their number changes the last bits of results, so that it
    # may depend neither on the machine nor on what else runs there. Small networks gain nothing from more.
    threads: int = setting(1, "CPU threads of torch for a network", at_least=1, role="running")
    dry_run: bool = setting(
        False, "only say how many networks, how long training takes, and how much disk space", role="running"
    )
    quiet: bool = setting(False, "print nothing but failures, and what dry_run says", role="running")
    log: str = setting(
        "none",
        "what shows a training while it goes on: none; tensorboard, in the network's folder; a function of yours, as "
        "mine.make_logger",
        role="running",
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
    # A name has the norm also where a user's own model does not read it.
    unread = list_unread({**vars(config), "task": config.task.name, "model": config.model.name}) - {"norm"}
    keys = {*list_names(Config, "network")} - {"seed"} - unread
    always = {"batch_size", "epochs"} - unread  # although they may be the default
    settings = {key: getattr(config, key) for key in always} | leave_off_defaults(config, keys)
    return settings | {group: getattr(config, group).identify() for group in {*GROUPS} - unread}


def list_unread(settings: Mapping[str, Any]) -> set[str]:
    """List the settings and groups that a network does not read, because of its other settings.

    Args:
        settings: as a sweep's file calls them; of a group the name that was chosen.
    """
    unread = set()
    if settings.get("steps"):
        unread.add("epochs")
    if settings.get("freeze_at") is None:
        unread.add("freeze_with")
    if settings.get("task") == Classification.name:  # which networks do unless another task is chosen
        unread.add("task")
    if "." in settings.get("model", ""):  # a user's own model has normalization of its own
        unread.add("norm")
    return unread


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Digest the naming settings of a network to ten hexadecimal digits, which name it."""
    return digest(json.dumps(settings, sort_keys=True), digits=10)


def list_own(config: Config) -> dict[str, Own]:
    """List what a network has of the user's own, by the setting that chooses it."""
    return {group: getattr(config, group) for group in GROUPS if getattr(config, group).is_own}


def flatten_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what a network is trained with, seed apart, from its `config.yaml`, under the names of columns of `runs`.

    Settings that the network does not read are left out.
    """
    names = {*GROUPS, *list_names(Config, "network")} - {"seed"}
    kept = {key: value for key, value in config.items() if key in names}
    settings = {key.removesuffix(".name"): value for key, value in _flatten(kept)}
    unread = list_unread(settings)
    return {key: value for key, value in settings.items() if key.partition(".")[0] not in unread}


def list_plain_settings() -> dict[str, Any]:
    """List the settings without a group, with their defaults."""
    return {key: value for key, value in asdict(Config()).items() if key not in GROUPS}


def read_config(values: Mapping[str, Any], files: Iterable[str] = ()) -> Config:
    """Make the configuration of a job from values by name, in a dictionary for each group.

    Args:
        values: as a command line, a file, or `config.yaml` of a run gives them; what is missing has its default.
        files: further words of a command line, of which one may be meant where there is no such setting.

    Raises:
        UserError: a setting that there is not, or a value that is out of its range.
    """
    usual = Config()
    classes: dict[str, type[Any]] = {"": Config}
    for group in GROUPS:
        chosen = values.get(group, {})
        if not isinstance(chosen, Mapping):
            raise UserError(f"{group}={chosen}: a file chooses it under defaults:, as - override /{group}: {chosen}")
        classes[group] = _find_class(group, chosen.get("name", getattr(usual, group).name))
    known = {group: {each.name for each in fields(cls)} for group, cls in classes.items()}

    by_group: dict[str, dict[str, Any]] = {group: {} for group in classes}
    for key, value in _flatten(values):
        group, _, name = key.rpartition(".")
        if name not in known.get(group, ()):
            raise UserError(f"{key}={write_argument(value)}: {explain_unknown(key, classes, [*GROUPS, *files])}")
        by_group[group][name] = value

    groups = {group: read_settings(classes[group], by_group[group], group) for group in GROUPS}
    return read_settings(Config, by_group[""] | groups)


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """List settings with their group before their name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _find_class(group: str, name: str) -> type[Any]:
    """Find the class of a choice: one of bnlab's, or that of a function of the user's own."""
    # By the name of the component, which may differ from the word that chose it: `plain` is a `cnn` with other
    # settings.
    known = {choice.name: type(choice) for choice in GROUPS[group].values()}
    if name in known:
        return known[name]
    if "." not in name:
        raise UserError(f"{group}={name}: {suggest(name, [*GROUPS[group], 'package.module.function'])}")
    return type(make_own(group, name))


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
