"""Counting the steps of a training: updates, or forwards."""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import nn

from bnlab.layers import BatchNorm, is_tracing
from bnlab.trace import MomentTrace


class StepCounter:
    """Which step it is: counts updates, or forwards of the model or of its outermost parts that are called.

    Args:
        trace: whose `last_step` is the count.
        model: what is recorded.
        layers: its recorded layers.
        take_up_writes: called where a step begins or ends.

    Attributes:
        modules: those with a recorded layer inside, which get `enter` and `leave` as hooks.
    """

    def __init__(
        self, trace: MomentTrace, model: nn.Module, layers: Iterable[BatchNorm], take_up_writes: Callable[[], None]
    ) -> None:
        recorded = set(map(id, layers))
        self._trace, self._take_up_writes = trace, take_up_writes
        self._ended: int | None = None  # the last step that an update has ended; None: forwards are counted
        self._looked: int | None = None  # after which of them layers that no module surrounds have looked for writes
        self._warned = False
        self._changed: dict[int, str] = {}  # by step, the first layer whose weights changed before the step had ended
        self._inside: dict[int, list[nn.Module]] = {}  # of a module or layer, the recorded layers in it
        self._parts: dict[int, set[int]] = {}  # all modules in it
        self.modules: list[nn.Module] = []
        for module in model.modules():
            parts = {id(part): part for part in module.modules()}
            if inside := [parts[key] for key in recorded & parts.keys()]:
                self._inside[id(module)], self._parts[id(module)] = inside, set(parts)
                if id(module) not in recorded:
                    self.modules.append(module)
        self._outermost: tuple[nn.Module, int] | None = None  # which module is being called, and by which thread
        self._counting = set[int]()  # modules whose calls count
        self._called = set[int]()  # those of them that have been called in this step
        self._step: int | None = None

    def end_step(self) -> None:
        """Count an update."""
        self._take_up_writes()
        self._trace.last_step = self._ended = self.count_updates_only() + 1

    def count_updates_only(self) -> int:
        """From now on forwards do not count; the last step that was ended."""
        trace = self._trace
        if self._ended is None:
            self._ended = trace.first_step
            trace.last_step = min(trace.last_step, trace.first_step + 1)
            for layer in trace.layers.values():
                layer.move_to(trace.last_step)
        return self._ended

    def truncate(self, step: int) -> None:
        """Go back to `step`."""
        if self._ended is not None:
            self._ended = min(self._ended, step)
        self._changed = {changed: name for changed, name in self._changed.items() if changed <= step}

    def find_step(self) -> int:
        """The step of a call that begins now."""
        trace = self._trace
        return max(trace.last_step, (trace.first_step if self._ended is None else self._ended) + 1)

    def begin_entry(self, step: int) -> None:
        """Count the step of an entry."""
        self._trace.last_step = max(self._trace.last_step, step)

    def warn_of_updates_within(self, step: int, name: str) -> None:
        """Say once that the weights of layer `name` have changed within a step."""
        self._changed.setdefault(step, name)
        if self._ended is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"record: the weights of layer {name!r} have changed within step {step}, which is one forward of the "
                "model or of a part; call trace.step() after each update, or pass record(..., optimizer=...)",
                stacklevel=2,
            )

    def warn_of_uncounted_updates(self) -> None:
        """Say that something else than what counts as an update has changed the weights within some steps.

        Within most steps it may: another part of the model is trained in turn, or a step looks at several points.
        """
        begin, end = self._trace.first_step, self._trace.last_step
        usual = self._ended != begin and 2 * len(self._changed) > end - begin
        if self._ended is not None and self._changed and not usual:
            step, name = next(iter(self._changed.items()))
            where = (
                f"step {step}" if end - begin == 1 else f"{len(self._changed)} of {end - begin} steps (first {step})"
            )
            warnings.warn(
                f"record: within {where} the weights of layer {name!r} have changed by other updates than those that "
                "count, as another optimizer's; all batches of them are on one step: pass the optimizer whose step() "
                "is called throughout, or call trace.step() after each update",
                stacklevel=4,
            )

    def enter(self, module: nn.Module, args: object) -> None:
        """The hook before a call of one of `modules`: an outermost one may begin a step, and looks for writes."""
        # A deep copy carries the hooks along.
        if id(module) not in self._parts:
            return
        if self._outermost is not None:
            outermost, thread = self._outermost
            if outermost is not module:
                if not self._is_interrupted(id(module)):
                    return
            elif thread != threading.get_ident() and is_alive(thread):
                raise ValueError(
                    "record: the model is called by two threads at once; give each thread a model of its own"
                )
            # Otherwise the call before was interrupted: hooks are not called after a KeyboardInterrupt.
        if self._is_trained(module):
            if self._ended is not None:
                self._look_for_writes()
            self._count(module)
        self._outermost = module, threading.get_ident()

    def _look_for_writes(self) -> None:
        if not is_tracing():
            self._take_up_writes()

    def _is_trained(self, module: nn.Module) -> bool:
        """Whether a call of `module` is a forward in training, and none of a backward pass.

        Gradient checkpointing runs again there what has counted.
        """
        trained = module.training or any(layer.training for layer in self._inside[id(module)])
        return trained and torch._C._current_graph_task_id() == -1

    def _is_interrupted(self, key: int) -> bool:
        """Whether the outermost call has ended without its hooks, as far as a module that is no part of it can tell."""
        assert self._outermost is not None
        outermost, thread = self._outermost
        if key in self._parts[id(outermost)]:  # usually; the stack, which compiled code leaves out, is not asked then
            return False
        if thread != threading.get_ident():
            return not is_alive(thread)
        return not is_being_called(outermost)

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        """The hook after a call of one of `modules`."""
        if self._outermost == (module, threading.get_ident()):
            self._outermost = None

    def enter_layer(self, layer: BatchNorm) -> None:
        """Before a call of a recorded layer, which may begin a step where no module surrounds it."""
        if self._outermost is not None and self._is_interrupted(id(layer)):
            self._outermost = None
        if self._outermost is None and self._is_trained(layer):
            if self._ended != self._looked:  # as all layers would for all others
                self._looked = self._ended
                self._look_for_writes()
            self._count(layer)

    def _count(self, module: nn.Module) -> None:
        """Begin a step if an outermost call of `module` does not belong to the last one."""
        trace, key = self._trace, id(module)
        if self._ended is not None:
            return
        # A part of what counts already: gradient checkpointing runs it again.
        if any(key in self._parts[other] for other in self._counting if other != key):
            return
        self._counting = {other for other in self._counting if other not in self._parts[key]} | {key}
        if key in self._called or self._step != trace.last_step:
            self._look_for_writes()
            trace.last_step += 1
            self._step, self._called = trace.last_step, set()
        self._called.add(key)


_CALL = nn.Module._call_impl.__code__
_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # what calls the hooks of `step`


def is_being_called(module: nn.Module) -> bool:
    """Whether this thread is inside of a call of `module`."""
    frames = traceback.walk_stack(sys._getframe())
    return any(frame.f_code is _CALL and frame.f_locals["self"] is module for frame, _ in frames)


def is_within_another_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the `step` whose hooks are called now is part of another one: `super().step()` calls them too."""
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe()) if frame.f_code is _STEP]
    hooks = optimizer._optimizer_step_post_hooks
    return sum(frame.f_locals["self"]._optimizer_step_post_hooks is hooks for frame in frames) > 1


def is_alive(thread: int) -> bool:
    """Whether a thread of this number goes on."""
    return thread in sys._current_frames()
