"""Mistakes that Hydra finds, in words of the settings: which one was meant, and what can be given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.components import Meaning, list_settings
from bnlab.harness.errors import find_close

UNKNOWN = (ConfigAttributeError, ConfigKeyError)  # there is no setting of this name
FILES = (*GROUPS, "variation", "suite", "experiment")  # keys that choose one of several files
_KINDS = {
    "could not be converted to Integer": "a whole number",
    "could not be converted to Float": "a number",
    "is not a valid bool": "true or false",
}
"""What OmegaConf says of a value of another type, and what can be given."""
_OTHER_TYPE = re.compile(rf"Value '(.*?)' (?:of type '\w+' )?({'|'.join(_KINDS)})")
_NEARLY_EQUAL = 0.8  # how like a setting of another group has to be


def explain(error: Exception) -> str:
    """Say what Hydra says in its first line, which names a word or a file, and in a second one what caused it."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return first_line(error)
    # Composing has failed, so that there are only defaults to compare with.
    settings = asdict(Config())
    if isinstance(cause, UNKNOWN):
        reason = explain_unknown(str(cause.full_key), settings)
    else:
        reason = explain_value(cause, settings)
    return f"{first_line(error)}\n  {reason}".strip()


def explain_unknown(key: str, settings: Mapping[Any, Any]) -> str:
    """Say that there is no such setting, and which of these is meant."""
    if key in FILES:  # Hydra puts what a file says into its group
        return "a file of settings begins with the line # @package _global_"
    meanings = _list_meanings(settings)
    group, _, name = key.rpartition(".")
    of_group = {known: meaning for known, meaning in meanings.items() if group and known.startswith(f"{group}.")}
    if of_group:
        # The group may be the mistake, but then the name has to be nearly right.
        meant = _find_meant(name, of_group) or _find_spelled(name, meanings, _NEARLY_EQUAL)
        known = f"there are {', '.join(of_group)}"
    else:
        meant = _find_meant(name, meanings)
        known = "--help lists them"
    hint = f"did you mean {meant}?" if meant else known
    return f"there is no setting {key}; {hint}"


def explain_value(error: BaseException, settings: Mapping[Any, Any]) -> str:
    """Say of a value of another type what can be given."""
    line = first_line(error)
    key = str(getattr(error, "full_key", None) or "")
    misfit = _OTHER_TYPE.match(line)
    meaning = _list_meanings(settings).get(key)
    if "is not Optional" in line:
        return f"{key}=null: needs a value; leave the word out for the default"
    if misfit is None:
        return f"{key}: {line}".removeprefix(": ")

    value, reason = misfit.groups()
    allowed = _KINDS[reason]
    if meaning is not None and meaning.at_least is not None:
        most = "" if meaning.at_most is None else f" and at most {meaning.at_most:g}"
        allowed += f", at least {meaning.at_least:g}{most}"
    if allowed.startswith("a whole") and re.fullmatch(r"\d+\.0", value):
        allowed += f"; write it as {value.removesuffix('.0')}"
    # OmegaConf does not always say the key.
    return f"{key}={value}: must be {allowed}".removeprefix("=")


def first_line(error: BaseException) -> str:
    """Take the first line of a message, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _list_meanings(settings: Mapping[Any, Any]) -> dict[str, Meaning | None]:
    """List the settings of a job with their meanings, as far as they have one; those of a user's function have none."""
    meanings: dict[str, Meaning | None] = {each.name: meaning for each, meaning in list_settings(Config())}
    meanings |= dict.fromkeys(FILES)
    for group, choices in GROUPS.items():
        meanings |= {f"{group}.{name}": None for name in settings[group] if name != "name"}  # which chooses
        choice = choices.get(settings[group]["name"])
        if choice is not None:
            meanings |= {f"{group}.{each.name}": meaning for each, meaning in list_settings(choice)}
    return meanings


def _find_meant(name: str, meanings: Mapping[str, Meaning | None]) -> str | None:
    """Find the setting that is spelled nearly so, or else the first whose meaning has all words of the name."""
    spelled = _find_spelled(name, meanings)
    if spelled:
        return spelled
    words = name.lower().split("_")
    for key, meaning in meanings.items():
        if meaning is not None and {*words} <= {*re.findall(r"\w+", meaning.text.lower())}:
            return key
    return None


def _find_spelled(name: str, keys: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the setting whose name, without its group, is most like this one."""
    by_name: dict[str, str] = {}
    for key in keys:
        by_name.setdefault(key.rpartition(".")[2], key)
    close = find_close(name, by_name, cutoff)
    return by_name[close] if close else None
