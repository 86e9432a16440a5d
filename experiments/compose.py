"""From the words of a command line to checked configurations, before anything runs."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.harness.artifacts.settings import GROUPS, Config
from bnlab.harness.config import check, list_choices, register, register_own
from bnlab.harness.errors import UserError
from experiments.variations import register_variations

CONF = Path(__file__).resolve().parents[1] / "conf"
_FILES = (*GROUPS, "suite", "variation", "experiment")  # keys that choose one of several
_SWEPT_BY_FILES = ("suite", "experiment")  # those whose files may say themselves what is swept


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command line, in Hydra's order.

    Attributes:
        configs: of each job, checked.
        launcher: the name of the Hydra launcher that was chosen; "basic" where none was.
        processes: how many it was told to use at once; None: one for each core.
    """

    configs: list[Config]
    launcher: str
    processes: int | None = None


def register_all() -> None:
    """Make everything known to Hydra that is not in a file of conf/."""
    register()
    register_variations()


def plan_jobs(words: Sequence[str], multirun: bool = False) -> Sweep:
    """Every job that these overrides stand for.

    Args:
        words: as on Hydra's command line, without options but `--config-dir=FOLDER`.
        multirun: whether comma lists are swept, as with `-m`; an experiment's file can say so too.

    Raises:
        UserError: one or two lines that name the word or file, the value and what is allowed.
    """
    register_all()
    overrides = [_parse(word) for word in search_folders(words)]
    _refuse_several_files(words, overrides, multirun)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep"):
        shared = [override for override in overrides if not override.is_sweep_override()]
        whole = _compose(tuple(str(override.input_line) for override in shared), True)
        _require_grid(str(whole.hydra.runtime.choices["hydra/sweeper"]))
        if not multirun and whole.hydra.mode != RunMode.MULTIRUN:
            _require_single(overrides)
            jobs = [overrides]
        else:
            swept = [_parse(f"{key}={value}") for key, value in (whole.hydra.sweeper.params or {}).items()]
            by_key = {override.get_key_element(): _list_values(override) for override in (*swept, *overrides)}
            jobs = [list(job) for job in itertools.product(*by_key.values())]
        configs = [_build(job) for job in jobs]
    return Sweep(configs, str(whole.hydra.runtime.choices["hydra/launcher"]), _count_processes(whole))


def search_folders(words: Sequence[str]) -> list[str]:
    """Let Hydra look for files in the folders of `--config-dir` and in `conf/` of the current folder too.

    Args:
        words: as on the command line.

    Returns:
        The words with a Hydra setting in place of these options.

    Raises:
        UserError: a folder does not exist, or has an experiment with the name of one of bnlab's own.
    """
    given = [Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir")]
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: is no folder; write --config-dir=FOLDER")
    here = Path("conf").resolve()
    folders = [folder.resolve() for folder in given]
    if here.is_dir() and here != CONF:
        folders.append(here)

    for folder in folders:
        for path in sorted(folder.glob("experiment/*.yaml")):
            if (CONF / "experiment" / path.name).exists():
                raise UserError(f"{path}: bnlab has an experiment of this name; rename the file, and name: in it")
    others = [word for word in words if not word.startswith("--config-dir")]
    if not folders:
        return others
    places = ",".join(f"'{folder}'" for folder in dict.fromkeys(folders))
    return [*others, f"hydra.searchpath=[{places}]"]


def _parse(word: str) -> Override:
    is_hydras = word.lstrip("+~").startswith("hydra")
    try:
        override = OverridesParser.create().parse_override(word if is_hydras else word.removeprefix("++"))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"{word}: cannot be read; write key=value, a list as key=[a,b], a value with brackets in quotes: "
            "'estimator=\"window(k=20)\"'"
        ) from error
    if override.is_delete():
        raise UserError(f"{word}: nothing can be left out; without a word on it a setting has its default, see --help")
    if override.is_add() and not is_hydras:
        raise UserError(f"{word}: there is no setting to add; those that --help lists are set without +")
    if override.get_key_element() == "hydra/sweeper":
        _require_grid(str(override.value()))
    if override.get_key_element() in _FILES and word.endswith("=null"):
        raise UserError(f"{word}: is no choice; leave the word out")
    return override


def _require_grid(sweeper: str) -> None:
    """Refuse Hydra's other sweepers, which choose later jobs by the results of earlier ones."""
    if sweeper != "basic":
        raise UserError(
            f"hydra/sweeper={sweeper}: the jobs of a sweep are a grid, which is known before the first one begins; "
            "leave the word out and list values with -m"
        )


