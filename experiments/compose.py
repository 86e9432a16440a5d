"""From the words of a command line to checked configurations, before Hydra runs anything."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.harness.config import Config, check, check_name, field_names
from bnlab.harness.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
_CHOICES = ("data", "model", "optimizer", "experiment")
_ONE_FOR_A_SWEEP = ("experiment", "name", "results", "dry_run", "csv", "hydra/launcher")


def register() -> None:
    """Make the typed configuration known to Hydra, as `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def jobs(overrides: list[str], multirun: bool) -> tuple[list[Config], list[str]]:
    """The checked configuration of every job that these overrides stand for, and the words that let Hydra run them.

    Raises:
        UserError: one or two lines that name the key, the value and what is allowed.
    """
    register()
    parsed = _parsed(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = _composed([_word(o) for o in parsed if not o.is_sweep_override()], whole=True).hydra
        multirun = multirun or hydra.mode == RunMode.MULTIRUN
        _check_sweeps([o for o in parsed if o.is_sweep_override()], multirun)
        if not multirun:
            return [_job(overrides)], overrides
        given = {o.get_key_element() for o in parsed}
        # What an experiment sweeps by itself, unless the command line says otherwise.
        own = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items() if key not in given]
        batches = BasicSweeper.split_arguments([*_parsed(own), *parsed], None)[0]
        return [_job(words) for words in batches], ["--multirun", *own, *overrides, "hydra.sweeper.params=null"]


def _parsed(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    found: dict[str, Override] = {}
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: cannot be read ({_unreadable(word, error)})") from error
        key = override.get_key_element()
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise UserError(f"{word}: settings cannot be added or deleted; write key=value without + or ~")
        if key in found:
            raise UserError(f"{word}: {key} is given twice, also as {_word(found[key])}")
        if not key:
            raise UserError(f"{word}: cannot be read (write key=value)")
        if key.startswith("hydra") and not key.startswith(("hydra/launcher", "hydra.launcher.")):
            raise UserError(f"{word}: of Hydra's own settings only hydra/launcher and hydra.launcher.* can be changed")
        if key in _CHOICES and not override.is_sweep_override() and not isinstance(override.value(), str):
            raise UserError(f"{word}: {key} takes one name; choose from {', '.join(_choices(key))}")
        found[key] = override
    return list(found.values())


def _unreadable(word: str, error: HydraException) -> str:
    if any(word.count(a) != word.count(b) for a, b in ("[]", "()", "{}")) or word.count("'") % 2:
        return "a bracket or quote is not closed"
    key, equals, value = word.partition("=")
    if re.search(r"\w\(", value):
        return f"""a value with brackets needs quotes: "{key}='{value}'\""""
    return "write key=value, a list as key=[a,b]" if equals else "write key=value"


def _word(override: Override) -> str:
    return override.input_line or ""


def _check_sweeps(sweeps: list[Override], multirun: bool) -> None:
    for override in sweeps:
        word, key = _word(override), override.get_key_element()
        if not multirun:
            value = word.partition("=")[2]
            together = f"; to measure all on one network: {key}=[{value}]" if key in ("momentum", "estimator") else ""
            raise UserError(f"{word}: a comma list is swept with -m{together}")
        if key in _ONE_FOR_A_SWEEP:
            raise UserError(f"{word}: a sweep has one {key}; run one after the other")
        if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
            raise UserError(f"{word}: cannot be swept; write its values as a comma list")
        if not list(override.sweep_string_iterator()):
            raise UserError(f"{word}: give at least one value")


def _job(words: list[str]) -> Config:
    try:
        config: Any = OmegaConf.to_object(_composed(words))
    except OmegaConfBaseException as error:
        raise UserError(_explained(_culprit(words, error), error)) from error
    check(config)
    return config  # type: ignore[no-any-return]


def _composed(words: list[str], whole: bool = False) -> Any:
    """Hydra's composition of these words, its errors made short."""
    try:
        return compose("config", overrides=words, return_hydra_config=whole)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explained(_culprit(words, error), error)) from error


def _culprit(words: list[str], error: Exception) -> str:
    """The word that the error is about."""
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    texts = [key] if key else []
    named = [w for w in words if w.split("=")[0] in texts or w in str(error) or f"'{w.split('=')[0]}'" in str(error)]
    grouped = [w for w in words if w.replace("=", "/") in str(error)]
    return (named or grouped or words or ["the configuration"])[0]


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _explained(word: str, error: Exception) -> str:
    key, _, value = word.partition("=")
    if "Could not find" in str(error) and key in _CHOICES:
        choices = _choices(key)
        return f"{word}: there is no such {key}; choose from {', '.join(choices)}{_hint(value, choices)}"
    if key == "hydra/launcher":
        return f"{word}: there is no such launcher; choose from basic, joblib, submitit_slurm"
    if "Could not override" in str(error) or "Could not find" in str(error):
        known = [*field_names(Config), *_CHOICES]
        return f"{word}: there is no setting {key!r}{_hint(key, known)}; --help lists them"
    return f"{word}: {_first_line(error.__cause__ or error)}"


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].strip().rstrip(".")


def named(words: list[str], usage: str) -> tuple[str, str, str]:
    """The experiment that the words name, and the name and folder of its results."""
    register()
    given = {o.get_key_element(): o for o in _parsed(words)}
    odd = [key for key in given if key not in ("experiment", "results", "name")]
    if odd or "experiment" not in given:
        raise UserError(f"{odd[0]}: not an option here\n{usage}" if odd else f"which experiment?\n{usage}")
    _check_sweeps([o for o in given.values() if o.is_sweep_override()], multirun=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = _composed(words)
        check_name(config)
    return given["experiment"].get_value_element_as_str(), config.name, config.results
