"""Breadth-first evaluation: every layer's exact statistics in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has come the layer's statistics are final, and all
go on with them. Batches for which there is no memory do not wait: they are run again from the input up to each layer,
until there is. Where none may wait no forward is interrupted by another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from greenlet import greenlet
from torch import Tensor, nn

from bnlab.exact.ranks import Interleaved, Ranks
from bnlab.layers import BatchNorm, check_input, get_input, get_running_buffers
from bnlab.memory import Budget
from bnlab.moments import Moments, Partial, pool, pooled_moments, read
from bnlab.statistics import write_buffers

CALLER = "population_statistics"
Layers = Mapping[str, BatchNorm]
Run = Callable[[int], Any]  # the forward of the batch with this number


class Walk:
    """All batches once through the network.

    Args:
        layers: to measure, by name.
        run: a batch's forward.
        budget: which batches may wait.
        given: statistics that layers have already, such as those that are called several times. Nobody waits there;
            the moments of all calls are gathered.
        noted: batches of which it is noted what the layers were given.
        few: how many of their images are noted apart.
        ranks: who measures together.

    Attributes:
        statistics: moments of each layer, in the order in which they were finished.
        revisited: layers that were called once more after they had been finished.
        forwards: how often a forward was begun.
        notes: of each noted batch the calls in their order: layer, moments of all images and of the first few.
    """

    def __init__(
        self,
        layers: Layers,
        run: Run,
        budget: Budget,
        given: Mapping[str, Moments],
        noted: Collection[int],
        few: int,
        ranks: Ranks,
    ) -> None:
        self._layers, self._run, self._budget, self._given = layers, run, budget, given
        self._few, self._ranks = few, ranks
        self.statistics: dict[str, Moments] = {}
        self.revisited, self.forwards = set[str](), 0
        self.notes: dict[int, list[tuple[str, Moments, Moments]]] = {index: [] for index in noted}
        self._gathered: dict[int, list[tuple[str, Partial]]] = {}  # of each batch, at layers with given statistics
        self._waiting: dict[int, _Visit] = {}
        self._left: dict[str, list[Partial]] = {}  # at each layer, by batches that have come to it and do not wait
        self._ahead = list(range(budget.batches))  # batches that do not wait and have layers before them
        self._stops: dict[int, set[str]] = {index: set() for index in self._ahead}  # layers at which a batch has been
        self._due: dict[int, set[str]] = {}  # of them, those that its forward has yet to pass
        self._current = 0  # the batch whose forward runs
        self._settings = _read_settings()

    def go(self, progress: Callable[[], object]) -> Walk:
        """Take all batches through; `progress` is called whenever a layer is finished.

        Raises ValueError if a layer cannot have statistics, `Interleaved` if it shows that forwards take turns.
        """
        try:
            with watched(self._layers, self._look):
                for name, moments in self._given.items():
                    write_buffers(self._layers[name], moments)
                self._ranks.together(self._begin)
                while (finished := self._choose()) is not None:
                    self._finish(finished, self._ranks.together(partial(self._pool, finished)))
                    write_buffers(self._layers[finished], self.statistics[finished])
                    progress()
                    self._ranks.together(partial(self._continue, finished))
                for name in self._given:
                    parts = [part for calls in self._gathered.values() for layer, part in calls if layer == name]
                    if any(self._ranks.gather(bool(parts))):
                        self._finish(name, pool(parts) if parts else None)
        finally:
            for visit in self._waiting.values():
                visit.walker.throw()  # GreenletExit
        return self

    def _look(self, name: str, x: Tensor) -> None:
        """What a forward does at a layer."""
        index = self._current
        if name in self._given:
            self._gathered[index].append((name, self._measure(name, x, alone=True)))
        elif name in self._due[index]:
            self._due[index].remove(name)
            if index in self.notes:
                self._measure(name, x, alone=True)
        elif name in self.statistics:
            self.revisited.add(name)
        else:
            greenlet.getcurrent().parent.switch(name, x)  # type: ignore[union-attr]

    def _measure(self, name: str, x: Tensor, alone: bool) -> Partial:
        """The moments of a layer's input: one read of it, or exact ones of what cannot be read again."""
        check_input(name, self._layers[name], x, CALLER)
        part = Partial.of(Moments.of(x)) if alone else read(x)
        if self._current in self.notes:
            self.notes[self._current].append((name, pool([part]), Moments.of(x[: self._few])))
        return part

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Run what does not wait from the input to the first layer that is not finished."""
        ahead, self._ahead, self._left = self._ahead, [], {}
        for index in ahead:
            self._due[index], self._gathered[index] = set(self._stops[index]), []
            self.notes.get(index, []).clear()
            self.forwards += 1
            self._advance(index, greenlet(self._run), index)

    def _continue(self, name: str) -> None:
        """Let all that wait at a finished layer go on, and run again what does not wait."""
        for index in [index for index, visit in self._waiting.items() if visit.name == name]:
            self._budget.release(index)
            self._advance(index, self._waiting.pop(index).walker)
        self._begin()

    def _advance(self, index: int, walker: greenlet, *args: int) -> None:
        """On to the next layer that is not finished, where the batch waits if there is room."""
        self._current = index
        try:
            place = walker.switch(*args)
        except Exception as error:
            if not self._waiting:  # it is alone, and what it raises its own
                raise
            raise Interleaved(f"a forward fails while others wait ({type(error).__name__}: {error})", index) from error
        if walker.dead:
            return
        name, x = place
        waits = self._budget.admit(index, name)
        is_changed = waits and _read_settings() != self._settings
        if is_changed or not waits:
            walker.throw()  # GreenletExit
        if is_changed:
            raise Interleaved(f"its forward keeps a setting of torch's changed at layer {name!r}")
        part = self._measure(name, x, alone=not waits)
        self._stops[index].add(name)
        if waits:
            self._waiting[index] = _Visit(walker, name, x, part)
        else:
            self._left.setdefault(name, []).append(part)
            self._ahead.append(index)

    def _choose(self) -> str | None:
        """The layer that is finished next: at which a first batch is."""
        own = next((visit.name for _, visit in sorted(self._waiting.items())), next(iter(self._left), None))
        return next((name for name in self._ranks.gather(own) if name is not None), None)

    def _pool(self, name: str) -> Moments | None:
        """The moments of this rank's batches."""
        visits = [visit for visit in self._waiting.values() if visit.name == name]
        left = self._left.get(name, [])

        def read_again(shift: Tensor, channels: Tensor) -> list[Partial]:
            return [*(read(v.x, shift, channels) for v in visits), *(part.of_channels(channels) for part in left)]

        parts = [*(visit.part for visit in visits), *left]
        return pooled_moments(parts, read_again) if parts else None

    def _finish(self, name: str, own: Moments | None) -> None:
        self.statistics[name] = moments = self._ranks.merge(own)
        check_moments(name, moments, self._layers[name])


class _Visit(NamedTuple):
    """A batch that waits at a layer, with its input and this one's moments."""

    walker: greenlet
    name: str
    x: Tensor
    part: Partial


def check_moments(name: str, moments: Moments, layer: BatchNorm) -> None:
    """ValueError unless a layer can normalize with `moments`."""
    if moments.count < 2:
        raise ValueError(f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images")
    if not (moments.mean + moments.var).isfinite().all():
        raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights")
    dtype = get_running_buffers(layer)[1].dtype
    if moments.var.max() > torch.finfo(dtype).max:
        raise ValueError(f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64")


@contextlib.contextmanager
def watched(layers: Layers, look: Callable[[str, Tensor], object]) -> Iterator[None]:
    """In the block `look` is called with a layer's name and input before its forward."""

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(name, get_input(args, kwargs))

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield


def _read_settings() -> tuple[Any, ...]:
    """What code may change for a while, and so must not be changed where it waits."""
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
        torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
    )  # fmt: skip
