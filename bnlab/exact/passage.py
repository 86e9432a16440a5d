"""One batch on its way through the network, layer by layer."""

from __future__ import annotations

from typing import Any

from bnlab.exact.inspection import Sample
from bnlab.exact.turns import Turn
from bnlab.moments import Partial


class Passage(Turn):
    """One batch on its way through the network.

    Where layers are called several times in a forward, a batch may have several: each waits at the calls of one number,
    and passes the others.

    Attributes:
        layer: where it waits; None before the first layer and after the end.
        input: of that layer, while the forward is suspended there.
        writes: into the input, when the batch came there.
        part: the moments of that input.
        alone: the part has been taken as if the input were not there any more.
        held: bytes that it holds while it waits.
        visited: layers that it has come to, in order.
        observed: calls of pinned layers, with what they saw.
        samples: what it was at each layer in the last pass, where it is evaluated again at the end.
    """

    def __init__(self, index: int, batch: Any, call: int = 1, calls: int = 1) -> None:
        """It waits at call number `call` of each layer; `calls`: how many passages the batch has."""
        super().__init__(index, batch)
        self.call, self.calls = call, calls
        self.reset()

    def reset(self) -> None:
        """Before a pass over all layers."""
        self.layer: str | None = None
        self.input: Any = None
        self.writes = 0
        self.part: Partial | None = None
        self.alone = False
        self.held = 0
        self.visited: list[str] = []
        self.observed: list[tuple[str, Partial]] = []
        self.samples: dict[str, Sample] = {}
        self.begin_again()

    def begin_again(self) -> None:
        """Before the forward is begun at the input; it passes what it has passed before, in the same order."""
        self.calls_of: dict[str, int] = {}  # of each layer in this run of the forward
        self.repeated = self.repeated_pinned = 0  # how far this run has come in `visited` and `observed`
