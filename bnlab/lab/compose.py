"""The jobs of a command line: Hydra composes each one's settings, and all are checked before the first is run."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from bnlab.harness.artifacts.settings import Config
from bnlab.harness.checks import require_one_of
from bnlab.harness.config import check, register, register_own
from bnlab.harness.errors import UserError
from bnlab.harness.own import KINDS
from bnlab.lab.folders import CONF, search_folders
from bnlab.lab.grid import list_jobs, refuse_several_files, refuse_sweeps
from bnlab.lab.variations import register_variations
from bnlab.lab.words import explain_unknown, read_word, sets_value

LAUNCHERS = ("basic", "joblib", "submitit_slurm", "submitit_local")
_UNKNOWN = (ConfigAttributeError, ConfigKeyError)  # there is no setting of this name


_SAME_FOR_ALL = ("experiment=", "name=", "results=", "hydra")  # words that do not tell jobs apart


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        config: what is trained and measured, checked.
        heading: its number and what sets it apart, which is printed when it begins; empty for a single job.
    """

    config: Config
    heading: str


@dataclass(frozen=True)
class Launcher:
    """What runs the jobs.

    Attributes:
        name: basic, one after the other in this process; joblib, in several; submitit_slurm or submitit_local.
        settings: the settings of `hydra.launcher`, arguments of joblib's or submitit's.
    """

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command line, in the order of its grid, and what was chosen to run them."""

    jobs: list[Job]
    launcher: Launcher

    @property
    def configs(self) -> list[Config]:
        """The configurations of all jobs."""
        return [job.config for job in self.jobs]


def register_all() -> None:
    """Make everything known to Hydra that is not in a file of conf/."""
    register()
    register_variations()


def plan_jobs(words: Sequence[str], multirun: bool = False) -> Sweep:
    """Plan every job that these overrides stand for.

    Args:
        words: as on Hydra's command line, without options but `--config-dir=FOLDER`.
        multirun: whether comma lists are swept, as with `-m`; an experiment's file can say so too.

    Raises:
        UserError: one or two lines that name the word or file, the value and what is allowed.
    """
    register_all()
    overrides = [read_word(word) for word in search_folders(words)]
    refuse_several_files(overrides, words)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep"):
        shared = [override for override in overrides if not override.is_sweep_override()]
        chosen, _ = _compose_choices(shared)
        _require_grid(str(chosen.runtime.choices["hydra/sweeper"]))
        launcher = _read_launcher(chosen)

        if multirun or chosen.mode == RunMode.MULTIRUN:
            params = chosen.sweeper.params or {}
            by_file = [read_word(f"{key}={value}") for key, value in params.items()]
            overrides = [*by_file, *overrides]
        else:
            refuse_sweeps(overrides)
        grid = list_jobs(overrides)
        configs = _build_all(grid)

    jobs = []
    for number, (job, config) in enumerate(zip(grid, configs, strict=True), start=1):
        heading = _write_heading(number, job) if len(grid) > 1 else ""
        jobs.append(Job(config, heading))
    return Sweep(jobs, launcher)


def _write_heading(number: int, job: Sequence[Override]) -> str:
    """Write a job's number, and the words that set it apart."""
    words = [str(override.input_line) for override in job]
    own = [word for word in words if not word.startswith(_SAME_FOR_ALL)]
    return f"job {number}  {' '.join(own)}"


def _require_grid(sweeper: str) -> None:
    """Refuse Hydra's other sweepers, which choose later jobs by the results of earlier ones."""
    if sweeper != "basic":
        raise UserError(
            f"hydra/sweeper={sweeper}: the jobs of a sweep are a grid, which is known before the first one begins; "
            "leave the word out and list values with -m"
        )


def _read_launcher(chosen: DictConfig) -> Launcher:
    """Read which launcher was chosen, with the settings that do not refer to Hydra's own folders."""
    name = str(chosen.runtime.choices["hydra/launcher"])
    require_one_of("hydra/launcher", name, LAUNCHERS)
    settings: Any = OmegaConf.to_container(chosen.launcher, resolve=False)
    del settings["_target_"]
    known = {key: value for key, value in settings.items() if not str(value).startswith("${")}
    return Launcher(name, known)


