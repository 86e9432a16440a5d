"""Help of `sweep --help` on settings, read from the components, the configuration and the estimators."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from bnlab.estimators import Estimator
from bnlab.harness.artifacts.settings import GROUPS, Config
from bnlab.harness.components import Component, list_settings
from bnlab.harness.measurements import list_names
from bnlab.harness.statistic_kinds import Measured, OfAveraging
from bnlab.inference import Rule
from bnlab.names import Named, list_named

_WIDTH = 116
_COLUMN = 32  # where meanings begin
_KINDS: dict[type[Named], str] = {
    Estimator: "averages of the recorded batches",
    Measured: 'statistics of frozen weights, also "precise(images=1000)"',
    OfAveraging: "with averaging=swa or ema",
    Rule: "of the test batch",
}  # of what `estimator` may be


def describe_settings() -> str:
    """Every choice and setting with its default and its meaning, as lines of text."""
    lines = []
    for group, choices in GROUPS.items():
        lines += [*_describe_group(group, choices), ""]
    lines += [*_describe_part(Config(), ""), ""]

    measurements = ", ".join(list_names())
    lines += _describe_estimators()
    lines += _wrap("measurements", f"{measurements}; your own: package.module.Class")
    return "\n".join(lines)


def _describe_group(group: str, choices: Mapping[str, Component]) -> Iterator[str]:
    """The choices of a group, each with the settings that it has beside those of all; defaults are of the usual one."""
    shared = _find_shared(choices.values())
    described = set[str]()
    for name, choice in choices.items():
        text = type(choice).__doc__ or ""
        summary, *_ = text.splitlines()
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


def _find_shared(choices: Iterable[Component]) -> set[str]:
    """Find the settings that all choices have."""
    names = []
    for choice in choices:
        own = {each.name for each in fields(choice)}
        names.append(own)
    return set.intersection(*names)


def _describe_part(part: Any, group: str) -> Iterator[str]:
    yield from (line for line, _ in _describe_each(part, group))


def _describe_each(part: Any, group: str) -> Iterator[tuple[str, str]]:
    """List the lines on each setting, with its name."""
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
    if isinstance(value, list | tuple):
        return f"[{','.join(value)}]"
    return str(value)


def _describe_estimators() -> Iterator[str]:
    kinds = []
    for kind, meaning in _KINDS.items():
        names = sorted(list_named(kind))
        kinds.append(f"{meaning}: {', '.join(names)}")
    kinds.append("your own: package.module.Class")

    text = "; ".join(kinds)
    yield from _wrap("estimator", f"{text}. Parameters in quotes: 'estimator=\"window(k=50)\"'")


def _wrap(head: str, text: str) -> list[str]:
    """A head and its meaning, which begins in a column of its own; below a long head."""
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    has_room = len(head) < _COLUMN - 1
    if not lines or not has_room:
        return [head, *lines]

    first, *others = lines
    beside = first[len(head) :]
    return [head + beside, *others]
