"""From the words of a command line to checked configurations, before Hydra runs anything."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnlab.harness.config import Config, check, field_names
from bnlab.harness.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
_GROUPS = ("data", "model", "optimizer", "experiment")


def register() -> None:
    """Make the typed configuration known to Hydra, as `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def jobs(overrides: list[str], multirun: bool) -> list[Config]:
    """The checked configuration of every job that these overrides stand for.

    Raises:
        UserError: one or two lines that name the key, the value and what is allowed.
    """
    register()
    parsed = _parsed(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        sweeps = [o for o in parsed if o.is_sweep_override()]
        hydra = _composed(plain, whole=True).hydra
        multirun = multirun or str(hydra.mode).endswith("MULTIRUN")
        if sweeps and not multirun:
            word = sweeps[0].input_line or ""
            key, _, value = word.partition("=")
            together = f"; to measure all on one network: {key}=[{value}]" if key in ("momentum", "estimator") else ""
            raise UserError(f"{word}: a comma list is swept with -m{together}")
        params = _parsed([f"{k}={v}" for k, v in (hydra.sweeper.params or {}).items()]) if multirun else []
        return [_job(words) for words in BasicSweeper.split_arguments([*params, *parsed], None)[0]]


def _parsed(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    found = []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            matched = all(word.count(a) == word.count(b) for a, b in ("[]", "()", "{}")) and word.count("'") % 2 == 0
            reason = _first_line(error) if matched else "a bracket or quote is not closed"
            raise UserError(f"{word}: cannot be read ({reason}); write key=value, a list as key=[a,b]") from error
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise UserError(f"{word}: settings cannot be added or deleted; write key=value without + or ~")
        found.append(override)
    return found


def _job(words: list[str]) -> Config:
    config: Any = OmegaConf.to_object(_composed(words))
    check(config)
    return config  # type: ignore[no-any-return]


def _composed(words: list[str], whole: bool = False) -> Any:
    """Hydra's composition of these words, its errors made short."""
    try:
        return compose("config", overrides=words, return_hydra_config=whole)
    except (HydraException, OmegaConfBaseException) as error:
        culprit = _culprit(words, error)
        raise UserError(_explained(culprit, error)) from error


def _culprit(words: list[str], error: Exception) -> str:
    """The word that the error is about."""
    key = getattr(error.__cause__, "full_key", None)
    texts = [key] if key else []
    named = [w for w in words if w.split("=")[0] in texts or w in str(error) or f"'{w.split('=')[0]}'" in str(error)]
    grouped = [w for w in words if w.replace("=", "/") in str(error)]
    return (named or grouped or words or ["the configuration"])[0]


def _explained(word: str, error: Exception) -> str:
    key, _, value = word.partition("=")
    if "Could not find" in str(error) and key in _GROUPS:
        choices = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        return f"{word}: there is no such {key}; choose from {', '.join(choices)}{_hint(value, choices)}"
    if "Could not override" in str(error) or "Could not find" in str(error):
        known = [*field_names(Config), *_GROUPS]
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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = _composed(words)
    return given["experiment"].get_value_element_as_str(), config.name, config.results
