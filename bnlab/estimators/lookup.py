"""Running estimators by their names."""

from __future__ import annotations

import importlib
from typing import Any

from bnlab.common.names import StatisticName, list_named, read_parameters
from bnlab.estimators.base import Estimator


def list_estimators() -> dict[str, type[Estimator]]:
    """List every estimator class that has been defined, by its name.

    >>> list_estimators()["ema"]
    <class 'bnlab.estimators.exponential.EMA'>
    """
    return list_named(Estimator)


def parse(label: str) -> tuple[type[Estimator], dict[str, Any]]:
    """Find the class and parameters that a name like `ema`, `window(k=20)` or `package.module.Class` stands for.

    Raises:
        ValueError: there is no such estimator, or a parameter is not one of its fields or of another type.

    >>> parse("ema(momentum=0.2)")
    (<class 'bnlab.estimators.exponential.EMA'>, {'momentum': 0.2})
    """
    try:
        name = StatisticName.parse(label)
        cls = list_estimators().get(name.base) or _import_by_path(name.base)
        return cls, read_parameters(cls, name)
    except ValueError as error:
        raise ValueError(f"estimator={label!r}: {error}") from error


def _import_by_path(path: str) -> type[Estimator]:
    if "." not in path:
        names = sorted(list_estimators())
        known = ", ".join(names)
        raise ValueError(f"unknown; known are {known}, or package.module.Class")
    return import_estimator(path)


def import_estimator(path: str) -> type[Estimator]:
    """Import `package.module.Class`; ValueError if that is no estimator."""
    module, _, attribute = path.rpartition(".")
    try:
        home = importlib.import_module(module)
        cls = getattr(home, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot be imported ({error})") from error

    is_estimator = isinstance(cls, type) and issubclass(cls, Estimator)
    # The base class defines both methods, but its `gains` raises an error and its `direct` returns None.
    has_gains = is_estimator and (cls.gains is not Estimator.gains or cls.direct is not Estimator.direct)
    if not has_gains or not hasattr(cls, "name"):
        raise ValueError("is no subclass of bnlab.estimators.Estimator that has gains and a name")
    return cls
