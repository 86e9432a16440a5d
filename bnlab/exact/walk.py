"""The walk: forwards of all batches go through the network together, breadth-first, a layer at a time.

Each forward runs in a greenlet, which a hook interrupts at each layer. When a batch comes to a layer, the moments of
its values are read, and its forward waits. Once the last batch has come, the layer's statistics are final, and all
forwards go on under them. A batch for which there is no memory does not wait: its forward is ended, and begun again at
the input once the layer is finished.

While a forward waits, others run. So it puts away what forwards often set for a while: autocast, grad mode, and
attributes of the model's modules. Nothing else is kept apart: the check sees what comes of it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor

from bnlab.exact.task import CALLER, InterleavingError, Task, looking_at
from bnlab.memory import Room
from bnlab.model.batches import count_bytes
from bnlab.model.borrow import is_of_torch
from bnlab.model.reading import DeviceMoments
from bnlab.statistics.moments import Moments


class Way:
    """A batch's way through the network.

    Attributes:
        index: the batch's number.
        latest: its latest forward, a greenlet, which runs, waits, or has ended.
        waits: whether that one waits.
        layer: the layer that it has come to last; None at the end of the network.
        moments: by layer, of what the batch was measured on. Once a layer is finished, None takes their place, unless
            the batch is checked later.
        ahead: those of these layers that its latest forward has not reached yet. A forward that has begun again passes
            each of them once without stopping.
        assumed: the calls of layers with assumed statistics in its latest forward.
    """

    def __init__(self, index: int, is_checked: bool) -> None:
        self.index = index
        self.is_checked = is_checked
        self.layer: str | None = None
        self.latest: Any = None
        self.waits = False
        self.moments: dict[str, DeviceMoments | None] = {}
        self.ahead = set[str]()
        self.assumed: list[tuple[str, DeviceMoments]] = []

    def begin(self, evaluate: Callable[[Any], Any]) -> None:
        """Make a new forward, which has not run yet, and forget the latest one."""
        self.waits = False
        self.ahead = set(self.moments)
        self.assumed = []
        self.latest = greenlet(evaluate)
        self.latest.gr_context = contextvars.copy_context()  # what the caller has set holds in its forwards

    def take_moments(self, layer: str) -> DeviceMoments | None:
        """Return the moments of a layer that is finished now, and keep them where the batch is checked."""
        moments = self.moments[layer]
        if not self.is_checked:
            self.moments[layer] = None
        return moments


class Walk:
    """One pass of all batches through the network.

    Args:
        task: what is measured.
        assumed: statistics that some layers are assumed to have, such as those that are called several times. Batches
            do not wait at these layers; the moments of all calls are collected.
        checked: numbers of the batches that are checked later.

    Attributes:
        ways: those of the batches.
        statistics: moments of each layer, in the order in which they were finished.
        revisited: layers that were called once more after they had been finished.
        forwards: how often a forward was begun.
        room: what forwards that wait and run have held.
    """

    def __init__(self, task: Task, assumed: Mapping[str, Moments], checked: Collection[int]) -> None:
        self.ways = [Way(index, index in checked) for index in range(len(task.data))]
        self.statistics: dict[str, DeviceMoments] = {}
        self.revisited = set[str]()
        self.forwards = 0
        self.room = Room(task.device, [*task.root.parameters(), *task.root.buffers()])
        self._task = task
        self._assumed = assumed
        self._current: Way | None = None  # the one whose forward runs
        self._modules = [module for module in task.root.modules() if not is_of_torch(module)]
        self._is_inference = torch.is_inference_mode_enabled()
        kinds = dict.fromkeys(("cpu", task.device.type))
        self._autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]

    def go(self, progress: Callable[[], object]) -> Walk:
        """Take all batches through; `progress` is called whenever a layer is finished.

        Raises:
            ValueError: a layer runs in another thread.
            InterleavingError: the forwards cannot take turns.
        """
        run_together = self._task.ranks.run_together
        with looking_at(self._task, self._task.layers, self._visit, compares_modes=True):
            try:
                for name, moments in self._assumed.items():
                    self._task.write(name, moments)
                run_together(partial(self._begin, self.ways))

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
                # borrowed; otherwise the garbage collector would end them at some later time.
                for way in self.ways:
                    if way.latest is not None and not way.latest.dead:
                        _end(way.latest)
        return self

    # -- what a forward does at a layer ------------------------------------------------------------------------------

    def _visit(self, name: str, x: Tensor) -> None:
        """Decide what the current batch's forward does at a layer; called by the layer's hook."""
        way = self._current
        assert way is not None
        if name in self._assumed:  # it has statistics: read the values, and go on
            way.assumed.append((name, self._task.reader.measure(x)))
        elif name in way.ahead:  # measured in an earlier forward of this batch: pass it
            way.ahead.remove(name)
        elif name in self.statistics:  # finished, and called once more: its statistics will have to be assumed
            self.revisited.add(name)
        else:
            # Each thread has a main greenlet of its own, which has no parent to switch to.
            parent = greenlet.getcurrent().parent
            if parent is None:
                raise ValueError(f"{CALLER}: layer {name!r} runs in another thread, where it cannot be measured")
            with self._put_away():
                parent.switch(name, x)  # returns when this forward goes on

    @contextlib.contextmanager
    def _put_away(self) -> Iterator[None]:
        """In the block the caller's settings hold; after it what this forward has set: modes, and attributes."""
        attributes = [(vars(module), dict(vars(module))) for module in self._modules]
        try:
            with contextlib.ExitStack() as undo:
                # Inference mode comes first, because it sets grad mode as well.
                undo.enter_context(torch.inference_mode(self._is_inference))
                undo.enter_context(torch.no_grad())
                for kind, dtype, is_on in self._autocast:
                    undo.enter_context(torch.autocast(kind, dtype=dtype, enabled=is_on))
                yield
        finally:
            for now, before in attributes:
                now.clear()
                now.update(before)

    # -- one layer after the other -----------------------------------------------------------------------------------

    def _begin(self, ways: Iterable[Way]) -> None:
        """Run batches from the input to the first layer that is not finished."""
        for way in ways:
            self.forwards += 1
            way.begin(self._task.evaluate)
            self._advance(way, self._task.data[way.index])

    def _continue(self, name: str) -> None:
        """Let the batches that wait at a finished layer go on, then run those again that do not wait."""
        # Both lists are made first, because batches move on to other layers in the loop.
        here = [way for way in self.ways if way.layer == name]
        not_waiting = [way for way in here if not way.waits]

        for way in here:
            if way.waits:
                # Its memory has to be free before it goes on: at the next layer it may want to wait again.
                self.room.stop_waiting(way.index)
                way.waits = False
                self._advance(way)
        self._begin(not_waiting)

    def _advance(self, way: Way, *args: Any) -> None:
        """Run a forward on to the next layer that is not finished; there the batch waits if there is room for it.

        Args:
            way: the batch whose latest forward it is.
            args: what it is begun with; none where it was interrupted.
        """
        self._current = way
        # What a forward holds at each layer is counted by the first batch.
        with self.room.counting_bytes() if way.index == 0 else contextlib.nullcontext():
            stop = self._switch(way, *args)
        if way.latest.dead:
            way.layer = None
            return

        way.waits = True
        way.layer, x = stop
        way.moments[way.layer] = self._task.reader.measure(x)
        size = count_bytes(self._task.data[way.index])
        if way.index == 0:
            self.room.note_bytes(way.layer, size)
        if not self.room.let_wait(way.index, way.layer, size):
            way.waits = False
            _end(way.latest)  # which saves the rest of it

    def _switch(self, way: Way, *args: Any) -> Any:
        """Let a forward run until it stops at a layer or ends."""
        try:
            return way.latest.switch(*args)
        except Exception as error:
            # A batch does not wait while its forward runs, so that this asks about the other batches only. If none of
            # them waits, the forward itself is at fault, not what others have left in the model.
            if not any(other.waits for other in self.ways):
                raise
            reason = f"a forward fails while others wait ({type(error).__name__}: {error})"
            raise InterleavingError(reason, way.index) from error

    def _choose_next(self) -> str | None:
        """Choose the layer to finish next; None when all batches have come to the end.

        A rank proposes the layer of its first batch that waits or, if none waits, of its first batch that has not come
        to the end. All ranks take the proposal of the first rank that has one.
        """
        waiting = [way.layer for way in self.ways if way.waits]
        unfinished = [way.layer for way in self.ways if way.layer is not None]
        proposals: list[str | None] = self._task.ranks.gather(next(iter([*waiting, *unfinished]), None))
        return next((layer for layer in proposals if layer is not None), None)

    def _pool(self, name: str) -> DeviceMoments | None:
        """Pool the moments of this rank's batches at a layer; None if none is there."""
        taken = [way.take_moments(name) for way in self.ways if way.layer == name]
        parts = [moments for moments in taken if moments is not None]
        return self._task.reader.pool(parts) if parts else None

    def _finish_assumed(self, name: str) -> None:
        """Pool the moments of all calls of a layer with assumed statistics."""
        parts = [moments for way in self.ways for called, moments in way.assumed if called == name]
        if any(self._task.ranks.gather(bool(parts))):
            of_rank = self._task.reader.pool(parts) if parts else None
            self.statistics[name] = self._task.ranks.merge(of_rank)


def _end(forward: greenlet) -> None:
    """End an interrupted forward, and pass over what it raises on its way out."""
    with contextlib.suppress(Exception):
        forward.throw()  # GreenletExit
