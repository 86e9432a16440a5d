"""What a forward pass changes on the modules of a model and in what they hold, so that many of them can take turns."""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils.hooks import RemovableHandle

from bnlab.borrowing import differs

_BASE_ATTRIBUTES = frozenset(nn.Module().__dict__) | {"training"}


class HeldTensor(NamedTuple):
    """A tensor that a module holds, as it was when a measurement began."""

    name: str
    tensor: Tensor
    version: int
    data: Tensor  # holds the memory, so that no other data can come to lie at its address

    @property
    def written(self) -> bool:
        """Whether somebody has written into it since, or given it other data."""
        if self.tensor._version != self.version:
            return True
        return self.tensor.layout == torch.strided and self.tensor.data_ptr() != self.data.data_ptr()


def held_tensors(model: nn.Module) -> list[HeldTensor]:
    """Parameters, buffers and tensor attributes of all modules."""
    found = []
    for prefix, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _BASE_ATTRIBUTES}
        for key, value in {**own, **module._buffers, **module._parameters}.items():
            if isinstance(value, Tensor) and not value.is_inference():
                found.append(HeldTensor(f"{prefix}.{key}".lstrip("."), value, value._version, value.detach()))
    return found


class Watched(dict[str, Any]):
    """A dictionary that enters itself in a journal when it is written to."""

    def __init__(self, entries: dict[str, Any], journal: list[Watched]) -> None:
        super().__init__(entries)
        self.journal = journal

    def __reduce__(self) -> tuple[Any, ...]:  # a copy is nobody's business
        return dict, (dict(self),)

    def __setitem__(self, key: str, value: Any) -> None:
        self.journal.append(self)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.journal.append(self)
        super().__delitem__(key)

    def __ior__(self, other: Any) -> Watched:  # type: ignore[override,misc]
        self.update(other)
        return self

    def clear(self) -> None:
        self.journal.append(self)
        super().clear()

    def pop(self, *args: Any) -> Any:  # type: ignore[override]
        self.journal.append(self)
        return super().pop(*args)

    def popitem(self) -> tuple[str, Any]:
        self.journal.append(self)
        return super().popitem()

    def setdefault(self, *args: Any) -> Any:  # type: ignore[override]
        self.journal.append(self)
        return super().setdefault(*args)

    def update(self, *args: Any, **entries: Any) -> None:
        self.journal.append(self)
        super().update(*args, **entries)


_ABSENT = object()
_REGISTERED = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Overrides(NamedTuple):
    """What one forward changed on the modules: attributes (dict, key, value) and entries of containers."""

    attributes: list[tuple[dict[str, Any], str, Any]]
    containers: list[tuple[Any, Any]]


