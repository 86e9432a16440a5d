"""Names of estimators: a list of them, and the class and parameters behind `window(k=20)`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields
from typing import Any

from bnlab.estimators.base import Estimator


def list_estimators() -> dict[str, type[Estimator]]:
    """List every estimator class that has been defined, by its name."""
    return find_named_subclasses(Estimator)


def find_named_subclasses(base: type[Any]) -> dict[str, type[Any]]:
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


def parse(label: str) -> tuple[type[Estimator], dict[str, Any]]:
    """Find the class and parameters that a name like `ema`, `window(k=20)` or `package.module.Class` stands for.

    Raises:
        ValueError: there is no such estimator, or a parameter is not one of its fields or of another type.

    >>> parse("ema(momentum=0.2)")
    (<class 'bnlab.estimators.exponential.EMA'>, {'momentum': 0.2})
    """
    name, text = split_label(label)
    cls = list_estimators().get(name) or _import_estimator(name)
    return cls, read_parameters(label, name, text, cls)


def split_label(label: str) -> tuple[str, str]:
    """Split a label into the name and the text inside its brackets; ValueError if there is anything else."""
    match = re.fullmatch(r"([\w.]+)(?:\(([^()]*)\))?", label)
    if match is None:
        raise ValueError(f"estimator={label!r}: write a name such as ema, or name(parameter=value)")
    return match[1], match[2] or ""


def read_parameters(label: str, name: str, text: str, cls: type[Any]) -> dict[str, Any]:
    """Read `a=1,b=x` as values of the fields of the dataclass `cls`; ValueError if they are not."""
    defaults = {field.name: field.default for field in fields(cls)}
    parameters: dict[str, Any] = {}
    for item in text.split(","):
        if not item:
            continue
        key, equals, given = item.partition("=")
        key = key.strip()
        given = given.strip()
        if not equals:
            raise ValueError(f"estimator={label!r}: found {key!r}; write {name}(parameter=value)")
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"estimator={label!r}: {name} has no parameter {key!r}; it has {known}")
        parameters[key] = _parse_value(label, key, given, defaults[key])
    return parameters


def _parse_value(label: str, key: str, text: str, default: object) -> Any:
    """Parse `text` as a value of the type that the parameter's default has, if it has one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text

    kind = type(default)
    if kind is float and type(value) is int:
        value = float(value)
    is_simple = kind in (bool, int, float, str)
    if is_simple and type(value) is not kind:
        raise ValueError(f"estimator={label!r}: {key}={text} is no {kind.__name__}; its default is {default!r}")
    return value


def _import_estimator(name: str) -> type[Estimator]:
    """Import `package.module.Class`; ValueError if that is no estimator."""
    module, _, attribute = name.rpartition(".")
    if not module:
        names = sorted(list_estimators())
        known = ", ".join(names)
        raise ValueError(f"estimator={name!r}: unknown; known are {known}, or package.module.Class")

    try:
        home = importlib.import_module(module)
        cls = getattr(home, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"estimator={name!r}: cannot be imported ({error})") from error

    is_estimator = isinstance(cls, type) and issubclass(cls, Estimator)
    if not is_estimator or not hasattr(cls, "name") or inspect.isabstract(cls):
        raise ValueError(f"estimator={name!r}: is no subclass of bnlab.estimators.Estimator that has gains and a name")
    return cls
