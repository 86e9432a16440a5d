"""From the words of a command line to checked configurations, before anything runs."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from bnlab.harness.artifacts.settings import Config, field_names, flatten, training_settings
from bnlab.harness.config import check, check_folders
from bnlab.harness.errors import Note, UserError
from experiments.explain import (
    CHOICES,
    CONF,
    experiment_file,
    explain_failure,
    explain_name,
    explain_syntax,
    explain_unknown,
    first_line,
    list_choices,
    list_required,
    list_settings,
)

_FILES = (*CHOICES, "hydra/launcher")  # keys that choose a file of conf/, or one of Hydra's
_NOT_TRAINED_WITH = ("data.root", "data.download", "data.test_fonts")
_ONE_FOR_A_SWEEP = ("experiment", "name", "results", "dry_run", "csv", "hydra/launcher")


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command line, in the order in which they run."""

    configs: list[Config]  # checked
    words: list[list[str]]  # of each job: the settings that it was given
    hydra: DictConfig  # composed, with Hydra's own settings under `hydra`
    shared: tuple[Override, ...]  # what all jobs were given alike

    @property
    def launcher(self) -> str:
        """The name of the Hydra launcher that runs the jobs."""
        return str(self.hydra.hydra.runtime.choices["hydra/launcher"])

    @property
    def names_its_launcher(self) -> bool:
        """Whether the command line or an experiment's file says which launcher to use."""
        return self.launcher != "basic" or any(o.get_key_element() == "hydra/launcher" for o in self.shared)


def register() -> None:
    """Make the typed configuration known to Hydra, as `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def plan_jobs(words: list[str], multirun: bool) -> Sweep:
    """Every job that these overrides stand for, with `multirun` or an experiment's own sweep more than one.

    Raises:
        UserError: one or two lines that name the key, the value and what is allowed; an experiment's file has values to
            sweep and no 'mode: MULTIRUN'.
    """
    given = _parse(words)
    with _composer() as composer:
        shared = tuple(o for o in given if not o.is_sweep_override())
        hydra = composer.compose(shared, whole=True)
        multirun = multirun or hydra.hydra.mode == RunMode.MULTIRUN
        _check_sweeps([o for o in given if o.is_sweep_override()], multirun)
        own = _own_sweep(hydra, given)
        if own and not multirun:
            swept = ", ".join(o.get_key_element() for o in own)
            raise UserError(
                f"{experiment_file(words)}: sweeps {swept} only with -m; write 'mode: MULTIRUN' below hydra, or add -m"
            )
        jobs = [list(job) for job in itertools.product(*map(_values, [*own, *given]))]
        configs = [_build_config(composer.compose(job), job) for job in jobs]
        _check_required([*own, *given])
        _check_files([*own, *given], composer)
        _check_variations(jobs, given)
        _tell_of_unread(given, own, configs)
        _check_name(configs, words)
        sweep = Sweep(configs, [[_word(o) for o in job] for job in jobs], hydra, shared)
    return sweep if sweep.launcher == "basic" else _one_thread_each(sweep)


def _check_name(configs: list[Config], words: list[str]) -> None:
    """UserError where results would lie under several names, or by a file under another than the experiment's."""
    if names := sorted({config.name for config in configs} - {configs[0].name}):
        word = next((word for word in words if word.startswith("name=")), "name")
        raise UserError(f"{word}: a sweep has one name, and this has {configs[0].name}, {', '.join(names)}")
    expected = [word.partition("=")[2] for word in words if word.startswith("experiment=")] or [Config().name]
    for config in configs:
        if config.name != expected[0] and not any(word.startswith("name=") for word in words):
            raise UserError(explain_name(words, config.name))


def _check_required(overrides: list[Override]) -> None:
    """UserError where the experiment's file wants something to be given that is not: Hydra would take the default."""
    keys = {o.get_key_element(): o.value() for o in overrides}
    file = f"experiment/{keys['experiment']}.yaml" if "experiment" in keys else None
    for key in list_required(file) if file else ():
        if key not in keys:
            raise UserError(f"conf/{file}: {key} is ???, and has to be given: write {key}=…")


def _check_files(overrides: list[Override], composer: _Composer) -> None:
    """UserError where swept files, such as those of suite, sweep something themselves: it would be left out."""
    swept_keys = {key for whole, _ in composer.bases.values() for key in _own_params(whole)}
    if left_out := sorted(swept_keys - {o.get_key_element() for o in overrides}):
        files = " ".join(_word(o) for o in overrides if o.get_key_element() in _FILES and o.is_sweep_override())
        raise UserError(
            f"{files}: each of these files sweeps {', '.join(left_out)} itself, which would be left out; run one file "
            f"after the other, or give the values: {' '.join(f'{key}=...' for key in left_out)}"
        )


