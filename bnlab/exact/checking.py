"""Which batches of a breadth-first measurement are evaluated again at its end, and in which memory layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from torch import nn

from bnlab.exact.inspection import Check, Inspection, Sample
from bnlab.exact.modes import Draws
from bnlab.exact.passage import Passage
from bnlab.exact.turns import Turns
from bnlab.exact.watch import OtherStatistics
from bnlab.layers import BatchNorm
from bnlab.moments import Moments, Partial, pool

MOST_CHECKED = 4  # batches that keep samples
_MOST_PATHS = 8  # of other batches through the layers


class Checking:
    """Evaluates images of some batches in the ordinary way, alone, under the result.

    Args:
        model, targets: as in `Evaluation`.
        turns: of the batches; none waits anywhere when `check` is called.
        others: as in `Inspection`.

    Attributes:
        elsewhere: layers that were called in another thread, or a greenlet that a forward has begun.
        chosen: batches that keep samples of what they were at each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, BatchNorm],
        turns: Turns[Passage],
        others: OtherStatistics,
    ) -> None:
        self._model, self._targets, self._turns, self._others = model, targets, turns, others
        self._found: Mapping[str, Moments] = {}
        self._draws = False  # whether a forward has drawn random numbers
        self._hides_draws = False  # whether one has in an operation that does not say so
        self.elsewhere: dict[str, None] = {}
        self.chosen: list[Passage] = []

    def choose(self, passage: Passage) -> None:
        """Of all batches, as they are read, take the first two and the first ones of other shapes."""
        shapes = [chosen.shapes for chosen in self.chosen]
        if len(shapes) < 2 or (len(shapes) < MOST_CHECKED and passage.shapes not in shapes):
            self.chosen.append(passage)

    def check(self, passages: Sequence[Passage], found: Mapping[str, Moments], pinned: Collection[str]) -> Check | None:
        """What the evaluations show; None without batches.

        Args:
            passages: of all batches, after the last pass.
            found: the result, which the layers normalize with now.
            pinned: the layers at which nobody has waited.
        """
        self._found = found
        if not self.chosen:
            return None
        for passage in self.chosen:
            for name in pinned:
                calls = [part for layer, part in passage.observed if layer == name]
                if calls:
                    passage.samples[name] = Sample(None, Partial.of(pool(calls)), exact=True)
        others = [self._inspect(p).look_for_bypasses(p.batch) for p in self._list_other_paths(passages)]
        check = reduce(Check.join, [*others, *map(self._check_batch, self.chosen)])
        if check.held and self._turns.layouts.channels_last and not self._hides_draws:
            again = self._check_layouts()
            check = check if again.held else check.join(again)
        return check.name_bypassed(self.elsewhere)

    def _list_other_paths(self, passages: Sequence[Passage]) -> list[Passage]:
        """Batches that have come to other layers than the chosen ones: they may have gone past hooks."""
        paths = {_list_layers(passage) for passage in self.chosen}
        others: list[Passage] = []
        for passage in passages:
            if _list_layers(passage) not in paths and len(others) < _MOST_PATHS:
                paths.add(_list_layers(passage))
                others.append(passage)
        return others

    def _check_layouts(self) -> Check:
        """A forward that reads strides shows itself in the caller's layout."""
        passages = [p for i, p in enumerate(self.chosen) if p.shapes not in [q.shapes for q in self.chosen[:i]]]
        if not self._draws:
            self._turns.keep_layouts()
            return reduce(Check.join, map(self._check_batch, passages))
        with Draws(in_order=True):  # random numbers fill other places in it
            looks = [self._inspect(passage).look(passage.batch) for passage in passages]
            self._turns.keep_layouts()
            both = zip(passages, looks, strict=True)
            checks = [replace(self._inspect(p).compare(*look), batch=p.index) for p, look in both]
        return reduce(Check.join, checks)

    def _check_batch(self, passage: Passage) -> Check:
        return replace(self._inspect(passage).check(passage.batch, passage.samples), batch=passage.index)

    def _inspect(self, passage: Passage) -> Inspection:
        def evaluate(batch: Any) -> None:
            self._turns.accept()
            with Draws(in_order=False) as draws:
                has_drawn = self._turns.run_alone(passage.index, batch)
            self._draws |= draws.seen
            self._hides_draws |= has_drawn and not draws.seen

        return Inspection(self._model, self._targets, self._found, evaluate, self._others)


def _list_layers(passage: Passage) -> frozenset[tuple[str, int]]:
    """The layers that a batch has come to, and how often."""
    return frozenset(Counter([*passage.visited, *(name for name, _ in passage.observed)]).items())
