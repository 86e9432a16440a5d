"""What containers hold: copying their entries, comparing them, putting them back."""

from __future__ import annotations

import functools
import operator
import types
from collections import deque
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler

CONTAINERS = (dict, list, set, deque, tuple, types.CellType)
MOST = 1000  # entries of a container; of one with more they are data
VERY_MANY = 10_000
_FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_OF_TRAINING = (Optimizer, LRScheduler, GradScaler)
_OF_THREADS = ("asyncio", "concurrent", "multiprocessing", "queue", "threading")
_NO_OBJECTS = (nn.Module, Tensor, types.ModuleType, Dataset, Sampler, *_FUNCTIONS)


def copy_entries(container: Any) -> Any:
    """A plain dictionary, set or list of the entries; of a closure's cell a list of the content, if there is one."""
    if isinstance(container, dict):
        return dict(container)  # not .copy(), which a subclass may forbid
    if isinstance(container, set):
        return set(container)
    if not isinstance(container, types.CellType):
        return list(container)
    try:
        return [container.cell_contents]
    except ValueError:
        return []


def list_inner(value: Any) -> list[Any]:
    """The entries of a container (of 1,000 at most; one of more is data), the attributes of a plain object."""
    if not issubclass(type(value), CONTAINERS):
        return [*(get_attributes(value) or {}).values()]
    if not isinstance(value, types.CellType) and len(value) > MOST:
        return []
    entries = copy_entries(value)
    return [*(entries.values() if isinstance(entries, dict) else entries)]


def differs(container: Any, entries: Any) -> bool:
    """Whether a container has other entries, by identity, or in another order; of one with very many their number."""
    if isinstance(container, types.CellType):
        container = copy_entries(container)
    if len(container) != len(entries) or len(entries) > VERY_MANY:
        return len(container) != len(entries)
    if isinstance(container, dict):
        return list(container) != list(entries) or not all(map(operator.is_, container.values(), entries.values()))
    if isinstance(container, (list, deque)):
        return not all(map(operator.is_, container, entries))
    return bool(container != entries)


def refill(container: Any, entries: Any) -> None:
    """Let a container, which is no tuple, have these entries only."""
    if isinstance(container, types.CellType):
        if entries:
            container.cell_contents = entries[0]
        else:
            del container.cell_contents
        return
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(entries)
    else:
        container.update(entries)


def get_attributes(value: Any) -> dict[str, Any] | None:
    """Of a plain object, or an optimizer and what goes with it; not of a module or a function.

    Nor of a data set or what else can be read from end to end: the caller does that meanwhile, threads may fill it, and
    files that it reads would not go back. Nor of a thread, a queue, or what else threads wait at. Nor of one that does
    not let itself be asked, such as a weak reference to what is gone.
    """
    kind = type(value)
    is_of_torch = str(kind.__module__).startswith("torch.") and not issubclass(kind, _OF_TRAINING)
    if is_of_torch or issubclass(kind, _NO_OBJECTS):
        return None
    if hasattr(kind, "__iter__") or hasattr(kind, "__next__"):
        return None
    if any(str(base.__module__).partition(".")[0] in _OF_THREADS for base in kind.__mro__):
        return None
    try:
        attributes = getattr(value, "__dict__", None)
    except Exception:
        return None
    return attributes if issubclass(type(attributes), dict) else None
