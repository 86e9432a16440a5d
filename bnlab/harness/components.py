"""Components: what settings choose by name. Each is one class: its settings, their meaning and range."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

from bnlab.harness.errors import UserError, suggest

COMPONENTS: dict[str, dict[str, Any]] = defaultdict(dict)
"""group → name → the component with the settings that it has unless others are given."""

Class = TypeVar("Class", bound="type[Component]")
_MEANING = "meaning"  # the key of a setting's `Meaning` in its field's metadata


# Not frozen, because `Own` sets its fields in __post_init__. Hashed all the same: data sets are cached by
# their `Data`, and networks of one kind are found by their components (`trial.select_kind`).
@dataclass(unsafe_hash=True)
class Component:
    """The base of all that is chosen by name."""

    group: ClassVar[str] = ""  # the setting that chooses it, such as "norm"
    is_own: ClassVar[bool] = False  # it stands for a user's import paths
    storage: ClassVar[tuple[str, ...]] = ()  # settings that say where its files are and how they come there
    # OmegaConf's mark for a missing value, written out because only `config` and `lab` import OmegaConf.
    name: str = "???"

    def identify(self) -> dict[str, Any]:
        """Collect what names the networks that are made with it: its name, and settings that are not the default."""
        keys = [each.name for each in fields(self) if each.name not in self.storage]
        return {"name": self.name, **leave_off_defaults(self, keys)}


@dataclass(frozen=True)
class Meaning:
    """The meaning of a setting, in one phrase, and the values that it may have."""

    text: str
    at_least: float | None = None
    at_most: float | None = None
    choices: Sequence[str] = ()
    is_weight: bool = False  # of a new batch: above 0 and at most 1
    is_list: bool = False  # it may also be a list of such values

    def describe(self) -> str:
        """Say what it means; where the text does not name the words that it may be, add them."""
        names_all = all(choice in self.text for choice in self.choices)
        if self.is_list or names_all:  # texts of lists explain their words
            return self.text
        return f"{self.text} ({', '.join(self.choices)})"

    def check(self, key: str, value: Any) -> None:
        """Raise UserError for a value of the setting `key` that is out of its range."""
        if self.choices:
            require_one_of(key, value, self.choices)
        # Not by `require_within`, whose bounds belong to the range: a weight of 0 does not.
        # True is an int in Python, and would pass as 1.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.is_weight and not (is_number and 0 < value <= 1):
            raise UserError(f"{key}={value}: is the weight of the new batch; must be above 0 and at most 1")
        if self.at_least is not None:
            high = float("inf") if self.at_most is None else self.at_most
            require_within(key, value, self.at_least, high)


def setting(default: Any, text: str, **limits: Any) -> Any:
    """Return a dataclass field that is a setting: its default, and its `Meaning`, with what that allows."""
    meaning = Meaning(text, **limits)
    # A dataclass refuses a list as a default, which all of its objects would share.
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={_MEANING: meaning})
    return field(default=default, metadata={_MEANING: meaning})


def component(cls: Class) -> Class:
    """Decorate a dataclass: register it, with its default settings, as a choice of its group."""
    # Not dataclasses.is_dataclass: it is true of every class below Component, decorated or not.
    if "__dataclass_fields__" not in vars(cls):
        name = f"{cls.__module__}.{cls.__qualname__}"
        raise TypeError(f"{name}: is no dataclass; write @dataclass(unsafe_hash=True) below @component")
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


@cache
def _list_defaults(kind: type[Any]) -> dict[str, Any]:
    """List the fields of a class with their defaults, once: a sweep names thousands of networks by them."""
    return {each.name: each.default for each in fields(kind)}


def leave_off_defaults(part: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Collect the values of these fields, without those that are the default."""
    defaults = _list_defaults(part.__class__)
    values = {key: getattr(part, key) for key in keys}
    return {key: value for key, value in values.items() if value != defaults[key]}


def list_settings(part: Any) -> Iterator[tuple[Field[Any], Meaning]]:
    """List the settings of a component, or of the configuration without its groups, with their meaning."""
    for attribute in fields(part):
        if _MEANING in attribute.metadata:
            yield attribute, attribute.metadata[_MEANING]


def check_settings(part: Any, group: str = "") -> None:
    """Raise UserError for a setting whose value is out of its range; None, where a setting is left open, is not."""
    for attribute, meaning in list_settings(part):
        key = f"{group}.{attribute.name}" if group else attribute.name
        value = getattr(part, attribute.name)
        is_list = meaning.is_list and isinstance(value, list | tuple)
        values = value if is_list else [value]
        if not values:
            raise UserError(f"{key}=[]: give at least one value")
        for each in values:
            if each is not None:
                meaning.check(key, each)
            # Settings that may be lists are typed Any, so that OmegaConf lets null through.
            elif meaning.is_list and attribute.default is not None:
                raise UserError(f"{key}=null: give at least one value")


def require_one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise UserError unless the setting is one of these values."""
    known = list(allowed)
    if value not in known:
        raise UserError(f"{key}={value}: {suggest(value, known)}")


def require_within(key: str, value: float, low: float, high: float = float("inf"), reason: str = "") -> None:
    """Raise UserError unless low ≤ value ≤ high; high is below low where no value is possible, as of few images."""
    # True is an int in Python, and would pass as 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key}={value}: must be a number")
    if low <= value <= high:
        return
    bounds = f"{low:,} to {high:,}"
    if high == float("inf"):
        bounds = f"{low:,} or more"
    elif high < low:
        bounds = f"at least {low:,}, but at most {high:,} is possible"
    because = f" ({reason})" if reason else ""
    raise UserError(f"{key}={value}: must be {bounds}{because}")
