"""In a step of training nobody waits for the device: not where it is recorded, and seldom in self-tuned layers."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from bnlab import record
from bnlab.nn import SelfTuned
from tests.waits import Waits

BLOCKS = (1, 2, 4, 8, 16, 32, 64)  # batches after which a self-tuned layer chooses its momenta


def count_waits(model: nn.Module, recorded: bool) -> list[int]:
    """How often a program waits in each of 70 steps; Adam's and torch's own waits are left out by plain descent."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    block: Any = record(model) if recorded else contextlib.nullcontext()
    counts = []
    with block:
        for _ in range(70):
            x = torch.randn(8, 3, 6, 6)
            waits = Waits()
            with waits:
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            counts.append(waits.counts.total())
    return counts


def make_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_recording_waits_no_more_than_training_does() -> None:
    assert count_waits(make_model(), recorded=True) == count_waits(make_model(), recorded=False)


def test_self_tuned_layers_wait_only_where_they_choose() -> None:
    plain = count_waits(make_model(), recorded=False)
    tuned = count_waits(SelfTuned.convert(make_model()), recorded=False)
    more = {step for step, waits in enumerate(tuned, start=1) if waits > plain[step - 1]}

    assert more
    assert more <= set(BLOCKS)
