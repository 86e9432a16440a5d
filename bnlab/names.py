"""Names of statistics, such as `window(k=20)`: taken apart, put together, and the classes that they stand for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

Colour = Literal["blue", "sky", "pink", "orange", "green", "red", "purple", "black"]
Line = Literal["solid", "dashed", "dotted", "mixed"]

_NAME = re.compile(r"([\w.]+)(?:\((.*)\))?")
_COMMA = re.compile(r",(?![^(\[]*[)\]])")  # outside of brackets


@dataclass(frozen=True)
class EstimatorName:
    """A name that has been parsed.

    Attributes:
        base: the part before the brackets: a name, or an import path.
        parameters: their values by name, as they are written.
    """

    base: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    @cache
    def parse(text: str) -> EstimatorName:
        """Parse a name such as `ema`, `window(k=20)` or `package.module.Class`; ValueError if it is none.

        >>> EstimatorName.parse("window(k=20, pooled=False)")
        EstimatorName(base='window', parameters={'k': '20', 'pooled': 'False'})
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError("write a name such as ema, or name(parameter=value)")

        base, inside = match.groups(default="")
        parameters = {}
        for item in _COMMA.split(inside):
            if not item:
                continue
            key, equals, value = item.partition("=")
            key = key.strip()
            if not equals:
                raise ValueError(f"found {key!r}; write {base}(parameter=value)")
            parameters[key] = value.strip()
        return EstimatorName(base, parameters)

    def __str__(self) -> str:
        """Write it without spaces, and without brackets where there is no parameter."""
        if not self.parameters:
            return self.base
        items = [f"{key}={value}" for key, value in self.parameters.items()]
        return f"{self.base}({','.join(items)})"

    def add(self, key: str, value: object) -> EstimatorName:
        """Make a name with one more parameter, which comes last."""
        return EstimatorName(self.base, {**self.parameters, key: str(value)})

    def leave_out(self, key: str) -> EstimatorName:
        """Make a name without a parameter, if it has that."""
        kept = {other: value for other, value in self.parameters.items() if other != key}
        return EstimatorName(self.base, kept)


@dataclass(frozen=True)
class Look:
    """How statistics look in figures.

    Attributes:
        words: in legends; their name, if there are none.
        colour: a family of estimators has one where it can; None: brown, grey or olive, whichever is free.
        line: of curves.
        unsaid: parameters that go without saying in legends, as they are written: `pooled=False`.
    """

    words: str = ""
    colour: Colour | None = None
    line: Line = "solid"
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """Statistics that are chosen by name. Subclasses are frozen dataclasses whose fields are their parameters.

    Attributes:
        name: of the class; classes without one of their own cannot be chosen.
        look: of the class, in figures; classes below it do not have the same.
    """

    name: ClassVar[str]
    look: ClassVar[Look] = Look()

    @property
    def full_name(self) -> EstimatorName:
        """Name with every parameter."""
        values = {each.name: str(getattr(self, each.name)) for each in fields(self)}
        return EstimatorName(self.name, values)

    @property
    def label(self) -> str:
        """Canonical name, by which rows of tables are told apart."""
        return str(self.full_name)


Class = TypeVar("Class", bound=Named)


def list_named(base: type[Any]) -> dict[str, type[Any]]:
    """List the concrete classes below `base` by their name; without a name of its own one is left out.

    Raises:
        ValueError: two classes have one name, so that one would stand in for the other.
    """
    classes: dict[str, type[Any]] = {}
    queue = [base]
    while queue:
        for cls in queue.pop().__subclasses__():
            queue.append(cls)
            if "name" not in vars(cls) or inspect.isabstract(cls):
                continue

            path = _get_path(cls)
            other = _get_path(classes.get(cls.name, cls))
            if other != path:  # the same path: defined again, in a notebook say
                raise ValueError(f"{path}: its name {cls.name!r} is that of {other}; give it another")
            classes[cls.name] = cls
    return classes


def _get_path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def find_look(cls: type[Named]) -> Look:
    """Find the look of a class: its own, since another line in the look of the class above it would be mistaken."""
    own: Look = vars(cls).get("look", Named.look)
    return own


def make_named(cls: type[Class], name: EstimatorName) -> Class:
    """Make an object with the parameters of a name; ValueError if they are not its own."""
    return cls(**read_parameters(cls, name))


def read_parameters(cls: type[Named], name: EstimatorName) -> dict[str, Any]:
    """Read the parameters of a name as values of the fields of `cls`; ValueError if they are not."""
    defaults = {each.name: each.default for each in fields(cls)}
    values = {}
    for key, text in name.parameters.items():
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"{name.base} has no parameter {key!r}; it has {known}")
        values[key] = _read_value(key, text, defaults[key])
    return values


def _read_value(key: str, text: str, default: object) -> Any:
    """Read `text` as a value of the type that the parameter's default has, if it has one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text

    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    is_simple = kind in (bool, int, float, str)
    if is_simple and type(value) is not kind:
        raise ValueError(f"{key}={text} is no {kind.__name__}; its default is {default!r}")
    return value
