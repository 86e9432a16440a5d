"""A mode for a borrowed model, and undoing what its own `train` and `eval` do besides setting flags."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CellType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnlab.borrowing import (
    KeptTensors,
    attributes_restored,
    borrowed,
    copy_back,
    hold_the_same,
    is_plain,
    list_state_tensors,
)
from bnlab.containers import MOST, copy_entries, differs, list_inner, refill
from bnlab.layers import BatchNorm
from bnlab.module_state import find_containers, list_attributes
from bnlab.own_modes import give_modes, list_with_own_modes, set_mode

_ABSENT = object()


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """A mode for a borrowed model, by its own `train` or `eval`, and what these do is undone.

    They may change what nobody can look into (the graph of a class, objects with slots), so they are called again with
    the mode of before, when all that the block has lent is back. What they have changed elsewhere then is put back.
    What the block has added to weights, or has made of an entry or attribute that a module holds, stays.
    """
    own = list_with_own_modes(model)
    if not own:
        set_mode(model, training)
        yield
        return
    modes, flagless = [(module, module.training) for module in model.modules()], list[nn.Module]()
    weights, held = _Weights(_list_weights(own)), _Held(model)
    try:
        # A second `eval` may lose what the first has put aside; a second `train` comes with every epoch.
        if training or any(module.training for module in model.modules()):
            set_mode(model, training)
        held.look()
        flagless = _list_flagless(own, dict(modes), training)
        weights.begin()
        with (
            held.looked_at_afterwards(),
            attributes_restored([*model.modules()]),
            KeptTensors(list_state_tensors(model)).restored(unseen=True),
        ):
            try:
                yield
            finally:
                # What the block has made of the mode is no part of what it has trained.
                if any(module.training != training for module in own if not isinstance(module, BatchNorm)):
                    set_mode(model, training)
                weights.end()
    finally:
        # A model for inference alone may refuse.
        with contextlib.suppress(Exception):
            for module in flagless:
                set_mode(module, not training, is_part=module is not model)
            give_modes(modes)
        weights.put_back()
        held.put_back()  # gradients too, which have to be as their weights are


class _Weights:
    """Weights that a mode may exchange: what training adds to them in a block is kept.

    Args:
        parameters: as they are now.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._before = [(p, p.detach(), p.detach().clone()) for p in parameters]
        self._given = [value for *_, value in self._before]
        self._after = self._given

    def begin(self) -> None:
        """The block gets them as they are now."""
        self._given = self._after = self._look(self._given)

    def end(self) -> None:
        """It leaves them as they are now; without this call as it got them."""
        self._after = self._look(self._given)

    def _look(self, known: Sequence[Tensor]) -> list[Tensor]:
        now = [parameter.detach() for parameter, *_ in self._before]
        return [old if _is_same(old, new) else new.clone() for old, new in zip(known, now, strict=True)]

    def put_back(self) -> None:
        """With what the block has added, in their own memory."""
        # All of them before one is written, as two may share memory.
        pairs = zip(self._before, self._given, self._after, strict=True)
        values = [_take_over(value, given, after) for (*_, value), given, after in pairs]
        for (parameter, memory, _), value in zip(self._before, values, strict=True):
            _give_memory(parameter, memory)
            if not _is_same(parameter, value):
                parameter.data.copy_(value)  # without a trace: a backward pass may be still to come


def _take_over(value: Tensor, given: Tensor, after: Tensor) -> Tensor:
    """`value`, changed as `given` has been changed to `after`."""
    if after is given or after.shape != value.shape:
        return value
    if given is value:
        return after
    return torch.where((after == given) | given.isnan(), value, value + (after - given))


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and hold_the_same(a, b))


