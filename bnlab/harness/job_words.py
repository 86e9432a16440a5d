"""The words of a command line that stand for a job, so that a message can say what sweeps its network again."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from typing import Any

from bnlab.harness.artifacts.job_settings import GROUPS, Config

_PLAIN_WORD = re.compile(r"[A-Za-z_][\w./-]*")  # is read as it stands; other text needs quotation marks
_SAID = ("null", "true", "false", "nan", "inf")  # words that mean a value
_OF_COMMANDS = ("dry_run", "csv")


def write_command(config: Config) -> str:
    """Write the command that sweeps one job, without settings that are the default."""
    words = []
    for group in GROUPS:
        words += _choose(group, getattr(config, group))
    usual = Config()
    for each in fields(Config):
        value = getattr(config, each.name)
        if each.name not in (*GROUPS, *_OF_COMMANDS) and value != getattr(usual, each.name):
            words.append(f"{each.name}={_write_value(value)}")
    return shlex.join(["bnlab", "sweep", *words])


def _choose(group: str, chosen: Any) -> list[str]:
    """Write the words that choose a component, and its settings where they are not those of that choice."""
    choices = GROUPS[group]
    keys = [key for key, choice in choices.items() if type(choice) is type(chosen)]
    key = chosen.name if chosen.name in choices or not keys else keys[0]
    usual = choices.get(key, type(chosen)(name=chosen.name))

    words = [] if usual == getattr(Config(), group) else [f"{group}={key}"]
    for each in fields(chosen):
        value = getattr(chosen, each.name)
        if each.name != "content" and value != getattr(usual, each.name):
            words.append(f"{group}.{each.name}={_write_value(value)}")
    return words


def _write_value(value: Any) -> str:
    """Write a value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        items = [_write_value(each) for each in value]
        return f"[{','.join(items)}]"
    text = str(value)
    is_plain = not isinstance(value, str) or (_PLAIN_WORD.fullmatch(text) and text.lower() not in _SAID)
    return text if is_plain else json.dumps(text)
