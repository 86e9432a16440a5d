"""Checked configurations from the words of a command line, before anything runs."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
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
    """Plan every job that these overrides stand for.

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
        shared = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        whole = _compose(tuple(shared), True)
        chosen = whole.hydra.runtime.choices
        _require_grid(str(chosen["hydra/sweeper"]))

        if multirun or whole.hydra.mode == RunMode.MULTIRUN:
            jobs = _expand(overrides, whole.hydra.sweeper.params or {})
        else:
            _require_single(overrides)
            jobs = [overrides]
        configs = [_build(job) for job in jobs]
    return Sweep(configs, str(chosen["hydra/launcher"]), _count_processes(whole))


def _expand(overrides: Sequence[Override], params: Mapping[str, Any]) -> list[list[Override]]:
    """Expand a sweep to its jobs, in Hydra's order: what its file sweeps, then what the command line does."""
    by_file = [_parse(f"{key}={value}") for key, value in params.items()]
    values = {}
    for override in (*by_file, *overrides):
        values[override.get_key_element()] = _list_values(override)
    return [list(job) for job in itertools.product(*values.values())]


def search_folders(words: Sequence[str]) -> list[str]:
    """Let Hydra look for files in the folders of `--config-dir` and in `conf/` of the current folder too.

    Args:
        words: as on the command line.

    Returns:
        The words with a Hydra setting in place of these options.

    Raises:
        UserError: a folder does not exist, or has an experiment with the name of one of bnlab's own.
    """
    folders = []
    others = []
    for word in words:
        if word.startswith("--config-dir"):
            folders.append(_read_folder(word))
        else:
            others.append(word)

    here = Path("conf").resolve()
    if here.is_dir() and here != CONF:
        folders.append(here)
    for folder in folders:
        _refuse_known_experiments(folder)
    if not folders:
        return others
    quoted = [f"'{folder}'" for folder in dict.fromkeys(folders)]
    return [*others, f"hydra.searchpath=[{','.join(quoted)}]"]


def _read_folder(option: str) -> Path:
    """Read the folder of `--config-dir=FOLDER`."""
    _, _, name = option.partition("=")
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"--config-dir={folder}: is no folder; write --config-dir=FOLDER")
    return folder.resolve()


def _refuse_known_experiments(folder: Path) -> None:
    """Refuse a folder that has an experiment with the name of one of bnlab's own."""
    for path in sorted(folder.glob("experiment/*.yaml")):
        if (CONF / "experiment" / path.name).exists():
            raise UserError(f"{path}: bnlab has an experiment of this name; rename the file, and name: in it")


def _parse(word: str) -> Override:
    """Parse a word of the command line; refuse what Hydra can do with it and a sweep cannot."""
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
    """Find how many processes the launcher was told to use; None: one for each core."""
    number = OmegaConf.select(whole, "hydra.launcher.n_jobs")
    return number if isinstance(number, int) and number > 0 else None


def _require_single(overrides: list[Override]) -> None:
    """Refuse lists of values without `-m`."""
    for override in overrides:
        if not override.is_sweep_override():
            continue
        word = str(override.input_line)
        key, _, value = word.partition("=")
        hint = ""
        if key in ("momentum", "estimator"):
            together = shlex.quote(f"{key}=[{value}]")
            hint = f"; to measure all on one network: {together}"
        raise UserError(f"{word}: several values are swept with -m{hint}")


def _list_values(override: Override) -> list[Override]:
    """List the override for each of the values that it is swept over."""
    if not override.is_sweep_override():
        return [override]

    key = override.get_key_element()
    texts: list[str] = []
    with suppress(HydraException):  # intervals and globs
        texts = [*override.sweep_string_iterator()]
    if not texts or key in ("name", "results"):
        raise UserError(f"{override.input_line}: cannot be swept; comma lists can, but not of name and results")
    return [_parse(f"{key}={text}") for text in texts]


def _build(job: list[Override]) -> Config:
    """Build the configuration of one job, and check it.

    Hydra composes each choice of files once, which takes it a twentieth of a second; values are set on copies of that.
    """
    values = [override for override in job if _sets_value(override)]
    choices = [str(override.input_line) for override in job if not _sets_value(override)]
    composed = copy.deepcopy(_compose(tuple(choices), False))
    for override in values:
        try:
            OmegaConf.update(composed, override.get_key_element(), override.value(), merge=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(str(override.input_line), error)) from error

    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        first = missing[0]
        raise UserError(f"{first}: has no value, and its function no default; add {first}=VALUE")
    try:
        config: Any = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    check(config)
    return config  # type: ignore[no-any-return]


def _sets_value(override: Override) -> bool:
    """Decide if an override sets a value of the job's, which Hydra need not compose."""
    key = override.get_key_element()
    return key not in _FILES and not re.match(r"\W*hydra\b|~|.*[/@]", key)


@cache
def _compose(words: tuple[str, ...], whole: bool) -> DictConfig:
    """Compose a configuration; `whole`: with Hydra's own settings.

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
        raise UserError(_explain(_find_wrong_word(words, error), error)) from error


def _find_wrong_word(words: Sequence[str], error: Exception) -> str:
    """Find the word that Hydra could not set; empty where it is in a file."""
    wrong = re.search(r"Could not override '([^']+)'|Error merging override (.+)", str(error))
    if not wrong:
        return ""
    name = (wrong[1] or wrong[2]).lstrip("+~")
    for word in words:
        if word.lstrip("+~").startswith(name):
            return word
    return ""


def _explain(word: str, error: BaseException) -> str:
    """Say in a line why a word cannot be set; where it is in a file, what Hydra says of it."""
    if not word:
        return " ".join(str(error).splitlines()[:2])

    key, _, _ = word.lstrip("+~").partition("=")
    is_unknown = re.search(r"Could not override|not in |is not in struct", str(error))
    if key and is_unknown:
        return f"{word}: {_explain_unknown(key)}"
    return f"{word}: {_first_line(error.__cause__ or error)}"


def _explain_unknown(key: str) -> str:
    """Say that there is no such setting: which choices of its group have it, or one that is called nearly so."""
    group, _, setting = key.partition(".")
    choices = list_choices(group)
    having = [f"{group}={name}" for name, choice in choices.items() if setting in vars(choice)]
    if having:
        return f"this {group} has no {setting}; {', '.join(having)} has"

    known = {*vars(Config()), *_FILES}
    for choice in choices.values():
        known |= {f"{group}.{name}" for name in vars(choice)}
    close = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no setting {key}{hint}; --help lists them"


def _explain_missing(words: Sequence[str], error: Exception) -> str:
    """Say that there is no such file, and what there is to choose from."""
    first, *others = str(error).splitlines()
    found = re.search(r"Could not find '(?:([\w/]+)/)?([^']*)'", first)
    group, name = found.groups() if found else ("", first)

    where = f"{group}={name}"
    if where not in words:
        where, _, _ = first.partition(":")  # the file that names it
    known = [line.strip() for line in others if line.startswith("\t") and "=" not in line]
    return f"{where}: there is no {group} {name!r}; choose from {', '.join(known)}"


def _first_line(error: BaseException) -> str:
    """Take the first line of a message, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")
