"""The hooks of one layer: what is recorded of a call, and how the layer's own average goes on meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bnlab.borrowing import count_writes, hold_the_same, is_paused_while_borrowed, pause_while_borrowed
from bnlab.interrupts import interrupts_ended_by
from bnlab.layers import BatchNorm, get_layer_input, has_own_forward, is_symbolic, is_tracing, past_modes
from bnlab.loans import count_loans_of
from bnlab.recording.look import Look, find_averaged_moments
from bnlab.recording.steps import StepCounter, is_alive, is_being_called
from bnlab.recording.watch import Average, Watch
from bnlab.trace import NOT_TAKEN, MomentTrace


class Loan(NamedTuple):
    """What a layer has been given for the time of a call.

    Attributes:
        slot: places [C] for the mean and the variance of an entry.
        values: of the input, per channel.
        step: that of the call.
        taken: the running average that it had before, its own or, in a block inside of another, that one's loan.
        own: the running average that is its own.
        thread: the caller's.
    """

    slot: tuple[Tensor, ...]
    values: int
    step: int
    taken: Average
    own: Average
    thread: int


# A layer's own average, by the identity of the mean that it has on loan: blocks inside of blocks lend in turn.
_own_averages: dict[int, Average] = {}


class Recorder:
    """The hooks of one layer: lend scratch buffers and momentum 1; take the entry, give the own ones back.

    Where other code than torch's can see the layer meanwhile, nothing is lent: what the call has made of the buffers is
    compared with the moments of its input.

    Args:
        name, layer: which layer it is.
        trace: what its entries go to.
        counter: counts the steps, also by calls of the layer that no module surrounds.
        trained: a parameter that shows updates where the layer has none that is trained.

    Attributes:
        name, layer: which layer it is.
        watch: notices what else writes the layer's own buffers.
        overwritten: whether, after the block, the buffers hold something else than the average of what was recorded.
        exchanged: whether, after the block, the layer has the buffers of before again, but has averaged into others.
        alternates: whether the layer has had other buffers, with other values, and then its own again.
        unhooked: whether, at the end of the block, something had taken the hooks away.
        left_out: entries that the layer's own average has left out: its momentum was 0.
        cumulative: entries with a momentum of None.
        miscounted: whether such an entry was weighed by a count of other batches than entries, empty ones for instance.
        is_biased: whether it averages variances with ddof 0.
    """

    def __init__(
        self, name: str, layer: BatchNorm, trace: MomentTrace, counter: StepCounter, trained: Tensor | None
    ) -> None:
        self.name, self.layer, self.overwritten, self.exchanged = name, layer, False, False
        self.unhooked = False
        self.alternates = False
        self.left_out, self.cumulative, self.miscounted, self.is_biased = 0, 0, False, False
        self._trace, self._entries, self._counter = trace, trace.layers[name], counter
        self._buffers, self._attributes = layer._buffers, vars(layer)  # nn.Module's own way to set them is slow
        self._called = False
        self._loan: Loan | None = None
        self._ended = False
        self._blocks_around = count_loans_of(layer)  # that had borrowed the layer before this one began
        weight = layer.weight
        self._trained = trained if weight is None or not weight.requires_grad else weight
        self._trained_version: int | None = None
        self._look: Look | None = None
        self._hooks: tuple[int, int]  # keys of those before and after the call
        self.watch = self._make_watch()
        self._given = self._averaged = self._buffers["running_mean"]  # when the block began; in the last call

    def _make_watch(self) -> Watch:
        return Watch(self.layer, self._entries, self._get_averages()[1])

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Record the layer's calls in the block."""
        layer = self.layer
        with contextlib.ExitStack() as undo:
            first = layer.register_forward_pre_hook(make_hook(self._before), with_kwargs=True)
            undo.callback(first.remove)
            # First of all, so that blocks inside of blocks give back in turn, and other hooks see the layer's own.
            last = layer.register_forward_hook(make_hook(self._after), always_call=True, prepend=True, with_kwargs=True)
            undo.callback(last.remove)
            self._hooks = first.id, last.id
            undo.callback(self._end)
            undo.enter_context(interrupts_ended_by(layer, self._end_interrupted_loan))
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layer
        # A deep copy carries the hooks along, and code that was compiled inside of the block calls them after it.
        if module is not layer or self._ended:
            return
        if self._called:
            self._end_interrupted_call()
        # A layer that does not track leaves its buffers alone, if it has some.
        if not layer.training or not layer.track_running_stats or not self._has_average():
            return
        if is_tracing():
            raise ValueError(
                f"record: layer {self.name!r} is traced or exported in train mode; do that before the block or after it"
            )
        held, own = self._get_averages()
        is_seen = self._is_seen_by_others()
        if self.watch.is_written(own):
            self._check_precision(own)
            self._take_up(own)
        elif is_seen or self.watch.is_due():
            self.watch.compare(own)
        if own.mean is self._given and self._averaged is not self._given and self._begins_again():
            self.alternates = True  # the call before had others, as a teacher's
        self._called, self._averaged = True, own.mean
        if is_seen:
            self._counter.enter_layer(layer)
            self._look = Look(
                torch.stack(held[:2]).detach(), held.momentum, self._counter.find_step(), threading.get_ident()
            )
            return
        count = get_layer_input(args, kwargs).numel() // layer.num_features
        if count:  # torch lets an empty batch pass and leaves the buffers as they are
            self._counter.enter_layer(layer)
            self._lend(count, held, own)

    def _lend(self, count: int, held: Average, own: Average) -> None:
        """Let the layer have a cleared slot and momentum 1 for a call with `count` values per channel."""
        slot = self._trace.slot(self._entries)
        _own_averages[id(slot[0])] = own
        self._loan = Loan(slot, count, self._counter.find_step(), held, own, threading.get_ident())
        self._buffers["running_mean"], self._buffers["running_var"] = slot
        self._attributes["momentum"] = 1.0

    def _is_seen_by_others(self) -> bool:
        """Whether code that is not torch's can look at the layer between our hooks."""
        layer = self.layer
        if has_own_forward(layer) or torch_module._global_forward_hooks:
            return True
        before, after = layer._forward_pre_hooks, layer._forward_hooks
        first, last = self._hooks
        if next(reversed(before), None) == first and next(iter(after), None) == last:
            return False
        later = (*_keys_after(first, before), *_keys_after(last, reversed(after)))  # keys are unique among all hooks
        hooks = [before[key] if key in before else after[key] for key in later]
        return not all(map(is_paused_while_borrowed, hooks))  # as those of blocks inside of this one are

    def _take_up(self, own: Average) -> None:
        channels, now = self._entries.start.shape[1], len(own.mean)
        if now != channels:
            raise ValueError(
                f"record: layer {self.name!r} has {now} channels now, had {channels}; prune or widen the model between "
                "two blocks"
            )
        self.watch.take_up(own, self._trace.last_step)

    def _begins_again(self) -> bool:
        """Whether the buffers have been written since the last call."""
        return any(start.entries == len(self._entries) for start in self._entries.restarts[-1:])

    def _has_precision_of_start(self, own: Average) -> bool:
        kept = self._entries.start
        return (own.mean.dtype, own.mean.device) == (kept.dtype, kept.device)

    def _check_precision(self, own: Average) -> None:
        kept = self._entries.start
        if not self._has_precision_of_start(own):
            raise ValueError(
                f"record: layer {self.name!r} is {own.mean.dtype} on {own.mean.device} now, was {kept.dtype} on "
                f"{kept.device}; move or convert the model before the block"
            )

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if module is not self.layer or not self._called:
            return
        loan, look = self._loan, self._look
        self._called, self._look = False, None
        updates = self.watch.count_updates()
        if loan is not None:
            self._take_entry(loan, updates, output)
        elif look is not None:
            self._compare(look, updates, get_layer_input(args, kwargs), output)

    def _take_entry(self, loan: Loan, updates: int, output: object) -> None:
        """Make an entry of what the call has left in the slot, and update the layer's own average."""
        lent = *loan.slot, 1.0
        held = self._buffers["running_mean"], self._buffers["running_var"], self._attributes["momentum"]
        self._give_back(loan)
        # A call that raised has an entry if its statistics were taken before: gradient checkpointing ends its second
        # forward so. One that has not raised has none if checkpointing has kept the output of the first.
        is_repeated = torch._C._current_graph_task_id() != -1
        if (output is None or is_repeated) and bool((loan.slot[1] == NOT_TAKEN).all()):
            return
        self._check_updates(updates)
        if held[0] is not lent[0] or held[1] is not lent[1] or held[2] != lent[2]:
            raise ValueError(
                f"record: the running buffers or the momentum of layer {self.name!r} were replaced within a call; do "
                "that between two calls"
            )
        taken, own = loan.taken, loan.own
        self._append(loan.values, loan.step, own.momentum)
        if taken is own:
            self.watch.update(own, loan.slot, self._weigh(own.momentum))
        else:
            self.watch.expect(loan.slot, self._weigh(own.momentum))
            torch._foreach_copy_(taken[:2], loan.slot)

    def _compare(self, look: Look, updates: int, x: object, output: object) -> None:
        """Make an entry of the moments of `x` if they are what the call has averaged; none if it has left the average.

        Anything else is refused, but for a call that raised: replays begin again after it.
        """
        if not self._has_average():
            self._refuse(updates)
        held, own = self._get_averages()
        values = torch.stack(held[:2]).detach()
        empty = isinstance(x, Tensor) and x.numel() == 0
        if (empty or not updates or output is None) and hold_the_same(values, look.values):
            return
        momenta = [self._weigh(momentum) for momentum in (held.momentum, look.momentum)]
        averaged = None if updates > 1 else find_averaged_moments(x, look.values, values, momenta)
        if averaged is None:
            self.watch.take_up(own, self._trace.last_step)
            if output is not None:
                self._refuse(updates)
            return
        if held is own:
            self.watch.follow(own, momenta[0])
        else:
            self.watch.expect(held[:2], self._weigh(own.momentum))
        moments, ddof = averaged
        self.is_biased |= ddof == 0
        for place, value in zip(self._trace.slot(self._entries), moments, strict=True):
            place.copy_(value)
        self._append(x.numel() // self.layer.num_features, look.step, held.momentum)  # type: ignore[attr-defined]

    def _refuse(self, updates: int) -> None:
        self._check_updates(updates)
        raise ValueError(
            f"record: layer {self.name!r} averages in a way of its own, or something else than the moments of its "
            "input, or a hook has written its buffers within the call, which cannot be recorded; use one of torch's "
            "batch norms, and write between two calls"
        )

    def _check_updates(self, updates: int) -> None:
        if updates > 1:
            raise ValueError(
                f"record: layer {self.name!r} takes its statistics {updates} times in one call (ghost batch norm?), of "
                "which only the last could be recorded"
            )

    def _weigh(self, momentum: float | None) -> float:
        """The weight of the batch that was counted last; None: in the average of all batches."""
        if momentum is not None:
            return momentum
        batches = self.layer.num_batches_tracked
        return 0.0 if batches is None else 1.0 / max(float(batches), 1.0)

    def _end(self) -> None:
        """Give back what is lent still, and look for the last time what was written past the hooks."""
        if self._called:
            self._end_interrupted_call()
        self._ended = True
        self.unhooked = self._hooks[0] not in self.layer._forward_pre_hooks
        own = self._buffers["running_mean"]
        self.take_up_writes()
        self.exchanged &= own is not self._averaged
        self.exchanged &= self._begins_again()
        if not self._has_average():
            return
        own_average = self._get_averages()[1]
        self.overwritten = self.watch.is_overwritten(own_average)  # which brings self-tuned buffers up to date
        self._entries.end = torch.stack(own_average[:2]).detach()

    def take_up_writes(self) -> None:
        """Begin again where something has written the buffers since the last look."""
        if self._loan is not None and not self._is_called(self._loan):
            self._end_interrupted_call()
        # A borrowed layer may have other buffers, such as those of `using`; they are not the model's own.
        is_borrowed = count_loans_of(self.layer) > self._blocks_around
        if self._loan is not None or is_borrowed or not self._has_average():
            return
        _, own = self._get_averages()
        will_refuse = self.layer.training and not self._ended and not self._has_precision_of_start(own)
        if self.watch.is_written(own) and not will_refuse:
            if self.exchanged:  # it is to be compared with what the calls have left, not with what came after them
                self.watch.drop_restart(self._trace.last_step)
            given_back = own.mean is self._given and own.mean is not self._averaged
            self.exchanged = given_back and not self.watch.is_left_by_calls(own)
            self._take_up(own)

    def _end_interrupted_call(self) -> None:
        """Hooks are not called after a KeyboardInterrupt."""
        lent = self._loan or self._look
        if lent is not None and lent.thread != threading.get_ident() and is_alive(lent.thread):
            raise ValueError(
                f"record: layer {self.name!r} is called by two threads at once; give each thread a model of its own"
            )
        self._after(self.layer, (), {}, None)

    def _end_interrupted_loan(self) -> None:
        """Give back what a KeyboardInterrupt has left on loan; ValueError if the call goes on."""
        loan = self._loan
        if loan is None:
            return
        if self._is_called(loan):
            raise ValueError(
                f"record: layer {self.name!r} is being called, and does not have its own buffers meanwhile; read and "
                "write them between two calls, not in another thread or in a signal's handler"
            )
        self._end_interrupted_call()

    def _is_called(self, loan: Loan) -> bool:
        """Whether the call for which this was lent goes on."""
        here = loan.thread == threading.get_ident()
        return is_being_called(self.layer) if here else is_alive(loan.thread)

    def _has_average(self) -> bool:
        """Whether there are running buffers: test-time adaptation sets them to None."""
        return self._buffers["running_mean"] is not None

    def _get_averages(self) -> tuple[Average, Average]:
        """What the layer has now, and what it has when nothing is lent."""
        mean: Any = self._buffers["running_mean"]  # nn.Module's own way to get them is slow too
        held = Average(mean, self._buffers["running_var"], self._attributes["momentum"])  # type: ignore[arg-type]
        return held, _own_averages.get(id(mean), held)

    def _give_back(self, loan: Loan) -> None:
        self._loan = None
        del _own_averages[id(loan.slot[0])]
        self._buffers["running_mean"], self._buffers["running_var"], self._attributes["momentum"] = loan.taken

    def _append(self, count: int, step: int, momentum: float | None) -> None:
        entries, version = self._entries, count_writes(self._trained)
        self._counter.begin_entry(step)
        if version != self._trained_version and entries.steps and entries.steps[-1] == step:
            self._counter.warn_of_updates_within(step, self.name)
        self._trained_version = version
        entries.steps.append(step)
        entries.counts.append(count)
        self.left_out += momentum == 0
        self.cumulative += momentum is None
        if momentum is None and self._buffers.get("num_batches_tracked") is not None:
            self.miscounted |= self.watch.updates != entries.updates_now


def _keys_after(key: int, keys: Iterable[int]) -> Iterator[int]:
    """Those of `keys` that come after `key`."""
    rest = iter(keys)
    return rest if key in rest else iter(())  # `in` goes on to it


def make_hook(function: Callable[..., None]) -> Callable[..., None]:
    """A hook that compiled code calls as it is, interrupting its graph, and that measurements leave out."""

    # Also a function, not a method: a deep copy of the model does not copy what it belongs to.
    def hook(*args: Any) -> None:
        if not is_symbolic():
            with past_modes():
                function(*args)

    return pause_while_borrowed(torch.compiler.disable(hook))
