"""What a forward pass changes on the modules of a model and in what they hold, so that many of them can take turns."""

from __future__ import annotations

import contextlib
import functools
import operator
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils.hooks import RemovableHandle

from bnlab.containers import CONTAINERS, VERY_MANY, copy_entries, differs, get_attributes, refill

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


def list_held_tensors(model: nn.Module) -> list[HeldTensor]:
    """Parameters, buffers and tensor attributes of all modules."""
    found = []
    for prefix, module in model.named_modules():
        for key, value in {**list_attributes(module), **module._buffers, **module._parameters}.items():
            if issubclass(type(value), Tensor) and not value.is_inference():
                found.append(HeldTensor(f"{prefix}.{key}".lstrip("."), value, value._version, value.detach()))
    return found


class Watched(dict[str, Any]):
    """A dictionary that enters itself in a journal when it is written to."""

    def __init__(self, entries: dict[str, Any], journal: list[Watched]) -> None:
        super().__init__(entries)
        self.journal = journal

    def __reduce__(self) -> tuple[Any, ...]:  # a copy is a plain dictionary
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


_DEPTH = 4  # hooks.outputs[device][name] needs 4; a trainer or a configuration that a module holds has no end
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

    Watches parameters, buffers, submodules, hooks, the mode and all attributes of all modules, the entries of their
    dictionaries, lists, sets and plain objects (and of those inside of them), and what `hooks`, and functions among the
    attributes, reach in the same way through closures, arguments and names.
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
        present = [(d, key) for d in self._dicts for key in d if key not in _BASE_ATTRIBUTES]
        self._known = {(id(d), key) for d, key in present}
        self._owners, self._names = [d for d, _ in present], [key for _, key in present]
        self._objects, self._absent = [d[key] for d, key in present], [_ABSENT] * len(present)
        self._modes = [d.get("training") for d in self._dicts]
        self._keys = [*present, *((d, "training") for d in self._dicts if "training" in d)]
        self._values = [d[key] for d, key in self._keys]
        self._containers = find_containers(self._objects, self._hooks, but=self._dicts)
        self._entries = [copy_entries(c) for c in self._containers]
        watched = (value for d in self._dicts for value in d.values() if type(value) is Watched)
        self._members = {id(members): dict(members) for members in watched}
        self._registered = list(map(dict, self._registrations))
        self._handles = RemovableHandle.next_id
        self._journal.clear()

    def _find_changes(self) -> tuple[bool, list[tuple[Any, Any]]]:
        """Whether anything differs from the originals, and the containers that do, with their original entries."""
        # Hot: each batch passes here at each layer.
        same = all(map(operator.is_, map(dict.get, self._owners, self._names, self._absent), self._objects))
        same = same and list(map(dict.get, self._dicts, repeat("training"))) == self._modes
        pairs = zip(self._containers, self._entries, strict=True)
        filled = [(c, entries) for c, entries in pairs if differs(c, entries)]
        if self._journal:
            written = {id(members): members for members in self._journal}
            known = ((members, self._members[key]) for key, members in written.items() if key in self._members)
            filled += [(members, entries) for members, entries in known if differs(members, entries)]
        if RemovableHandle.next_id != self._handles:  # a forward may have registered hooks: looked at from now on
            self._handles = -1
            hooks = zip(self._registrations, self._registered, strict=True)
            filled += [(members, entries) for members, entries in hooks if differs(members, entries)]
        return not same or bool(filled) or list(map(len, self._dicts)) != self._sizes, filled

    def accept(self) -> bool:
        """Take what differs from the originals now into them; whether anything does."""
        differs, _ = self._find_changes()
        if differs:
            self._look()
        return differs

    def take(self) -> Overrides | None:
        """What differs from the originals now (None: nothing), after which the originals are put back."""
        changed, filled = self._find_changes()
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
        containers = [(container, copy_entries(container)) for container, _ in filled]
        for container, entries in filled:
            refill(container, entries)
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
            refill(container, entries)


def list_forward_hooks(model: nn.Module) -> list[Any]:
    """What others have registered on the modules to run with their forward."""
    hooks = (hook for m in model.modules() for hook in [*m._forward_pre_hooks.values(), *m._forward_hooks.values()])
    return [hook for hook in hooks if (getattr(hook, "__module__", None) or "").partition(".")[0] != "bnlab"]


def find_containers(
    values: Sequence[Any], hooks: Iterable[Any], but: Iterable[Any], most: int = VERY_MANY
) -> list[Any]:
    """Dictionaries, lists, sets, deques, cells of closures and attributes of plain objects, one inside the other.

    Args:
        values: attributes of modules, in which they are.
        hooks: functions; what these, and those among `values`, reach is looked at too.
        but: dictionaries that are left out: a hook that is a method of a module holds its attributes.
        most: what holds more entries holds data, which are not looked into.
    """
    reached = _find_reached([*hooks, *(value for value in values if callable(value))])
    return _list_containers([*values, *reached], but, most)


def list_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes but those of every module."""
    return {key: value for key, value in vars(module).items() if key not in _BASE_ATTRIBUTES}


def _find_reached(functions: Iterable[Any]) -> list[Any]:
    """What functions, methods, partial functions and callable objects hold beside their arguments, call or name."""
    found: list[Any] = []
    queue, seen = list(functions), set[int]()
    while queue:
        function = queue.pop()
        if id(function) in seen or issubclass(type(function), (nn.Module, type)):
            continue
        seen.add(id(function))
        kind = type(function)
        if issubclass(kind, functools.partial):
            held = [function.func, *function.args, *function.keywords.values()]
        elif issubclass(kind, types.MethodType):
            held = [function.__func__, getattr(function.__self__, "__dict__", None)]
        elif issubclass(kind, types.FunctionType):
            found += function.__closure__ or ()
            named = (function.__globals__.get(name) for name in function.__code__.co_names)
            inside = [content for cell in function.__closure__ or () for content in copy_entries(cell)]
            held = [*inside, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), vars(function)]
            held += [value for value in named if isinstance(value, (dict, list, set, deque))]
        else:
            held = [get_attributes(function)]
        found += [value for value in held if not isinstance(value, nn.Module)]
        queue += [value for value in held if callable(value)]
    return found


def _list_containers(values: Iterable[Any], but: Iterable[Any], most: int) -> list[Any]:
    found: dict[int, Any] = {id(container): () for container in but}
    level = list(values)
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for value in level:
            container = value if issubclass(type(value), CONTAINERS) else get_attributes(value)
            if container is not None and id(container) not in found:
                found[id(container)] = container
                if isinstance(container, types.CellType) or len(container) <= most:
                    inner.extend(container.values() if isinstance(container, dict) else copy_entries(container))
        level = inner
    return [container for container in found.values() if not isinstance(container, tuple)]