class ModuleState:
    """What a forward changes on the modules of a borrowed model; every batch begins with the originals, keeps its own.

    Watches parameters, buffers, submodules, hooks, the mode and new attributes of all modules; of those that are not
    torch's own all attributes and the entries of their dictionaries, lists, sets and plain objects (also of those
    inside of them); and what `hooks` reach in the same way through closures, arguments and names. Of other attributes
    torch's own modules keep nothing but the tensors that someone else has put there.
    """

    def __init__(self, model: nn.Module, hooks: Iterable[Any] = ()) -> None:
        self._model, self._hooks = model, list(hooks)
        self._journal: list[Watched] = []
        self._registrations = [vars(m)[key] for m in model.modules() for key in _REGISTERED if key in vars(m)]
        self._registrations += [_global_forward_pre_hooks, _global_forward_hooks]
        for module in model.modules():
            for key in ("_parameters", "_buffers", "_modules"):
                if type(own := vars(module).get(key)) is dict:  # scripted modules have others, or none
                    vars(module)[key] = Watched(own, self._journal)
        self._look()

    def _look(self) -> None:
        """Take what there is for the originals."""
        self._dicts = [vars(module) for module in self._model.modules()]
        self._sizes = [len(d) for d in self._dicts]
        own = [vars(m) for m in self._model.modules() if not type(m).__module__.startswith("torch.nn.modules")]
        identities = set(map(id, own))
        present = [(d, key) for d in self._dicts for key in d if key not in _BASE_ATTRIBUTES]
        self._known = {(id(d), key) for d, key in present}
        others = [(d, key) for d, key in present if isinstance(d[key], Tensor) or id(d) in identities]
        self._owners, self._names = [d for d, _ in others], [key for _, key in others]
        self._objects, self._absent = [d[key] for d, key in others], [_ABSENT] * len(others)
        self._modes = [d.get("training") for d in self._dicts]
        self._keys = [*others, *((d, "training") for d in self._dicts if "training" in d)]
        self._values = [d[key] for d, key in self._keys]
        self._containers = _containers_in([*self._values, *_reached(self._hooks)])
        self._entries = [_copy(c) for c in self._containers]
        watched = (value for d in self._dicts for value in d.values() if isinstance(value, Watched))
        self._members = {id(members): dict(members) for members in watched}
        self._registered = list(map(dict, self._registrations))
        self._handles = RemovableHandle.next_id
        self._journal.clear()

    def _changed(self) -> tuple[bool, list[tuple[Any, Any]]]:
        """Whether anything differs from the originals, and the containers that do, with their original entries."""
        # Hot: each batch passes here at each layer.
        same = all(map(operator.is_, map(dict.get, self._owners, self._names, self._absent), self._objects))
        same = same and list(map(dict.get, self._dicts, repeat("training"))) == self._modes
        pairs = zip(self._containers, self._entries, strict=True)
        filled = [(c, entries) for c, entries in pairs if _differs(c, entries)]
        if self._journal:
            written = {id(members): members for members in self._journal}
            known = ((members, self._members[key]) for key, members in written.items() if key in self._members)
            filled += [(members, entries) for members, entries in known if differs(members, entries)]
        if RemovableHandle.next_id != self._handles:  # a forward may have registered hooks: looked at from now on
            self._handles = -1
            hooks = zip(self._registrations, self._registered, strict=True)
            filled += [(members, entries) for members, entries in hooks if differs(members, entries)]
        return not same or bool(filled) or list(map(len, self._dicts)) != self._sizes, filled

    def accept(self) -> None:
        """Take what differs from the originals now into them."""
        if self._changed()[0]:
            self._look()

    def take(self) -> Overrides | None:
        """What differs from the originals now (None: nothing), after which the originals are put back."""
        changed, filled = self._changed()
        if not changed:
            self._journal.clear()
            return None
        attributes = [(d, key, d.get(key, _ABSENT)) for d, key in self._keys]
        attributes = [now for now, value in zip(attributes, self._values, strict=True) if now[2] is not value]
        for (d, key), value in zip(self._keys, self._values, strict=True):
            d[key] = value
        new = [
            (d, key)
            for d in self._dicts
            for key in d
            if key not in _BASE_ATTRIBUTES and (id(d), key) not in self._known
        ]
        attributes += [(d, key, d.pop(key)) for d, key in new]
        containers = [(container, _copy(container)) for container, _ in filled]
        for container, entries in filled:
            _refill(container, entries)
        self._journal.clear()
        return Overrides(attributes, containers)

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """What a forward in the block changes is put back after it."""
        self.accept()
        try:
            yield
        finally:
            self.take()

    def give(self, overrides: Overrides | None) -> None:
        """Put one forward's changes in force again (the originals are in place)."""
        if overrides is None:
            return
        for d, key, value in overrides.attributes:
            if value is _ABSENT:
                del d[key]
            else:
                d[key] = value
        for container, entries in overrides.containers:
            _refill(container, entries)


def forward_hooks(model: nn.Module) -> list[Any]:
    """What is registered on the modules to run with their forward."""
    return [hook for m in model.modules() for hook in [*m._forward_pre_hooks.values(), *m._forward_hooks.values()]]


def _reached(functions: Iterable[Any]) -> list[Any]:
    """What functions, methods, partial functions and callable objects hold beside their arguments, call or name."""
    found: list[Any] = []
    queue, seen = list(functions), set[int]()
    while queue:
        function = queue.pop()
        if id(function) in seen or isinstance(function, (nn.Module, type)):
            continue
        seen.add(id(function))
        if isinstance(function, functools.partial):
            held = [function.func, *function.args, *function.keywords.values()]
        elif isinstance(function, types.MethodType):
            held = [function.__func__, getattr(function.__self__, "__dict__", None)]
        elif isinstance(function, types.FunctionType):
            found += function.__closure__ or ()
            named = (function.__globals__.get(name) for name in function.__code__.co_names)
            inside = [content for cell in function.__closure__ or () for content in _copy(cell)]
            held = [*inside, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), vars(function)]
            held += [value for value in named if isinstance(value, (dict, list, set, deque))]
        else:
            held = [getattr(function, "__dict__", None)]
        found += [value for value in held if not isinstance(value, nn.Module)]
        queue += [value for value in held if callable(value)]
    return found


_LOCK = type(threading.Lock())
_LIBRARIES = {*sys.stdlib_module_names, "torch", "torchvision", "numpy"}  # whose code is not searched for locks