def _build_all(jobs: Sequence[Sequence[Override]]) -> list[Config]:
    """Build the configurations of all jobs; of those that differ in the seed alone, one is composed and checked."""
    kinds: dict[tuple[str, ...], Config] = {}
    copies: dict[int, _Copy] = {}
    configs = []
    for job in jobs:
        seed = _read_seed(job)
        kind = tuple(str(override.input_line) for override in job if override.get_key_element() != "seed")
        if seed is not None and kind in kinds:
            config = replace(kinds[kind], seed=seed)
        else:
            config = _build(job, copies)
            kinds[kind] = config
        configs.append(config)
    return configs


def _read_seed(job: Sequence[Override]) -> int | None:
    """Read the seed that a job sets; None if it sets none, or one that is no seed."""
    for override in job:
        value = override.value()
        if override.get_key_element() == "seed" and type(value) is int and value >= 0:
            return value
    return None


@dataclass
class _Copy:
    """A copy of what Hydra composes of the files, which takes it a twentieth of a second: jobs share it.

    Values are set on it, and those of a job take the place of those of the one before: all jobs set the same keys.

    Attributes:
        composed: the copy.
        words: by key, the word that has set its value; setting it again would take a millisecond.
    """

    composed: DictConfig
    words: dict[str, str | None] = field(default_factory=dict)

    def set_value(self, override: Override) -> None:
        """Set the value of a word, unless it is there."""
        key = override.get_key_element()
        if self.words.get(key) != override.input_line:
            _set_value(self.composed, override)
            self.words[key] = override.input_line


def _build(job: Sequence[Override], copies: dict[int, _Copy]) -> Config:
    """Build the configuration of one job, and check it.

    Args:
        job: what it sets.
        copies: by the identity of what they are copies of.
    """
    _, composed = _compose_choices(job)
    shares = not any(isinstance(override.value(), dict) for override in job)  # which are merged with what is there
    if not shares or id(composed) not in copies:
        copies[id(composed)] = _Copy(copy.deepcopy(composed))
    shared = copies[id(composed)]
    for override in job:
        if sets_value(override):
            shared.set_value(override)
    try:
        config: Any = OmegaConf.to_object(shared.composed)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise UserError(f"{key}: has no value, and its function no default; add {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    check(config)
    return config  # type: ignore[no-any-return]


def _set_value(composed: DictConfig, override: Override) -> None:
    """Set the value of a word."""
    try:
        OmegaConf.update(composed, override.get_key_element(), override.value(), merge=True)
    except _UNKNOWN as error:
        raise UserError(f"{override.input_line}: {explain_unknown(str(error.full_key))}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{override.input_line}: {_first_line(error)}") from error


def _compose_choices(overrides: Sequence[Override]) -> tuple[DictConfig, DictConfig]:
    """Compose Hydra's settings and those of a job, both without what words set to values."""
    choices = [str(override.input_line) for override in overrides if not sets_value(override)]
    return _compose(tuple(choices))


@cache
def _compose(choices: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Compose the files that are chosen; a user's own function is registered where it is first met.

    Raises:
        UserError: what is wrong, in one or two lines.
    """
    try:
        composed = compose("config", overrides=[*choices], return_hydra_config=True)
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group in KINDS and "." in name:
            register_own(group, name)
            return _compose(choices)
        raise UserError(_explain_missing(group, name, error)) from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from error

    chosen = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
    return chosen, composed


def _explain_missing(group: str, name: str, error: MissingConfigException) -> str:
    """Say that a group has no such file, and what there is to choose from."""
    if group == "hydra/sweeper":
        _require_grid(name)
    if not error.options:
        return _first_line(error)
    return f"{group}={name}: there is no {group} {name!r}; choose from {', '.join(error.options)}"


def _explain(error: Exception) -> str:
    """Say what Hydra says in its first line, which names a word or a file, and in a second one what caused it."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return _first_line(error)
    reason = _first_line(cause)
    if isinstance(cause, _UNKNOWN):
        reason = explain_unknown(str(cause.full_key))
    return f"{_first_line(error)}\n  {reason}".strip()


def _first_line(error: BaseException) -> str:
    """Take the first line of a message, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def print_with_hydra(words: Sequence[str]) -> None:
    """Let Hydra print what its own options ask for, such as `--help`, `--info` or `--cfg job`."""
    register_all()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to the caller
    sys.argv = [sys.argv[0], *search_folders(words)]
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    main(lambda composed: None)()