def _check_variations(jobs: list[list[Override]], given: list[Override]) -> None:
    """UserError where another word, or what an experiment sweeps, overrides what a variation sets."""
    keys = {o.get_key_element() for o in given}
    for job in jobs:
        found = {o.get_key_element(): o for o in job}
        name = found["variation"].value() if "variation" in found else None
        for key in sorted(list_settings(f"variation/{name}.yaml") & {*found}) if name else ():
            way = "leave one out"
            if key not in keys:
                way = f"the experiment sweeps {key}: write {key}=VALUE, without variation"
            elif "variation" not in keys:
                way = f"the experiment sweeps variation: leave {key} out, or write variation=base"
            raise UserError(f"variation={name}: {_word(found[key])} overrides what it sets; {way}")


def _tell_of_unread(given: list[Override], own: list[Override], configs: list[Config]) -> None:
    """Say which settings of the training that were given, or that the experiment has, no network reads."""
    read = {key for config in configs for key in flatten(training_settings(config))}
    groups = {key: getattr(configs[0], key).name for key in ("data", "model", "norm", "optimizer")}
    reasons = {"epochs": f"steps={configs[0].steps}", "freeze_with": "freeze_at is not given"}
    words = {o.get_key_element(): _word(o) for o in given}
    if "experiment" in words:
        file = f"experiment/{next(o.value() for o in given if o.get_key_element() == 'experiment')}.yaml"
        given_keys = {*words, *["epochs"] * ("steps" in words)}
        file_keys = {key for key in list_settings(file) if not {key, key.partition(".")[0]} & given_keys}
        words |= {key: f"conf/{file}: {key}" for key in sorted(file_keys)}
        words |= {o.get_key_element(): f"conf/{file}: {_word(o)}" for o in own}
    for key, word in words.items():
        group = key.partition(".")[0]
        is_trained_with = (group in groups and key not in (group, *_NOT_TRAINED_WITH)) or key in reasons
        if is_trained_with and key not in read:
            reason = reasons.get(key) or f"{group}.name={groups[group]}"
            warnings.warn(f"{word} is not read ({reason})", Note, stacklevel=2)


def on_all_cores(sweep: Sweep) -> Sweep:
    """The same jobs with a process for each core."""
    with _composer() as composer:
        hydra = composer.compose([*sweep.shared, *_parse(["hydra/launcher=joblib"])], whole=True)
    return _one_thread_each(replace(sweep, hydra=hydra))


def _one_thread_each(sweep: Sweep) -> Sweep:
    for config in sweep.configs:
        config.threads = config.threads or 1  # the processes share the cores
    return sweep


