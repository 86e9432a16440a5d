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


def results() -> list[Result]:
    return [*_bank(), *_choice()]


def _bank() -> list[Result]:
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(_STEPS, 2, _CHANNELS, dtype=torch.float64, generator=generator)
    stream = Stream(torch.zeros(2, _CHANNELS).double(), batches, torch.full((1, 1), 64.0).double().expand(_STEPS, 1))
    momenta = torch.logspace(-3, 0, _MOMENTA).tolist()
    bank = [EMA(momentum=min(m, 1.0)) for m in momenta]
    single, weights = batches.float(), torch.tensor(momenta)[:, None, None]
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
    what = "1,000 momenta × 10,000 steps × 1,000 channels"
    error = (fold(bank, stream, [_STEPS])[:, 0] - state.double()).abs().max().item()
    note = f"float64; float32 loop differs by {error:.0e}"
    return [
        Result(f"{what}, the end", "replay", median["end"], "lerp_ loop", median["loop"], 1.2, note),
        Result(f"{what}, 12 checkpoints", "replay", median["twelve"], "lerp_ loop", median["loop"], 1.2, note),
    ]


def _choice() -> list[Result]:
    """The demo's cnn and resnet-20, a network's 1,000 steps, read rarely and often."""
    plain = [EMA(momentum=m) for m in torch.logspace(-3, 0, 64).clamp(max=1).tolist()]
    cnn, resnet = (32, 64, 128), (16,) * 7 + (32,) * 6 + (64,) * 6
    rows = []
    for name, layers in (("the demo's cnn", cnn), ("resnet-20", resnet)):
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
    counts, eps = torch.full_like(batches[:, 0], 512.0), torch.full_like(batches[0, 0], 1e-5)
    stream = Stream(torch.zeros_like(batches[0]), batches, counts, eps=eps, layers=layers)
    fold(estimators, stream, [len(batches) * k // reads for k in range(1, reads + 1)])


def _drifting(steps: int, channels: int) -> Tensor:
    """[steps, 2, channels], means that walk and log-normal variances."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, 2, channels, dtype=torch.float64, generator=generator)
    walk = 0.1 * torch.randn(steps, channels, dtype=torch.float64, generator=generator).cumsum(0)
    return torch.stack((noise[:, 0] + walk, (0.1 * noise[:, 1]).exp()), dim=1)
