"""The jobs of a command line: Hydra composes each one's settings, and all are checked before the first is run."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bnlab.harness.artifacts.data.own_data import forget_own
from bnlab.harness.artifacts.job_settings import GROUPS, Config, list_plain_settings, read_config
from bnlab.harness.done import list_waiting
from bnlab.harness.errors import UserError, suggest
from bnlab.harness.lab.launchers import register_launchers
from bnlab.harness.lab.own_choices import SEARCHED, register_own_choices
from bnlab.harness.lab.registry import CONF
from bnlab.harness.own import OWN_CLASSES

_FILES = ("variation", "suite", "experiment")  # keys that choose files of settings
_SWEPT_BY_FILES = ("suite", "experiment")  # those of files which may say themselves what is swept
_TEXTS = ("name", "results", "data.root")  # keys of texts, which Hydra would take for numbers, lists and the like
_SEARCH = "hydra.searchpath="
_NO_STEPS = "steps=null"  # what epochs= means, too, where a file has steps


@dataclass(frozen=True)
class Job:
    """One job of a sweep. The heading says its number and what sets it apart; empty for a single job."""

    config: Config
    heading: str


@dataclass(frozen=True)
class Launcher:
    """What runs the jobs: basic, in this process; joblib, in several; submitit_slurm or submitit_local."""

    name: str
    settings: dict[str, Any]  # those of `lab.launchers`

    @property
    def is_cluster(self) -> bool:
        """True if jobs run on other machines, whose devices this one need not have."""
        return self.name == "submitit_slurm"


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command line, in the order of its grid; those that are not done; what was chosen to run them."""

    jobs: list[Job]
    waiting: list[Job]
    launcher: Launcher

    @property
    def configs(self) -> list[Config]:
        """The configurations of all jobs."""
        return [job.config for job in self.jobs]


def plan_jobs(words: Sequence[str], multirun: bool = False) -> Sweep:
    """Plan every job that these overrides stand for; UserError names the word or file, the value and what is allowed.

    With `multirun`, or where a file lists what is swept, comma lists are swept.
    """
    _register()
    _forget()
    searched = [word.partition("=")[2].strip("[]") for word in words if word.startswith(_SEARCH)]
    others = [word for word in words if not word.startswith(_SEARCH)]
    overrides = [_read_word(word) for word in (*others, _search_own(searched))]
    _refuse_contradictions(overrides)
    given = {override.get_key_element() for override in overrides}
    if "epochs" in given and "steps" not in given:
        overrides.append(_read_word(_NO_STEPS))
    with _borrow_hydra(), initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep"):
        register_launchers()  # here, because Hydra has read its plugins by now, whose launchers have the same names
        register_own_choices()
        # Composed a first time for the launcher, and for what the files sweep. Words with several values are
        # left out, because they are divided among the jobs later.
        chosen, _ = _compose_files(override for override in overrides if not override.is_sweep_override())
        params: Any = chosen.sweeper.params or {}
        is_multirun = multirun or bool(params)
        by_job = {key: value for key, value in params.items() if isinstance(value, DictConfig)}
        by_file = [_read_word(f"{key}={value}") for key, value in params.items() if key not in by_job]
        # Words of the command line come last, so that they take the place of what the file says.
        grid = _list_jobs([*by_file, *overrides], is_multirun)
        for key, table in by_job.items():
            if key not in given:
                grid = _add_values(key, table, grid)
        configs = [_read_job(job) for job in grid]

    lines = [[str(override.input_line) for override in job] for job in grid]
    in_all = set.intersection(*map(set, lines))
    jobs = []
    for number, (line, config) in enumerate(zip(lines, configs, strict=True), start=1):
        apart = " ".join(word for word in line if word not in in_all)
        jobs.append(Job(config, f"job {number}  {apart}" if len(grid) > 1 else ""))

    launcher: Any = OmegaConf.to_container(chosen.launcher)
    launcher.pop("_target_", None)  # of Hydra's own `basic`
    launched_by = Launcher(str(chosen.runtime.choices["hydra/launcher"]), launcher)

    waiting = list_waiting(configs)
    if waiting:
        _check_all(waiting, launched_by)
    is_waiting = {id(config) for config in waiting}  # configurations have no hash
    return Sweep(jobs, [job for job in jobs if id(job.config) in is_waiting], launched_by)


