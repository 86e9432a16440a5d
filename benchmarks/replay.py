"""Replaying momenta against a bare loop of `lerp_`, and the estimator that chooses among them against plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Result, alternate
from bnlab.estimators import EMA, Estimator, Predictive, Stream, fold

_MOMENTA, _STEPS, _CHANNELS = 1000, 10_000, 1000

ROUNDS = 7
_NETWORKS = {
    "the demo's cnn": (32, 64, 128),
    "resnet-20": (16,) * 7 + (32,) * 6 + (64,) * 6,
}
"""Channels of each layer."""


def results() -> list[Result]:
    return [*_bank(), *_choice()]


def _bank() -> list[Result]:
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(2, _CHANNELS, dtype=torch.float64)
    batches = torch.randn(_STEPS, 2, _CHANNELS, dtype=torch.float64, generator=generator)
    counts = torch.full((_STEPS, 1), 64.0, dtype=torch.float64)
    stream = Stream(start, batches, counts)
    momenta = torch.logspace(-3, 0, _MOMENTA).clamp(max=1)
    bank = [EMA(momentum=momentum) for momentum in momenta.tolist()]

    single = batches.float()
    weights = momenta.view(-1, 1, 1)
    state = torch.empty(_MOMENTA, 2, _CHANNELS)

    def bare_loop() -> None:
        state.zero_()
        for batch in single:
            state.lerp_(batch, weights)

    checkpoints = [round(_STEPS * k / 12) for k in range(1, 13)]
    sides = {
        "loop": bare_loop,
        "end": lambda: fold(bank, stream, [_STEPS]),
        "twelve": lambda: fold(bank, stream, checkpoints),
    }
    median = alternate(sides, ROUNDS)

    at_end = fold(bank, stream, [_STEPS])[:, 0]
    errors = (at_end - state.double()).abs()
    note = f"float64; float32 loop differs by {errors.max().item():.0e}"
    what = "1,000 momenta × 10,000 steps × 1,000 channels"
    return [
        Result(f"{what}, the end", "replay", median["end"], "lerp_ loop", median["loop"], 1.2, note),
        Result(f"{what}, 12 checkpoints", "replay", median["twelve"], "lerp_ loop", median["loop"], 1.2, note),
    ]


def _choice() -> list[Result]:
    """The demo's cnn and resnet-20, a network's 1,000 steps, read rarely and often."""
    momenta = torch.logspace(-3, 0, 64).clamp(max=1)
    plain = [EMA(momentum=momentum) for momentum in momenta.tolist()]
    rows = []
    for name, layers in _NETWORKS.items():
        batches = _drifting(1000, sum(layers))
        for reads in (1, 12, 100, 1000):
            sides = {
                "predictive": partial(_replay, [Predictive()], reads, layers, batches),
                "plain": partial(_replay, plain, reads, layers, batches),
            }
            median = alternate(sides, ROUNDS)
            read = f"read {reads:,} times" if reads > 1 else "read at the end"
            what = f"{name}, 1,000 steps, {read}"
            rows.append(Result(what, "predictive", median["predictive"], "64 EMAs", median["plain"], 1.0))
    return rows


def _replay(estimators: Sequence[Estimator], reads: int, layers: tuple[int, ...], batches: Tensor) -> None:
    start = torch.zeros_like(batches[0])
    counts = torch.full_like(batches[:, 0], 512.0)
    eps = torch.full_like(start[0], 1e-5)
    stream = Stream(start, batches, counts, eps=eps, layers=layers)

    steps = [len(batches) * k // reads for k in range(1, reads + 1)]
    fold(estimators, stream, steps)


def _drifting(steps: int, channels: int) -> Tensor:
    """[steps, 2, channels], means that walk and log-normal variances."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 2, channels, dtype=torch.float64, generator=generator)
    moves = torch.randn(steps, channels, dtype=torch.float64, generator=generator)
    means = noise[:, 0] + 0.1 * moves.cumsum(0)
    variances = torch.exp(0.1 * noise[:, 1])
    return torch.stack((means, variances), dim=1)
