"""What layers are given in a forward, seen by hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnlab.layers import BatchNorm, check_input, get_layer_input, strip_transforms
from bnlab.loans import check_loans


def watch_inputs(
    layers: Mapping[str, BatchNorm],
    take: Callable[[str, Tensor], None],
    caller: str,
    *,
    loans: int,
    elsewhere: dict[str, None],
) -> list[RemovableHandle]:
    """Call `take(name, input)` before each call of a layer, unless no image comes to it (as to an expert).

    An input that cannot be measured raises ValueError.

    Args:
        layers: by name.
        take: what is done with an input [N, C, ...].
        caller: the public call on whose behalf this is, for messages.
        loans: how many blocks have borrowed a model while a forward runs; one more is the forward's own, and refused.
        elsewhere: gets the names of layers that other threads call, of which nothing is taken: who has begun these
            threads, the forward or somebody else, is not known.
    """
    thread = threading.get_ident()

    def make_hook(name: str, layer: BatchNorm) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = strip_transforms(get_layer_input(args, kwargs))
            # A copy that the forward has made carries the hooks along.
            if module is not layer or (isinstance(x, Tensor) and not x.numel()):
                return
            if threading.get_ident() != thread:
                elsewhere[name] = None
                return
            check_loans(loans, name, caller)
            check_input(name, layer, x, caller)
            take(name, x)

        return hook

    return [layer.register_forward_pre_hook(make_hook(name, layer), with_kwargs=True) for name, layer in layers.items()]
