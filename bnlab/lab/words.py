"""Words of a sweep's command line: which there are, and what they may say."""

from __future__ import annotations

import difflib

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bnlab.harness.artifacts.settings import GROUPS, Config
from bnlab.harness.config import list_choices
from bnlab.harness.errors import UserError

SWEPT_BY_FILES = ("suite", "experiment")
"""Keys that choose files which may say themselves what is swept."""
_FILES = (*GROUPS, "variation", *SWEPT_BY_FILES)  # keys that choose one of several


def read_word(word: str) -> Override:
    """Read a word of the command line.

    Raises:
        UserError: it has no value, names no setting, or asks for what Hydra can do and a sweep cannot.
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
    if override.is_hydra_override():
        return override
    if override.is_add():
        raise UserError(f"{word}: there is no setting to add; those that --help lists are set without +")
    if override.is_force_add():  # sets what there is, as without its sign
        return read_word(word.removeprefix("++"))
    _require_known(word, override)
    return override


def _require_known(word: str, override: Override) -> None:
    """Require that a word names a setting and, for a file, a choice; a group's settings are known once it is chosen."""
    key = override.get_key_element()
    first, _, _ = key.partition(".")
    if key not in _FILES and first not in vars(Config()):
        raise UserError(f"{word}: {explain_unknown(key)}")

    is_choice = isinstance(override.value(), str | list) or override.is_sweep_override()
    if not is_choice and not sets_value(override):
        raise UserError(f"{word}: is no choice; name one of those that --help lists, or leave the word out")


def sets_value(override: Override) -> bool:
    """Decide if a word sets values of a job; others choose a file, or are about Hydra itself."""
    if override.is_hydra_override():
        return False
    chooses_file = override.get_key_element() in _FILES
    return not chooses_file or isinstance(override.value(), dict)


def explain_unknown(key: str) -> str:
    """Say that there is no such setting: which choices of its group have it, or one that is called nearly so."""
    if key in _FILES:  # Hydra puts what a file says into its group
        return "a file of settings begins with the line # @package _global_"
    group, _, setting = key.partition(".")
    having = [f"{group}={name}" for name, choice in GROUPS.get(group, {}).items() if setting in vars(choice)]
    if having:
        return f"this {group} has no {setting}; {', '.join(having)} has"

    known = {*vars(Config()), *_FILES}
    for choice in list_choices(group).values():
        known |= {f"{group}.{name}" for name in vars(choice)}
    close = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no setting {key}{hint}; --help lists them"
