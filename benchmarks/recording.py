"""Cost of recording in training, and of replaying 64 momenta afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from benchmarks.timing import Result, alternate
from bnlab import record
from bnlab.estimators import EMA
from bnlab.harness.artifacts.models import Cnn, Model, Resnet, build_model
from bnlab.harness.artifacts.optimizers import Sgd
from bnlab.harness.artifacts.training import Batches, Seeds, Split, TrainingState, train
from bnlab.recording.trace import MomentTrace, replay_bank

ROUNDS, THREADS = 15, 1
_LIMITS = (1.03, 1.03, 1.01)


@dataclass(frozen=True)
class Training:
    """A network and the batches that it is trained on."""

    name: str
    config: Model
    size: int
    channels: int
    batch: int
    steps: int

    def build(self) -> nn.Module:
        return build_model(self.config, channels=self.channels, image_size=self.size, classes=10, seed=0)

    @cached_property
    def batches(self) -> Batches:
        shape = (self.batch * 8, self.channels, self.size, self.size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        labels = torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(1))
        return Batches(Split(images.contiguous(memory_format=torch.channels_last), labels), self.batch, Seeds.of(0))

    def run(self, model: nn.Module) -> None:
        optimizer = Sgd(lr=0.01)
        progress = TrainingState(model, optimizer.build(model.parameters(), 128), step=0)
        for _ in train(progress, self.batches, optimizer, self.steps):
            pass


TRAININGS = (
    Training("cnn 32-64-128, 32×32, batch 128, 40 steps", Cnn(), 32, 1, 128, 40),
    Training("the demo's cnn 32-64-128, 8×8, batch 32, 270 steps", Cnn(), 8, 1, 32, 270),
    Training("resnet-20, 32×32, batch 64, 40 steps", Resnet(), 32, 3, 64, 40),
)


def results() -> list[Result]:
    rows = []
    for training, limit in zip(TRAININGS, _LIMITS, strict=True):
        rows += _compare(training, limit)
    return rows


def _compare(training: Training, limit: float) -> list[Result]:
    model = training.build()
    traces: list[MomentTrace] = []

    def recorded() -> None:
        with record(model) as trace:
            training.run(model)
        traces[:] = [trace]

    bank = [EMA(momentum=(i + 1) / 64) for i in range(64)]
    sides = {
        "plain": lambda: training.run(model),
        "recorded": recorded,
        "replay": lambda: replay_bank(traces[0], bank, [training.steps]),
    }
    median = alternate(sides, ROUNDS)
    return [
        Result(f"training, {training.name}", "recording", median["recorded"], "without", median["plain"], limit),
        Result(
            f"after training, {training.name}",
            "replay of 64 momenta",
            median["replay"],
            "training",
            median["plain"],
            0.02,
        ),
    ]
