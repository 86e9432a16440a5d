"""Settings: one description of each, by which it is read, refused, named, shown in help, kept and restored.

A setting is a field of a dataclass: `width: int = setting(32, "channels of the first block", at_least=1)`. Its
annotation says which type its values have, `setting` what it means and which values it may have. Settings without a
group are the fields of `artifacts.job_settings.Config`, all others those of components, which are chosen by name.
`read_settings` is the only way from values, of a command line or a file, to an object of such a class.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bnlab.harness.errors import UserError, find_close, suggest

Role = Literal["network", "measuring", "running", "argument"]
"""What a setting is about: the network that is trained, what is measured on it, how and where that is done; or it is an
argument of a user's function."""

COMPONENTS: dict[str, dict[str, Any]] = defaultdict(dict)
"""group → name → the component with the settings that it has unless others are given."""

Class = TypeVar("Class")
ComponentClass = TypeVar("ComponentClass", bound="type[Component]")
_SETTING = "setting"  # the key of a field's `Setting` in its metadata
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Setting:
    """A setting of a class.

    Attributes:
        text: what it means, in one phrase.
        at_least, more_than, at_most: bounds of a number.
        choices: the words that it may be.
        role: what it is about.
        types: that a value may have, from the field's annotation; empty: any.
        takes_list: whether it may be a list of such values.
    """

    text: str
    at_least: float = -math.inf
    more_than: float = -math.inf
    at_most: float = math.inf
    choices: tuple[str, ...] = ()
    role: Role = "network"
    types: tuple[type, ...] = ()
    takes_list: bool = False

    @property
    def meaning(self) -> str:
        """What it means; where the text does not name the words that it may be, they are added."""
        names_all = all(choice in self.text for choice in self.choices)
        return self.text if names_all else f"{self.text} ({', '.join(self.choices)})"

    def read(self, key: str, value: Any) -> Any:
        """Convert a value that was given for `key` to one of its types; UserError says which values there are."""
        if self.takes_list and isinstance(value, list | tuple):
            if not value:
                raise UserError(f"{key}=[]: give at least one value")
            return [self._read_one(key, each) for each in value]
        return value if value is None and NoneType in self.types else self._read_one(key, value)

    def _read_one(self, key: str, value: Any) -> Any:
        if not self.types:
            return value
        converted = _convert(value, self.types)
        if self.choices and converted not in self.choices:
            raise UserError(f"{key}={write_argument(value)}: {suggest(value, self.choices)}")
        if converted is None or not self._is_within(converted):
            raise UserError(f"{key}={write_argument(value)}: must be {self._describe_values()}")
        return converted

    def _is_within(self, value: Any) -> bool:
        if not isinstance(value, int | float):
            return True
        return self.at_least <= value <= self.at_most and value > self.more_than

    def _describe_values(self) -> str:
        """Say which values there are: `a whole number, 1 or more`."""
        words = " or ".join(_TYPES[each] for each in self.types if each is not NoneType)
        what, _, _ = self.text.partition(";")
        if math.isfinite(self.more_than):
            return f"{words}, above {self.more_than:,} and at most {self.at_most:,} ({what})"
        if math.isfinite(self.at_least):
            return f"{words}, {_describe_range(self.at_least, self.at_most)} ({what})"
        return words


def _describe_range(low: float, high: float) -> str:
    """Write a range: `1 or more`, `2 to 1,295`."""
    return f"{low:,} or more" if high == math.inf else f"{low:,} to {high:,}"


def setting(default: Any, text: str, **limits: Any) -> Any:
    """Return a dataclass field that is a setting: its default, what it means, and which values it may have.

    Args:
        default: a list stands for a list of values.
        text: one phrase on what it means.
        limits: further attributes of `Setting`.
    """
    described = {_SETTING: Setting(text, **limits)}
    # A dataclass refuses a list as a default, which all of its objects would share.
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=described)
    return field(default=default, metadata=described)


def _convert(value: Any, types: Sequence[type]) -> Any:
    """Convert a value to one of these types; None if it has none of them."""
    given = type(value)  # not isinstance, because True is an int in Python
    if given in types:
        return value
    if given is int and float in types:
        return float(value)
    if given is float and int in types and value.is_integer():  # as people write 1e5 steps
        return int(value)
    if given in (int, float) and str in types:  # a folder may be called 2024
        return str(value)
    return None


