"""The table `runs` with a column for each setting: its name, its type and its meaning come from the components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.components import list_settings
from bnlab.harness.run_table import RESOLVED, RUNS
from bnlab.harness.schema import Column, Table, boolean, integer, real, text
from bnlab.harness.trained_with import TRAINED_WITH

_NAMES = {
    "data": "data set: {}, or the import path of your own",
    "task": "import path of a task of your own; null: {}",
    "model": "network: {}, or the import path of your own",
    "norm": "kind of normalization: {}, or the import path of your own",
    "optimizer": "optimizer: {}, or the import path of your own",
}
_COLUMN_MAKERS: Mapping[type, Callable[[str], Column]] = {bool: boolean, int: integer, float: real, str: text}


def describe_runs() -> Table:
    """Describe the table `runs` with all its columns."""
    columns = {}
    for group, choices in GROUPS.items():
        names = dict.fromkeys(choice.name for choice in choices.values())
        columns[group] = text(_NAMES[group].format(", ".join(names)))
    for group in GROUPS:
        columns |= _describe_group(group)
    for attribute, meaning in list_settings(Config()):  # those of measurements have no column
        if attribute.name in ("seed", *TRAINED_WITH):
            make_column = _find_column_maker(Config, attribute.name)
            columns[attribute.name] = make_column(meaning.describe())
    # The last ones take the place of settings: their values are those that were open in the configuration.
    columns |= {**RUNS.others, **RESOLVED}

    # The columns that most readers look for come first.
    optimizers = [name for name in columns if name.startswith("optimizer.")]
    first = ["seed", "data", "model", "norm", "batch_size", "norm_batch_size", "optimizer", *optimizers]
    order = dict.fromkeys([*first, "epochs", "steps", *columns])  # each once
    return Table(RUNS.about, RUNS.key, {name: columns[name] for name in order}, is_open=True)


def _describe_group(group: str) -> dict[str, Column]:
    """Describe the columns of the settings that the choices of a group have, each `group.name`."""
    choices = {choice.name: choice for choice in GROUPS[group].values()}
    makers: dict[str, Callable[[str], Column]] = {}  # by setting
    readers: dict[str, dict[str, list[str]]] = {}  # by setting and meaning: the choices that have it
    for choice in choices.values():
        for attribute, meaning in list_settings(choice):
            name = attribute.name
            # Where files lie is no property of the network.
            if name in choice.storage:
                continue
            makers.setdefault(name, _find_column_maker(type(choice), name))
            readers.setdefault(name, {}).setdefault(meaning.describe(), []).append(choice.name)
    return {f"{group}.{name}": make(_say_whose(readers[name], len(choices))) for name, make in makers.items()}


def _say_whose(meanings: Mapping[str, Sequence[str]], choices: int) -> str:
    """Say what a setting means, and for which choices unless all have it with that meaning.

    >>> _say_whose({"blocks": ["cnn"], "hidden layers": ["mlp"]}, choices=2)
    'cnn: blocks; mlp: hidden layers'
    """
    words = []
    for meaning, names in meanings.items():
        if len(names) == choices:
            return meaning
        words.append(f"{', '.join(names)}: {meaning}")
    return "; ".join(words)


def _find_column_maker(part: type[Any], name: str) -> Callable[[str], Column]:
    """Find the function that makes the column of a setting, by its type; lists and values of any type become text."""
    hint = get_type_hints(part)[name]
    for kind in (hint, *get_args(hint)):  # `int | None`, int, None
        if kind in _COLUMN_MAKERS:
            return _COLUMN_MAKERS[kind]
    return text
