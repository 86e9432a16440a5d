"""Which of the batches that wait at a layer can keep their activations within the memory limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bnlab.exact.budget import Budget
from bnlab.exact.passage import Passage
from bnlab.exact.turns import Turns
from bnlab.moments import Partial


class Admission:
    """Admits batches that wait, gives up others, and profiles one where that has to be known.

    Attributes:
        budget: the limit, and what is taken of it.
    """

    def __init__(self, budget: Budget, turns: Turns[Passage], read_alone: Callable[[Any], Partial]) -> None:
        """`read_alone`: moments of an input that will not be there any more."""
        self.budget, self._turns, self._read_alone = budget, turns, read_alone
        self._waiting: dict[Passage, None] = {}

    def admit(self, passage: Passage, layer: str) -> bool:
        """Whether a batch that has arrived at a layer can wait with its activations; it is counted then."""
        budget = self.budget
        if budget.must_profile(passage.input, passage.size):
            self.profile(passage)
            budget.waiting = sum(budget.live(str(p.layer), p.input, p.size) for p in self._waiting)
            for waiting in self._waiting:
                waiting.held = budget.live(str(waiting.layer), waiting.input, waiting.size)
        passage.held = budget.live(layer, passage.input, passage.size)
        if not budget.takes(passage.held):
            passage.held = 0
            return False
        self._waiting[passage] = None
        return True

    def release(self, passage: Passage) -> None:
        """It goes on, or is given up."""
        self._waiting.pop(passage, None)
        self.budget.release(passage.held)
        passage.held, passage.input = 0, None

    def make_room(self, passage: Passage) -> None:
        """Give up waiting batches, the last first, until this one can run; ValueError if it does not fit alone."""
        budget = self.budget
        if budget.exact and not budget.profiled:
            self.profile(passage)
        budget.check_alone(passage.size)
        while self._waiting and not budget.room_to_run(passage.size):
            last = next(reversed(self._waiting))
            if not last.alone:
                last.part, last.alone = self._read_alone(last.input), True
            self.give_up(last)

    def give_up(self, passage: Passage) -> None:
        """Unwind its forward; its moments stay."""
        if passage.run is not None:
            self.release(passage)
            self._turns.give_up(passage)

    def profile(self, passage: Passage) -> None:
        """Run one batch through the network to see what its forward holds, layer by layer; the values do not matter."""
        with self.budget.profiling(passage.size):
            done = self._turns.rehearse(passage)
        if not done:
            self.profile(passage)
