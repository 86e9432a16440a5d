"""Breadth-first evaluation: every layer's exact statistics in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
the moments of each batch's values are read, and its forward waits. Once the last batch has come, the layer's statistics
are final, and all forwards go on under them. A batch for which there is no memory does not wait: its forward is ended,
and begun again at the input once the layer is finished.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from greenlet import greenlet
from torch import Tensor

from bnlab.exact.task import CALLER, InterleavingError, Task, watched
from bnlab.memory import Budget
from bnlab.model.borrow import ForwardState, read_fixed_settings
from bnlab.model.reading import Pooled, Refilled
from bnlab.statistics.moments import Moments


class Call(NamedTuple):
    """One call of a layer: its name, and the moments of what it was given."""

    name: str
    moments: Pooled


class _Batch:
    """A batch on its way through the network.

    A batch waits while its forward is interrupted at a layer. A batch that has come to a layer and does not wait has to
    be run again from the input.

    Attributes:
        index: its number.
        walker: its interrupted forward; None while it does not wait.
        state: what its interrupted forward has set, see `ForwardState.leave`.
        layer: the layer that it has come to last; None at the end of the network.
        x: what this layer was given to normalize, if it may have to be read again; else None.
        moments: of `x`, as the task's reader has them.
        measured_layers: the layers that the batch has been measured at.
        layers_ahead: those of them that its latest forward has yet to pass. A forward that was begun again passes each
            of them once without a stop.
        assumed_calls: the calls of layers with assumed statistics in its latest forward.
        calls: all calls in its latest forward; None if the batch is not checked later.
        measuring_calls: the call of each layer by which the batch was measured there.
    """

    def __init__(self, index: int, is_checked: bool) -> None:
        self.index = index
        self.is_checked = is_checked
        self.layer: str | None = None
        self.moments: Any = None
        self.measured_layers = set[str]()
        self.measuring_calls: dict[str, Call] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the latest forward: another one begins at the input."""
        self.walker: greenlet | None = None
        self.x: Tensor | None = None
        self.state: tuple[Any, Any] | None = None
        self.layers_ahead = set(self.measured_layers)
        self.assumed_calls: list[Call] = []
        self.calls: list[Call] | None = [] if self.is_checked else None


