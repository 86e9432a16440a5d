"""Names of statistics, such as `window(k=20)`: parse and write them, and find the classes that they stand for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

_NAME = re.compile(r"([\w.]+)(?:\((.*)\))?")  # a word with dots, and in brackets what stands for the parameters


@dataclass(frozen=True)
class StatisticName:
    """A name of a statistic, parsed into the name of a class and its parameters.

    Attributes:
        base: the part before the brackets: the name of a class, or its import path.
        parameters: for each parameter that is given, its value as it is written.
    """

    base: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    # A table has the same few names in many rows, each of which is parsed.
    @staticmethod
    @cache
    def parse(text: str) -> StatisticName:
        """Parse a name such as `ema`, `window(k=20)` or `package.module.Class`; ValueError if it cannot be parsed.

        >>> StatisticName.parse("window(k=20, pooled=False)")
        StatisticName(base='window', parameters={'k': '20', 'pooled': 'False'})
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError("write a name such as ema, or name(parameter=value)")

        base, inside = match.groups(default="")
        parameters = {}
        for item in split_at_commas(inside):
            key, equals, value = item.partition("=")
            key = key.strip()
            if not equals:
                raise ValueError(f"found {key!r}; write {base}(parameter=value)")
            if key in parameters:
                raise ValueError(f"{key} is given twice")
            parameters[key] = value.strip()
        return StatisticName(base, parameters)

    def __str__(self) -> str:
        """Write it without spaces, and without brackets where there is no parameter."""
        if not self.parameters:
            return self.base
        items = [f"{key}={value}" for key, value in self.parameters.items()]
        return f"{self.base}({','.join(items)})"

    def add(self, key: str, value: object) -> StatisticName:
        """Make a name with one more parameter, which comes last."""
        return StatisticName(self.base, {**self.parameters, key: str(value)})

    def leave_out(self, key: str) -> StatisticName:
        """Make a name without a parameter, if it has that."""
        kept = {other: value for other, value in self.parameters.items() if other != key}
        return StatisticName(self.base, kept)


def split_at_commas(text: str) -> list[str]:
    """Split a text at the commas that are outside of its own brackets, as those of a tuple; empty parts are left out.

    >>> split_at_commas("k=20,spans=((1, 2), (3, 4))")
    ['k=20', 'spans=((1, 2), (3, 4))']
    """
    parts = [""]
    depth = 0
    for letter in text:
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1

        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


@dataclass(frozen=True)
class Named:
    """Statistics that are chosen by name. Subclasses are frozen dataclasses whose fields are their parameters.

    Attributes:
        name: the name by which a class is chosen; one that only inherits a name cannot be chosen.
    """

    name: ClassVar[str]

    @property
    def full_name(self) -> StatisticName:
        """Name with every parameter."""
        values = {each.name: str(getattr(self, each.name)) for each in fields(self)}
        return StatisticName(self.name, values)

    @property
    def label(self) -> str:
        """Canonical name in the rows of tables, without parameters that have a column of their own."""
        return str(self.full_name)


Class = TypeVar("Class", bound=Named)


def list_named(base: type[Any]) -> dict[str, type[Any]]:
    """List the concrete subclasses of `base`, direct or not, by their name; one that inherits its name is left out.

    Raises:
        ValueError: two classes have one name, so that one would stand in for the other.
    """
    classes: dict[str, type[Any]] = {}
    queue = [base]
    while queue:
        for cls in queue.pop().__subclasses__():
            # A class that cannot be chosen may have subclasses that can.
            queue.append(cls)
            # `hasattr` would also find a name that is inherited.
            if "name" not in vars(cls) or inspect.isabstract(cls):
                continue

            path = _get_path(cls)
            namesake = classes.get(cls.name, cls)
            other_path = _get_path(namesake)
            if other_path != path:  # two of the same path are one class that was defined again, as in a notebook
                raise ValueError(f"{path}: its name {cls.name!r} is that of {other_path}; give it another")
            classes[cls.name] = cls
    return classes


def _get_path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def make_named(cls: type[Class], name: StatisticName) -> Class:
    """Make an instance of `cls` with the parameters of a name; ValueError if `cls` has no such parameters."""
    return cls(**read_parameters(cls, name))


def read_parameters(cls: type[Named], name: StatisticName) -> dict[str, Any]:
    """Convert the parameters of a name to values for the fields of `cls`.

    Raises:
        ValueError: `cls` has no such field, or the value is not of the type of the field's default.
    """
    defaults = {each.name: each.default for each in fields(cls)}
    values = {}
    for key, text in name.parameters.items():
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"{name.base} has no parameter {key!r}; it has {known}")
        values[key] = _read_value(key, text, defaults[key])
    return values


def _read_value(key: str, text: str, default: object) -> Any:
    """Convert `text` to a value of the type that `default` has; of any if that is none of bool, number, text, tuple."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a text without quotes
        value = text

    kind = type(default)
    # Users write momentum=1, which Python reads as an integer.
    if kind is float and type(value) is int:
        value = float(value)
    value = _freeze(value)
    is_checked = kind in (bool, int, float, str, tuple)
    # `isinstance` would accept True as an integer.
    if is_checked and type(value) is not kind:
        raise ValueError(f"{key}={text} is no {kind.__name__}; its default is {default!r}")
    return value


def _freeze(value: Any) -> Any:
    """Make tuples of lists, also of those inside: what is chosen by name is compared by hash, which a list has not."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value
