"""How layers are called where they are to normalize with their batch's statistics."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves

from bnlab.batches import map_leaves
from bnlab.borrowing import borrowed, hold_the_same, set_buffers_aside
from bnlab.layers import (
    BatchNorm,
    get_layer_input,
    get_running_buffers,
    has_own_forward,
    strip_transforms,
)
from bnlab.module_state import ModuleState, list_forward_hooks
from bnlab.moments import Moments

Call = tuple[str, Moments]
"""A layer's name, and the moments of what it was given."""
_FEW = 16
_BASE_ATTRIBUTES = frozenset(nn.Module().__dict__)
_AVERAGED = ("running_mean", "running_var", "num_batches_tracked")
_CONTAINERS = (str, bytes, list, tuple, set, dict, deque)


class LayerCalls:
    """Tells how layers of a borrowed model are called in forwards, and between them, while they are in train mode.

    Some take their running statistics all the same. They are called in eval mode, or have a forward of their own, whose
    output changes with their running buffers: for that it is run six times more at the first call, at calls with
    sizes, numbers, flags or words of another kind (see `_describe`), and at the first that leaves the buffers alone, or
    writes them, where others have not. One that cannot be run again, or gives another output under the same buffers, is
    taken for one that does not, but for a call that leaves alone what others write. Among several processes only first
    calls are tried, which all have at once: a forward may wait for the others'.

    Args:
        layers: by name, in train mode. Their hooks go with the loan of the model.

    Attributes:
        layers: those.
        running: names of those that take their running statistics.
        others: names of those whose own forward averages another mean than that of their input, or that of some calls
            alone.
        reached: names of those that some values have come to in a forward.
        between: names of those that were called in train mode outside of forwards.
        is_forward: whether one runs now.
    """

    def __init__(self, layers: Mapping[str, BatchNorm]) -> None:
        self.layers, self._tried, self._is_trial = layers, set[Any](), False
        self.running: dict[str, None] = {}
        self.reached: dict[str, None] = {}
        self.others: dict[str, None] = {}
        self._before: dict[
            str, list[Tensor]
        ] = {}  # of layers with a forward of their own: running buffers before a call
        self._written: dict[str, bool] = {}  # whether the first call has written them
        self.between: dict[str, None] = {}
        self.is_forward, self._thread = False, threading.get_ident()
        self._noted: list[Call] | None = None
        for name, layer in layers.items():
            # After the owner's hooks, which may make the input, and before those that begin the call of a recorded one.
            layer.register_forward_pre_hook(partial(self._look, name), with_kwargs=True)
            if has_own_forward(layer) and not _are_several_processes():
                layer.register_forward_hook(partial(self._look_back, name), with_kwargs=True)

    @contextlib.contextmanager
    def watched(self, calls: list[Call] | None = None) -> Iterator[None]:
        """The block is a forward; `calls` gets all of its calls, in order."""
        self.is_forward, self._noted = True, calls
        try:
            yield
        finally:
            self.is_forward, self._noted = False, None

    def _look(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layers[name]
        if module is not layer:  # a copy of it has the hooks too
            return
        if self._is_trial:
            raise ValueError("a trial of another layer would count as a call of this one")
        if not self.is_forward:
            # Other threads may call at any time, and are named elsewhere.
            if layer.training and threading.get_ident() == self._thread:
                self.between[name] = None
            return
        if not layer.training:
            self.running[name] = None
        elif has_own_forward(layer) and name not in self.running:
            self._before[name] = [buffer.detach().clone() for buffer in _list_averages(layer)]
            situation = () if _are_several_processes() else _describe(layer, args, kwargs)
            if (name, *situation) not in self._tried:
                self._tried.add((name, *situation))
                self._try(name, args, kwargs)
        x = strip_transforms(get_layer_input(args, kwargs))
        if isinstance(x, Tensor) and x.numel():
            self.reached[name] = None
            if self._noted is not None:
                self._noted.append((name, Moments.of(x)))

    def _look_back(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        layer = self.layers[name]
        x = get_layer_input(args, kwargs)
        if module is not layer or name not in self._before or (isinstance(x, Tensor) and not x.numel()):
            return
        before, after = self._before.pop(name), _list_averages(layer)
        written = len(before) != len(after) or not all(map(hold_the_same, before, after))
        if written != self._written.setdefault(name, written) and (name, written) not in self._tried:
            self._tried.add((name, written))
            self._try(name, args, kwargs, otherwise=not written)
            if name not in self.running:
                self.others[name] = None

    def _try(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, otherwise: bool = False) -> None:
        """Find out whether the layer takes its running statistics; `otherwise`: where that cannot be said."""
        layer = self.layers[name]
        found, averages_others = None, False
        self._is_trial = True
        try:
            found = _takes_running(layer, args, kwargs)
            # Several processes may average the moments of what all of them have.
            averages_others = not _are_several_processes() and _averages_others(layer, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a forward raises that cannot be run again
            pass
        finally:
            self._is_trial = False
        if otherwise if found is None else found:
            self.running[name] = None
        elif averages_others:
            self.others[name] = None


def _are_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _describe(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What a forward may decide by: sizes, and plain values among its arguments and the layer's attributes.

    Sizes, and integers from 16 on, count up to a factor of two, floats as 0, 1 or another: times or lengths may differ
    from call to call. Containers and words among attributes count if they are short, buffers that are one number do.
    """
    given = tree_leaves([args, kwargs])
    sizes = [
        tuple(map(int.bit_length, leaf.shape)) for leaf in given if isinstance(leaf, Tensor) and not leaf.is_nested
    ]
    own = [value for key, value in vars(layer).items() if key not in _BASE_ATTRIBUTES]
    own += [value for key, value in layer._buffers.items() if key not in _AVERAGED]
    held = tree_leaves([value for value in own if not isinstance(value, _CONTAINERS) or len(value) < _FEW])
    plain = [value for value in map(_unwrap, [*given, *held]) if isinstance(value, (str, int, float, type(None)))]
    return *sizes, *(_round(value) for value in plain)


def _unwrap(value: Any) -> Any:
    """The number in an array or tensor of one, such as a domain; the name of an enumeration's member."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.is_floating_point() else value
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _round(value: str | float | None) -> Any:
    if isinstance(value, float):
        return value if value in (0.0, 1.0) else "another"
    return ("about", value.bit_length()) if isinstance(value, int) and abs(value) >= _FEW else value


def _takes_running(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Whether the output for this input changes with the running buffers; None if it changes without them."""
    run = partial(_run_with_moved_buffers, layer, args, kwargs)
    first = run(0.0)
    # Up and down: a layer may clip how far it follows. All of them, as those of other processes do.
    again, *moved = [_agree(first, run(move)) for move in (0.0, 3.0, -3.0)]
    return not all(moved) if again else None


def _averages_others(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call averages another mean than that of its input: of a half, say, or of what noise makes of it.

    It may average it by another momentum than its own, or in turn those of parts that make up its input, as ghost batch
    norm: how much of it is found by where the running mean began. One that averages none is not known to do that.
    """
    x = get_layer_input(args, kwargs)
    # Roundings of `eps` weigh eps/momentum in what is found, and of n parts in turn the first n·momentum less.
    eps = max(torch.finfo(kind).eps for kind in (torch.float32, get_running_buffers(layer)[0].dtype))
    momentum, rounding = eps**0.5, torch.finfo(x.dtype).eps  # of a mean that is given the input's type
    (found, counted), (other, _) = (_average_slowly(layer, args, kwargs, momentum, begin) for begin in (0.0, 1.0))
    weight = 1 - float((other - found).median())
    if weight < momentum / 2 or counted > 1:  # counted parts need not be equal
        return False
    moments = Moments.of(x)
    allowed = 8 * momentum * (moments.mean.abs() + moments.var.sqrt()) + 2 * rounding * moments.mean.abs()
    return bool(((found / weight - moments.mean).abs() > allowed).any())


def _average_slowly(
    layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], momentum: float, begin: float
) -> tuple[Tensor, int]:
    """float64 [C], what a call makes of a running mean that begins so; and how many batches it counts."""
    with _with_spare_buffers(layer):
        layer.momentum = momentum
        get_running_buffers(layer)[0].fill_(begin)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()
        _run(layer, args, kwargs)
        counted = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
        return get_running_buffers(layer)[0].double().cpu().flatten(), counted


def _agree(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are the same, to a thousandth of their deviation; `other` is used up: outputs are large."""
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
            return False
        allowed = 1e-3 * float(a.std(correction=0).nan_to_num()) * a.numel() ** 0.5 if a.numel() else 0.0
        if float(torch.linalg.vector_norm(b.sub_(a).nan_to_num_(), dtype=torch.float64)) > allowed:
            return False
    return True


def _run_with_moved_buffers(
    layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], move: float
) -> list[Tensor]:
    """What comes out where the running mean is moved by so many of its σ."""
    with _with_spare_buffers(layer):
        mean, var = get_running_buffers(layer)
        mean.add_(move * (var + layer.eps).sqrt())
        var.mul_(2.0**move)
        output = _run(layer, args, kwargs)
    tensors = (leaf.detach() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return [tensor.clone() for tensor in tensors if tensor.is_floating_point()]


@contextlib.contextmanager
def _with_spare_buffers(layer: BatchNorm) -> Iterator[None]:
    """Trials in the block leave nothing behind."""
    hooks = list_forward_hooks(layer)
    with borrowed(layer):
        set_buffers_aside(layer)
        for inner in layer.modules():
            if inner is not layer and isinstance(inner, BatchNorm):  # whose calls are not to be measured
                inner._forward_pre_hooks.clear()
                inner._forward_hooks.clear()
        with ModuleState(layer, hooks).undone():
            yield


def _run(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if any(isinstance(leaf, Iterator) for leaf in tree_leaves([args, kwargs])):
        raise ValueError("what comes next would be lost for the call itself")
    # A forward may write into its input, and keep something in containers that it is given.
    own_args, own_kwargs = map_leaves(_copy_given, (args, kwargs))
    return layer.forward(*own_args, **own_kwargs)


def _copy_given(leaf: Any) -> Any:
    """A copy of a tensor or object that a layer is given; modules are what they are."""
    if isinstance(leaf, Tensor):
        return leaf.clone()
    try:
        return leaf if isinstance(leaf, nn.Module) else copy.deepcopy(leaf)
    except Exception:
        return leaf


def _list_averages(layer: BatchNorm) -> list[Tensor]:
    """Those of the running mean and variance that it has: a layer may do without for a call."""
    return [buffer for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