class Walk:
    """One pass of all batches through the network.

    Args:
        task: what is measured.
        budget: decides which batches may wait.
        assumed: statistics that some layers are assumed to have, such as those that are called several times. Batches
            do not wait at these layers; the moments of all calls are collected.
        checked: numbers of the batches that are checked later, for which their calls are kept.

    Attributes:
        statistics: moments of each layer, in the order in which they were finished.
        revisited: layers that were called once more after they had been finished.
        forwards: how often a forward was begun.
        batches: the batches.
    """

    def __init__(self, task: Task, budget: Budget, assumed: Mapping[str, Moments], checked: Collection[int]) -> None:
        self._task = task
        self._budget = budget
        self._assumed = assumed
        self._current = _Batch(-1, False)  # the one whose forward runs
        self._state = ForwardState(task.root, task.device, task.places)
        # The caller's settings. A new tensor has no tangent, which counts as no forward-mode differentiation.
        self._fixed_settings = read_fixed_settings(torch.zeros(()))
        self.batches = [_Batch(index, index in checked) for index in range(len(task.data))]
        self.statistics: dict[str, Pooled] = {}
        self.revisited = set[str]()
        self.forwards = 0

    def go(self, progress: Callable[[], object]) -> Walk:
        """Take all batches through; `progress` is called whenever a layer is finished.

        Raises:
            ValueError: a layer runs in another thread.
            InterleavingError: the forwards cannot take turns.
        """
        run_together = self._task.ranks.run_together
        with _kept_settings(), watched(self._task, self._task.layers, self._visit, compares_modes=True):
            try:
                for name, moments in self._assumed.items():
                    self._task.write(name, moments)
                run_together(partial(self._begin, self.batches))

                # Each turn finishes one layer. All ranks take part, even one without a batch at this layer.
                while (layer := self._choose_next()) is not None:
                    of_rank = run_together(partial(self._pool, layer))
                    self.statistics[layer] = self._task.ranks.merge(of_rank)
                    self._task.write(layer, self.statistics[layer])
                    progress()
                    run_together(partial(self._continue, layer))

                # These layers may be called anywhere in a forward, so their moments are complete only here.
                for name in self._assumed:
                    self._finish_assumed(name)
            finally:
                # When an error is raised, forwards may still be waiting. They are ended here, while the model is
                # borrowed; otherwise the garbage collector would end them at some later time. The one that ran last
                # comes first: the others are not to end under settings that it has changed.
                for batch in (self._current, *self.batches):
                    if batch.walker is not None and not batch.walker.dead:
                        _end(batch.walker)
        return self

    # -- what a forward does at a layer ------------------------------------------------------------------------------

    def _visit(self, name: str, x: Tensor) -> None:
        """Decide what the current batch's forward does at a layer; called by the layer's hook."""
        batch = self._current
        if name in self._assumed:  # it has statistics: read the values, and go on
            moments = self._measure(name, x, False)
            batch.assumed_calls.append(Call(name, moments))
        elif name in batch.layers_ahead:  # measured in an earlier forward of this batch: pass it
            batch.layers_ahead.remove(name)
            if batch.calls is not None:
                batch.calls.append(batch.measuring_calls[name])
        elif name in self.statistics:  # finished, and called once more: its statistics will have to be assumed
            self.revisited.add(name)
        else:
            # Each thread has a main greenlet of its own, which has no parent to switch to.
            parent = greenlet.getcurrent().parent
            if parent is None:
                raise ValueError(f"{CALLER}: layer {name!r} runs in another thread, where it cannot be measured")
            parent.switch(name, x)  # returns when this forward goes on

    def _measure(self, name: str, x: Tensor, is_kept: bool) -> Any:
        """Read what a layer normalizes, and add the call to those that are checked later.

        `is_kept`: the values are kept, so that they can be read again; such a call is not checked.
        """
        reader = self._task.reader
        if is_kept:
            return reader.read(x)
        moments = reader.measure(x)
        calls = self._current.calls
        if calls is not None:
            calls.append(Call(name, moments))
        return moments

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self, batches: Iterable[_Batch]) -> None:
        """Run batches from the input to the first layer that is not finished."""
        for batch in batches:
            batch.forget()
            self.forwards += 1
            walker = greenlet(self._task.evaluate)
            walker.gr_context = contextvars.copy_context()  # what the caller has set holds in its forwards
            self._advance(batch, walker, self._task.data[batch.index])

    def _continue(self, name: str) -> None:
        """Let the batches that wait at a finished layer go on, then run those again that do not wait."""
        # Both lists are made first, because batches move on to other layers in the loop.
        here = [batch for batch in self.batches if batch.layer == name]
        not_waiting = [batch for batch in here if batch.walker is None]

        for batch in here:
            walker = batch.walker
            if walker is not None:
                # Its memory has to be free before it goes on: at the next layer it may want to wait again.
                self._budget.release(batch.index)
                batch.walker = None
                batch.x = None
                self._advance(batch, walker)
        self._begin(not_waiting)

    def _advance(self, batch: _Batch, walker: Any, *args: Any) -> None:
        """Run a forward on to the next layer that is not finished; there the batch waits if there is memory for it.

        Args:
            batch: whose forward it is.
            walker: the forward.
            args: what it is begun with; none where it was interrupted.
        """
        self._current = batch
        stop = self._switch(batch, walker, *args)
        if walker.dead:
            batch.layer = None
            return

        layer, x = stop
        batch.layer = layer
        batch.walker = walker  # which is ended if anything below raises an error

        may_wait = self._budget.admit(batch.index, layer)
        if may_wait and read_fixed_settings(x) != self._fixed_settings:
            raise InterleavingError(f"its forward keeps a setting of torch's changed at layer {layer!r}")

        is_kept = may_wait and batch.calls is None  # what is checked later is measured at once
        batch.x = x if is_kept else None
        batch.moments = self._measure(layer, x, is_kept)
        batch.measured_layers.add(layer)
        if batch.calls is not None:
            batch.measuring_calls[layer] = batch.calls[-1]
        if may_wait:
            return

        # Only now: the rest of a forward may write into what it gave this layer.
        batch.walker = None
        _end(walker)  # which saves the rest of it

    def _switch(self, batch: _Batch, walker: Any, *args: Any) -> Any:
        """Let a forward run under its own settings until it stops at a layer or ends; the caller's come back then."""
        self._state.enter(batch.state)
        try:
            return walker.switch(*args)
        except Exception as error:
            # A batch has no walker while its forward runs, so that this asks about the other batches only.
            is_alone = all(other.walker is None for other in self.batches)
            if is_alone:  # then the forward itself is at fault, not what others have left in the model
                raise
            reason = f"a forward fails while others wait ({type(error).__name__}: {error})"
            raise InterleavingError(reason, batch.index) from error
        finally:
            batch.state = self._state.leave()

    def _choose_next(self) -> str | None:
        """Choose the layer to finish next; None when all batches have come to the end.

        A rank proposes the layer of its first batch that waits or, if none waits, of its first batch that has not come
        to the end. All ranks take the proposal of the first rank that has one.
        """
        waiting = [batch.layer for batch in self.batches if batch.walker is not None]
        unfinished = [batch.layer for batch in self.batches if batch.layer is not None]
        if waiting:
            proposal = waiting[0]
        elif unfinished:
            proposal = unfinished[0]
        else:
            proposal = None

        proposals: list[str | None] = self._task.ranks.gather(proposal)
        return next((layer for layer in proposals if layer is not None), None)

    def _pool(self, name: str) -> Pooled | None:
        """Pool the moments of this rank's batches at a layer; None if none is there."""
        kept = []
        read = []
        measured = []
        for batch in self.batches:
            if batch.layer != name:
                continue
            if batch.x is None:
                measured.append(batch.moments)
            else:
                kept.append(batch.x)
                read.append(batch.moments)
        if not read and not measured:
            return None

        # The order matters: the reader matches `kept` with the first of the parts.
        try:
            return self._task.reader.pool([*read, *measured], kept)
        except Refilled as error:
            raise InterleavingError(f"forwards write into what layer {name!r} was given in others") from error

    def _finish_assumed(self, name: str) -> None:
        """Pool the moments of all calls of a layer with assumed statistics."""
        calls = [call for batch in self.batches for call in batch.assumed_calls]
        parts = [call.moments for call in calls if call.name == name]
        if any(self._task.ranks.gather(bool(parts))):
            of_rank = self._task.reader.pool(parts, []) if parts else None
            self.statistics[name] = self._task.ranks.merge(of_rank)


@contextlib.contextmanager
def _kept_settings() -> Iterator[None]:
    """Give the caller its settings back after the block: forwards that take turns may put back each other's.

    They are filters of warnings, where output goes, and whether torch differentiates in forward mode, which a function
    of autograd, such as a reentrant checkpoint, turns off while its forward runs.
    """
    # Forward mode has no switch among torch's public names. Inference mode puts it back when its block ends; it is
    # entered as it is, and turns gradients on where it is off.
    is_inference = torch.is_inference_mode_enabled()
    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        undo.enter_context(contextlib.redirect_stdout(sys.stdout))
        undo.enter_context(contextlib.redirect_stderr(sys.stderr))
        undo.enter_context(torch.inference_mode(is_inference))
        undo.enter_context(torch.no_grad())
        yield


def _end(walker: greenlet) -> None:
    """End an interrupted forward, and pass over what it raises on its way out."""
    with contextlib.suppress(Exception):
        walker.throw()  # GreenletExit
