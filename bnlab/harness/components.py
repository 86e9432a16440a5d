"""Components: choices by name. A component is one class in one file: its settings, their meaning and range.

A class registers itself when its module is imported, and `discover` imports all modules of a folder. Hydra's choices,
the help, the checks and the documentation come from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

from bnlab.harness.checks import require_one_of, require_weight, require_within
from bnlab.harness.errors import UserError

COMPONENTS: dict[str, dict[str, Any]] = defaultdict(dict)
"""By group and name, a component with its default settings."""

Class = TypeVar("Class", bound="type[Component]")
_MEANING = "meaning"  # in a field's metadata


@dataclass(unsafe_hash=True)
class Component:
    """Choice by name.

    Attributes:
        group: the setting that chooses it, such as "norm".
        has_any_name: whether its name is a setting too, such as a user's import path.
        is_own: whether it is a function of the user's own.
        name: of the choice.
    """

    group: ClassVar[str] = ""
    has_any_name: ClassVar[bool] = False
    is_own: ClassVar[bool] = False
    name: str = "???"


@dataclass(frozen=True)
class Meaning:
    """Meaning of a setting, and the values that it may have.

    Attributes:
        text: in one phrase.
        at_least, at_most: the smallest and the largest number.
        choices: the words that it may be; any without.
        is_weight: whether it is the weight of a new batch: above 0 and at most 1.
        is_list: whether it may be a list, each of which has to be such a value.
    """

    text: str
    at_least: float | None = None
    at_most: float | None = None
    choices: Sequence[str] = ()
    is_weight: bool = False
    is_list: bool = False

    def describe(self) -> str:
        """Say what it means, with the words that it may be unless the text has all of them."""
        has_all = all(choice in self.text for choice in self.choices)
        if self.is_list or has_all:
            return self.text
        return f"{self.text} ({', '.join(self.choices)})"


def setting(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    is_weight: bool = False,
    is_list: bool = False,
) -> Any:
    """A field of a component, with its default; for the other arguments see `Meaning`."""
    meaning = Meaning(text, at_least, at_most, tuple(choices), is_weight, is_list)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={_MEANING: meaning})
    return field(default=default, metadata={_MEANING: meaning})


def component(cls: Class) -> Class:
    """Register a dataclass with its default settings as a choice of its group."""
    add_choice(cls.name, cls())
    return cls


def add_choice(name: str, chosen: Component) -> None:
    """Register a component with other settings than its defaults under a name of its own."""
    COMPONENTS[chosen.group][name] = chosen


@cache
def discover(package: str) -> None:
    """Import all modules of a package, so that the components in them are registered."""
    for name in list_modules(package):
        importlib.import_module(f"{package}.{name}")


def list_modules(package: str) -> list[str]:
    """List the modules of a package, which are not imported for it."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def list_settings(part: Any) -> Iterator[tuple[Field[Any], Meaning]]:
    """List the settings of a dataclass or an instance with their meaning, in the order in which they are written."""
    for each in fields(part):
        if _MEANING in each.metadata:
            yield each, each.metadata[_MEANING]


def check_settings(part: Any, group: str = "") -> None:
    """Raise UserError for a setting of a part of the configuration whose value is out of its range."""
    for each, meaning in list_settings(part):
        key = f"{group}.{each.name}" if group else each.name
        value = getattr(part, each.name)
        values = list(value) if meaning.is_list and isinstance(value, list | tuple) else [value]
        if not values:
            raise UserError(f"{key}=[]: give at least one value")
        for one in values:
            if one is not None:
                _check_value(key, one, meaning)


def _check_value(key: str, value: Any, meaning: Meaning) -> None:
    if meaning.choices:
        require_one_of(key, value, meaning.choices)
    if meaning.is_weight:
        require_weight(key, value)
    if meaning.at_least is not None:
        high = float("inf") if meaning.at_most is None else meaning.at_most
        require_within(key, value, meaning.at_least, high)
