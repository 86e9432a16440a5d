"""Estimators by name: which there are, and what `window(k=20)` stands for."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields
from typing import Any

from bnlab.estimators.base import Estimator


def list_estimators() -> dict[str, type[Estimator]]:
    """Every estimator class that has been defined, by its name."""
    return find_named_subclasses(Estimator)


def find_named_subclasses(base: type[Any]) -> dict[str, type[Any]]:
    """The concrete classes below `base` by their name; without a name of its own one is left out.

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
            other = classes.get(cls.name, cls)
            if _path(other) != _path(cls):  # the same path: defined again, in a notebook say
                raise ValueError(f"{_path(cls)}: its name {cls.name!r} is that of {_path(other)}; give it another")
            classes[cls.name] = cls
    return classes


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def parse(label: str) -> tuple[type[Estimator], dict[str, Any]]:
    """The class and parameters that a name like `ema`, `window(k=20)` or `package.module.Class` stands for.

    Raises:
        ValueError: there is no such estimator, or a parameter is not one of its fields or of another type.

    >>> parse("ema(momentum=0.2)")
    (<class 'bnlab.estimators.exponential.EMA'>, {'momentum': 0.2})
    """
    name, text = split_label(label)
    cls = list_estimators().get(name) or _import_estimator(name)
    return cls, read_parameters(label, name, text, cls)


def split_label(label: str) -> tuple[str, str]:
    """The name before the bracket and the text inside of it; ValueError if there are other things."""
    match = re.fullmatch(r"([\w.]+)(?:\(([^()]*)\))?", label)
    if match is None:
        raise ValueError(f"estimator={label!r}: write a name such as ema, or name(parameter=value)")
    return match[1], match[2] or ""


def read_parameters(label: str, name: str, text: str, cls: type[Any]) -> dict[str, Any]:
    """`a=1,b=x` as values of the fields of the dataclass `cls`; ValueError if they are not."""
    defaults = {f.name: f.default for f in fields(cls)}
    parameters: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, given = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"estimator={label!r}: found {item.strip()!r}; write {name}(parameter=value)")
        if key not in defaults:
            there = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"estimator={label!r}: {name} has no parameter {key!r}; {there}")
        parameters[key] = _parse_value(label, key, given, defaults[key])
    return parameters


def _parse_value(label: str, key: str, text: str, default: object) -> Any:
    """`text` as a value of the type that the parameter's default has, if it has one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise ValueError(f"estimator={label!r}: {key}={text} is no {kind.__name__}; its default is {default!r}")
    return value


def _import_estimator(name: str) -> type[Estimator]:
    module, _, attribute = name.rpartition(".")
    if not module:
        known = ", ".join(sorted(list_estimators()))
        raise ValueError(f"estimator={name!r}: unknown; known are {known}, or package.module.Class")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"estimator={name!r}: cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, Estimator) and hasattr(cls, "name")) or inspect.isabstract(cls):
        raise ValueError(f"estimator={name!r}: is no subclass of bnlab.estimators.Estimator that has gains and a name")
    return cls
