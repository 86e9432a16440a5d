"""Cost in training of recording, of layers that choose their momentum themselves, and of replaying afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from bnlab.nn import SelfTuned
from bnlab.recording.trace import MomentTrace, replay_bank

ROUNDS, THREADS = 15, 1


@dataclass(frozen=True)
class Training:
    """A network and the batches that it is trained on; what recording and self-tuning should cost at most."""

    name: str
    config: Model
    size: int
    channels: int
    batch: int
    steps: int
    recording: float
    tuning: float

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


_TRAININGS = (
    Training("cnn 32-64-128, 32×32, batch 128, 40 steps", Cnn(), 32, 1, 128, 40, 1.03, 1.02),
    Training("the demo's cnn 32-64-128, 8×8, batch 32, 270 steps", Cnn(), 8, 1, 32, 270, 1.03, 1.02),
    Training("resnet-20, 32×32, batch 64, 40 steps", Resnet(), 32, 3, 64, 40, 1.01, 1.01),
)


def measure() -> Iterator[Result]:
    for training in _TRAININGS:
        yield from _compare(training)


def _compare(training: Training) -> Iterator[Result]:
    model = training.build()
    own = SelfTuned.convert(training.build())
    bank = [EMA(momentum=(i + 1) / 64) for i in range(64)]
    traces: list[MomentTrace] = []

    def train_recorded() -> None:
        with record(model) as trace:
            training.run(model)
        traces[:] = [trace]

    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: training.run(model),
        "recording": train_recorded,
        "self-tuned": lambda: training.run(own),
        "replay of 64 momenta": lambda: replay_bank(traces[0], bank, [training.steps]),
    }
    timed = alternate(f"training, {training.name}", ROUNDS, sides)
    yield timed.compare("recording", "plain", training.recording)
    yield timed.compare("self-tuned", "plain", training.tuning)
    yield timed.compare("replay of 64 momenta", "plain", 0.02, "after the training")
