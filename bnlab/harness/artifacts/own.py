"""Code of the user's own, by its import path: `mine.make_model`."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from bnlab.files import digest
from bnlab.harness.errors import UserError, where_raised


def import_object(path: str) -> Any:
    """The function or class at an import path, `package.module.name`; UserError if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"{path}: cannot be imported, {where_raised(error)}") from error


def digest_of_source(made: Any) -> str:
    """Of the source of the module that defines a function or class; what this imports is not followed."""
    module = sys.modules[made.__module__]
    try:
        return digest(inspect.getsource(module), digits=10)
    except (OSError, TypeError) as error:
        raise UserError(f"{made.__qualname__}: its source cannot be read ({error}); put it into a module") from error