class _Held:
    """What modules hold, one inside the other, to be put back where `train` or `eval` has changed it.

    Entries of containers (with more than 1,000 they are data), attributes of plain objects and of other modules,
    closures, optimizers, and values of tensors there; gradients. Not the modules' own attributes and buffers, which
    come back when a model has been borrowed, nor what shares memory with weights.

    Args:
        model: as it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        modules, self._parameters = [*model.modules()], [p for p in model.parameters() if p.is_leaf]
        values = [value for module in modules for value in list_attributes(module).values()]
        found = find_containers(values, (), but=map(vars, modules), most=MOST)
        self._containers = [held for held in found if isinstance(held, CellType) or len(held) <= MOST]
        inner = [*values, *(entry for container in self._containers for entry in list_inner(container))]
        others = {part for value in inner if _is_module(value) for part in value.modules()} - {*modules}
        dicts = [held for part in others for held in (vars(part), part._parameters, part._buffers)]
        self._containers += [held for held in dicts if isinstance(held, dict)]  # scripted modules have others
        inner += [t for part in others for t in (*part.parameters(False), *part.buffers(False))]
        inner += [parameter.grad for parameter in self._parameters]
        tensors = {id(value): value for value in inner if type(value) in (Tensor, nn.Parameter)}
        plain = [t for t in tensors.values() if not is_lazy(t) and is_plain(t)]
        weights = {_find_memory(p) for p in model.parameters() if not is_lazy(p) and is_plain(p)}
        self._tensors = [t for t in plain if _find_memory(t) not in weights]
        self._memory = [t.detach() for t in self._tensors]
        self._looks = list[_Look]()
        self.look()

    def look(self) -> None:
        """As it is now: before the mode is set, then before the block, then after it, with nothing lent."""
        entries, gradients = [*map(copy_entries, self._containers)], [p.grad for p in self._parameters]
        known = self._looks[-1].values if self._looks else [None] * len(self._tensors)
        pairs = zip(known, (t.detach() for t in self._tensors), strict=True)
        values = [old if old is not None and _is_same(old, new) else new.clone() for old, new in pairs]
        self._looks.append(_Look(entries, values, gradients))

    @contextlib.contextmanager
    def looked_at_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.look()

    def put_back(self) -> None:
        """What setting the mode has changed, before the block or after it: as it was, or as the block has left it."""
        before, given, left = (*self._looks, *(3 - len(self._looks)) * [self._looks[-1]])
        for held, *entries in zip(self._containers, before.entries, given.entries, left.entries, strict=True):
            _put_back_entries(held, *entries)
        values = zip(before.values, given.values, left.values, strict=True)
        for tensor, memory, looks in zip(self._tensors, self._memory, values, strict=True):
            now = tensor.detach()
            value = _choose(*looks, now, is_same=_is_same)
            if value is not now and value.shape == memory.shape:
                _give_memory(tensor, memory)
                copy_back(tensor, value)
        gradients = zip(before.gradients, given.gradients, left.gradients, strict=True)
        for parameter, seen in zip(self._parameters, gradients, strict=True):
            gradient = _choose(*seen, parameter.grad)
            if gradient is not parameter.grad and (gradient is None or gradient.dtype == parameter.dtype):
                parameter.grad = gradient


class _Look(NamedTuple):
    """Entries of containers, values of tensors (the same objects as in the look before, if they are) and gradients."""

    entries: list[Any]
    values: list[Tensor]
    gradients: list[Tensor | None]


def _choose(before: Any, given: Any, left: Any, now: Any, *, is_same: Callable[[Any, Any], bool] = operator.is_) -> Any:
    """Where the mode has changed it for good: as it was, or as the block has left it if it has changed it too."""
    if is_same(now, before) or (is_same(before, given) and is_same(left, now)):
        return now
    return before if is_same(given, left) else left


def _put_back_entries(container: Any, before: Any, given: Any, left: Any) -> None:
    if not isinstance(container, dict):
        now = copy_entries(container)
        wanted = _choose(before, given, left, now, is_same=lambda a, b: not differs(a, b))
        if wanted is not now:
            refill(container, wanted)
        return
    for key in [*{**before, **given, **left, **container}]:
        now = container.get(key, _ABSENT)
        was, had, has = (entries.get(key, _ABSENT) for entries in (before, given, left))
        wanted = _choose(was, had, has, now)
        if wanted is now:
            continue
        if wanted is _ABSENT:
            container.pop(key, None)
        else:
            container[key] = wanted


def _find_memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # it is around others and has none
        return id(tensor)


def _give_memory(tensor: Tensor, memory: Tensor) -> None:
    if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
        tensor.data = memory


def _is_module(value: Any) -> bool:
    return issubclass(type(value), nn.Module)  # not isinstance, which some objects answer themselves


def _list_flagless(modules: Iterable[nn.Module], before: Mapping[nn.Module, bool], training: bool) -> list[nn.Module]:
    """Those that are in train mode as ever, other than parts that have been put into a mode: they only pass it on."""
    found = list[nn.Module]()
    for module in modules:
        modes = [(before[part], part.training) for part in module.modules() if part is not module and part in before]
        were_off = not any(old for old, _ in modes)  # else it has parts that somebody has frozen
        if before[module] and module.training and any(old != new for old, new in modes) and (were_off or not training):
            found.append(module)
    return found


def keep_weights_of_own_modes(model: nn.Module) -> KeptTensors:
    """Weights that a module's own `train` or `eval` may write, also when a loader calls it."""
    return KeptTensors(_list_weights(list_with_own_modes(model)))


def _list_weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if not is_lazy(p) and is_plain(p)))


def find_left_in_eval(model: nn.Module, layers: Mapping[str, BatchNorm]) -> list[str]:
    """Names of layers that stay in eval mode where the model is put into train mode: of a frozen part, say."""
    if not list_with_own_modes(model):
        return []
    with borrowed(model), contextlib.suppress(Exception), in_mode(model, training=True):
        return [name for name, layer in layers.items() if not layer.training]
    return []  # a model for inference alone may refuse
