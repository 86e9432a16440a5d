"""Locks that a model's code may hold while a forward waits: the next forward would wait for them without end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import sys
import threading
import time
import types
import weakref
from collections import ChainMap, UserDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from bnlab.containers import CONTAINERS, copy_entries, get_attributes

_LOCK = type(threading.Lock())
_LIBRARIES = {*sys.stdlib_module_names, "torch", "torchvision", "numpy"}  # whose code is not searched for locks
# What libraries have for others to put things into.
_HOLDERS = (
    threading.Condition,
    threading.local,
    types.SimpleNamespace,
    argparse.Namespace,
    UserDict,
    ChainMap,
    weakref.WeakKeyDictionary,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
)
_LARGE = 1000  # entries; a container of more is data: locks among them are found, not what is inside of them
_LONG = 100  # entries; a container of more is not searched again unless their number has changed
_MOST = 100_000  # things that are searched at once; more are data
_MOMENT, _MOMENTS = 0.005, 20  # in seconds: how long, and how often, another thread is waited for
_PLAIN = {bool, bytes, complex, float, int, str, type(None)}
_LEVELS = 10  # of what holds and names what, down to a lock


class Lock(NamedTuple):
    """A lock or semaphore, and how to ask whether the next one who wants it would have to wait."""

    lock: Any
    is_taken: Callable[[], bool]


class Locks:
    """The locks and semaphores (not re-entrant ones) that can be had, as far as a model's code reaches them.

    Followed are attributes of modules and of objects, what `functions` and methods of modules hold and name, and what
    is held and named there. Those that somebody holds already do not count.
    """

    def __init__(self, model: nn.Module, functions: Iterable[Any]) -> None:
        self._parts = set(map(id, model.modules()))
        self._searched: dict[int, tuple[Any, int]] = {}  # long containers, and how many entries they had
        modules = [module for module in model.modules() if not _is_of_library(type(module))]
        classes = {cls for module in modules for cls in type(module).__mro__ if cls not in nn.Module.__mro__}
        held = [value for module in modules for value in vars(module).values()]
        self._shared = [*functions, *(value for cls in classes for value in vars(cls).values())]
        alone = [value for value in held if not issubclass(type(value), CONTAINERS)]
        self._shared += [value for value in alone if get_attributes(value) is None]
        locks = self._find([*self._shared, *held])
        self._known = {id(lock.lock): lock for lock in locks}
        self._free = [lock for lock in locks if not lock.is_taken()]

    def look_again(self) -> None:
        """Find those that a forward has made; but for those of which each batch has its own (see `ModuleState`)."""
        new = [lock for lock in self._find(self._shared) if id(lock.lock) not in self._known]
        self._known |= {id(lock.lock): lock for lock in new}
        self._free += new

    def are_held(self) -> bool:
        """Whether the next one who wants one of them would have to wait for ever."""
        return any(map(_stays_taken, self._free))

    def _find(self, values: Iterable[Any]) -> list[Lock]:
        level = list(values)
        locks, seen = list[Lock](), dict[int, Any]()
        for _ in range(_LEVELS):
            # What the model's own modules hold is asked for above, or belongs to each batch.
            others = (value for value in level if type(value) not in _PLAIN and id(value) not in self._parts)
            fresh = {id(value): value for value in others if id(value) not in seen}
            seen |= fresh  # holds them, so that no identity is given to another
            level = []
            for value in fresh.values():
                with contextlib.suppress(Exception):  # one that does not let itself be asked
                    locks += [lock] if (lock := _as_lock(value)) is not None else []
                    level += _list_reached(value) if self._is_to_be_searched(value) and len(fresh) <= _MOST else []
        return locks

    def _is_to_be_searched(self, value: Any) -> bool:
        """Whether it is no long container that was searched before."""
        if not isinstance(value, CONTAINERS) or isinstance(value, types.CellType) or len(value) <= _LONG:
            return True
        _, before = self._searched.get(id(value), (None, -1))
        self._searched[id(value)] = value, len(value)
        return before != len(value)


def _stays_taken(lock: Lock) -> bool:
    """Whether it is taken, and not by another thread for a moment."""
    for _ in range(_MOMENTS if threading.active_count() > 1 else 1):
        if not lock.is_taken():
            return False
        time.sleep(_MOMENT)
    return True


def _is_of_library(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _is_lock(kind: type) -> bool:
    return issubclass(kind, (_LOCK, threading.Semaphore, asyncio.Lock, asyncio.Semaphore)) or (
        kind.__module__ == "multiprocessing.synchronize"
    )


def _as_lock(value: Any) -> Lock | None:
    if not _is_lock(type(value)):
        return None
    if isinstance(value, _LOCK):
        return Lock(value, value.locked)
    if isinstance(value, (asyncio.Lock, asyncio.Semaphore)):  # each forward may have an event loop of its own
        return Lock(value, value.locked)
    if isinstance(value, threading.Semaphore):
        return Lock(value, lambda: value._value == 0)
    if hasattr(value, "_semlock"):
        # A process may take its recursive lock again.
        return None if value._semlock.kind == 0 else Lock(value, value._semlock._is_zero)
    return None


def _list_reached(value: Any) -> list[Any]:
    """What a value holds, and of code what it names."""
    if isinstance(value, types.FunctionType):
        return [] if _is_of_library(value) else _list_used(value)
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return [value.__func__, getattr(value, "__self__", None)]
    if isinstance(value, functools._lru_cache_wrapper):  # with what it keeps
        return gc.get_referents(value)
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, type):
        return [] if _is_of_library(value) else list(vars(value).values())
    if isinstance(value, CONTAINERS):
        entries = value.values() if isinstance(value, dict) else copy_entries(value)
        kinds = {kind for kind in set(map(type, entries)) if len(entries) <= _LARGE or _is_lock(kind)}
        return [entry for entry in entries if type(entry) in kinds] if kinds else []
    if isinstance(value, (Tensor, types.ModuleType, threading.Thread)):  # a thread holds a lock as long as it lives
        return []
    if isinstance(value, (types.MappingProxyType, weakref.WeakValueDictionary)):
        return list(value.values())
    if _is_of_library(type(value)) and not isinstance(value, _HOLDERS):
        return []
    return [type(value), *getattr(value, "__dict__", {}).values(), *_list_slots(value)]


def _list_slots(value: Any) -> list[Any]:
    members = [
        m for cls in type(value).__mro__ for m in vars(cls).values() if isinstance(m, types.MemberDescriptorType)
    ]
    return [getattr(value, member.__name__, None) for member in members]


def _list_used(function: types.FunctionType) -> list[Any]:
    """What a function has in its closure and defaults, and what it and those inside of it name."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    named += [sys.modules[name] for name in names if name in sys.modules]  # which it may import itself
    # Of a module that it names, the members that it may mean, and of those inside of it.
    members, level, seen = list[Any](), named, set[int]()
    while modules := {
        id(value): vars(value) for value in level if isinstance(value, types.ModuleType) and id(value) not in seen
    }:
        seen |= modules.keys()  # they may name each other
        level = [content[name] for content in modules.values() for name in names & content.keys()]
        members += level
        if len(members) > _LARGE:
            break
    closure = [content for cell in function.__closure__ or () for content in copy_entries(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*named, *members, *closure, *defaults, *vars(function).values()]
