"""Running estimators: what can be made of the stream of batch moments while a network trains.

Each is a fold `state ← state + gain·(x − state)` over the batches' values x; a class says which gains, and, where it
averages something other than the mean and the unbiased variance, which values. A new estimator is a subclass of
`Estimator` with `gains`; it is found by its `name` from then on, in sweeps too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

# Steps that are folded in one matrix product: long enough to keep it compute-bound, short enough to stay in cache.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Stream:
    """A recorded stream of batch moments, channels of all layers side by side; everything float64.

    Args:
        start: [2, C], the running mean and variance before the first batch.
        batches: [T, 2, C], each batch's mean and *unbiased* variance (what torch's buffers average).
        counts: [T, C], values in each channel of each batch (N·H·W).
        updates: batches that the buffers had seen before (`num_batches_tracked`).
    """

    start: Tensor
    batches: Tensor
    counts: Tensor
    updates: int = 0

    def __len__(self) -> int:
        return self.batches.shape[0]


@dataclass(frozen=True)
class Estimator(ABC):
    """A running estimator. Subclasses are frozen dataclasses whose fields are its parameters."""

    name: ClassVar[str]

    @abstractmethod
    def gains(self, stream: Stream) -> Tensor:
        """Weight of the new batch at each step: float64 [T], or [T, C] where channels differ."""

    @property
    def label(self) -> str:
        """Canonical name that tells every parameter but the momentum, e.g. `window(k=20)`."""
        own = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "momentum"]
        return self.name + (f"({','.join(own)})" if own else "")


def check_momentum(momentum: float) -> None:
    """ValueError unless 0 < momentum ≤ 1."""
    if not 0 < momentum <= 1:
        raise ValueError(
            f"momentum={momentum!r}: it is the weight of the new batch and lies in (0, 1]; "
            "for a decay use EMA.from_decay"
        )


@dataclass(frozen=True)
class EMA(Estimator):
    """`new = (1−m)·old + m·batch` of the mean and the unbiased variance; torch.nn.BatchNorm's running statistics.

    Starts from the trace's start (0 and 1 in a new model), whose weight after t batches is (1−m)^t. Unbiased for
    independent values of a stationary stream only; leaves out the variance of the batch means.
    Source: torch.nn.BatchNorm2d.

    >>> one = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=torch.float64)   # two batches, one channel
    >>> stream = Stream(torch.tensor([[0.0], [1.0]]).double(), one, torch.full((2, 1), 8.0))
    >>> fold([EMA(momentum=0.5)], stream, [0, 1, 2])[0, :, :, 0].tolist()
    [[0.0, 1.0], [0.5, 1.5], [1.75, 2.75]]
    """

    name: ClassVar[str] = "ema"
    momentum: float = 0.1

    def __post_init__(self) -> None:
        check_momentum(self.momentum)

    @classmethod
    def from_decay(cls, decay: float) -> EMA:
        """The other convention (Keras, flax, the BN paper): `new = decay·old + (1−decay)·batch`.

        >>> EMA.from_decay(0.75)
        EMA(momentum=0.25)
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: it is the weight of the old average and lies in [0, 1)")
        return cls(momentum=1.0 - decay)

    def gains(self, stream: Stream) -> Tensor:
        return torch.full((len(stream),), self.momentum, dtype=torch.float64)


@dataclass(frozen=True)
class DebiasedEMA(EMA):
    """The EMA with its start divided out: `(E_t − (1−m)^t·start) / (1 − (1−m)^t)`, mean and unbiased variance.

    The same as gains m/(1−(1−m)^t): the first batch alone, then slowly the EMA. Before a batch it is the start.
    Source: Kingma & Ba 2015 (the division); haiku's `zero_debias`.

    >>> one = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=torch.float64)
    >>> stream = Stream(torch.tensor([[0.0], [1.0]]).double(), one, torch.full((2, 1), 8.0))
    >>> [[round(v, 4) for v in row] for row in fold([DebiasedEMA(momentum=0.5)], stream, [1, 2])[0, :, :, 0].tolist()]
    [[1.0, 2.0], [2.3333, 3.3333]]
    """

    name: ClassVar[str] = "ema_debiased"

    def gains(self, stream: Stream) -> Tensor:
        t = torch.arange(1, len(stream) + 1, dtype=torch.float64)
        if self.momentum == 1.0:
            return torch.ones_like(t)
        # −expm1(t·log1p(−m)) = 1 − (1−m)^t without cancellation at small m.
        return self.momentum / -torch.expm1(t * torch.log1p(torch.tensor(-self.momentum, dtype=torch.float64)))


@dataclass(frozen=True)
class Cumulative(Estimator):
    """The plain average of all batches, equally weighted: gain 1/t; torch's `momentum=None`.

    t goes on from the number of batches that the buffers had seen before the record, as torch's does.
    Unbiased as the EMA's is; no forgetting, so it lags by half the run while weights move. Source: torch's.

    >>> one = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=torch.float64)
    >>> stream = Stream(torch.tensor([[0.0], [1.0]]).double(), one, torch.full((2, 1), 8.0))
    >>> fold([Cumulative()], stream, [1, 2])[0, :, :, 0].tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """

    name: ClassVar[str] = "cumulative"

    def gains(self, stream: Stream) -> Tensor:
        return 1.0 / torch.arange(stream.updates + 1, stream.updates + len(stream) + 1, dtype=torch.float64)