class HeldLock(NamedTuple):
    """A lock or semaphore, and how to ask whether the next one who wants it would have to wait."""

    lock: Any
    is_taken: Callable[[], bool]


def free_locks(model: nn.Module, functions: Iterable[Any]) -> list[HeldLock]:
    """The locks and semaphores (not re-entrant ones) that can be had, as far as the model's code reaches them.

    Followed are attributes of modules and of objects, what `functions` and methods of modules hold and name, and what
    is held and named there.
    """
    modules = [m for m in model.modules() if not _is_of_library(type(m))]
    classes = {cls for m in modules for cls in type(m).__mro__ if cls not in nn.Module.__mro__}
    level = [*functions, *(value for holder in (*modules, *classes) for value in vars(holder).values())]
    found, seen = list[HeldLock](), dict[int, Any]()
    for _ in range(_LEVELS):
        fresh = {id(value): value for value in level if id(value) not in seen}
        seen |= fresh  # holds them, so that no identity is given to another
        locks = [_as_lock(value) for value in fresh.values()]
        found += [lock for lock in locks if lock is not None]
        level = [inner for value in fresh.values() for inner in _reached_from(value)]
    return [lock for lock in found if not lock.is_taken()]


def _is_of_library(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _as_lock(value: Any) -> HeldLock | None:
    if isinstance(value, _LOCK):
        return HeldLock(value, value.locked)
    if isinstance(value, threading.Semaphore):
        return HeldLock(value, lambda: value._value == 0)
    if type(value).__module__ == "multiprocessing.synchronize" and hasattr(value, "_semlock"):
        # A process may take its recursive lock again.
        return None if value._semlock.kind == 0 else HeldLock(value, value._semlock._is_zero)
    return None


def _reached_from(value: Any) -> list[Any]:
    """What a value holds, and of code what it names."""
    if isinstance(value, types.FunctionType):
        return [] if _is_of_library(value) else _used_by(value)
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return [value.__func__, getattr(value, "__self__", None)]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, type):
        return [] if _is_of_library(value) else list(vars(value).values())
    if isinstance(value, _CONTAINERS):
        return list(value.values() if isinstance(value, dict) else _copy(value))
    if _is_of_library(type(value)) and not isinstance(value, threading.Condition):
        return []
    if isinstance(value, (nn.Module, Tensor, types.ModuleType)):
        return []
    attributes = getattr(value, "__dict__", None) if callable(value) else _attributes(value)
    return [type(value), *(attributes or {}).values()]


def _used_by(function: types.FunctionType) -> list[Any]:
    """What a function has in its closure and defaults, and what it and those inside of it name."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    # Of a module that it names, the members that it may mean.
    members = [vars(m).get(name) for m in named if isinstance(m, types.ModuleType) for name in names]
    closure = [content for cell in function.__closure__ or () for content in _copy(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*named, *members, *closure, *defaults, *vars(function).values()]


_CONTAINERS = (dict, list, set, deque, tuple, types.CellType)
_LEVELS = 10  # of what holds and names what, down to a lock
_DEPTH = 4  # hooks.outputs[device][name] needs 4; a trainer or a configuration that a module holds has no end


def _containers_in(values: Iterable[Any]) -> list[Any]:
    """Dictionaries, lists, sets, deques and attributes of plain objects in `values`, one inside the other."""
    found: dict[int, Any] = {}
    level = list(values)
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for value in level:
            container = value if isinstance(value, _CONTAINERS) else _attributes(value)
            if container is not None and id(container) not in found:
                found[id(container)] = container
                inner.extend(container.values() if isinstance(container, dict) else _copy(container))
        level = inner
    return [container for container in found.values() if not isinstance(container, tuple)]


def _attributes(value: Any) -> dict[str, Any] | None:
    """Of a plain object; not of a module, of what can be called, or of a data set, which the caller reads meanwhile."""
    if isinstance(value, (nn.Module, Tensor, types.ModuleType)) or type(value).__module__.startswith("torch."):
        return None
    if callable(value) or hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__"):
        return None
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None


def _copy(container: Any) -> Any:
    """Its entries; of a closure's cell the content, if there is one."""
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


def _differs(container: Any, entries: Any) -> bool:
    return differs(_copy(container) if isinstance(container, types.CellType) else container, entries)


def _refill(container: Any, entries: Any) -> None:
    if isinstance(container, types.CellType):
        if entries:
            container.cell_contents = entries[0]
        else:
            del container.cell_contents
    elif isinstance(container, (list, deque)):
        container.clear()
        container.extend(entries)
    else:
        container.clear()
        container.update(entries)
