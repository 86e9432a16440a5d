"""A forward of a few images, in which what layers are given and what they make of it is inspected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bnlab.exact.task import Task
from bnlab.model.batches import map_batch, take_images
from bnlab.model.borrow import measured
from bnlab.model.layers import BatchNorm


@dataclass(frozen=True)
class LayerCall:
    """What a layer was called with: copies, as layers may write into their input."""

    args: Any
    kwargs: Any

    @staticmethod
    def copy(args: Any, kwargs: Any) -> LayerCall:
        """Copy what a layer is called with."""
        return LayerCall(map_batch(_clone, args), map_batch(_clone, kwargs))

    def call(self, layer: nn.Module) -> Any:
        """Call a layer's forward with it, without the layer's hooks."""
        # A copy, because the layer may write into its input and is called again. `forward` itself, because a
        # call of the layer would run the hooks that inspect it.
        fresh = LayerCall.copy(self.args, self.kwargs)
        return layer.forward(*fresh.args, **fresh.kwargs)


Inspect = Callable[[str, Any, LayerCall, Any], None]
"""Called with a layer's name, the layer, what it was given, and its output."""


def run_and_inspect(task: Task, layers: Mapping[str, BatchNorm], images: int, inspect: Inspect) -> None:
    """Run so many images of the first batch, if the model takes them, and inspect each call of these layers."""
    given: dict[str, LayerCall] = {}

    def keep(name: str, layer: Any, args: Any, kwargs: Any) -> None:
        given[name] = LayerCall.copy(args, kwargs)

    failed: list[Exception] = []

    def pass_on(name: str, layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        try:
            inspect(name, layer, given.pop(name), output)
        except Exception as error:
            failed.append(error)
            raise

    with measured(task.model), ExitStack() as stack:
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            after = layer.register_forward_hook(partial(pass_on, name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        try:
            task.evaluate(take_images(task.data[0], images))
        except Exception:
            # A model that takes batches of one size may raise anything, and nothing is known then. What `inspect`
            # itself raises is no matter of the model.
            if failed:
                raise failed[0] from None


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