def _refuse_several_files(words: Sequence[str], overrides: Sequence[Override], multirun: bool) -> None:
    """Refuse a list of experiments: Hydra would drop what each file sweeps; the message has a command for each."""
    for override in overrides:
        if override.get_key_element() not in _SWEPT_BY_FILES or not override.is_sweep_override():
            continue
        command = ["bnlab", "sweep"]
        if multirun:
            command.append("-m")
        commands = []
        for one in _list_values(override):
            chosen = [str(one.input_line) if word.lstrip("+") == override.input_line else word for word in words]
            commands.append(shlex.join([*command, *chosen]))
        raise UserError(
            f"{override.input_line}: each of them has a sweep of its own; run one after the other:\n"
            f"  {' && '.join(commands)}"
        )


def _count_processes(whole: DictConfig) -> int | None:
    """How many processes the launcher was told to use; None: one for each core."""
    told = OmegaConf.select(whole, "hydra.launcher.n_jobs")
    return told if isinstance(told, int) and told > 0 else None


def _require_single(overrides: list[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override():
            key, _, value = str(override.input_line).partition("=")
            is_measured = key in ("momentum", "estimator")
            together = f"; to measure all on one network: {shlex.quote(f'{key}=[{value}]')}" if is_measured else ""
            raise UserError(f"{key}={value}: several values are swept with -m{together}")


def _list_values(override: Override) -> list[Override]:
    """The override for each of the values that it is swept over."""
    if not override.is_sweep_override():
        return [override]
    key, texts = override.get_key_element(), list[str]()
    with suppress(HydraException):  # intervals and globs
        texts = [*override.sweep_string_iterator()]
    if not texts or key in ("name", "results"):
        raise UserError(f"{override.input_line}: cannot be swept; comma lists can, but not of name and results")
    return [_parse(f"{key}={text}") for text in texts]


def _build(job: list[Override]) -> Config:
    """The checked configuration of one job.

    Hydra composes each choice of files once, which takes it a twentieth of a second; values are set on copies of that.
    """
    values = [override for override in job if _is_value(override)]
    config = copy.deepcopy(_compose(tuple(str(o.input_line) for o in job if not _is_value(o)), False))
    for override in values:
        try:
            OmegaConf.update(config, override.get_key_element(), override.value(), merge=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(str(override.input_line), error)) from error
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{missing[0]}: has no value, and its function no default; add {missing[0]}=VALUE")
    try:
        found: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    check(found)
    return found  # type: ignore[no-any-return]


def _is_value(override: Override) -> bool:
    """Whether it sets a value of the job's, which Hydra need not compose."""
    key = override.get_key_element()
    return key not in _FILES and not re.match(r"\W*hydra\b|~|.*[/@]", key)


@cache
def _compose(words: tuple[str, ...], whole: bool) -> DictConfig:
    """The composed configuration; `whole`: with Hydra's own settings.

    Raises:
        UserError: what is wrong, in one or two lines.
    """
    try:
        return compose("config", overrides=[*words], return_hydra_config=whole)
    except MissingConfigException as error:
        # The user's own code, by its import path.
        own = re.search(r"Could not find '(data|model)/([\w.]+\.\w+)'", str(error))
        if not own:
            raise UserError(_explain_missing(words, error)) from error
        register_own(own[1], own[2])
        return _compose(words, whole)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        wrong = re.search(r"Could not override '([^']*)'|Error merging override (.*)", str(error))
        name = next(filter(None, wrong.groups())) if wrong else ""
        word = next((word for word in words if name and word.lstrip("+~").startswith(name.lstrip("+~"))), "")
        raise UserError(_explain(word, error)) from error


def _explain(word: str, error: BaseException) -> str:
    """The word and why it cannot be, in a line; of a file what Hydra says of it."""
    key = word.lstrip("+~").partition("=")[0]
    if key and re.search(r"Could not override|not in |is not in struct", str(error)):
        group, _, setting = key.partition(".")
        choices = list_choices(group)
        having = [f"{group}={name}" for name, choice in choices.items() if setting in vars(choice)]
        if having:
            return f"{word}: this {group} has no {setting}; {', '.join(having)} has"
        known = {*vars(Config()), *_FILES, *(f"{group}.{name}" for choice in choices.values() for name in vars(choice))}
        close = difflib.get_close_matches(key, sorted(known), n=1)
        return f"{word}: there is no setting {key}{f'; did you mean {close[0]}?' if close else ''}; --help lists them"
    return f"{word}: {_first_line(error.__cause__ or error)}" if word else " ".join(str(error).splitlines()[:2])


def _explain_missing(words: Sequence[str], error: Exception) -> str:
    """There is no such file; what there is to choose from."""
    first, *others = str(error).splitlines()
    found = re.search(r"Could not find '(?:([\w/]+)/)?([^']*)'", first)
    group, name = found.groups() if found else ("", first)
    known = [line.strip() for line in others if line.startswith("\t") and "=" not in line]
    where = first.partition(":")[0] if f"{group}={name}" not in words else f"{group}={name}"
    return f"{where}: there is no {group} {name!r}; choose from {', '.join(known)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
