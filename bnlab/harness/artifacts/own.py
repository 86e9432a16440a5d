"""A user's own code: an import path, the digest of its module's source, and the arguments that are settings."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Collection
from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Any, TypeVar

from bnlab.files import digest
from bnlab.harness.errors import UserError, where_raised
from bnlab.vision import torchvision

REQUIRED = "???"
"""The default of a setting without one, as OmegaConf has it."""
Settings = TypeVar("Settings")
_ARGUMENT = "argument"  # in the metadata of fields that are arguments
_CHECKED = (bool, int, float, str)  # annotations that the values of a setting are checked against


@cache  # what runs is the code as it was when it was imported
def digest_of_source(obj: type | Any) -> str:
    """Digest the source of the module in which a class or function is defined, to ten hexadecimal digits.

    Modules that it imports do not count. Where it has no file, as in a notebook, the source of `obj` counts alone.

    Raises:
        UserError: the source cannot be read.
    """
    for each in (sys.modules.get(obj.__module__), obj):
        try:
            source = inspect.getsource(each)  # type: ignore[arg-type]  # None: TypeError
        except (OSError, TypeError):
            continue
        return digest(source, digits=10)
    raise UserError(f"{obj.__module__}.{obj.__qualname__}: its source cannot be read; put it into a module")


def digest_of_own(cls: type) -> str:
    """Digest the source of a user's class; empty for bnlab's, whose changes `measurements.estimates.VERSION` counts."""
    is_ours = cls.__module__.startswith(("bnlab.", "experiments.questions."))
    return "" if is_ours else digest_of_source(cls)


def import_object(path: str) -> Any:
    """Import the object at a path, `package.module.name`.

    Raises:
        UserError: the module cannot be imported, with the line that failed, or it has no such name.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        if "torchvision::" in str(error) and not torchvision.cache_info().currsize:
            torchvision()  # where its compiled operators do not load
            return import_object(path)
        raise UserError(f"{path}: cannot be imported, {where_raised(error)}") from error


def add_arguments(base: type[Settings], path: str, given: Collection[str]) -> type[Settings]:
    """Derive a configuration whose further settings are the arguments of a user's function or class.

    Args:
        base: the configuration that all functions of this kind have.
        path: the function's import path.
        given: the names of its arguments that bnlab gives it.

    Returns:
        A dataclass with a field for each further argument, with its default; one without a default has to be set.
        Values are checked against the annotations `bool`, `int`, `float` and `str`; arguments without one of these
        take any. Arguments whose default is something else than such values or lists of them are no settings.

    Raises:
        UserError: the function cannot be imported, or an argument has the name of a setting of bnlab's.
    """
    known = {each.name for each in fields(base)}  # type: ignore[arg-type]
    settings = []
    for argument in _list_arguments(import_object(path)):
        name = argument.name
        if name in given or not _is_setting(argument):
            continue
        if name in known:
            raise UserError(f"{path}: its argument {name} has the name of a setting of bnlab's; rename it")
        settings.append((name, _find_type(argument), _find_default(argument)))

    methods = {"__post_init__": _fix_lists}
    return make_dataclass("Own", settings, bases=(base,), namespace=methods, unsafe_hash=True)


def _fix_lists(config: Any) -> None:
    """Turn lists into tuples, so that a configuration can be hashed."""
    for name, value in vars(config).copy().items():
        if isinstance(value, list):
            setattr(config, name, tuple(value))


def list_names(path: str) -> list[str]:
    """List the arguments of the function at an import path that have a name, in their order."""
    return [argument.name for argument in _list_arguments(import_object(path)) if _is_named(argument)]


def find_arguments(config: Any) -> dict[str, Any]:
    """Find the arguments of the function, with their values, in a configuration of `add_arguments`."""
    return {each.name: getattr(config, each.name) for each in fields(config) if _ARGUMENT in each.metadata}


def _list_arguments(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not callable, or without a signature, as some classes of C
        return []


def _is_named(argument: inspect.Parameter) -> bool:
    return argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)


def _is_setting(argument: inspect.Parameter) -> bool:
    if not _is_named(argument):
        return False
    default = argument.default
    if default is argument.empty:
        return True
    values = default if isinstance(default, list | tuple) else [default]
    return all(value is None or isinstance(value, _CHECKED) for value in values)


def _find_type(argument: inspect.Parameter) -> Any:
    """Find the type that values are checked against; without one, any."""
    for kind in _CHECKED:
        if argument.annotation in (kind, kind.__name__):  # a word where annotations are not evaluated
            return kind
    return Any


def _find_default(argument: inspect.Parameter) -> Any:
    default = argument.default
    if default is argument.empty:
        default = REQUIRED
    elif isinstance(default, list):
        default = tuple(default)
    return field(default=default, metadata={_ARGUMENT: True})
