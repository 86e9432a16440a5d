"""The table `runs` with the columns of all settings, which are made from the components and the configuration.

A setting that a component adds has its column by itself: its name, its type and what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from bnlab.harness.artifacts.settings import GROUPS, Config, list_storage
from bnlab.harness.components import list_settings
from bnlab.harness.run_table import RESOLVED, RUNS, TRAINED_WITH
from bnlab.harness.schema import Column, Table, boolean, integer, real, text

_NAMES = {
    "data": "data set: {names}, or the import path of your own",
    "model": "network: {names}, or torchvision's name, or the import path of your own",
    "norm": "kind of normalization: {names}",
    "optimizer": "optimizer: {names}",
}
_KINDS: Mapping[type, Callable[[str], Column]] = {bool: boolean, int: integer, float: real, str: text}


def describe_runs() -> Table:
    """Describe the table `runs` with all its columns."""
    names = {group: _describe_names(group) for group in GROUPS}
    in_groups = {group: _describe_group(group) for group in GROUPS}
    without_group = _describe_without_group()

    columns = dict(names)
    for settings in in_groups.values():
        columns |= settings
    columns |= {**without_group, **RUNS.others, **RESOLVED}

    first = ["seed", "data", "model", "norm", "batch_size", "norm_batch_size", "optimizer", *in_groups["optimizer"]]
    order = dict.fromkeys([*first, "epochs", "steps", *columns])
    others = {name: columns[name] for name in order}
    return Table(RUNS.about, RUNS.key, others, is_open=True)


def _describe_names(group: str) -> Column:
    """Describe the column that says what was chosen in a group."""
    choices = [choice.name for choice in GROUPS[group].values() if not choice.has_any_name]
    names = dict.fromkeys(choices)
    return text(_NAMES[group].format(names=", ".join(names)))


def _describe_without_group() -> dict[str, Column]:
    """Describe the columns of the settings that have no group."""
    columns = {}
    for each, meaning in list_settings(Config()):
        if each.name in ("seed", *TRAINED_WITH):
            make_column = _find_kind(Config, each.name)
            columns[each.name] = make_column(meaning.describe())
    return columns


def _describe_group(group: str) -> dict[str, Column]:
    """Describe the columns of the settings that the choices of a group have."""
    choices = {choice.name: choice for choice in GROUPS[group].values()}
    kinds: dict[str, Callable[[str], Column]] = {}
    meanings: dict[str, dict[str, list[str]]] = {}
    for choice in choices.values():
        for each, meaning in list_settings(choice):
            if each.name in list_storage(choice):
                continue
            kinds.setdefault(each.name, _find_kind(type(choice), each.name))
            same = meanings.setdefault(each.name, {})
            same.setdefault(meaning.describe(), []).append(choice.name)

    columns = {}
    for name, make_column in kinds.items():
        columns[f"{group}.{name}"] = make_column(_say_whose(meanings[name], [*choices]))
    return columns


def _say_whose(meanings: Mapping[str, Sequence[str]], choices: Sequence[str]) -> str:
    """Say what a setting means in which choices; only what it means, where that is the same in all.

    >>> _say_whose({"blocks": ["cnn"], "hidden layers": ["mlp"]}, ["cnn", "mlp"])
    'cnn: blocks; mlp: hidden layers'
    """
    words = []
    for meaning, names in meanings.items():
        if len(names) == len(choices):
            return meaning
        words.append(f"{', '.join(names)}: {meaning}")
    return "; ".join(words)


def _find_kind(part: type[Any], name: str) -> Callable[[str], Column]:
    """Find what makes the column of a setting, by its type; a list, or what may be anything, is written as text."""
    hint = get_type_hints(part)[name]
    for each in (hint, *get_args(hint)):  # of `int | None`: int
        if each in _KINDS:
            return _KINDS[each]
    return text
