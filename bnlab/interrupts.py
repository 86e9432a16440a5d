"""Calls of layers that an interrupt has ended before their hooks: what was lent for the call comes back later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import nn

# What ends the calls of a layer that an interrupt has left before their hooks, by the layer's identity.
_enders: dict[int, list[Callable[[], None]]] = {}


@contextlib.contextmanager
def interrupts_ended_by(layer: nn.Module, end: Callable[[], None]) -> Iterator[None]:
    """Inside the block `end` is called before something reads or writes the layer's buffers from outside of a call."""
    handles = (
        layer.register_state_dict_pre_hook(_end_interrupted_call),
        layer.register_load_state_dict_pre_hook(_end_interrupted_call),
    )
    enders = _enders.setdefault(id(layer), [])
    enders.append(end)
    try:
        yield
    finally:
        enders.remove(end)
        if not enders:
            del _enders[id(layer)]
        for handle in handles:
            handle.remove()


def is_recorded(module: nn.Module) -> bool:
    """Whether it is a layer in such a block."""
    return id(module) in _enders


def _end_interrupted_call(module: nn.Module, *_: object) -> None:
    end_interrupted_calls([module])


def end_interrupted_calls(modules: Iterable[nn.Module]) -> None:
    """Let recorded layers have their own buffers again where a KeyboardInterrupt has ended a call before its hooks.

    Raises:
        ValueError: a layer is being called now, by another thread or by what this has interrupted.
    """
    for module in modules:
        for end in reversed(_enders.get(id(module), ())):  # what was lent last comes back first
            end()
