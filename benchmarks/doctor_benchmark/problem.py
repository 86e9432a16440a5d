"""What is asked of a tool, and what is right to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class Given:
    """A network with its data, as somebody had them.

    Attributes:
        model: as it was evaluated.
        batches: inputs with labels, or inputs alone, as it was evaluated on.
        arguments: what a tool is given at once besides, by the names that `bnlab.diagnose` has for it.
        on_request: what it is given if it asks for it, by these names.
        scores: what plain PyTorch measures, without any tool.
    """

    model: nn.Module
    batches: Sequence[Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    on_request: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A network that went wrong, or a healthy one.

    Attributes:
        part: of the benchmark.
        name: of the thread, or of the fault with its strength.
        network: whose fault it is; all problems of one network together count once in an interval.
        make: makes what a tool is given.
        verdicts: those that are right; None among them where nothing tells.
        codes: of causes that are right; none of a healthy network.
        remedy: what is to be done.
    """

    part: str
    name: str
    network: str
    make: Callable[[], Given]
    verdicts: tuple[str | None, ...]
    codes: tuple[str, ...]
    remedy: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is to be found."""
        return not self.codes


@dataclass(frozen=True)
class Answer:
    """What a tool says.

    Attributes:
        verdict: "averages", "images", "averages or images", "network", "batches", "mode", "healthy" or "undecided";
            None for none.
        causes: codes of causes, as of `bnlab explain`, the first first.
        notes: codes of what is mentioned, and is no alarm.
        asks: names of further arguments that would tell more.
    """

    verdict: str | None
    causes: Sequence[str] = ()
    notes: Sequence[str] = ()
    asks: Sequence[str] = ()


class Tool(Protocol):
    """What is scored: called with a model, its batches and further arguments of `Given`; it returns an `Answer`."""

    def __call__(self, model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer: ...
