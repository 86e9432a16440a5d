"""Words of a sweep's command line: what they may say, and what is said of mistakes."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bnlab.harness.artifacts.settings import GROUPS, Config
from bnlab.harness.errors import UserError

_SWEPT_BY_FILES = ("suite", "experiment")  # keys that choose files which may say themselves what is swept
_FILES = (*GROUPS, "variation", *_SWEPT_BY_FILES)  # keys that choose one of several
_NEVER_SWEPT = ("name", "results")


def read_word(word: str) -> Override:
    """Read a word of the command line.

    Raises:
        UserError: it has no value, or asks for what Hydra can do and a sweep cannot.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"{word}: cannot be read; write key=value, a list as key=[a,b], a value with brackets in quotes: "
            "'estimator=\"window(k=20)\"'"
        ) from error
    if override.is_delete():
        raise UserError(f"{word}: nothing can be left out; without a word on it a setting has its default, see --help")
    is_added = override.is_add() or override.is_force_add()
    if is_added and not override.is_hydra_override():
        raise UserError(f"{word}: there is no setting to add; those that --help lists are set without +")
    is_choice = override.is_sweep_override() or isinstance(override.value(), str | list)
    if override.get_key_element() in _FILES and not is_choice:
        raise UserError(f"{word}: is no choice; name one of those that --help lists, or leave the word out")
    return override


def sets_value(override: Override) -> bool:
    """Decide if a word sets a value of a job; others choose a file, or are about Hydra itself."""
    return not override.is_hydra_override() and override.get_key_element() not in _FILES


def refuse_sweep(override: Override, multirun: bool) -> None:
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
    if key in _NEVER_SWEPT or override.is_hydra_override() or not is_list:
        raise UserError(f"{word}: cannot be swept; comma lists can, but not of name, results and Hydra's settings")


def explain_unknown(key: str, composed: Mapping[Any, Any] | None = None) -> str:
    """Say that there is no such setting: which choices of its group have it, or one that is called nearly so.

    Args:
        key: of the setting.
        composed: the settings that there are, if they are known.
    """
    if key in _FILES:  # Hydra puts what a file says into its group
        return "a file of settings begins with the line # @package _global_"
    group, _, setting = key.partition(".")
    choices = GROUPS.get(group, {})
    having = [f"{group}={name}" for name, choice in choices.items() if setting in vars(choice)]
    if having:
        return f"this {group} has no {setting}; {', '.join(having)} has"

    known = {*vars(Config()), *_FILES}
    for choice in choices.values():
        known |= {f"{group}.{name}" for name in vars(choice)}
    if composed and group in GROUPS:
        known |= {f"{group}.{name}" for name in composed[group]}
    close = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no setting {key}{hint}; --help lists them"
