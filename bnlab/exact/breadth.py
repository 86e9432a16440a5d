"""Breadth-first evaluation: the exact statistics of every layer in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has arrived the layer's statistics are final and
all go on with them. The price is every batch's live activations; batches that do not fit the memory limit give theirs
up and are run again from the input up to the next layer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnlab.exact.inspection import Check, Sample, check_result, count_images, sample
from bnlab.layers import (
    BatchNorm,
    Forward,
    check_input,
    copied,
    layer_input,
    set_buffers_aside,
    set_weights_channels_last,
    tracked,
)
from bnlab.memory import Budget, tensor_bytes
from bnlab.modes import Modes, ModeSwitch, RandomStream
from bnlab.module_state import ModuleState, Overrides, forward_hooks, free_locks, held_tensors
from bnlab.moments import Moments, Partial, pool, pooled_moments, read
from bnlab.ranks import Ranks
from bnlab.statistics import load

CALLER = "population_statistics"

_ROW = 16  # bytes of a mean and a variance


@dataclass
class Cost:
    """What a measurement took.

    Attributes:
        batches: of this rank. images: of this rank. forwards: how often a batch's forward was begun at its input; more
        than `batches` where memory was short, or there were several passes. input_bytes: of the batches, which are
        held. peak_bytes: the most that activations needed at once, where a batch was profiled; else 0.
        passes: over all layers; more than one only where layers are shared or reached late. residual: how far
        assumed and measured statistics of those layers were apart in the last pass (σ, log variance).
    """

    images: int = 0
    batches: int = 0
    forwards: int = 0
    input_bytes: int = 0
    peak_bytes: int = 0
    passes: int = 1
    residual: float = 0.0


class _Item:
    """One batch: its input, and its forward pass while that waits at a layer.

    Where layers are called several times in a forward, a batch has several: each waits at the calls of one number, and
    passes the others.
    """

    def __init__(self, index: int, batch: Any, call: int = 1, calls: int = 1) -> None:
        self.index, self.batch = index, batch
        self.call, self.calls = call, calls  # at which call of a layer it waits; of how many there are others that do
        self.size = tensor_bytes(batch)
        self.versions = _versions(batch)
        self.run: greenlet | None = None  # the suspended forward; None before, after, and where it was given up
        self.reset()

    def reset(self) -> None:
        """Before a pass."""
        self.layer: str | None = None  # where it waits; None when it has ended
        self.input: Any = None
        self.part: Partial | None = None
        self.relaid = False  # runs on a copy in channels_last
        self.alone = False  # the part has been taken as if the input were not there any more
        self.held = 0  # bytes that it holds while it waits
        self.visited: list[str] = []
        self.passed: dict[str, int] = {}  # calls of each layer in this run of the forward
        self.observed: list[tuple[str, Partial]] = []  # calls of pinned layers
        self.replayed = self.replayed_pinned = 0  # how far a repeated run has come in these lists
        self.modes: Modes | None = None
        self.overrides: Overrides | None = None
        self.random: list[Tensor] = []


def _versions(batch: Any) -> list[int]:
    return [t._version for t in tree_leaves(batch) if isinstance(t, Tensor) and not t.is_inference()]


class Evaluation:
    """Takes a borrowed model in eval mode through all batches at once, and finishes one layer after the other."""

    def __init__(
        self,
        model: nn.Module,
        targets: dict[str, BatchNorm],
        forward: Forward,
        device: torch.device,
        *,
        budget: Budget,
        ranks: Ranks,
        by_image: bool,
        channels_last: bool,
    ) -> None:
        self._model, self._targets, self._forward, self._device = model, targets, forward, device
        self._budget, self._ranks, self._by_image = budget, ranks, by_image
        self.parts: dict[str, list[Partial]] = {}  # where `by_image`: of each layer, a row for each image
        self.samples: dict[str, Sample] = {}  # what the first batch was at each layer in the last pass
        self.forwards = 0
        self._items: list[_Item] = []
        self._most_calls = 1  # of a layer in one forward, in the passes so far
        self._found: dict[str, Moments] = {}
        self._pinned: dict[str, Moments] = {}
        self._revisited: set[str] = set()
        self._suspended: dict[_Item, None] = {}
        self._current: _Item | None = None
        self._hub = getcurrent()
        hooks = forward_hooks(model)  # before ours are among them
        # With the channels innermost, convolutions and moments are faster; measured on CPUs only.
        self._relays = channels_last and device.type == "cpu"
        own = held_tensors(model)
        self._own_weights = set_weights_channels_last(model, budget.limit // 10) if self._relays else []
        self._written = [*own, *held_tensors(model)]
        self._waits_at = [
            layer.register_forward_pre_hook(self._waiting(name), with_kwargs=True) for name, layer in targets.items()
        ]
        for layer in targets.values():
            set_buffers_aside(layer)
        # Twice the buffers, lent and aside; copies of the weights; of each layer, assumed and found moments in float64.
        channels = [layer.num_features for layer in targets.values()]
        self._books = 2 * tensor_bytes(list(model.buffers())) + 2 * _ROW * sum(channels)
        self._books += tensor_bytes(list(model.parameters()))
        self._row = _ROW * max(channels)
        self._books += tensor_bytes([weight for *_, weight in self._own_weights])
        self._locks = free_locks(model, [forward, *hooks])
        self._state = ModuleState(model, hooks)
        self._random = RandomStream(device)
        self._switch = ModeSwitch(["cpu", device.type])
        self._own_modes = self._switch.capture()

    # -- one pass over all layers ------------------------------------------------------------------------------------

    def run(
        self,
        pinned: dict[str, Moments],
        advance: Callable[[], object],
        batches: Iterable[Any] = (),
        *,
        each_call: bool = False,
    ) -> tuple[dict[str, Moments], set[str]]:
        """Take all batches so far, and `batches`, which are read now and kept, through the network.

        Returns the moments of the layers in the order in which they were finished, and the layers with a call that is
        not among them. `pinned` layers normalize with the moments that they are given; nobody waits at them, but what
        they see is kept with each batch. `advance` is called after each layer. `each_call`: several forwards of each
        batch, one for each call of a layer in it.
        """
        self._pinned, self._found, self._revisited, self.parts, self.samples = pinned, dict(pinned), set(), {}, {}
        for layer, moments in pinned.items():
            load(self._targets[layer], moments)
        self._budget.books = self._books
        begun: list[_Item] = []
        with ExitStack() as unwinding:

            def begin() -> None:
                for item in self._forwards_by_call() if each_call else self._reading(batches):
                    own = self._random.capture()  # the caller's batches draw from the caller's stream
                    item.reset()
                    begun.append(item)
                    self._budget.books += self._row  # where memory is short; else they do not matter
                    unwinding.callback(self._give_up, item)
                    self._advance(item)
                    self._random.apply(own)

            self._ranks.together(begin)
            while (name := self._next_layer([i for i in begun if i.layer is not None])) is not None:
                here = [i for i in begun if i.layer == name]
                self._finish(name, here)
                advance()
                # Those that wait go first: where the network narrows, they make room for the others.
                self._ranks.together(partial(self._advance_all, sorted(here, key=lambda i: i.run is None)))
        self._check_written()
        self._most_calls = max([self._most_calls, *(n for item in begun for n in item.passed.values())])
        return self._found, set().union(*self._ranks.gather(self._revisited))

    @property
    def most_calls(self) -> int:
        """Calls of one layer in one forward, on any rank."""
        return max(self._ranks.gather(self._most_calls))

    @property
    def runs_again(self) -> bool:
        """Whether memory was short on any rank, so that forwards were begun more than once."""
        return any(self._ranks.gather(self.forwards > len(self._items)))

    def _forwards_by_call(self) -> Iterator[_Item]:
        for item in self._items:
            calls = max(item.passed.values(), default=1)
            yield from (_Item(item.index, item.batch, call, calls) for call in range(1, calls + 1))

    def _reading(self, batches: Iterable[Any]) -> Iterator[_Item]:
        yield from list(self._items)
        for batch in batches:
            self._state.accept()  # what has changed while the batch was made is the caller's
            self._items.append(_Item(len(self._items), batch))
            yield self._items[-1]
        self._state.accept()

    def _advance_all(self, items: Sequence[_Item]) -> None:
        for item in items:
            self._advance(item)

    def _next_layer(self, waiting: Sequence[_Item]) -> str | None:
        """Of the layers at which batches of any rank wait, one that no other such layer is known to come before."""
        earlier: dict[str, set[str]] = {str(item.layer): set() for item in waiting}
        if len(earlier) > 1:
            for item in waiting:
                for name in earlier.keys() & set(item.visited):
                    earlier[name] |= set(item.visited[: item.visited.index(name)])
        gathered = self._ranks.gather(earlier)
        names = set().union(*gathered)
        candidates = [name for name in self._targets if name in names]
        for name in candidates:
            if all(names.isdisjoint(own.get(name, ())) for own in gathered):
                return name
        return candidates[0] if candidates else None

    def _finish(self, name: str, items: Sequence[_Item]) -> None:
        """Pool the moments of all batches on all ranks, and let the layer normalize with them."""
        parts = [item.part for item in items if item.part is not None]
        if self._by_image:
            self.parts[name] = parts
        local = Moments.empty(self._targets[name].num_features)
        if all(item.alone for item in items):  # memory is short: a few rows at a time, exact as they are
            few = 1 if self._by_image else 4
            local = reduce(Moments.merge, (pool(parts[i : i + few]) for i in range(0, len(parts), few)), local)
        else:
            local = pooled_moments(parts, lambda *about: [self._again(item, *about) for item in items])
        self._found[name] = self._ranks.merged(local)
        check_moments(name, self._found[name], self._targets[name])
        load(self._targets[name], self._found[name])

    def observed(self, name: str) -> Moments:
        """What a pinned layer has seen in the last pass, over all its calls and all ranks; ValueError if not finite."""
        calls = [[part for layer, part in item.observed if layer == name] for item in self._items]
        parts = [part for item in calls for part in item]
        if self._by_image:
            self.parts[name] = [part for item in calls for part in _calls_together(item)]
        local = pool(parts) if parts else Moments.empty(self._targets[name].num_features)
        merged = self._ranks.merged(local)
        check_moments(name, merged, self._targets[name])
        return merged

    def check(self) -> Check | None:
        """Evaluate images of the first batch under the result, while no batch waits anywhere; None without batches."""
        for hook in self._waits_at:
            hook.remove()
        if not self._items:
            return None
        for name in self._pinned:
            calls = [part for layer, part in self._items[0].observed if layer == name]
            if calls:
                self.samples[name] = Sample(None, Partial.of(pool(calls)), exact=True)

        def evaluate(batch: Any) -> None:
            self._state.accept()
            self._random.apply(self._random.begin(0))
            try:
                self._run(copied(batch, self._device, channels_last=self._relays))
            finally:
                self._state.take()

        return check_result(self._model, self._targets, self._found, self.samples, self._items[0].batch, evaluate)

    def account(self, cost: Cost) -> None:
        """Write down what has been done so far."""
        cost.batches, cost.forwards = len(self._items), self.forwards
        cost.input_bytes = sum(item.size for item in self._items)

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _advance(self, item: _Item) -> None:
        """Let one batch run to the next layer or its end, from where it waits or, if it has no run, from its input."""
        item.layer = item.input = item.part = None
        self._suspended.pop(item, None)
        self._budget.released(item.held)
        item.held = 0
        self._make_room(item)
        self._switch_to(item)
        if item.layer is None:
            item.run = item.overrides = None
        else:
            self._arrive(item, item.layer)

    def _switch_to(self, item: _Item) -> None:
        """Let it run to where it waits or ends."""
        batch = [] if item.run is not None else [self._begin(item)]
        assert item.run is not None
        self._enter(item)
        try:
            item.run.switch(*batch)
            return
        except Exception as error:
            item.layer = item.run = None
            if not item.relaid:
                error.add_note(f"{CALLER}: raised in the forward of batch {item.index}; the model is as it was before")
                raise
        finally:
            self._leave(item)
        # A `.view` may need the memory layout that the caller's batch has: once more from the input.
        self._keep_layouts()
        if self._budget.profiled:
            self._profile(item)
        self._switch_to(item)

    def _keep_layouts(self) -> None:
        """From now on batches and weights come as the caller has them."""
        self._relays = False
        for module, key, weight in self._own_weights:
            module._parameters[key] = weight
        self._state.accept()

    def _begin(self, item: _Item) -> Any:
        """A new forward of the batch, on a copy of its input (a forward may write into it)."""
        if _versions(item.batch) != item.versions:
            raise ValueError(
                f"{CALLER}: batch {item.index} was changed after it was read; let batches yield new tensors"
            )
        self.forwards += 1
        item.run = greenlet(self._run)
        item.run.gr_context = contextvars.copy_context()
        item.random, item.modes, item.overrides = self._random.begin(item.index), None, None
        item.replayed = item.replayed_pinned = 0
        item.passed = {}
        item.relaid = self._relays
        return copied(item.batch, self._device, channels_last=self._relays)

    def _run(self, batch: Any) -> None:
        with torch.no_grad():
            self._forward(self._model, batch)

    def _give_up(self, item: _Item) -> None:
        """Unwind a suspended forward, in its own modes and with its own module state; its moments stay."""
        if item.run is None:
            return
        self._suspended.pop(item, None)
        self._budget.released(item.held)
        run, item.run, item.held, item.input = item.run, None, 0, None
        self._enter(item)
        try:
            run.throw(GreenletExit)
        finally:
            self._leave(item)
            item.overrides = None  # activations may be among them

    def _enter(self, item: _Item) -> None:
        self._current = item
        self._random.apply(item.random)
        self._state.give(item.overrides)
        if item.modes is not None:
            self._switch.apply(item.modes, self._own_modes)

    def _leave(self, item: _Item) -> None:
        item.modes = self._switch.capture()
        self._switch.apply(self._own_modes, item.modes)
        item.overrides = self._state.take()
        item.random = self._random.capture()
        self._current = None

    # -- a batch reaches a layer -------------------------------------------------------------------------------------

    def _waiting(self, name: str) -> Callable[..., None]:
        """The pre-hook of a layer; the layer's own eval forward runs after it."""

        def wait(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not self._targets[name]:
                return  # a copy that the forward has made, hooks and all
            item, x = self._current, layer_input(args, kwargs)
            if isinstance(x, Tensor) and not x.numel():
                return  # no images that go this way (to an expert, say)
            if item is None:
                check_input(name, self._targets[name], x, CALLER)
                self._budget.profile_layer(name, x)
                part = self._part(x, alone=False)  # taking the moments needs memory too, most about a shift
                pool([part, read(x, pool([part]).mean)])
            elif getcurrent() is not item.run:
                return
            elif name in self._pinned:
                self._observe(item, name, x)
            elif self._waits(item, name):
                self._check_can_wait(name)
                item.layer, item.input = name, x
                self._hub.switch()

        return wait

    def _check_can_wait(self, name: str) -> None:
        """ValueError where another batch could not go on while this one waits."""
        reason = None
        if torch._C._functorch.maybe_current_level() is not None:
            reason = "inside of a torch.func transform such as vmap"
        elif any(lock.is_taken() for lock in self._locks):
            reason = "while the forward holds a lock, which the next batch would wait for without end"
        if reason is not None:
            raise ValueError(f"{CALLER}: layer {name!r} is called {reason}; use strategy='layerwise'")

    def _waits(self, item: _Item, name: str) -> bool:
        """Whether the batch has to wait at this call of a layer; if not, it goes on with what is loaded there."""
        call = item.passed[name] = item.passed.get(name, 0) + 1
        if item.replayed < len(item.visited):
            self._replay(item, name)
            return False
        if call == item.call and name not in self._found:
            return True
        if call == item.call or call > item.calls:  # too late, or a call at which nobody waits
            self._revisited.add(name)
        item.visited.append(name)
        item.replayed += 1
        return False

    def _observe(self, item: _Item, name: str, x: Any) -> None:
        check_input(name, self._targets[name], x, CALLER)
        if item.replayed_pinned == len(item.observed):
            item.observed.append((name, self._part(x, alone=True)))
            self._budget.books += item.observed[-1][1].nbytes
        item.replayed_pinned += 1

    def _replay(self, item: _Item, name: str) -> None:
        """A repeated run passes the layers that it has passed before, in the same order."""
        if item.visited[item.replayed] != name:
            raise ValueError(
                f"{CALLER}: batch {item.index} took another way through the network when it was run again; "
                "raise memory= so that nothing has to be, or make the forward deterministic"
            )
        item.replayed += 1

    def _arrive(self, item: _Item, name: str) -> None:
        check_input(name, self._targets[name], item.input, CALLER)
        item.visited.append(name)
        item.replayed = len(item.visited)
        keep = self._fits(item, name)
        # Where memory is short, many rows of many batches would count.
        item.alone = not keep or self._budget.profiled
        item.part = self._part(item.input, item.alone)
        if item is self._items[0]:
            exact = item.alone or self._by_image
            self.samples[name] = sample(item.input, item.part, exact, count_images(item.batch))
        if self._by_image:
            self._budget.books += item.part.nbytes
            self._budget.check_alone(item.size)
        if not keep:
            self._give_up(item)

    def _part(self, x: Tensor, alone: bool) -> Partial:
        """Moments of one input; `alone`: it will not be there any more to be read again about a shift."""
        if self._by_image:  # which are compared with one another: exact wherever the mean is
            return read(x, Moments.of(x).mean, by_image=True)
        return Partial.of(Moments.of(x)) if alone else read(x)

    def _again(self, item: _Item, shift: Tensor, channels: Tensor) -> Partial:
        """Some channels of a waiting batch, read about a shift; what was taken alone is exact as it is."""
        if item.alone:
            assert item.part is not None
            return item.part.of_channels(channels)
        return read(item.input, shift, channels)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _fits(self, item: _Item, name: str) -> bool:
        """Whether a batch that has arrived can wait with its activations."""
        budget = self._budget
        if budget.must_profile(item.input, item.size):
            self._profile(item)
            budget.waiting = sum(budget.live(str(i.layer), i.input, i.size) for i in self._suspended)
            for waiting in self._suspended:
                waiting.held = budget.live(str(waiting.layer), waiting.input, waiting.size)
        item.held = budget.live(name, item.input, item.size)
        if not budget.takes(item.held):
            item.held = 0
            return False
        self._suspended[item] = None
        return True

    def _make_room(self, item: _Item) -> None:
        """Give up waiting batches, the last first, until this one can run; ValueError if it does not fit alone."""
        budget = self._budget
        if budget.exact and not budget.profiled:
            self._profile(item)
        budget.check_alone(item.size)
        while self._suspended and not budget.room_to_run(item.size):
            last = next(reversed(self._suspended))
            if not last.alone:
                last.part, last.alone = self._part(last.input, alone=True), True
            self._give_up(last)

    def _profile(self, item: _Item) -> None:
        """Run one batch through the network to see what its forward holds, layer by layer; the values do not matter."""
        random = self._random.capture()
        self._random.apply(self._random.begin(item.index))
        try:
            with self._budget.profiling(item.size):
                self._run(copied(item.batch, self._device, channels_last=self._relays))
            return
        except Exception:
            if not self._relays:
                raise
        finally:
            self._random.apply(random)
            self._state.take()
        self._keep_layouts()
        self._profile(item)

    def _check_written(self) -> None:
        for held in self._written:
            if held.written:
                raise ValueError(
                    f"{CALLER}: the forward writes into {held.name!r} in place, which batches that take turns cannot "
                    "share; use strategy='layerwise'"
                )


def _calls_together(parts: list[Partial]) -> list[Partial]:
    """Each image's values in all calls of a layer as one group: calls on the same images are not independent."""
    groups = [group for part in parts for group in part.groups()]
    if len({len(mean) for _, mean, _ in groups}) != 1:  # other images each time, or none
        return parts
    total = sum(count for count, _, _ in groups)
    mean = reduce(torch.add, (own * (count / total) for count, own, _ in groups))
    spread = ((var + (own - mean).square()) * (count / total) for count, own, var in groups)
    return [Partial(parts[0].channels, [(total, mean.flatten(), reduce(torch.add, spread).flatten())])]


def check_moments(name: str, moments: Moments, layer: BatchNorm) -> None:
    """ValueError unless a layer can normalize with `moments`."""
    if moments.count < 2:
        raise ValueError(f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images")
    if not (moments.mean + moments.var).isfinite().all():
        raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights")
    dtype = tracked(layer)[1].dtype
    if moments.var.max() > torch.finfo(dtype).max:
        raise ValueError(f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64")
