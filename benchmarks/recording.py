"""What recording adds to training, and what replaying 64 momenta costs afterwards."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.timing import Result, alternate
from bnlab import record
from bnlab.estimators import EMA
from bnlab.harness.artifacts.models import ModelConfig, build_model
from bnlab.harness.artifacts.training import Batches, OptimizerConfig, Progress, Seeds, Split, build_optimizer, train
from bnlab.trace import MomentTrace, replay_bank

ROUNDS = 15


def results() -> list[Result]:
    found = []
    for name, config, size, channels, batch, steps in (
        ("cnn 32-64-128, 32×32, batch 128", ModelConfig(), 32, 1, 128, 40),
        ("the demo's cnn 32-64-128, 8×8, batch 32", ModelConfig(), 8, 1, 32, 270),
        ("resnet-20, 32×32, batch 64", ModelConfig("resnet", 20, 16), 32, 3, 64, 40),
    ):
        found += _compare(f"{name}, {steps} steps", config, size, channels, batch, steps)
    return found


def _compare(name: str, config: ModelConfig, size: int, channels: int, batch: int, steps: int) -> list[Result]:
    model = build_model(config, channels=channels, image_size=size, classes=10, seed=0)
    images = torch.randn(batch * 8, channels, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (batch * 8,), generator=torch.Generator().manual_seed(1))
    batches = Batches(Split(images.contiguous(memory_format=torch.channels_last), labels), batch, Seeds.of(0))
    traces: list[MomentTrace] = []

    def plain() -> None:
        _train(model, batches, steps)

    def recorded() -> None:
        with record(model) as trace:
            _train(model, batches, steps)
        traces[:] = [trace]

    bank = [EMA(momentum=(i + 1) / 64) for i in range(64)]
    sides = {"plain": plain, "recorded": recorded, "replay": lambda: replay_bank(traces[0], bank, [steps])}
    median = alternate(sides, ROUNDS)
    return [
        Result(f"training, {name}", "recording", median["recorded"], "without", median["plain"], 1.05),
        Result(f"after training, {name}", "replay of 64 momenta", median["replay"], "training", median["plain"], 0.02),
    ]


def _train(model: nn.Module, batches: Batches, steps: int) -> None:
    optimizer = OptimizerConfig(lr=0.01)
    train(Progress(model, build_optimizer(optimizer, model, 128), 0), batches, optimizer, steps, [])
