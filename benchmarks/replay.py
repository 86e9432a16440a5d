"""Replaying momenta against a bare loop of `lerp_`, and the estimator that chooses among them against plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.timing import Result, alternate
from bnlab.estimators import EMA, Predictive, Stream, fold

ROUNDS = 7
_MOMENTA, _STEPS, _CHANNELS = 1000, 10_000, 1000
_NETWORKS = {
    "the demo's cnn": (32, 64, 128),
    "resnet-20": (16,) * 7 + (32,) * 6 + (64,) * 6,
}
"""Channels of each layer."""


def measure() -> Iterator[Result]:
    yield from _compare_bank()
    for name, layers in _NETWORKS.items():
        stream = _draw_stream(1000, layers)
        for reads in (1, 12, 100, 1000):
            yield _compare_choice(name, stream, reads)


def _compare_bank() -> Iterator[Result]:
    stream = _draw_stream(_STEPS, (_CHANNELS,))
    momenta = torch.logspace(-3, 0, _MOMENTA).clamp(max=1)
    bank = [EMA(momentum=momentum) for momentum in momenta.tolist()]
    single = stream.batches.float()
    weights = momenta.view(-1, 1, 1)
    state = torch.empty(_MOMENTA, 2, _CHANNELS)

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

    at_end = fold(bank, stream, [_STEPS])[:, 0]
    error = (at_end - state.double()).abs().max().item()
    note = f"float64; float32 loop differs by {error:.0e}"
    yield timed.compare("replay, the end", "lerp_ loop", 1.2, note)
    yield timed.compare("replay, 12 checkpoints", "lerp_ loop", 1.2, note)


def _compare_choice(name: str, stream: Stream, reads: int) -> Result:
    """Compare a network's 1,000 steps, read so many times."""
    momenta = torch.logspace(-3, 0, 64).clamp(max=1)
    plain = [EMA(momentum=momentum) for momentum in momenta.tolist()]
    steps = [len(stream) * k // reads for k in range(1, reads + 1)]
    read = f"read {reads:,} times" if reads > 1 else "read at the end"
    sides = {
        "predictive": partial(fold, [Predictive()], stream, steps),
        "64 EMAs": partial(fold, plain, stream, steps),
    }
    timed = alternate(f"{name}, 1,000 steps, {read}", ROUNDS, sides)
    return timed.compare("predictive", "64 EMAs", 1.0)


def _draw_stream(steps: int, layers: tuple[int, ...]) -> Stream:
    """Draw means that walk and log-normal variances."""
    channels = sum(layers)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 2, channels, dtype=torch.float64, generator=generator)
    moves = torch.randn(steps, channels, dtype=torch.float64, generator=generator)
    means = noise[:, 0] + 0.1 * moves.cumsum(0)
    variances = torch.exp(0.1 * noise[:, 1])
    batches = torch.stack((means, variances), dim=1)
    counts = torch.full((steps, channels), 512.0, dtype=torch.float64)
    eps = torch.full((channels,), 1e-5, dtype=torch.float64)
    return Stream(torch.zeros_like(batches[0]), batches, counts, eps=eps, layers=layers)
