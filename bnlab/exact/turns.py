"""Forward passes of one model that take turns, each in a greenlet of its own.

A forward that was suspended finds again what it left: the modes and flags of torch, its random stream, and what it has
changed on the modules.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.autograd import forward_ad

from bnlab.batches import Forward, list_leaves
from bnlab.borrowing import count_writes
from bnlab.exact.layouts import Layouts
from bnlab.exact.locks import Locks
from bnlab.exact.modes import Modes, ModeSwitch
from bnlab.flags import are_same, read_flags
from bnlab.loans import check_loans, count_loans
from bnlab.memory import tensor_bytes
from bnlab.module_state import ModuleState, Overrides, list_forward_hooks, list_held_tensors
from bnlab.randomness import RandomStream, find_generators

CALLER = "population_statistics"


class Turn:
    """One batch's forward pass, and what it has to find again when it goes on.

    Attributes:
        index: number of the batch; its random stream depends on it.
        batch: the caller's tensors, in containers of ours (see `hold_batch`).
        size: of the batch, in bytes.
        shapes: of its tensors and arrays, a list for each.
        run: the suspended forward; None before, after, and where it was given up.
        channels_last: whether the forward runs on a copy of the batch with the channels innermost.
    """

    def __init__(self, index: int, batch: Any) -> None:
        self.index, self.batch, self.size = index, batch, tensor_bytes(batch)
        self.shapes = [_list_shapes(leaf) for leaf in list_leaves(batch) if isinstance(leaf, (Tensor, np.ndarray))]
        self.run: greenlet | None = None
        self.channels_last = False
        self.modes: Modes | None = None
        self.overrides: Overrides | None = None
        self.random: list[Any] = []
        self._versions = _list_versions(batch)

    def check_unchanged(self) -> None:
        """ValueError if somebody has written into the batch."""
        if _list_versions(self.batch) != self._versions:
            raise ValueError(
                f"{CALLER}: batch {self.index} was changed after it was read; let batches yield new tensors"
            )


def _list_shapes(leaf: Any) -> list[tuple[int, ...]]:
    """The shape of a tensor or an array; of a nested one those of its parts."""
    parts = leaf.unbind() if isinstance(leaf, Tensor) and leaf.is_nested else [leaf]
    return [tuple(part.shape) for part in parts]


def _list_versions(batch: Any) -> list[int]:
    return [count_writes(t) for t in list_leaves(batch) if isinstance(t, Tensor)]


AnyTurn = TypeVar("AnyTurn", bound=Turn)


class Turns(Generic[AnyTurn]):
    """Lets the forwards of a borrowed model run by turns, each in its own state.

    Attributes:
        current: whose turn it is; None while the caller's code runs.
        begun: how often a forward was begun at its input.
        layouts: in which batches and weights are handed over.
    """

    def __init__(
        self, model: nn.Module, forward: Forward, device: torch.device, *, rank: int, channels_last: bool, most: int
    ) -> None:
        """`rank`: as for `RandomStream`, `channels_last` and `most`: as for `Layouts`."""
        self._model, self._forward = model, forward
        self.current: AnyTurn | None = None
        self.begun = 0
        self._hub = getcurrent()
        hooks = list_forward_hooks(model)
        own = list_held_tensors(model)
        self.layouts = Layouts(model, device, channels_last=channels_last, most=most)
        self._held = [*own, *list_held_tensors(model)]  # a forward may know the own weights still
        self._locks = Locks(model, [forward, *hooks])
        self._loans = count_loans()
        self._state = ModuleState(model, hooks)
        self._random = RandomStream(device, find_generators(model.modules()), rank)
        self._switch = ModeSwitch(["cpu", device.type])
        self._own_modes = self._switch.capture()
        self._suspended_at = set[str]()  # layers
        self._is_refused = False  # whether a forward is one that cannot wait
        self._reads_flags = True  # whether a forward may have changed some

    def accept(self) -> None:
        """Let forwards begin with what the caller has changed on the modules since the last one."""
        self._state.accept()

    # -- by turns ----------------------------------------------------------------------------------------------------

    def advance(self, turn: AnyTurn) -> bool:
        """Let a forward run until it waits or ends, from its input where it has not begun.

        Returns False where it has raised because it needs the memory layout of the caller's batch: it is to be begun
        once more, and all later ones have the caller's layout.
        """
        batch = [] if turn.run is not None else [self._begin(turn)]
        assert turn.run is not None
        self._enter(turn)
        try:
            turn.run.switch(*batch)
        except Exception as error:
            turn.run = None
            if not turn.channels_last or self._is_refused:
                error.add_note(f"{CALLER}: raised in the forward of batch {turn.index}; the model is as it was before")
                raise
        finally:
            self._leave(turn)
        if turn.run is None:
            self.keep_layouts()
            return False
        if turn.run.dead:
            turn.run = turn.overrides = None
        return True

    def take_turns(self, turns: Sequence[AnyTurn], advance: Callable[[AnyTurn], object]) -> None:
        """Call `advance` for one after the other.

        Flags are slow to read: they are read where the first forward stops, and where the others do only if that one
        has changed some. ValueError if only another one has.
        """
        own = self._own_modes.flags
        for turn in turns:
            advance(turn)
            self._reads_flags = self._reads_flags and turn.modes is not None and not are_same(turn.modes.flags, own)
        if not self._reads_flags and not are_same(read_flags(), own):
            raise ValueError(
                f"{CALLER}: the forward of some batches changes a setting of torch or Python (precision, threads, "
                "warnings, …) where that of the first batch does not; use strategy='layerwise'"
            )
        self._reads_flags = True

    def is_here(self, turn: AnyTurn | None) -> bool:
        """Whether this code is in that forward itself or, without one, the caller's, and in no other thread's."""
        return getcurrent() is (self._hub if turn is None else turn.run)

    def check_loans(self, name: str) -> None:
        """Called inside a forward, at layer `name`: ValueError if it has borrowed a model."""
        check_loans(self._loans, name, CALLER)

    def suspend(self, name: str) -> None:
        """Called inside a forward, at layer `name`: give the turn back. ValueError where others could not go on."""
        reason, is_first = None, name not in self._suspended_at  # what is slow is asked once for each layer
        if is_first:
            self._locks.look_again()
        if torch._C._functorch.maybe_current_level() is not None:
            reason = "inside of a torch.func transform such as vmap"
        elif forward_ad._current_level >= 0:
            reason = "inside of forward_ad.dual_level, of which there is one at a time"
        elif is_first and _is_forked():
            reason = "by torch.jit.fork, which cannot be suspended"
        elif self._locks.are_held():
            reason = "while the forward holds a lock, which the next batch would wait for without end"
        if reason is not None:
            self._is_refused = True
            raise ValueError(f"{CALLER}: layer {name!r} is called {reason}; use strategy='layerwise'")
        self._suspended_at.add(name)
        self._hub.switch()

    def give_up(self, turn: AnyTurn) -> None:
        """Unwind a suspended forward, in its own modes and with its own module state."""
        if turn.run is None:
            return
        run, turn.run = turn.run, None
        self._enter(turn)
        try:
            run.throw(GreenletExit)
        finally:
            self._leave(turn)
            turn.overrides = None  # activations may be among them

    def _begin(self, turn: AnyTurn) -> Any:
        """A new forward of the batch, on a copy of its input (a forward may write into it)."""
        turn.check_unchanged()
        self.begun += 1
        turn.random, turn.modes, turn.overrides = self._random.begin(turn.index), None, None
        turn.run = greenlet(self._run)
        turn.run.gr_context = contextvars.copy_context()
        turn.channels_last = self.layouts.channels_last
        return self.layouts.copy(turn.batch)

    def _run(self, batch: Any) -> None:
        with torch.no_grad():
            self._forward(self._model, batch)

    def _enter(self, turn: AnyTurn) -> None:
        self.current = turn
        self._random.apply(turn.random)
        self._state.give(turn.overrides)
        if turn.modes is not None:
            self._switch.apply(turn.modes, self._own_modes)

    def _leave(self, turn: AnyTurn) -> None:
        turn.modes = self._switch.capture(None if self._reads_flags else self._own_modes.flags)
        self._switch.apply(self._own_modes, turn.modes)
        turn.overrides = self._state.take()
        turn.random = self._random.capture()
        self.current = None

    def keep_layouts(self) -> None:
        """From now on batches and weights come as the caller has them."""
        self.layouts.restore()
        self._state.accept()

    # -- beside them -------------------------------------------------------------------------------------------------

    def run_alone(self, index: int, batch: Any) -> bool:
        """A forward from beginning to end, with the random stream of batch `index`; modules are as before it.

        Returns whether it has drawn from it, as far as torch's generators tell.
        """
        with self.callers_random_stream():
            begun = self._random.begin(index)
            self._random.apply(begun)
            try:
                self._run(self.layouts.copy(batch))
                both = zip(begun, self._random.capture(), strict=True)
                return any(isinstance(was, Tensor) and not torch.equal(was, now) for was, now in both)
            finally:
                self._state.take()

    def rehearse(self, turn: AnyTurn) -> bool:
        """`run_alone` of its batch; False as for `advance`."""
        try:
            self.run_alone(turn.index, turn.batch)
        except Exception:
            if not self.layouts.channels_last:
                raise
            self.keep_layouts()
            return False
        return True

    @contextlib.contextmanager
    def callers_random_stream(self) -> Iterator[None]:
        """The caller's goes on after the block as if nothing had been drawn in it."""
        own = self._random.capture()
        try:
            yield
        finally:
            self._random.apply(own)

    def check_written(self) -> None:
        """ValueError if a forward has written into a tensor that the modules hold."""
        for held in self._held:
            if held.written:
                raise ValueError(
                    f"{CALLER}: the forward writes into {held.name!r} in place, which batches that take turns cannot "
                    "share; use strategy='layerwise'"
                )


def _is_forked() -> bool:
    """Whether `torch.jit.fork` has called this code: it does so from C++, whose calls have to end in order."""
    return any(frame.f_code is torch.jit.fork.__code__ for frame, _ in traceback.walk_stack(sys._getframe()))
