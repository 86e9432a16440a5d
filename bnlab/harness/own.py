"""A user's code, by import path: `data=`, `task=`, `model=`, `norm=`, `optimizer=` and others take one.

Arguments that bnlab does not give are settings. Results are known by the code of the module and of the modules in its
folder that it imports (`user_code`), those on data by the images and labels that the function gives.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, TypeVar

from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.settings import Component, list_names, setting
from bnlab.harness.user_code import SOURCE, digest_code

OWN_CLASSES: dict[str, type[Own]] = {}
"""group → the class that stands for a user's function there."""

OwnClass = TypeVar("OwnClass", bound="type[Own]")
_REQUIRED = "???"  # the default of a setting without one, as OmegaConf has it
_CHECKED = (bool, int, float, str)  # annotations that the values of a setting are checked against


@dataclass(eq=False)
class Own(Component):
    """The user's own: a function or class, with its import path as `name`."""

    is_own: ClassVar[bool] = True
    given: ClassVar[int] = 0  # how many arguments bnlab gives it, which come first; all others are settings
    # A setting of the group that the function has to take as an argument, and whose default is that of the argument.
    group_setting: ClassVar[str] = ""
    usual: ClassVar[Mapping[str, Any]] = {}  # defaults of arguments without one

    def __post_init__(self) -> None:
        for name, value in self.arguments.items():
            if isinstance(value, Mapping):
                raise UserError(f"{self.group}.{name}: is a dictionary; give numbers, words, or lists of these")
            # Components are hashed, which lists cannot be.
            setattr(self, name, _make_hashable(value))

    # Each function has a class of its own, also when it is chosen again.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and (self.group, repr(self)) == (other.group, repr(other))

    def __hash__(self) -> int:
        return hash((self.group, repr(self)))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that are settings, with their values."""
        return {name: getattr(self, name) for name in list_names(type(self), "argument")}

    def digest(self) -> dict[str, str]:
        """Digest what its results are known by, as a column of the table `runs`: its code."""
        return {SOURCE: digest_code(self.name.rpartition(".")[0])}

    def identify(self) -> dict[str, Any]:
        return super().identify() | self.digest()


def _make_hashable(value: Any) -> Any:
    """Make tuples of lists, also of those in lists."""
    return tuple(map(_make_hashable, value)) if isinstance(value, list | tuple) else value


def own(cls: OwnClass) -> OwnClass:
    """Decorate the class that stands for a user's functions in a group."""
    OWN_CLASSES[cls.group] = cls
    return cls


def make_own(group: str, path: str) -> Own:
    """Make the component of a user's function or class, with a setting for each argument that bnlab does not give.

    An argument without a default has to be set. Values are checked against the annotations `bool`, `int`, `float` and
    `str`. UserError if it cannot be imported, or an argument has a name that bnlab needs itself, or is lacking.
    """
    base = OWN_CLASSES[group]
    # An argument of such a name would take the place of a method or of a setting that bnlab reads.
    known = {*dir(base), *(each.name for each in fields(base)), SOURCE}
    made = import_object(group, path)
    if not callable(made):
        raise UserError(f"{group}={path}: is a {type(made).__name__}; name a function or a class")
    arguments = _list_arguments(made)[base.given :]
    needed = base.group_setting
    if needed and needed not in [argument.name for argument in arguments]:
        raise UserError(f"{group}={path}: has no argument {needed}, by which bnlab gives {group}.{needed}")

    settings = []
    for argument in arguments:
        if argument.name == needed:
            settings.append(_change_default(base, argument))
            continue
        if not _is_setting(argument):
            continue
        if argument.name in known:
            raise UserError(
                f"{group}={path}: its argument {argument.name} has a name that bnlab needs itself; rename it"
            )
        default = argument.default
        if default is argument.empty:
            default = base.usual.get(argument.name, _REQUIRED)
        elif isinstance(default, list):
            # A dataclass refuses a list as a default.
            default = tuple(default)
        settings.append((argument.name, _find_type(argument), setting(default, "", role="argument")))
    # Each function has a class of its own, in which Hydra finds its settings, their types and defaults.
    return make_dataclass("Own", settings, bases=(base,), eq=False)(name=path)


def _change_default(base: type[Own], argument: inspect.Parameter) -> tuple[str, Any, Any]:
    """Return the field of a setting of the group, with its meaning and range, and the default of this argument."""
    (inherited,) = [each for each in fields(base) if each.name == argument.name]
    default = argument.default if isinstance(argument.default, int | float) else _REQUIRED
    return inherited.name, inherited.type, field(default=default, metadata=inherited.metadata)


def import_object(key: str, path: str) -> Any:
    """Import the object at `package.module.name`; UserError, which begins with `key`, if that fails."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        # A torchvision that was built for another torch fails on its operators. They are declared by hand,
        # and the import is tried again: once, or a module that fails all the same would be imported for ever.
        if "torchvision::" in str(error) and _mend_torchvision():
            return import_object(key, path)
        raise UserError(f"{key}={path}: cannot be imported, {where_raised(error)}") from error


def _mend_torchvision() -> bool:
    """Import torchvision where its compiled operators do not load; False if that has been done before."""
    from bnlab.common.vision import torchvision  # here: reports do not wait for torch

    is_first = not torchvision.cache_info().currsize
    torchvision()
    return is_first


def call_own(key: str, path: str, *given: Any, **arguments: Any) -> Any:
    """Call the function or class at an import path; UserError with its line if it fails."""
    function = import_object(key, path)
    try:
        return function(*given, **arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise either
        sizes = [str(each) for each in given if isinstance(each, int)]  # the weights of an optimizer would fill a page
        called = f"; it was called with {', '.join(sizes)}" if sizes else ""
        raise UserError(f"{key}={path}: {where_raised(error)}{called}") from error


def _list_arguments(function: Any) -> list[inspect.Parameter]:
    """List the arguments that have a name, in their order."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not callable, or without a signature, as some classes of C
        return []
    return [each for each in arguments if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def _is_setting(argument: inspect.Parameter) -> bool:
    default = argument.default
    if default is argument.empty:
        return True
    values = default if isinstance(default, list | tuple) else [default]
    # Members of an enum and numpy's numbers are words and numbers too, but would come back from a file as others.
    return all(value is None or type(value) in _CHECKED for value in values)


def _find_type(argument: inspect.Parameter) -> Any:
    """Find the type that values are checked against; without one, any."""
    for checked in _CHECKED:
        if argument.annotation in (checked, checked.__name__):  # a word where annotations are not evaluated
            return checked if argument.default is not None else checked | None  # people write `width: int = None`
    return Any