@dataclass(frozen=True)
class LastBatch(Estimator):
    """The last batch's mean and unbiased variance: gain 1, no lag, all of the noise.

    >>> one = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=torch.float64)
    >>> stream = Stream(torch.tensor([[0.0], [1.0]]).double(), one, torch.full((2, 1), 8.0))
    >>> fold([LastBatch()], stream, [1, 2])[0, :, :, 0].tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    name: ClassVar[str] = "last_batch"

    def gains(self, stream: Stream) -> Tensor:
        return torch.ones(len(stream), dtype=torch.float64)


def fold(estimators: Sequence[Estimator], stream: Stream, positions: Sequence[int]) -> Tensor:
    """Every estimator after each number of batches in `positions` (0 is the start).

    Returns:
        float64 [estimators, positions, 2, C].
    """
    gains = [estimator.gains(stream) for estimator in estimators]
    result = torch.empty(len(estimators), len(positions), *stream.start.shape, dtype=torch.float64)
    # In a product 0·NaN is NaN: where a batch went wrong, estimators that forget it have to be folded step by step.
    clean = bool(stream.batches.isfinite().all() and stream.start.isfinite().all())
    together = [i for i, gain in enumerate(gains) if gain.dim() == 1 and clean]
    if together:
        result[together] = _fold_bank(torch.stack([gains[i] for i in together]), stream, positions)
    for i in sorted(set(range(len(gains))) - set(together)):
        result[i] = _fold_stepwise(gains[i], stream, positions)
    return result


def _fold_bank(gains: Tensor, stream: Stream, positions: Sequence[int]) -> Tensor:
    """Gains [S, T] that all channels share: block by block, state ← w₀·state + weights @ batches."""
    state = stream.start.flatten().expand(len(gains), -1)
    batches = stream.batches.flatten(1)
    found = {0: state}
    cuts = sorted({*positions, *range(0, max(positions, default=0), _BLOCK)})
    for begin, end in pairwise(cuts):
        block = gains[:, begin:end]
        # kept[:, j]: what remains at the block's end of something taken up before its batch j+1.
        kept = (1 - block).flip(1).cumprod(1).flip(1)
        after = torch.cat((kept[:, 1:], torch.ones_like(kept[:, :1])), dim=1)
        state = torch.addmm(kept[:, :1] * state, block * after, batches[begin:end])
        found[end] = state
    return torch.stack([found[p] for p in positions], dim=1).unflatten(2, stream.start.shape)


def _fold_stepwise(gains: Tensor, stream: Stream, positions: Sequence[int]) -> Tensor:
    """Gains [T] or [T, C]: step by step."""
    state, found = stream.start, {0: stream.start}
    wanted = set(positions)
    for t in range(1, max(positions, default=0) + 1):
        gain, batch = gains[t - 1], stream.batches[t - 1]
        state = torch.where(gain == 1, batch, torch.lerp(state, batch, gain))
        if t in wanted:
            found[t] = state
    return torch.stack([found[p] for p in positions])


def known() -> dict[str, type[Estimator]]:
    """Every estimator class that has been defined, by its name; without a name of its own it is left out."""
    found: dict[str, type[Estimator]] = {}
    queue: list[type[Any]] = [Estimator]
    while queue:
        for cls in queue.pop().__subclasses__():
            queue.append(cls)
            if "name" in vars(cls) and not inspect.isabstract(cls):
                found[cls.name] = cls
    return found


_CALL = re.compile(r"(?P<name>[\w.]+)(?:\((?P<parameters>[^()]*)\))?")


def parse(label: str) -> tuple[type[Estimator], dict[str, Any]]:
    """The class and parameters that a name like `ema`, `window(k=20)` or `package.module.Class` stands for.

    Raises:
        ValueError: there is no such estimator, or a parameter is not one of its fields or of another type.

    >>> parse("ema(momentum=0.2)")
    (<class 'bnlab.estimators.EMA'>, {'momentum': 0.2})
    """
    match = _CALL.fullmatch(label)
    if match is None:
        raise ValueError(f"estimator={label!r}: write a name such as ema, or name(parameter=value)")
    name = match["name"]
    cls = known().get(name) or _imported(name)
    defaults = {f.name: f.default for f in fields(cls)}
    parameters: dict[str, Any] = {}
    for item in filter(None, (match["parameters"] or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"estimator={label!r}: found {item.strip()!r}; write {name}(parameter=value)")
        if key not in defaults:
            there = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"estimator={label!r}: {name} has no parameter {key!r}; {there}")
        parameters[key] = _value(label, key, text, defaults[key])
    return cls, parameters


def _value(label: str, key: str, text: str, default: object) -> Any:
    """`text` as a value of the type that the parameter's default has, if it has one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, (bool, int, float, str)) and type(value) is not type(default):
        raise ValueError(
            f"estimator={label!r}: {key}={text} is no {type(default).__name__}; its default is {default!r}"
        )
    return value


def _imported(name: str) -> type[Estimator]:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(
            f"estimator={name!r}: unknown; known are {', '.join(sorted(known()))}, or package.module.Class"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"estimator={name!r}: cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, Estimator)) or inspect.isabstract(cls):
        raise ValueError(f"estimator={name!r}: is no subclass of bnlab.estimators.Estimator that has gains")
    return cls
