"""Replaying 1,000 momenta over 10,000 steps of 1,000 channels against a bare loop of one `lerp_` a step."""

from __future__ import annotations

import torch

from benchmarks.timing import Result, alternate
from bnlab.estimators import EMA, Stream, fold

_MOMENTA, _STEPS, _CHANNELS = 1000, 10_000, 1000

ROUNDS = 7


def results() -> list[Result]:
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
