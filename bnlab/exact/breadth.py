"""Breadth-first evaluation: every layer's exact statistics in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
the moments of each batch's values are read, and its forward waits. Once the last batch has come, the layer's statistics
are final, and all forwards go on under them. A batch for which there is no memory does not wait: its forward is ended,
and begun again at the input once the layer is finished. If no batch may wait, no forward is interrupted by another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from greenlet import greenlet

from bnlab.exact.ranks import InterleavingError
from bnlab.exact.settings import (
    Attributes,
    ForwardSettings,
    ModuleAttributes,
    keep_settings,
    list_kinds,
    read_fixed_settings,
)
from bnlab.exact.task import CALLER, Task, watched
from bnlab.inputs import Values
from bnlab.memory import Budget
from bnlab.moments import Moments
from bnlab.reading import Pooled


class Note(NamedTuple):
    """One call of a layer: its name, and the moments of what it was given, of all rows and of a sample of them."""

    name: str
    moments: Pooled
    sample_moments: Pooled


class _Batch:
    """A batch on its way through the network.

    A batch waits while its forward is interrupted at a layer. A batch that has come to a layer and does not wait has to
    be run again from the input.

    Attributes:
        index: its number.
        walker: its interrupted forward; None while it does not wait.
        settings: grad mode and autocast, as its latest forward has left them.
        attributes: what its interrupted forward has set in modules.
        layer: the layer that it has come to last; None at the end of the network.
        values: what this layer was given; None while the batch does not wait.
        moments: of these values, as the task's reader has them.
        is_ahead: for each layer that the batch has been measured at, whether its latest forward has yet to pass it. A
            forward that was begun again passes each of them once without a stop.
        given_calls: the calls of layers with given statistics in its latest forward, and the moments of each.
        notes: the calls in its latest forward; None if they are not noted.
    """

    def __init__(self, index: int, is_noted: bool) -> None:
        self.index = index
        self.walker: greenlet | None = None
        self.settings: ForwardSettings | None = None
        self.attributes: Attributes | None = None
        self.layer: str | None = None
        self.values: Values | None = None
        self.moments: Any = None
        self.is_ahead: dict[str, bool] = {}
        self.given_calls: list[tuple[str, Any]] = []
        self.notes: list[Note] | None = [] if is_noted else None

    @property
    def waits(self) -> bool:
        """Return whether its forward is interrupted."""
        return self.walker is not None

    def begin(self) -> None:
        """Forget the last forward; another one begins at the input."""
        self.is_ahead = dict.fromkeys(self.is_ahead, True)
        self.given_calls = []
        self.settings = None
        self.attributes = None
        if self.notes is not None:
            self.notes = []

    def take_walker(self) -> greenlet | None:
        """Take the interrupted forward, if there is one, and forget what was kept for it."""
        walker = self.walker
        self.walker = None
        self.values = None
        self.moments = None
        return walker


class Walk:
    """One pass of all batches through the network.

    Args:
        task: what is measured.
        budget: decides which batches may wait.
        given: statistics that some layers have already, such as those that are called several times. Batches do not
            wait at these layers; the moments of all calls are collected.
        noted: numbers of the batches whose calls are noted, to be checked later.

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

        Raises:
            ValueError: a layer cannot have statistics.
            InterleavingError: the forwards cannot take turns.
        """
        run_together = self._task.ranks.run_together
        with keep_settings(self._kinds), watched(self._task, self._task.layers, self._visit):
            try:
                for name, moments in self._given.items():
                    self._task.buffers.write(name, moments)
                run_together(partial(self._begin, self._batches))
                while (layer := self._choose_next()) is not None:
                    self._finish(layer, run_together(partial(self._pool, layer)))
                    self._task.buffers.write(layer, self.statistics[layer])
                    progress()
                    run_together(partial(self._continue, layer))
                self._finish_given()
            finally:
                self._end_forwards()
        return self

    def list_notes(self) -> list[tuple[int, list[Note]]]:
        """List the noted batches: the number of each, and its calls in their order."""
        return [(batch.index, batch.notes) for batch in self._batches if batch.notes is not None]

    # -- what a forward does at a layer ------------------------------------------------------------------------------

    def _visit(self, name: str, values: Values) -> None:
        """Decide what the current batch's forward does at a layer; called by the layer's hook."""
        batch = self._current
        if name in self._given:  # it has statistics: read the values, and go on
            batch.given_calls.append((name, self._measure(name, values, stays=False)))
        elif batch.is_ahead.get(name):  # measured in an earlier forward of this batch: pass it
            batch.is_ahead[name] = False
            if batch.notes is not None:
                self._measure(name, values, stays=False)
        elif name in self.statistics:  # finished, and called once more: it will have to be given
            self.revisited.add(name)
        else:
            self._stop(name, values)

    def _stop(self, name: str, values: Values) -> None:
        """Leave this forward at a layer; the call returns when the forward goes on."""
        parent = greenlet.getcurrent().parent
        if parent is None:
            raise ValueError(f"{CALLER}: layer {name!r} runs in another thread, where it cannot be measured")
        parent.switch(name, values)

    def _measure(self, name: str, values: Values, stays: bool) -> Any:
        """Read what a layer normalizes, and note the call; `stays`: the values are kept, and can be read again."""
        reader = self._task.reader
        moments = reader.read(values.x) if stays else reader.read_exactly(values.x)
        notes = self._current.notes
        if notes is not None:
            pooled = reader.pool([moments], [values.x] if stays else [])
            sample_moments = reader.measure(values.x[: self._task.sample_size])
            notes.append(Note(name, pooled, sample_moments))
        return moments

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self, batches: Sequence[_Batch]) -> None:
        """Run batches from the input to the first layer that is not finished."""
        for batch in batches:
            batch.begin()
            self.forwards += 1
            self._advance(batch, greenlet(self._task.run_batch), batch.index)

    def _continue(self, name: str) -> None:
        """Let the batches that wait at a finished layer go on, then run those again that do not wait."""
        here = [batch for batch in self._batches if batch.layer == name]
        not_waiting = [batch for batch in here if not batch.waits]
        for batch in here:
            if batch.waits:
                self._budget.release(batch.index)
                self._advance(batch, batch.take_walker())
        self._begin(not_waiting)

    def _advance(self, batch: _Batch, walker: Any, *args: int) -> None:
        """Run a forward on to the next layer that is not finished; there the batch waits if there is memory for it.

        Args:
            batch: whose forward it is.
            walker: the forward.
            args: what it is begun with; none where it was interrupted.
        """
        self._current = batch
        fixed_settings = read_fixed_settings()
        stop = self._switch(batch, walker, *args)
        if walker.dead:
            batch.layer = None
            return

        layer, values = stop
        batch.layer = layer
        attributes = self._attributes.read(batch.attributes)  # of every batch, to see in which of them they differ
        may_wait = self._budget.admit(batch.index, layer)
        if may_wait:
            self._require_interruptible(layer, walker, fixed_settings)
            batch.walker = walker
            batch.values = values
            batch.attributes = attributes
        else:
            _end(walker)
        batch.moments = self._measure(layer, values, stays=may_wait)
        batch.is_ahead[layer] = False

    def _require_interruptible(self, layer: str, walker: greenlet, fixed_settings: tuple[Any, ...]) -> None:
        """Raise InterleavingError, and end a forward, if it cannot wait at a layer while others run."""
        if read_fixed_settings() != fixed_settings:
            _end(walker)
            raise InterleavingError(f"its forward keeps a setting of torch's changed at layer {layer!r}")
        if not self._task.buffers.are_own(layer):
            _end(walker)
            raise InterleavingError(
                f"its forward puts other tensors in the place of those of layer {layer!r} (functional_call)"
            )

    def _switch(self, batch: _Batch, walker: Any, *args: int) -> Any:
        """Let a forward run under its own settings until it stops at a layer or ends; the caller's come back then."""
        outside = ForwardSettings.read(self._kinds)
        if batch.settings is not None:
            batch.settings.restore()
        if batch.attributes is not None:
            self._attributes.restore(batch.attributes)
        try:
            stop = walker.switch(*args)
        except Exception as error:
            is_alone = not any(other.waits for other in self._batches)
            if is_alone:  # then the forward itself is at fault, not what others have left in the model
                raise
            reason = f"a forward fails while others wait ({type(error).__name__}: {error})"
            raise InterleavingError(reason, batch.index) from error
        finally:
            batch.settings = ForwardSettings.read(self._kinds)
            outside.restore()
        return stop

    def _end_forwards(self) -> None:
        """End all forwards that wait, after an exception."""
        for batch in self._batches:
            walker = batch.take_walker()
            if walker is not None:
                _end(walker)

    def _choose_next(self) -> str | None:
        """Choose the layer to finish next; None when all batches have come to the end.

        A rank proposes the layer of its first batch that waits or, if none waits, of its first batch that has not come
        to the end. All ranks take the proposal of the first rank that has one.
        """
        waiting = [batch.layer for batch in self._batches if batch.waits]
        others = [batch.layer for batch in self._batches if not batch.waits and batch.layer is not None]
        proposals = [*waiting, *others]
        own = proposals[0] if proposals else None

        for proposal in self._task.ranks.gather(own):
            if proposal is not None:
                return proposal  # type: ignore[no-any-return]
        return None

    def _pool(self, name: str) -> Pooled | None:
        """Pool the moments of this rank's batches at a layer; None if none is there."""
        here = [batch for batch in self._batches if batch.layer == name]
        waiting = [batch for batch in here if batch.waits]
        not_waiting = [batch for batch in here if not batch.waits]
        parts = [batch.moments for batch in (*waiting, *not_waiting)]
        if not parts:
            return None
        inputs = [batch.values.x for batch in waiting if batch.values is not None]
        return self._task.reader.pool(parts, inputs)

    def _finish_given(self) -> None:
        """Pool, for each layer with given statistics, the moments of all of its calls."""
        for name in self._given:
            parts = [moments for batch in self._batches for layer, moments in batch.given_calls if layer == name]
            if any(self._task.ranks.gather(bool(parts))):
                self._finish(name, self._task.reader.pool(parts, []) if parts else None)

    def _finish(self, name: str, own: Pooled | None) -> None:
        """Make a layer's statistics of this rank's moments and those of the others."""
        if not self._task.ranks.is_alone:
            self._task.share_channels()
        moments = self._task.complete(name, self._task.ranks.merge(own))
        if self._task.reader.is_immediate:  # on an accelerator they are checked at the end, so that nobody waits for it
            self._task.require_usable(name, moments)
        self.statistics[name] = moments


def _end(walker: greenlet) -> None:
    """End an interrupted forward, and pass over what it raises on its way out."""
    with contextlib.suppress(Exception):
        walker.throw()  # GreenletExit
