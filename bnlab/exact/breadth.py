"""Breadth-first evaluation: every layer's exact statistics in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has come the layer's statistics are final, and all
go on with them. Batches for which there is no memory do not wait: they are run again from the input up to each layer,
until there is. Where none may wait no forward is interrupted by another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor

from bnlab.exact.ranks import Interleaved
from bnlab.exact.task import CALLER, Task, check_moments, watched
from bnlab.layers import check_input
from bnlab.memory import Budget
from bnlab.moments import Moments, Partial, pool, pooled_moments, read
from bnlab.statistics import write_buffers


class _Batch:
    """A batch on its way through the network.

    Attributes:
        index: its number.
        walker: its forward, which waits at a layer; None before the input, and where the batch does not wait.
        place: the layer at which it has come last; None at the end.
        x, part: what this layer was given, and its moments; None where the batch does not wait.
        stops: layers at which it has been, which a forward from the input passes without a stop.
        gathered: of its latest forward the calls of layers with given statistics, and their moments.
        notes: the calls of its latest forward, with moments of all images and of the first few; None: not noted.
    """

    def __init__(self, index: int, is_noted: bool) -> None:
        self.index = index
        self.place: str | None = None
        self.walker: greenlet | None = None
        self.x: Tensor | None = None
        self.part: Partial | None = None
        self.stops = dict[str, bool]()  # whether its latest forward has yet to pass it
        self.gathered = list[tuple[str, Partial]]()
        self.notes: list[tuple[str, Moments, Moments]] | None = [] if is_noted else None

    def begin(self) -> None:
        """Before a forward from the input."""
        self.stops, self.gathered = dict.fromkeys(self.stops, True), []
        self.notes = None if self.notes is None else []


class Walk:
    """All batches once through the network.

    Args:
        task: what is measured.
        budget: which batches may wait.
        given: statistics that layers have already, such as those that are called several times. Nobody waits there;
            the moments of all calls are gathered.
        noted: numbers of batches of which it is noted what the layers were given.

    Attributes:
        statistics: moments of each layer, in the order in which they were finished.
        revisited: layers that were called once more after they had been finished.
        forwards: how often a forward was begun.
    """

    def __init__(self, task: Task, budget: Budget, given: Mapping[str, Moments], noted: Collection[int]) -> None:
        self._task, self._budget, self._given = task, budget, given
        self._batches = [_Batch(index, index in noted) for index in range(len(task.data))]
        self._current = _Batch(-1, False)  # the one whose forward runs
        self.statistics: dict[str, Moments] = {}
        self.revisited, self.forwards = set[str](), 0

    def go(self, progress: Callable[[], object]) -> Walk:
        """Take all batches through; `progress` is called whenever a layer is finished.

        Raises ValueError if a layer cannot have statistics, `Interleaved` if it shows that forwards take turns.
        """
        together = self._task.ranks.together
        try:
            with watched(self._task.layers, self._look):
                for name, moments in self._given.items():
                    write_buffers(self._task.layers[name], moments)
                together(partial(self._begin, self._batches))
                while (finished := self._choose()) is not None:
                    self._finish(finished, together(partial(self._pool, finished)))
                    write_buffers(self._task.layers[finished], self.statistics[finished])
                    progress()
                    together(partial(self._continue, finished))
                for name in self._given:
                    parts = [part for batch in self._batches for layer, part in batch.gathered if layer == name]
                    if any(self._task.ranks.gather(bool(parts))):
                        self._finish(name, pool(parts) if parts else None)
        finally:
            for batch in self._batches:
                if batch.walker is not None:
                    batch.walker.throw()  # GreenletExit
        return self

    def list_notes(self) -> list[tuple[int, list[tuple[str, Moments, Moments]]]]:
        """Of each noted batch its number, and its calls in their order: layer, moments of all images, of a few."""
        return [(batch.index, batch.notes) for batch in self._batches if batch.notes is not None]

    def _look(self, name: str, x: Tensor) -> None:
        """What a forward does at a layer."""
        batch = self._current
        if name in self._given:
            batch.gathered.append((name, self._measure(name, x, alone=True)))
        elif batch.stops.get(name):
            batch.stops[name] = False
            if batch.notes is not None:
                self._measure(name, x, alone=True)
        elif name in self.statistics:
            self.revisited.add(name)
        else:
            greenlet.getcurrent().parent.switch(name, x)  # type: ignore[union-attr]

    def _measure(self, name: str, x: Tensor, alone: bool) -> Partial:
        """The moments of a layer's input: one read of it, or exact ones of what cannot be read again."""
        check_input(name, self._task.layers[name], x, CALLER)
        part = Partial.of(Moments.of(x)) if alone else read(x)
        if self._current.notes is not None:
            self._current.notes.append((name, pool([part]), Moments.of(x[: self._task.few])))
        return part

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self, batches: list[_Batch]) -> None:
        """Run batches from the input to the first layer that is not finished."""
        for batch in batches:
            batch.begin()
            self.forwards += 1
            self._advance(batch, greenlet(self._task.run), batch.index)

    def _continue(self, name: str) -> None:
        """Let all that wait at a finished layer go on, and run again what does not wait."""
        again = [batch for batch in self._batches if batch.walker is None and batch.place is not None]
        for batch in self._batches:
            if batch.walker is not None and batch.place == name:
                walker, batch.walker, batch.x, batch.part = batch.walker, None, None, None
                self._budget.release(batch.index)
                self._advance(batch, walker)
        self._begin(again)

    def _advance(self, batch: _Batch, walker: greenlet, *args: int) -> None:
        """On to the next layer that is not finished, where the batch waits if there is room."""
        self._current, settings = batch, _read_settings()
        try:
            stop = walker.switch(*args)
        except Exception as error:
            if all(other.walker is None for other in self._batches):  # it is alone, and what it raises its own
                raise
            reason = f"a forward fails while others wait ({type(error).__name__}: {error})"
            raise Interleaved(reason, batch.index) from error
        if walker.dead:
            batch.place = None
            return
        batch.place, x = stop
        waits = self._budget.admit(batch.index, batch.place)
        is_changed = waits and _read_settings() != settings
        if is_changed or not waits:
            walker.throw()  # GreenletExit
        if is_changed:
            raise Interleaved(f"its forward keeps a setting of torch's changed at layer {batch.place!r}")
        batch.part = self._measure(batch.place, x, alone=not waits)
        batch.stops[batch.place] = False
        if waits:
            batch.walker, batch.x = walker, x

    def _choose(self) -> str | None:
        """The layer that is finished next: at which a first batch is; those that wait come first."""
        there = sorted(self._batches, key=lambda batch: batch.walker is None)
        own = next((batch.place for batch in there if batch.place is not None), None)
        return next((name for name in self._task.ranks.gather(own) if name is not None), None)

    def _pool(self, name: str) -> Moments | None:
        """The moments of this rank's batches."""
        here = [batch for batch in self._batches if batch.place == name]
        waiting, parts = [b.x for b in here if b.x is not None], [b.part for b in here if b.part is not None]
        left = [b.part for b in here if b.x is None and b.part is not None]

        def read_again(shift: Tensor, channels: Tensor) -> list[Partial]:
            return [*(read(x, shift, channels) for x in waiting), *(part.of_channels(channels) for part in left)]

        return pooled_moments(parts, read_again) if parts else None

    def _finish(self, name: str, own: Moments | None) -> None:
        self.statistics[name] = moments = self._task.ranks.merge(own)
        check_moments(name, moments, self._task.layers[name])


def _read_settings() -> tuple[Any, ...]:
    """What code may change for a while, and so must not be changed where it waits."""
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
        torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
    )  # fmt: skip
