"""Breadth-first evaluation: the exact statistics of every layer in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has arrived the layer's statistics are final and
all go on with them. The price is every batch's live activations.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from bnlab.layers import BatchNorm, layer_input, set_buffers_aside, tracked
from bnlab.moments import Moments, Partial, partial, pooled_moments
from bnlab.switching import Modes, ModeSwitch, ModuleState, Overrides, RandomStream, held_tensors

CALLER = "population_statistics"
Forward = Callable[[nn.Module, Any], Any]


class _Item:
    """One batch's forward pass, running or waiting at a layer."""

    def __init__(self, index: int, run: Callable[[Any], None], random: list[Tensor]) -> None:
        self.index = index
        self.run = greenlet(run)
        self.run.gr_context = contextvars.copy_context()
        self.random = random
        self.modes: Modes | None = None
        self.overrides: Overrides | None = None
        self.layer: str | None = None  # where it waits; None when it has ended
        self.input: Any = None
        self.part: Partial | None = None
        self.visited: list[str] = []


class BreadthFirst:
    """Takes a borrowed model in eval mode through all batches at once."""

    def __init__(self, model: nn.Module, targets: dict[str, BatchNorm], forward: Forward, device: torch.device) -> None:
        self._model, self._targets, self._forward = model, targets, forward
        self._found: dict[str, Moments] = {}
        self._current: _Item | None = None
        self._hub = getcurrent()
        self._held = held_tensors(model)
        for name, layer in targets.items():
            layer.register_forward_pre_hook(self._waiting(name), with_kwargs=True)
            set_buffers_aside(layer)
        self._state = ModuleState(model)
        self._random = RandomStream(device)
        self._switch = ModeSwitch(["cpu", device.type])
        self._own_modes = self._switch.capture()

    def measure(self, batches: Iterable[Any], advance: Callable[[], object]) -> dict[str, Moments]:
        """Moments of the layers that are reached, in the order in which they were finished."""
        items: list[_Item] = []
        with ExitStack() as unwinding:
            for index, batch in enumerate(batches):
                items.append(item := _Item(index, self._run, self._random.begin(index)))
                unwinding.callback(self._end, item)
                self._resume(item, batch)
            while waiting := [item for item in items if item.layer is not None]:
                name = self._next_layer(waiting)
                here = [item for item in waiting if item.layer == name]
                self._finish(name, here)
                advance()
                complete = len(self._found) == len(self._targets)
                if complete:
                    # One batch for each way that was taken shows whether a layer is called again.
                    here = list({tuple(item.visited): item for item in here}.values())
                for item in here:
                    self._resume(item)
                if complete:
                    break
        self._check_held()
        return self._found

    def _run(self, batch: Any) -> None:
        with torch.no_grad():
            self._forward(self._model, batch)

    def _waiting(self, name: str) -> Callable[..., None]:
        """The pre-hook of a layer; the layer's own eval forward runs after it."""

        def wait(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            item = self._current
            if item is not None and getcurrent() is item.run:
                item.layer, item.input = name, layer_input(args, kwargs)
                self._hub.switch()

        return wait

    def _resume(self, item: _Item, *batch: Any) -> None:
        """Let one batch run until it waits at the next layer or ends; then everything is the caller's again."""
        item.layer = item.input = item.part = None
        self._enter(item)
        try:
            item.run.switch(*batch)
        except Exception as error:
            error.add_note(f"{CALLER}: raised in the forward of batch {item.index}; the model is as it was before")
            raise
        finally:
            self._leave(item)
        if item.layer is not None:
            self._arrive(item, item.layer)

    def _end(self, item: _Item) -> None:
        """Unwind a forward that will not go on, in its own modes and with its own module state."""
        if item.layer is not None:
            item.layer = item.input = item.part = None
            self._enter(item)
            try:
                item.run.throw(GreenletExit)
            finally:
                self._leave(item)

    def _enter(self, item: _Item) -> None:
        self._current = item
        self._own_random = self._random.capture()
        self._random.apply(item.random)
        self._state.give(item.overrides)
        self._switch.apply(item.modes or self._own_modes)

    def _leave(self, item: _Item) -> None:
        item.modes = self._switch.capture()
        self._switch.apply(self._own_modes)
        item.overrides = self._state.take()
        item.random = self._random.capture()
        self._random.apply(self._own_random)
        self._current = None

    def _arrive(self, item: _Item, name: str) -> None:
        if name in self._found:
            times = "several times in one forward" if name in item.visited else "by some batches only after others"
            raise ValueError(
                f"{CALLER}: layer {name!r} is reached {times} and was finished before; "
                "shared and skipped layers are not supported yet; leave it out with layers=[...]"
            )
        check_input(name, self._targets[name], item.input)
        item.part = partial(item.input)
        item.visited.append(name)

    def _next_layer(self, waiting: Sequence[_Item]) -> str:
        """Of the layers at which batches wait, one that no other such layer is known to come before."""
        names = {item.layer for item in waiting}
        candidates = [name for name in self._targets if name in names]
        for name in candidates:
            earlier = [v for item in waiting if name in item.visited for v in item.visited[: item.visited.index(name)]]
            if names.isdisjoint(earlier):
                return name
        return candidates[0]

    def _finish(self, name: str, items: Sequence[_Item]) -> None:
        moments = pooled_moments([item.input for item in items], [item.part for item in items if item.part])
        check_moments(name, moments)
        self._found[name] = moments
        load(self._targets[name], moments)

    def _check_held(self) -> None:
        for name, tensor, version in self._held:
            if tensor._version != version:
                raise ValueError(
                    f"{CALLER}: the forward writes into {name!r} in place, which batches that take turns cannot share; "
                    "use strategy='layerwise'"
                )


def load(layer: BatchNorm, moments: Moments) -> None:
    """Let a layer whose buffers were set aside normalize with `moments`."""
    mean, var = tracked(layer)
    mean.copy_(moments.mean)
    var.copy_(moments.var)


def check_input(name: str, layer: BatchNorm, x: Any) -> None:
    """ValueError unless `x` is [N, C, ...] with the layer's channels, and not empty."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != layer.num_features:
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(f"{CALLER}: layer {name!r} expects {layer.num_features} channels, its input has {found}")
    if x.numel() == 0:
        raise ValueError(f"{CALLER}: a batch of no images reached layer {name!r}; leave empty batches out")


def check_moments(name: str, moments: Moments) -> None:
    """ValueError unless a layer can normalize with `moments`."""
    if moments.count < 2:
        raise ValueError(f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images")
    if not (moments.mean.isfinite().all() and moments.var.isfinite().all()):
        raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights")
