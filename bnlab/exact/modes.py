"""Torch's modes and random stream as values: what a suspended forward must find again as it was."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._pytree import tree_map_only

from bnlab.flags import Flags, read_flags, write_flags


class Modes(NamedTuple):
    """Modes of torch (grad, inference, autocast, the stacks of function and dispatch modes) and other global flags."""

    grad: bool
    forward_grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    cache: bool
    functions: tuple[Any, ...]
    dispatches: tuple[Any, ...]
    flags: Flags


class ModeSwitch:
    """Captures and applies `Modes`."""

    def __init__(self, device_types: Iterable[str]) -> None:
        self._devices = tuple(dict.fromkeys(device_types))
        self._guard: object = None

    def capture(self, flags: Flags | None = None) -> Modes:
        """The modes in force; `flags`, where they are known already, need not be read."""
        return Modes(
            torch.is_grad_enabled(),
            torch._C._is_fwd_grad_enabled(),
            torch.is_inference_mode_enabled(),
            tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in self._devices),
            torch.is_autocast_cache_enabled(),
            tuple(_get_current_function_mode_stack()) if torch._C._len_torch_function_stack() else (),
            tuple(_get_current_dispatch_mode_stack()) if torch._C._len_torch_dispatch_stack() else (),
            read_flags() if flags is None else flags,
        )

    def apply(self, modes: Modes, current: Modes) -> None:
        """Change from the `current` modes to `modes`."""
        # The guard of the switch before goes first: its end puts back modes of its own time.
        if self._guard is not None:
            self._guard = None
            current = self.capture()
        if current.inference != modes.inference:
            self._guard = torch._C._InferenceMode(modes.inference)
            current = self.capture()
        if current.grad != modes.grad:
            torch._C._set_grad_enabled(modes.grad)
        if current.forward_grad != modes.forward_grad:
            torch._C._set_fwd_grad_enabled(modes.forward_grad)
        if (current.autocast, current.cache) != (modes.autocast, modes.cache):
            for device, enabled, dtype in modes.autocast:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(modes.cache)
        if current.functions or modes.functions:
            own, core = _get_current_function_mode_stack(), torch._C
            _exchange(own, modes.functions, core._pop_torch_function_stack, core._push_on_torch_function_stack)
        if current.dispatches or modes.dispatches:
            _exchange(_get_current_dispatch_mode_stack(), modes.dispatches, _pop_mode, _push_mode)
        if modes.flags is not current.flags:
            write_flags(modes.flags, current.flags)


def _exchange(
    current: Sequence[Any], wanted: Sequence[Any], pop: Callable[[], object], push: Callable[[Any], object]
) -> None:
    """Let a stack of modes, which has the `current` ones, have the `wanted` ones."""
    if len(current) == len(wanted) and all(map(operator.is_, current, wanted)):
        return
    for _ in current:
        pop()
    for mode in wanted:
        push(mode)


class Draws(TorchDispatchMode):
    """Tells whether the block draws random numbers, and can let them fill a tensor in the order of its dimensions.

    Args:
        in_order: they do, whatever the layout in memory.

    Attributes:
        seen: whether any were drawn.
    """

    supports_higher_order_operators = True

    def __init__(self, *, in_order: bool) -> None:
        super().__init__()
        self._in_order, self.seen = in_order, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        self.seen = True
        if not self._in_order:
            return func(*args, **(kwargs or {}))
        pairs: list[tuple[Tensor, Tensor]] = []  # those that are given, and as they are handed over

        def order(given: Tensor) -> Tensor:
            pairs.append((given, given.contiguous()))
            return pairs[-1][1]

        def lay_out(drawn: Tensor) -> Tensor:
            for given, ordered in pairs:
                if drawn is ordered:  # it was written in place
                    return given if given is ordered else given.copy_(ordered)
            like = next((given for given, _ in pairs if given.shape == drawn.shape), drawn)
            return torch.empty_like(like, dtype=drawn.dtype).copy_(drawn)

        ordered_args, ordered_kwargs = tree_map_only(Tensor, order, (args, kwargs or {}))
        return tree_map_only(Tensor, lay_out, func(*ordered_args, **ordered_kwargs))