def _check_all(waiting: Iterable[Config], launcher: Launcher) -> None:
    """Raise UserError for the first of these jobs that cannot be run."""
    from bnlab.harness.checks import check, check_device  # here: a sweep with nothing to do does not wait for torch

    for config in waiting:
        check(config)
        # A dry run tries networks on this machine, whatever runs the jobs.
        if config.dry_run or not launcher.is_cluster:
            check_device(config.device)


@cache  # what is registered stays so for the process
def _register() -> None:
    """Make the settings known to Hydra, with their defaults; what they may be `read_config` decides."""
    store = ConfigStore.instance()
    store.store(name="schema", node=list_plain_settings())
    for group, choices in GROUPS.items():
        for name, choice in choices.items():
            store.store(group=group, name=name, node=asdict(choice))


@contextlib.contextmanager
def _borrow_hydra() -> Iterator[None]:
    """In the block Hydra is free: the caller may be a program of Hydra's, which holds it."""
    others = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        # Asked for again, because Hydra puts another instance in the place of the first.
        GlobalHydra.instance().hydra = others


def _search_own(searched: Sequence[str]) -> str:
    """Let Hydra look for what is the user's, behind what is searched already: files in `conf/` here, and functions.

    UserError if these files hide bnlab's.
    """
    here = Path("conf").resolve()
    folders = []
    if here.is_dir() and here != CONF:
        folders.append(quote(str(here)))
    for path in sorted(here.glob("experiment/*.yaml")) if folders else []:
        if (CONF / "experiment" / path.name).exists():
            raise UserError(f"{path}: bnlab has an experiment of this name; rename the file, and name: in it")
    return f"{_SEARCH}[{','.join([*searched, *folders, quote(SEARCHED)])}]"


def _list_jobs(overrides: Iterable[Override], multirun: bool) -> list[list[Override]]:
    """List what each job sets, in Hydra's order.

    Hydra's own sweeper, which does the same, can be asked for its jobs only by private names.
    """
    # As in Hydra, the last word of a key gives its value, and the first one its place in the grid.
    values = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            _refuse_sweep(override, multirun)
            values[key] = [_read_word(f"{key}={text}") for text in override.sweep_string_iterator()]
        else:
            values[key] = [override]
    return [list(job) for job in itertools.product(*values.values())]


def _add_values(key: str, table: Mapping[str, object], grid: Iterable[Sequence[Override]]) -> list[list[Override]]:
    """Add to each job the values of a setting that a file has for it, as `batch_size=4 steps=36: 0.025,0.1`.

    Hydra's own sweeper has none of this: in its grids all values of a setting meet all values of the others.
    """
    jobs = []
    for job in grid:
        words = [str(override.input_line) for override in job]
        rows = [values for of, values in table.items() if {*of.split()} <= {*words}]
        if not rows:
            raise UserError(f"{key}: the file has no value for {' '.join(words)}; add {key}=VALUE")
        for values in rows:
            jobs += _list_jobs([*job, _read_word(f"{key}={values}")], multirun=True)
    return jobs