def write_argument(value: Any) -> str:
    """Write a value as it is typed on the command line.

    >>> write_argument(None), write_argument(True), write_argument(["gaps", "log"])
    ('null', 'true', '[gaps,log]')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(write_argument, value))}]"
    return str(value)


def list_settings(cls: type[Any]) -> Mapping[str, Setting]:
    """List the settings of a class by their names: of a component, or of the configuration without its groups."""
    if cls not in _SETTINGS:
        hints = get_type_hints(cls)
        described = {each.name: each.metadata[_SETTING] for each in fields(cls) if _SETTING in each.metadata}
        _SETTINGS[cls] = {name: _add_types(each, hints[name]) for name, each in described.items()}
    return _SETTINGS[cls]


# Not functools.cache, which mypy does not let take a class.
_SETTINGS: dict[type[Any], Mapping[str, Setting]] = {}
"""What `list_settings` has listed: a sweep reads and names thousands of networks."""


def _add_types(described: Setting, hint: Any) -> Setting:
    types, takes_list = _read_hint(hint)
    return replace(described, types=types, takes_list=takes_list)


def _read_hint(hint: Any) -> tuple[tuple[type, ...], bool]:
    """Find the types of values in an annotation such as `float | list[float]`, and whether it may be a list."""
    parts = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    lists = [part for part in parts if get_origin(part) is list]
    types = dict.fromkeys([part for part in parts if part not in lists])
    for each in lists:
        types |= dict.fromkeys(_read_hint(get_args(each)[0])[0])
    return (() if Any in types else tuple(types)), bool(lists)


def list_names(cls: type[Any], role: Role) -> list[str]:
    """List the names of the settings of a class that have this role."""
    return [name for name, each in list_settings(cls).items() if each.role == role]


def read_settings(cls: type[Class], values: Mapping[str, Any], group: str = "") -> Class:
    """Make an object of a class of settings; UserError names the setting, the value and what is allowed.

    Args:
        cls: the class; fields that are no settings take any value.
        values: by name, as a command line or a file gives them; others have their defaults.
        group: what comes before their names, as `model`.
    """
    read = dict(values)
    for name, each in list_settings(cls).items():
        if name in values:
            read[name] = each.read(f"{group}.{name}" if group else name, values[name])
    return cls(**read)


def explain_unknown(key: str, classes: Mapping[str, type[Any]], choosing: Iterable[str]) -> str:
    """Say that there is no such setting, and which is meant.

    Args:
        key: with its group.
        classes: of the settings that there are, by their group.
        choosing: words that choose one of several files or components.
    """
    group, _, name = key.rpartition(".")
    known: dict[str, Setting] = {}
    for other, cls in sorted(classes.items(), key=lambda item: item[0] != group):  # those of its own group come first
        for each, described in list_settings(cls).items():
            known[f"{other}.{each}" if other else each] = described

    meant = _find_meant(name, known, choosing)
    of_group = [each for each in known if group and each.startswith(f"{group}.")]
    if meant:
        hint = f"did you mean {meant}?"
    elif of_group:
        hint = f"there are {', '.join(of_group)}"
    else:
        hint = "--help lists them"
    return f"there is no setting {key}; {hint}"


def _find_meant(name: str, known: Mapping[str, Setting], choosing: Iterable[str]) -> str | None:
    """Find what has the name that is most like this one, or else the first setting whose meaning has all its words."""
    by_name = {each: each for each in choosing}
    for key in known:
        by_name.setdefault(key.rpartition(".")[2], key)
    close = find_close(name, by_name)
    if close:
        return by_name[close]
    # As learning_rate; short words such as `in` stand in any meaning.
    words = {word for word in name.lower().split("_") if len(word) > 3}
    described = (key for key, each in known.items() if words <= {*re.findall(r"\w+", each.meaning.lower())})
    return next(described, None) if words else None


def require_one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise UserError unless the setting is one of these values."""
    known = list(allowed)
    if value not in known:
        raise UserError(f"{key}={value}: {suggest(value, known)}")


def require_within(key: str, value: float, low: float, high: float = math.inf, reason: str = "") -> None:
    """Raise UserError unless low ≤ value ≤ high, bounds that follow from other settings; high may be below low."""
    if low <= value <= high:
        return
    is_empty = high < low
    bounds = f"at least {low:,}, but at most {high:,} is possible" if is_empty else _describe_range(low, high)
    because = f" ({reason})" if reason else ""
    raise UserError(f"{key}={value}: must be {bounds}{because}")


# Not frozen, because `Own` sets its fields in __post_init__. Hashed all the same: data sets are cached by
# their `Data`, and one network is tried for all with the same components (`trial.select_tried`).
@dataclass(unsafe_hash=True)
class Component:
    """The base of all that is chosen by name. A choice is one class: its settings, and what is built from them."""

    group: ClassVar[str] = ""  # the setting that chooses it, such as "norm"
    is_own: ClassVar[bool] = False  # it stands for a user's import paths
    storage: ClassVar[tuple[str, ...]] = ()  # settings that say where its files are and how they come there
    name: str = ""

    def identify(self) -> dict[str, Any]:
        """Collect what names the networks that are made with it: its name, and settings that are not the default."""
        keys = [each.name for each in fields(self) if each.name not in self.storage]
        return {"name": self.name, **leave_off_defaults(self, keys)}


def leave_off_defaults(part: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Collect the values of these fields, without those that are the default."""
    defaults = _list_defaults(part.__class__)
    values = {key: getattr(part, key) for key in keys}
    return {key: value for key, value in values.items() if value != defaults[key]}


@cache
def _list_defaults(cls: type[Any]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(cls)}


def component(cls: ComponentClass) -> ComponentClass:
    """Decorate a dataclass: register it, with its default settings, as a choice of its group."""
    add_choice(cls.name, cls())
    return cls


def add_choice(name: str, chosen: Component) -> None:
    """Register a component as a choice of its group, under any name: with other settings it may have several."""
    COMPONENTS[chosen.group][name] = chosen


@cache
def discover(package: str) -> None:
    """Import all modules of a package, so that the components in them are registered."""
    for name in list_modules(package):
        importlib.import_module(f"{package}.{name}")


@cache
def list_modules(package: str) -> list[str]:
    """List the names of a package's modules. The package is imported, its modules are not."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path))
