"""Breadth-first evaluation: the exact statistics of every layer in about one forward pass over the data.

All batches advance together from one batch-norm layer to the next, each forward in a greenlet of its own. At a layer
every batch leaves its input's moments and waits; when the last one has arrived the layer's statistics are final and
all go on with them. The price is every batch's live activations; batches that do not fit the memory limit give theirs
up and are run again from the input up to the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.batches import Forward
from bnlab.borrowing import count_writes, set_buffers_aside
from bnlab.exact.admission import Admission
from bnlab.exact.budget import Budget
from bnlab.exact.checking import MOST_CHECKED, Checking
from bnlab.exact.inspection import Check, count_images, sample
from bnlab.exact.passage import Passage
from bnlab.exact.ranks import Ranks
from bnlab.exact.turns import CALLER, Turns
from bnlab.exact.watch import OtherStatistics
from bnlab.layers import BatchNorm, check_input, get_layer_input, get_running_buffers
from bnlab.memory import tensor_bytes
from bnlab.moments import GroupMoments, Moments, Partial, pool, pooled_moments, read
from bnlab.statistics import write_buffers

_ROW = 16  # bytes of a mean and a variance


@dataclass
class Cost:
    """What a measurement took.

    Attributes:
        images: of this rank.
        batches: of this rank.
        forwards: how often a batch's forward was begun at its input; more than `batches` where memory was short, or
            there were several passes.
        input_bytes: of the batches, which are held.
        peak_bytes: the most that activations needed at once, where a batch was profiled; else 0.
        passes: over all layers; more than one only where layers are shared or reached late.
        residual: how far assumed and measured statistics of those layers were apart in the last pass (σ, log variance).
    """

    images: int = 0
    batches: int = 0
    forwards: int = 0
    input_bytes: int = 0
    peak_bytes: int = 0
    passes: int = 1
    residual: float = 0.0


class Evaluation:
    """Takes a borrowed model in eval mode through all batches at once, and finishes one layer after the other.

    Attributes:
        parts: where `by_image`: of each layer, moments with a row for each image.
    """

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
        others: OtherStatistics,
    ) -> None:
        self._model, self._targets, self._ranks, self._by_image = model, targets, ranks, by_image
        self.parts: dict[str, list[Partial]] = {}
        self._passages: list[Passage] = []  # one for each batch
        self._most_calls = 1  # of a layer in one forward, in the passes so far
        self._found: dict[str, Moments] = {}
        self._pinned: dict[str, Moments] = {}
        self._revisited: set[str] = set()
        most = budget.limit // 10
        self._turns: Turns[Passage] = Turns(
            model, forward, device, rank=ranks.own, channels_last=channels_last, most=most
        )
        self._checking = Checking(model, targets, self._turns, others)
        self._memory = Admission(budget, self._turns, partial(self._read_part, alone=True))
        self._waits_at = [
            layer.register_forward_pre_hook(self._make_hook(name), with_kwargs=True) for name, layer in targets.items()
        ]
        for layer in targets.values():
            set_buffers_aside(layer)
        self._turns.accept()
        # Twice the buffers, lent and aside; copies of the weights; of each layer, assumed and found moments in float64,
        # and samples of two parts each.
        channels = [layer.num_features for layer in targets.values()]
        self._overhead = 2 * tensor_bytes(list(model.buffers())) + 2 * (1 + MOST_CHECKED) * _ROW * sum(channels)
        self._overhead += tensor_bytes(list(model.parameters())) + self._turns.layouts.nbytes
        self._row = _ROW * max(channels)

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
        self._pinned, self._found, self._revisited, self.parts = pinned, dict(pinned), set(), {}
        for layer, moments in pinned.items():
            write_buffers(self._targets[layer], moments)
        self._memory.budget.overhead = self._overhead
        passages: list[Passage] = []
        with ExitStack() as unwinding:

            def begin() -> None:
                for passage in self._split_by_call() if each_call else self._read_batches(batches):
                    passage.reset()
                    passages.append(passage)
                    self._memory.budget.overhead += self._row  # where memory is short; else they do not matter
                    unwinding.callback(self._memory.give_up, passage)
                    with self._turns.callers_random_stream():
                        self._advance(passage)

            self._ranks.together(begin)
            while (name := self._choose_next_layer([p for p in passages if p.layer is not None])) is not None:
                here = [p for p in passages if p.layer == name]
                self._finish(name, here)
                advance()
                # Those that wait go first: where the network narrows, they make room for the others.
                order = sorted(here, key=lambda p: p.run is None)
                self._ranks.together(partial(self._turns.take_turns, order, self._advance))
        self._turns.check_written()
        self._most_calls = max([self._most_calls, *(n for p in passages for n in p.calls_of.values())])
        return self._found, set().union(*self._ranks.gather(self._revisited))

    def _split_by_call(self) -> Iterator[Passage]:
        for passage in self._passages:
            calls = max(passage.calls_of.values(), default=1)
            yield from (Passage(passage.index, passage.batch, call, calls) for call in range(1, calls + 1))

    def _read_batches(self, batches: Iterable[Any]) -> Iterator[Passage]:
        yield from list(self._passages)
        for batch in batches:
            self._turns.accept()  # what has changed while the batch was made is the caller's
            self._passages.append(Passage(len(self._passages), batch))
            self._checking.choose(self._passages[-1])
            yield self._passages[-1]
        self._turns.accept()

    def _choose_next_layer(self, waiting: Sequence[Passage]) -> str | None:
        """Of the layers at which batches of any rank wait, one that no other such layer is known to come before."""
        earlier: dict[str, set[str]] = {str(passage.layer): set() for passage in waiting}
        if len(earlier) > 1:
            for passage in waiting:
                for name in earlier.keys() & set(passage.visited):
                    earlier[name] |= set(passage.visited[: passage.visited.index(name)])
        gathered = self._ranks.gather(earlier)
        names = set().union(*gathered)
        candidates = [name for name in self._targets if name in names]
        for name in candidates:
            if all(names.isdisjoint(own.get(name, ())) for own in gathered):
                return name
        return candidates[0] if candidates else None

    def _finish(self, name: str, passages: Sequence[Passage]) -> None:
        """Pool the moments of all batches on all ranks, and let the layer normalize with them."""
        if any(not passage.alone and count_writes(passage.input) != passage.writes for passage in passages):
            raise ValueError(
                f"{CALLER}: the input of layer {name!r} is written while its batch waits there; forwards that share "
                "memory for what they compute cannot take turns; use strategy='layerwise'"
            )
        parts = [passage.part for passage in passages if passage.part is not None]
        if self._by_image:
            self.parts[name] = parts
        local = Moments.empty(self._targets[name].num_features)
        if all(passage.alone for passage in passages):  # memory is short: a few rows at a time, exact as they are
            few = 1 if self._by_image else 4
            local = reduce(Moments.merge, (pool(parts[i : i + few]) for i in range(0, len(parts), few)), local)
        else:
            local = pooled_moments(parts, lambda *about: [_read_again(passage, *about) for passage in passages])
        self._found[name] = self._ranks.merge(local)
        check_moments(name, self._found[name], self._targets[name])
        write_buffers(self._targets[name], self._found[name])

    # -- one batch, from one layer to the next -----------------------------------------------------------------------

    def _advance(self, passage: Passage) -> None:
        """Let one batch run to the next layer or its end, from where it waits or, if it has no run, from its input."""
        self._memory.release(passage)
        passage.layer = passage.part = None
        self._memory.make_room(passage)
        if passage.run is None:
            passage.begin_again()
        while not self._turns.advance(passage):
            passage.layer = None
            passage.begin_again()
            if self._memory.budget.profiled:
                self._memory.profile(passage)
        if passage.layer is not None:
            self._arrive(passage, passage.layer)

    def _make_hook(self, name: str) -> Callable[..., None]:
        """The pre-hook of a layer; the layer's own eval forward runs after it."""

        def wait(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not self._targets[name]:
                return  # a copy that the forward has made, hooks and all
            passage, x = self._turns.current, get_layer_input(args, kwargs)
            if passage is not None:
                self._turns.check_loans(name)
            if not self._turns.is_here(passage):
                self._checking.elsewhere[name] = None
                return
            if isinstance(x, Tensor) and not x.numel():
                return  # no images that go this way (to an expert, say)
            if passage is None:
                check_input(name, self._targets[name], x, CALLER)
                self._memory.budget.profile_layer(name, x)
                part = self._read_part(x, alone=False)  # taking the moments needs memory too, most about a shift
                pool([part, read(x, pool([part]).mean)])
                return
            if name in self._pinned:
                self._observe(passage, name, x)
            elif self._waits(passage, name):
                passage.layer, passage.input = name, x
                self._turns.suspend(name)

        return wait

    def _waits(self, passage: Passage, name: str) -> bool:
        """Whether the batch has to wait at this call of a layer; if not, it goes on with what is loaded there."""
        call = passage.calls_of[name] = passage.calls_of.get(name, 0) + 1
        if passage.repeated < len(passage.visited):
            _repeat(passage, name)
            return False
        if call == passage.call and name not in self._found:
            return True
        if call == passage.call or call > passage.calls:  # too late, or a call at which nobody waits
            self._revisited.add(name)
        passage.visited.append(name)
        passage.repeated += 1
        return False

    def _arrive(self, passage: Passage, name: str) -> None:
        check_input(name, self._targets[name], passage.input, CALLER)
        passage.visited.append(name)
        passage.repeated = len(passage.visited)
        keep = self._memory.admit(passage, name)
        # Where memory is short, many rows of many batches would count.
        passage.alone = not keep or self._memory.budget.profiled
        passage.writes = count_writes(passage.input)
        passage.part = self._read_part(passage.input, passage.alone)
        if passage in self._checking.chosen:
            exact = passage.alone or self._by_image
            passage.samples[name] = sample(passage.input, passage.part, exact, count_images(passage.batch))
        if self._by_image:
            self._memory.budget.overhead += passage.part.nbytes
            self._memory.budget.check_alone(passage.size)
        if not keep:
            self._memory.give_up(passage)

    def _observe(self, passage: Passage, name: str, x: Any) -> None:
        check_input(name, self._targets[name], x, CALLER)
        if passage.repeated_pinned == len(passage.observed):
            passage.observed.append((name, self._read_part(x, alone=True)))
            self._memory.budget.overhead += passage.observed[-1][1].nbytes
        passage.repeated_pinned += 1

    def _read_part(self, x: Tensor, alone: bool) -> Partial:
        """Moments of one input; `alone`: it will not be there any more to be read again about a shift."""
        if self._by_image:  # which are compared with one another: exact wherever the mean is
            return read(x, Moments.of(x).mean, by_image=True)
        return Partial.of(Moments.of(x)) if alone else read(x)

    # -- after a pass ------------------------------------------------------------------------------------------------

    @property
    def most_calls(self) -> int:
        """Calls of one layer in one forward, on any rank."""
        return max(self._ranks.gather(self._most_calls))

    @property
    def runs_again(self) -> bool:
        """Whether memory was short on any rank, so that forwards were begun more than once."""
        return any(self._ranks.gather(self._turns.begun > len(self._passages)))

    def pool_observed(self, name: str) -> Moments:
        """What a pinned layer has seen in the last pass, over all its calls and all ranks; ValueError if not finite."""
        calls = [[part for layer, part in passage.observed if layer == name] for passage in self._passages]
        parts = [part for passage in calls for part in passage]
        if self._by_image:
            self.parts[name] = [part for passage in calls for part in _join_calls(passage)]
        local = pool(parts) if parts else Moments.empty(self._targets[name].num_features)
        merged = self._ranks.merge(local)
        check_moments(name, merged, self._targets[name])
        return merged

    def check(self) -> Check | None:
        """Evaluate images of some batches under the result, while no batch waits anywhere; None without batches."""
        for hook in self._waits_at:
            hook.remove()
        return self._checking.check(self._passages, self._found, self._pinned)

    def account(self, cost: Cost) -> None:
        """Write down what has been done so far."""
        cost.batches, cost.forwards = len(self._passages), self._turns.begun
        cost.input_bytes = sum(passage.size for passage in self._passages)


def _repeat(passage: Passage, name: str) -> None:
    """A repeated run passes the layers that it has passed before, in the same order."""
    if passage.visited[passage.repeated] != name:
        raise ValueError(
            f"{CALLER}: batch {passage.index} took another way through the network when it was run again; "
            "raise memory= so that nothing has to be, or make the forward deterministic"
        )
    passage.repeated += 1


def _read_again(passage: Passage, shift: Tensor, channels: Tensor) -> Partial:
    """Some channels of a waiting batch, read about a shift; what was taken alone is exact as it is."""
    if passage.alone:
        assert passage.part is not None
        return passage.part.of_channels(channels)
    return read(passage.input, shift, channels)


def _join_calls(parts: list[Partial]) -> list[Partial]:
    """Each image's values in all calls of a layer as one group: calls on the same images are not independent."""
    groups = [group for part in parts for group in part.groups()]
    if len({len(mean) for _, mean, _ in groups}) != 1:  # other images each time, or none
        return parts
    total = sum(count for count, _, _ in groups)
    mean = reduce(torch.add, (own * (count / total) for count, own, _ in groups))
    spread = ((var + (own - mean).square()) * (count / total) for count, own, var in groups)
    return [Partial(parts[0].channels, [GroupMoments(total, mean.flatten(), reduce(torch.add, spread).flatten())])]


def check_moments(name: str, moments: Moments, layer: BatchNorm) -> None:
    """ValueError unless a layer can normalize with `moments`."""
    if moments.count < 2:
        raise ValueError(f"{CALLER}: layer {name!r} got one value per channel, which has no variance; pass more images")
    if not (moments.mean + moments.var).isfinite().all():
        raise ValueError(f"{CALLER}: the input of layer {name!r} has NaN or infinite values; look at data and weights")
    dtype = get_running_buffers(layer)[1].dtype
    if moments.var.max() > torch.finfo(dtype).max:
        raise ValueError(f"{CALLER}: the variance of layer {name!r} is beyond {dtype}; scale the data, or use float64")