def _read_job(job: Sequence[Override]) -> Config:
    """Read the configuration of one job."""
    _, composed = _compose_files(job)
    # `_compose` remembers `composed`; values may be set in it, because all jobs of a sweep set the same keys.
    try:
        for override in job:
            if _sets_value(override):
                OmegaConf.update(composed, override.get_key_element(), override.value(), force_add=True)
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        missing = error.full_key
        raise UserError(f"{missing}: has no value, and its function no default; add {missing}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    for key in values.keys() & {*_FILES}:
        raise UserError(f"{key}: its file has no line # @package _global_, with which a file of settings begins")
    try:
        config = read_config(values, _FILES)
    except UserError as error:
        words = {override.get_key_element(): str(override.input_line) for override in job}
        key, _, _ = str(error).partition("=")
        files = [word for chosen, word in words.items() if chosen in _FILES]
        if key in words or not files:
            raise
        raise UserError(f"{' '.join(files)}: {error}") from error
    # A network on a user's data is named by the images that are read here. `content` keeps their digest, and
    # a job that reads other images later is refused.
    config.data = replace(config.data, content=config.data.find_content())
    return config


def _compose_files(overrides: Iterable[Override]) -> tuple[DictConfig, DictConfig]:
    """Compose Hydra's settings and those of a job, both without what words set to values."""
    choices = [str(override.input_line) for override in overrides if not _sets_value(override)]
    return _compose(tuple(choices))


def _forget() -> None:
    """Forget files and functions of an earlier sweep of this process, as a notebook may have changed them since."""
    _compose.cache_clear()
    forget_own()


@cache  # takes a twentieth of a second, and most jobs of a sweep choose the same files
def _compose(choices: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Compose the files that are chosen."""
    try:
        composed = compose("config", overrides=[*choices], return_hydra_config=True)
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if not error.options:
            raise UserError(_first_line(error)) from error
        options = [*error.options, "package.module.function"] if group in OWN_CLASSES else error.options
        raise UserError(f"{group}={name}: {suggest(name, options)}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error.__context__
        lines = [_first_line(error).rstrip(":"), str(getattr(cause, "full_key", None) or ""), _first_line(cause or "")]
        raise UserError(": ".join(filter(None, lines))) from error

    chosen = composed.hydra
    # The others become a `Config`, which has no such key.
    with open_dict(composed):
        del composed["hydra"]
    return chosen, composed


def _first_line(error: object) -> str:
    """Take the first line of a message, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _read_word(word: str) -> Override:
    """Read a word of the command line; UserError without a value, or for what Hydra can do and a sweep cannot."""
    try:
        override = OverridesParser.create().parse_override(_quote_text(word))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"{word}: cannot be read; write key=value, a list as key=[a,b], a value with brackets, = or ä in quotes: "
            "'estimator=\"window(k=20)\"'"
        ) from error
    if override.is_delete() or (override.is_add() and not override.is_hydra_override()):
        raise UserError(f"{word}: settings are neither added nor left out; write key=value, see --help")
    key = override.get_key_element()
    is_choice = override.is_sweep_override() or isinstance(override.value(), str | list)
    if key in (*GROUPS, *_FILES) and not is_choice:
        raise UserError(f"{word}: is no choice; name one of those that --help lists, or leave the word out")
    group, _, name = key.rpartition(".")
    if group in GROUPS and name == "name":
        # It would change the name alone, and leave the class and the settings of another choice.
        raise UserError(f"{word}: choose by {group}=, from {', '.join(GROUPS[group])}")
    return override


def _refuse_contradictions(overrides: Iterable[Override]) -> None:
    """Raise UserError for words of which one would be without effect."""
    words: dict[str, list[str]] = {}
    # The same word twice does no harm.
    for word, override in {str(override.input_line): override for override in overrides}.items():
        words.setdefault(override.get_key_element(), []).append(word)
    for given in words.values():
        if len(given) > 1:
            raise UserError(f"{' '.join(given)}: the same setting twice; leave all but one of them out")
    lengths = [
        given for key, (given, *_) in words.items() if key in ("steps", "epochs") and not given.endswith("=null")
    ]
    if len(lengths) > 1:
        raise UserError(f"{' '.join(lengths)}: both say how long to train; leave one of them out")


def _quote_text(word: str) -> str:
    """Put the text that a word gives in quotes, unless it has some: unquoted, Hydra reads few letters."""
    key, _, text = word.partition("=")
    is_invalid_name = key == "name" and not re.fullmatch(r"[\w.-]+", text)  # is refused as it stands
    if key not in _TEXTS or is_invalid_name or text.startswith(("'", '"')):
        return word
    # Several folders are swept; one with a comma in its name is given in quotes.
    parts = text.split(",") if key == "data.root" else [text]
    return f"{key}={','.join(map(quote, parts))}"


def quote(text: str) -> str:
    """Write a text so that Hydra reads it as it is."""
    return QuotedString(text, Quote.single).with_quotes()


def _sets_value(override: Override) -> bool:
    """Decide if a word sets a value of a job; others choose a file, or are about Hydra itself."""
    return not override.is_hydra_override() and override.get_key_element() not in (*GROUPS, *_FILES)


def _refuse_sweep(override: Override, multirun: bool) -> None:
    """Raise UserError for a list of values of what cannot be swept, or without `-m`."""
    word = str(override.input_line)
    key, _, value = word.partition("=")
    if key in _SWEPT_BY_FILES:
        raise UserError(f"{word}: each of them has a sweep of its own; run one after the other")
    if not multirun:
        hint = ""
        if key in ("momentum", "estimator"):
            together = shlex.quote(f"{key}=[{value}]")
            hint = f"; to measure all on one network: {together}"
        raise UserError(f"{word}: several values are swept with -m{hint}")
    is_list = isinstance(override.value(), ChoiceSweep | RangeSweep)
    if key == "name" or override.is_hydra_override() or not is_list:
        raise UserError(f"{word}: cannot be swept; comma lists can, but not of name and Hydra's settings")
