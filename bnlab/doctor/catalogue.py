"""The causes that come with bnlab."""

from __future__ import annotations

import importlib
import pkgutil

from bnlab.doctor import causes
from bnlab.doctor.cause import Cause


def list_causes() -> list[Cause]:
    """List the causes that come with bnlab, one of each, ordered by code.

    >>> [cause.code for cause in list_causes()][:3]
    ['BN001', 'BN002', 'BN101']
    """
    found: list[Cause] = []
    for module_info in pkgutil.iter_modules(causes.__path__):
        module = importlib.import_module(f"{causes.__name__}.{module_info.name}")
        for value in vars(module).values():
            # Classes that a module has only imported, such as Cause itself, are none of its causes.
            if isinstance(value, type) and issubclass(value, Cause) and value.__module__ == module.__name__:
                found.append(value())
    # The order counts: of causes that explain a gap equally well, the first one is named.
    return sorted(found, key=lambda cause: cause.code)