@dataclass(frozen=True)
class _Composer:
    """Hydra composes each choice of files once; values are set on copies of that.

    Once for each choice and not once for all, because only the files say what there is to set: those of a swept
    `model=cnn,mlp` differ, and the launcher is chosen when it is known how many networks lack training. Never for each
    job, because that takes a twentieth of a second.
    """

    bases: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = field(default_factory=dict)

    def compose(self, overrides: Iterable[Override], whole: bool = False) -> DictConfig:
        """The configuration under these overrides, none of them swept; `whole`: with Hydra's own settings."""
        overrides = list(overrides)
        choices = [o for o in overrides if o.get_key_element() in _FILES]
        values = [o for o in overrides if o.get_key_element() not in _FILES]
        with_hydra, own = self._base(tuple(f"{o.get_key_element()}={o.value()}" for o in choices))
        config = copy.deepcopy(with_hydra if whole else own)
        for override in values:
            if whole or not override.get_key_element().startswith("hydra."):
                _set(config, override)
        return config

    def _base(self, files: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
        """With and without Hydra's own settings."""
        if files not in self.bases:
            try:
                whole = compose("config", overrides=list(files), return_hydra_config=True)
            except Exception as error:  # whatever reading files that somebody has written may raise
                raise UserError(explain_failure(files, error)) from error
            own = copy.deepcopy(whole)
            with flag_override(own, ["struct", "readonly"], False):
                del own["hydra"]
            self.bases[files] = whole, own
        return self.bases[files]


@contextlib.contextmanager
def _composer() -> Iterator[_Composer]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep"):
        yield _Composer()


def _own_sweep(hydra: DictConfig, given: list[Override]) -> list[Override]:
    """What the experiment sweeps by itself, unless the command line says otherwise."""
    keys = {o.get_key_element() for o in given}
    words = [f"{key}={value}" for key, value in _own_params(hydra).items() if key not in keys]
    known = {*field_names(Config), *CHOICES}
    try:
        own = _parse(words)
        _check_sweeps([o for o in own if o.is_sweep_override()], multirun=True)
        for override in own:
            if override.get_key_element() not in known:
                raise UserError(explain_unknown(_word(override), override.get_key_element()))
    except UserError as error:
        raise UserError(f"{experiment_file(map(_word, given))}: {error}") from error
    return own


def _own_params(hydra: DictConfig) -> Any:
    """What files sweep, by key."""
    sweeper = hydra.hydra.sweeper
    return {} if sweeper is None else sweeper.params or {}


def _values(override: Override) -> list[Override]:
    """The override for each of the values that it is swept over."""
    if not override.is_sweep_override():
        return [override]
    parser = OverridesParser.create()
    key = override.get_key_element()
    return [parser.parse_override(f"{key}={text}") for text in override.sweep_string_iterator()]


def _set(config: DictConfig, override: Override) -> None:
    word, key = _word(override), override.get_key_element()
    try:
        OmegaConf.update(config, key, override.value(), merge=True)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise UserError(explain_unknown(word, key)) from error
    except (OmegaConfBaseException, HydraException) as error:
        raise UserError(f"{word}: {first_line(error)}") from error


def _parse(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    found: dict[str, Override] = {}
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{word}: cannot be read ({explain_syntax(word)})") from error
        key = override.get_key_element()
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise UserError(f"{word}: settings cannot be added or deleted; write key=value without + or ~")
        if key in found:
            raise UserError(f"{word}: {key} is given twice, also as {_word(found[key])}")
        if not key:
            raise UserError(f"{word}: cannot be read (write key=value)")
        if key.startswith("hydra") and not key.startswith(("hydra/launcher", "hydra.launcher.")):
            raise UserError(f"{word}: of Hydra's own settings only hydra/launcher and hydra.launcher.* can be changed")
        if key in _FILES and not override.is_sweep_override() and not isinstance(override.value(), str):
            raise UserError(f"{word}: {key} takes one name; choose from {', '.join(list_choices(key))}")
        if key in _FILES and re.search(r"/|\.ya?ml\b", word.partition("=")[2]):
            known = ", ".join(list_choices(key))
            raise UserError(f"{word}: {key} takes a file's name without folder and .yaml; choose from {known}")
        if key in ("name", "results", "data.root") and not override.is_sweep_override():
            value = override.value()
            if isinstance(value, (int, float)) and word.partition("=")[2] != str(value):
                raise UserError(f"{word}: is read as {value}; put a letter before it, or write '{key}=\"…\"'")
        found[key] = override
    return list(found.values())


def _word(override: Override) -> str:
    return override.input_line or ""


def _check_sweeps(sweeps: list[Override], multirun: bool) -> None:
    for override in sweeps:
        word, key = _word(override), override.get_key_element()
        if not multirun:
            value = word.partition("=")[2]
            lists = key in ("momentum", "estimator") and not value.startswith("range(")
            together = f"; to measure all on one network: {key}=[{value}]" if lists else ""
            raise UserError(f"{word}: several values are swept with -m{together}")
        if key in _ONE_FOR_A_SWEEP or key.startswith("hydra.launcher."):
            raise UserError(f"{word}: a sweep has one {key}; run one after the other")
        try:
            values = None if isinstance(override.value(), Glob) else list(override.sweep_string_iterator())
        except (HydraException, OmegaConfBaseException):  # an interval; a sweep inside of another
            values = None
        if values is None:
            raise UserError(f"{word}: cannot be swept; write its values as a comma list")
        if not values:
            raise UserError(f"{word}: give at least one value")


def _build_config(composed: DictConfig, overrides: list[Override]) -> Config:
    try:
        config: Any = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        words, key = [_word(o) for o in overrides], str(error.full_key)
        source = next((word for word in words if word.startswith(f"{key}=")), f"{experiment_file(words)}: {key}")
        raise UserError(f"{source}: {first_line(error)}") from error
    check(config)
    return config  # type: ignore[no-any-return]


def find_results(words: list[str]) -> tuple[str, str, str]:
    """The experiment that the words name, and the name and folder of its results."""
    overrides = _parse_only(words, ("experiment", "results", "name"))
    given = {o.get_key_element(): o for o in overrides}
    if "experiment" not in given:
        raise UserError(f"which experiment? choose from {', '.join(list_choices('experiment'))}: experiment=NAME")
    with _composer() as composer:
        config = composer.compose(overrides)
    check_folders(config.results, config.name)
    return given["experiment"].get_value_element_as_str(), config.name, config.results


def find_results_folder(words: list[str]) -> str:
    """The folder that `results=` names, the only setting that there may be among the words."""
    with _composer() as composer:
        config = composer.compose(_parse_only(words, ("results",)))
    check_folders(config.results, config.name)
    return str(config.results)


def _parse_only(words: list[str], keys: tuple[str, ...]) -> list[Override]:
    """Settings of a command that takes these alone, none of them swept."""
    overrides = _parse(words)
    for override in overrides:
        if override.get_key_element() not in keys:
            raise UserError(f"{override.get_key_element()}: not an option here; there are {', '.join(keys)}")
    _check_sweeps([o for o in overrides if o.is_sweep_override()], multirun=True)
    return overrides
