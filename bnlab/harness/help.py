"""What `sweep --help` says of settings: it is read from the components, the configuration and the estimators."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from bnlab import estimators, inference
from bnlab.harness.artifacts.settings import GROUPS, Config
from bnlab.harness.components import Component, list_settings
from bnlab.harness.measurements import list_names
from bnlab.harness.measurements.sources import AVERAGING, FROZEN

_WIDTH = 116
_COLUMN = 32  # where meanings begin


def describe_settings() -> str:
    """Every choice and setting with its default and its meaning, as lines of text."""
    lines = []
    for group, choices in GROUPS.items():
        lines += [*_describe_group(group, choices), ""]
    lines += [*_describe_part(Config(), ""), ""]
    lines += [*_describe_estimators(), *_wrap("measurements", ", ".join(list_names()))]
    return "\n".join(lines)


def _describe_group(group: str, choices: Mapping[str, Component]) -> Iterator[str]:
    """The choices of a group, each with the settings that it has beside those of all; defaults are of the usual one."""
    shared = set.intersection(*({each.name for each in fields(choice)} for choice in choices.values()))
    described = set[str]()
    for name, choice in choices.items():
        summary = (type(choice).__doc__ or "").splitlines()[0]
        yield from _wrap(f"{group}={name}", summary)
        for line, setting in _describe_each(choice, group):
            if setting not in shared and line not in described:
                described.add(line)
                yield line
    usual = getattr(Config(), group)
    common = [line for line, setting in _describe_each(usual, group) if setting in shared]
    if common:
        yield f"every {group} (defaults of {usual.name})"
        yield from common


def _describe_part(part: Any, group: str) -> Iterator[str]:
    yield from (line for line, _ in _describe_each(part, group))


def _describe_each(part: Any, group: str) -> Iterator[tuple[str, str]]:
    """For each setting its lines, and its name."""
    for each, meaning in list_settings(part):
        key = f"  {group}.{each.name}" if group else each.name
        value = _write(getattr(part, each.name))
        lines = _wrap(f"{key}={value}", meaning.describe())
        yield "\n".join(lines), each.name


def _write(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(value)}]" if isinstance(value, list | tuple) else str(value)


def _describe_estimators() -> Iterator[str]:
    running = sorted(estimators.list_estimators())
    kinds = [
        f"averages of the recorded batches: {', '.join(running)}",
        f'statistics of frozen weights, also "precise(images=1000)": {", ".join(FROZEN)}',
        f"with averaging=swa or ema: {', '.join(AVERAGING)}",
        f"of the test batch: {', '.join(sorted(inference.list_rules()))}",
        "your own: package.module.Class",
    ]
    yield from _wrap("estimator", "; ".join(kinds) + ". Parameters in quotes: 'estimator=\"window(k=50)\"'")


def _wrap(head: str, text: str) -> list[str]:
    """A head and its meaning, which begins in a column of its own; below a long head."""
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    if len(head) < _COLUMN - 1:
        return [head + lines[0][len(head) :], *lines[1:]] if lines else [head]
    return [head, *lines]
