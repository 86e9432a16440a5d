"""What a user's own code is known by: an import path, and the digest of the source of its module."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import cache
from typing import Any

from bnlab.files import digest
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError, where_raised


@cache  # what runs is the code as it was when it was imported
def digest_of_source(obj: type | Any) -> str:
    """Ten hexadecimal digits of the source of the module in which a class or function is defined.

    What that module imports is not followed. Where it has no file, as in a notebook, the source of `obj` counts alone.

    Raises:
        UserError: the source cannot be read.
    """
    for each in (sys.modules.get(obj.__module__), obj):
        try:
            return digest(inspect.getsource(each), digits=10)  # type: ignore[arg-type]  # None: TypeError
        except (OSError, TypeError):
            continue
    raise UserError(f"{obj.__module__}.{obj.__qualname__}: its source cannot be read; put it into a module")


def import_object(path: str) -> Any:
    """The object of an import path, `package.module.name`.

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
