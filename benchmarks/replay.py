"""Replaying momenta against a bare loop of `lerp_`, and the estimator that chooses among them against plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.timing import Result, alternate
from bnlab.estimators import EMA, Predictive, Stream, fold

ROUNDS = 7
_STEPS = 10_000
_RESNET20 = (16,) * 7 + (32,) * 6 + (64,) * 6  # channels of each layer


def measure_replay(device: str) -> Iterator[Result]:
    yield from _compare_bank()
    stream = _draw_stream(1000, _RESNET20)
    for reads in (1, 12, 1000):
        yield _compare_choice(stream, reads)


def _compare_bank() -> Iterator[Result]:
    stream = _draw_stream(_STEPS, (1000,))
    # `EMA` refuses momenta above 1, where rounding may end the series.
    momenta = torch.logspace(-3, 0, 1000).clamp(max=1)
    bank = [EMA(momentum=momentum) for momentum in momenta.tolist()]
    single = stream.batches.float()
    weights = momenta.view(-1, 1, 1)
    state = torch.empty(1000, 2, 1000)

    def run_bare_loop() -> None:
        state.zero_()
        for batch in single:
            state.lerp_(batch, weights)

    checkpoints = [round(_STEPS * k / 12) for k in range(1, 13)]
    sides: dict[str, Callable[[], object]] = {
        "lerp_ loop": run_bare_loop,
        "replay, the end": lambda: fold(bank, stream, [_STEPS]),
        "replay, 12 checkpoints": lambda: fold(bank, stream, checkpoints),
    }
    timed = alternate("1,000 momenta × 10,000 steps × 1,000 channels", ROUNDS, sides)
    yield timed.compare("replay, the end", "lerp_ loop", 1.2)
    yield timed.compare("replay, 12 checkpoints", "lerp_ loop", 1.2)


def _compare_choice(stream: Stream, reads: int) -> Result:
    """Compare choosing a momentum with 64 plain ones, over 1,000 steps that are read so many times."""
    momenta = torch.logspace(-3, 0, 64).clamp(max=1)
    plain = [EMA(momentum=momentum) for momentum in momenta.tolist()]
    steps = [len(stream) * k // reads for k in range(1, reads + 1)]
    sides = {
        "predictive": partial(fold, [Predictive()], stream, steps),
        "64 EMAs": partial(fold, plain, stream, steps),
    }
    timed = alternate(f"resnet-20, 1,000 steps, read {reads:,} times", ROUNDS, sides)
    return timed.compare("predictive", "64 EMAs", 1.0)


def _draw_stream(steps: int, layers: tuple[int, ...]) -> Stream:
    """Draw means that walk and log-normal variances."""
    channels = sum(layers)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 2, channels, dtype=torch.float64, generator=generator)
    moves = torch.randn(steps, channels, dtype=torch.float64, generator=generator)
    means = noise[:, 0] + 0.1 * moves.cumsum(0)
    batches = torch.stack((means, torch.exp(0.1 * noise[:, 1])), dim=1)
    counts = torch.full((steps, channels), 512.0, dtype=torch.float64)
    return Stream(torch.zeros_like(batches[0]), batches, counts, layers=layers)
