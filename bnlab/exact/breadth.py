"""Breadth-first evaluation: every layer's exact statistics in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has come the layer's statistics are final, and all
go on with them. Batches for which there is no memory do not wait: they are run again from the input up to each layer,
until there is. Where none may wait no forward is interrupted by another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from greenlet import greenlet

from bnlab.exact.inputs import Values
from bnlab.exact.ranks import Interleaved
from bnlab.exact.settings import (
    Attributes,
    ForwardSettings,
    ModuleAttributes,
    keep_settings,
    list_kinds,
    read_fixed_settings,
)
from bnlab.exact.task import CALLER, Task, watched
from bnlab.memory import Budget
from bnlab.moments import Moments
from bnlab.reading import Pooled


class Note(NamedTuple):
    """What a layer was given in one call: the moments of all images, and of the first few."""

    name: str
    all_images: Pooled
    few_images: Pooled


class _Batch:
    """A batch on its way through the network.

    Attributes:
        index: its number.
        walker: its forward, which waits at a layer; None before the input, and where the batch does not wait.
        settings: grad mode and autocast of the forward that waits.
        attributes: what it had set in modules.
        place: the layer at which it has come last; None at the end.
        values: what this layer was given; None where the batch does not wait.
        part: its moments, as the task's reader has them.
        stops: layers at which it has been, which a forward from the input passes without a stop; whether its latest
            forward has yet to pass it.
        gathered: of its latest forward the calls of layers with given statistics, and their moments.
        notes: the calls of its latest forward; None: not noted.
    """

    def __init__(self, index: int, is_noted: bool) -> None:
        self.index = index
        self.walker: greenlet | None = None
        self.settings: ForwardSettings | None = None
        self.attributes: Attributes | None = None
        self.place: str | None = None
        self.values: Values | None = None
        self.part: Any = None
        self.stops: dict[str, bool] = {}
        self.gathered: list[tuple[str, Any]] = []
        self.notes: list[Note] | None = [] if is_noted else None

    @property
    def waits(self) -> bool:
        """Whether its forward is interrupted."""
        return self.walker is not None

    def begin(self) -> None:
        """Before a forward from the input."""
        self.stops = dict.fromkeys(self.stops, True)
        self.gathered = []
        self.settings = None
        self.attributes = None
        if self.notes is not None:
            self.notes = []

    def leave(self) -> greenlet | None:
        """Take the forward that waits away from the layer."""
        walker = self.walker
        self.walker = None
        self.values = None
        self.part = None
        return walker


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
        self._task = task
        self._budget = budget
        self._given = given
        self._batches = [_Batch(index, index in noted) for index in range(len(task.data))]
        self._current = _Batch(-1, False)  # the one whose forward runs
        self._kinds = list_kinds(task.device)
        self._attributes = ModuleAttributes(task.model)
        self.statistics: dict[str, Pooled] = {}
        self.revisited = set[str]()
        self.forwards = 0

    def go(self, progress: Callable[[], object]) -> Walk:
        """Take all batches through; `progress` is called whenever a layer is finished.

        Raises ValueError if a layer cannot have statistics, `Interleaved` if it shows that forwards take turns.
        """
        together = self._task.ranks.together
        with keep_settings(self._kinds), watched(self._task, self._task.layers, self._look):
            try:
                for name, moments in self._given.items():
                    self._task.buffers.write(name, moments)
                together(partial(self._begin, self._batches))
                while (place := self._choose()) is not None:
                    self._finish(place, together(partial(self._pool, place)))
                    self._task.buffers.write(place, self.statistics[place])
                    progress()
                    together(partial(self._continue, place))
                self._finish_given()
            finally:
                self._end_forwards()
        return self

    def list_notes(self) -> list[tuple[int, list[Note]]]:
        """Of each noted batch its number, and its calls in their order."""
        return [(batch.index, batch.notes) for batch in self._batches if batch.notes is not None]

    # -- what a forward does at a layer ------------------------------------------------------------------------------

    def _look(self, name: str, values: Values) -> None:
        batch = self._current
        if name in self._given:
            batch.gathered.append((name, self._measure(name, values, stays=False)))
        elif batch.stops.get(name):
            batch.stops[name] = False
            if batch.notes is not None:
                self._measure(name, values, stays=False)
        elif name in self.statistics:
            self.revisited.add(name)
        else:
            parent = greenlet.getcurrent().parent
            if parent is None:
                raise ValueError(f"{CALLER}: layer {name!r} runs in another thread, where it cannot be measured")
            parent.switch(name, values)

    def _measure(self, name: str, values: Values, stays: bool) -> Any:
        """Read what a layer normalizes; `stays`: it can be read again."""
        reader = self._task.reader
        part = reader.read(values.x) if stays else reader.read_exactly(values.x)
        notes = self._current.notes
        if notes is not None:
            few = reader.measure(values.x[: self._task.few])
            notes.append(Note(name, reader.pool([part], [values.x] if stays else []), few))
        return part

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self, batches: Sequence[_Batch]) -> None:
        """Run batches from the input to the first layer that is not finished."""
        for batch in batches:
            batch.begin()
            self.forwards += 1
            self._advance(batch, greenlet(self._task.run), batch.index)

    def _continue(self, name: str) -> None:
        """Let all that wait at a finished layer go on, and run again what does not wait."""
        here = [batch for batch in self._batches if batch.place == name]
        again = [batch for batch in here if not batch.waits]
        for batch in here:
            if batch.waits:
                self._budget.release(batch.index)
                self._advance(batch, batch.leave())
        self._begin(again)

    def _advance(self, batch: _Batch, walker: Any, *args: int) -> None:
        """Run on to the next layer that is not finished, where the batch waits if there is room."""
        self._current = batch
        fixed = read_fixed_settings()
        stop = self._switch(batch, walker, *args)
        if walker.dead:
            batch.place = None
            return

        batch.place, values = stop
        attributes = self._attributes.read(batch.attributes)  # also of one that does not wait, to see what differs
        waits = self._budget.admit(batch.index, batch.place)
        if waits:
            reason = self._find_interruption(batch.place, fixed)
            if reason:
                _end(walker)
                raise Interleaved(reason)
            batch.walker = walker
            batch.values = values
            batch.attributes = attributes
        else:
            _end(walker)
        batch.part = self._measure(batch.place, values, stays=waits)
        batch.stops[batch.place] = False

    def _find_interruption(self, name: str, fixed: tuple[Any, ...]) -> str:
        """Why a forward cannot wait at a layer; empty where it can."""
        if read_fixed_settings() != fixed:
            return f"its forward keeps a setting of torch's changed at layer {name!r}"
        if not self._task.buffers.are_own(name):
            return f"its forward puts other tensors in the place of those of layer {name!r} (functional_call)"
        return ""

    def _switch(self, batch: _Batch, walker: Any, *args: int) -> Any:
        """Let a forward run under its own settings, until it comes to a layer; the caller's are back afterwards."""
        outside = ForwardSettings.read(self._kinds)
        if batch.settings is not None:
            batch.settings.restore()
        if batch.attributes is not None:
            self._attributes.restore(batch.attributes)
        try:
            stop = walker.switch(*args)
        except Exception as error:
            if not any(other.waits for other in self._batches):  # it is alone, and what it raises its own
                raise
            reason = f"a forward fails while others wait ({type(error).__name__}: {error})"
            raise Interleaved(reason, batch.index) from error
        finally:
            batch.settings = ForwardSettings.read(self._kinds)
            outside.restore()
        return stop

    def _end_forwards(self) -> None:
        for batch in self._batches:
            walker = batch.leave()
            if walker is not None:
                _end(walker)

    def _choose(self) -> str | None:
        """The layer that is finished next: at which a first batch is; those that wait come first."""
        ordered = sorted(self._batches, key=lambda batch: not batch.waits)
        own = next((batch.place for batch in ordered if batch.place is not None), None)
        return next((name for name in self._task.ranks.gather(own) if name is not None), None)

    def _pool(self, name: str) -> Pooled | None:
        """The moments of this rank's batches."""
        here = [batch for batch in self._batches if batch.place == name]
        waiting = [batch for batch in here if batch.waits]
        gone = [batch for batch in here if not batch.waits]
        parts = [batch.part for batch in (*waiting, *gone)]
        if not parts:
            return None
        there = [batch.values.x for batch in waiting if batch.values is not None]
        return self._task.reader.pool(parts, there)

    def _finish_given(self) -> None:
        """Pool the calls of layers with given statistics."""
        for name in self._given:
            parts = [part for batch in self._batches for layer, part in batch.gathered if layer == name]
            if any(self._task.ranks.gather(bool(parts))):
                self._finish(name, self._task.reader.pool(parts, []) if parts else None)

    def _finish(self, name: str, own: Pooled | None) -> None:
        if not self._task.ranks.is_alone:
            self._task.share_channels()
        moments = self._task.complete(name, self._task.ranks.merge(own))
        if self._task.reader.is_immediate:  # elsewhere it is checked at the end, so that nobody waits
            self._task.check_moments(name, moments)
        self.statistics[name] = moments


def _end(walker: Any) -> None:
    """End a forward that waits; what it raises on its way out is not what is wrong."""
    with contextlib.suppress(Exception):
        walker.throw()  # GreenletExit
