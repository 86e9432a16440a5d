"""How layers are called where they are to normalize with their batch's statistics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sized
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves

from bnlab.borrowing import borrowed, set_buffers_aside
from bnlab.layers import (
    BatchNorm,
    get_layer_input,
    get_running_buffers,
    has_own_forward,
    replace_input,
    strip_transforms,
)
from bnlab.module_state import ModuleState
from bnlab.moments import Moments

Call = tuple[str, Moments]
"""A layer's name, and the moments of what it was given."""
_FEW = 16
_BASE_ATTRIBUTES = frozenset(nn.Module().__dict__)


class LayerCalls:
    """Tells how layers of a borrowed model are called in forwards, and between them, while they are in train mode.

    Some take their running statistics all the same. They are called in eval mode, or have a forward of their own, whose
    output changes with their running buffers: for that it is run four times more at the first call, and at calls
    with sizes, numbers, flags or words of another kind (see `_describe`). One that cannot be run again, gives another
    output under the same buffers, or decides at random, is taken for one that does not. Among several processes only
    first calls are tried, which all have at once: a forward may wait for the others'.

    Args:
        layers: by name, in train mode. Their hooks go with the loan of the model.

    Attributes:
        layers: those.
        running: names of those that take their running statistics.
        between: names of those that were called in train mode outside of forwards.
        is_forward: whether one runs now.
    """

    def __init__(self, layers: Mapping[str, BatchNorm]) -> None:
        self.layers, self._tried, self._is_trial = layers, set[Any](), False
        self.running: dict[str, None] = {}
        self.between: dict[str, None] = {}
        self.is_forward, self._thread = False, threading.get_ident()
        self._noted: list[Call] | None = None
        for name, layer in layers.items():
            # After the owner's hooks, which may make the input, and before those that begin the call of a recorded one.
            layer.register_forward_pre_hook(partial(self._look, name), with_kwargs=True)

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
        if module is not layer or self._is_trial:  # a copy of it has the hooks too
            return
        if not self.is_forward:
            # Other threads may call at any time, and are named elsewhere.
            if layer.training and threading.get_ident() == self._thread:
                self.between[name] = None
            return
        if not layer.training:
            self.running[name] = None
        elif has_own_forward(layer) and name not in self.running:
            self._try(name, args, kwargs)
        x = strip_transforms(get_layer_input(args, kwargs)) if self._noted is not None else None
        if self._noted is not None and isinstance(x, Tensor) and x.numel():
            self._noted.append((name, Moments.of(x)))

    def _try(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out whether the layer takes its running statistics, if it was not called in this way before."""
        layer = self.layers[name]
        situation = (name,) if _are_several_processes() else (name, *_describe(layer, args, kwargs))
        if situation in self._tried:
            return
        self._tried.add(situation)
        self._is_trial = True
        try:
            if _takes_running(layer, args, kwargs):
                self.running[name] = None
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a forward raises that cannot be run again
            pass
        finally:
            self._is_trial = False


def _are_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _describe(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What a forward may decide by: sizes, and plain values among its arguments and the layer's attributes.

    Sizes, and integers from 16 on, count up to a factor of two, floats as 0, 1 or another: times or lengths may differ
    from call to call. Containers among attributes count if they are short.
    """
    given = tree_leaves([args, kwargs])
    sizes = [tuple(map(int.bit_length, leaf.shape)) for leaf in given if isinstance(leaf, Tensor)]
    own = [value for key, value in vars(layer).items() if key not in _BASE_ATTRIBUTES]
    held = tree_leaves([value for value in own if not isinstance(value, Sized) or len(value) < _FEW])
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


def _takes_running(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the output for this input changes with the running buffers."""
    run = partial(_run_with_moved_buffers, layer, args, kwargs)
    first = run(0.0)
    # Up and down: a layer may clip how far it follows. All of them, as those of other processes do.
    again, *moved = [_agree(first, run(move)) for move in (0.0, 3.0, -3.0)]
    return again and not all(moved)


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
    with borrowed(layer):
        set_buffers_aside(layer)
        mean, var = get_running_buffers(layer)
        mean.add_(move * (var + layer.eps).sqrt())
        var.mul_(2.0**move)
        # A forward may write into its input.
        given = replace_input(args, kwargs, get_layer_input(args, kwargs).clone())
        with ModuleState(layer).undone():
            output = layer.forward(*given[0], **given[1])
    tensors = (leaf.detach() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return [tensor.clone() for tensor in tensors if tensor.is_floating_point()]
