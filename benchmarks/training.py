"""Training that is recorded, watched or self-tuned, and the harness's own, against a plain loop."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import build_imagenet_resnet, build_resnet, draw_images, evaluate, warm_up
from benchmarks.timing import Result, alternate
from bnlab import record, watch
from bnlab.estimators import EMA
from bnlab.harness.artifacts.data import OwnData
from bnlab.harness.artifacts.dataset import augment
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.models import Cnn, Resnet
from bnlab.harness.artifacts.network import build_model
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.updates import lr_factor
from bnlab.nn import SelfTuned
from bnlab.recording.trace import MomentTrace, replay_bank

ROUNDS = 7
_BATCH = 128
_STEPS = 80
_SHIFT = 4  # pixels


@dataclass(frozen=True)
class Training:
    """A network and how it is trained; what recording and self-tuning should cost at most."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int
    steps: int
    recording: float
    tuning: float

    def run(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        images = torch.randn(self.batch, *self.shape, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (self.batch,), device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(self.steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def build_cnn(size: int) -> nn.Module:
    return build_model(Cnn(), channels=1, image_size=size, classes=10, seed=0)


_TRAININGS = {
    "cpu": (
        Training("cnn 32-64-128, 32×32", partial(build_cnn, 32), (1, 32, 32), 128, 40, 1.03, 1.05),
        Training("the demo's cnn, 8×8", partial(build_cnn, 8), (1, 8, 8), 32, 270, 1.03, 1.05),
        Training("resnet-20, 32×32", build_resnet, (3, 32, 32), 64, 40, 1.01, 1.05),
    ),
    "cuda": (
        Training("resnet-50, 224×224", partial(build_imagenet_resnet, 50), (3, 224, 224), 128, 20, 1.01, 1.02),
        Training("resnet-20, 32×32", build_resnet, (3, 32, 32), 128, 100, 1.05, 1.15),
    ),
}


def measure_recording(device: str) -> Iterator[Result]:
    """Compare a training loop with and without recording, with self-tuned layers, and with a replay of 64 momenta."""
    for training in _TRAININGS[device]:
        yield from _compare(training, device)


def _compare(training: Training, device: str) -> Iterator[Result]:
    model = training.build().to(device).train()
    self_tuned = SelfTuned.convert(training.build().to(device)).train()
    bank = [EMA(momentum=(i + 1) / 64) for i in range(64)]
    traces: list[MomentTrace] = []

    def train_recorded() -> None:
        with record(model) as trace:
            training.run(model)
        # For the side that replays, whose turn comes later in the round.
        traces[:] = [trace]

    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: training.run(model),
        "recording": train_recorded,
        "self-tuned": lambda: training.run(self_tuned),
        "replay of 64 momenta": lambda: replay_bank(traces[0], bank, [training.steps]),
    }
    timed = alternate(f"{training.steps} steps of {training.name}, batch {training.batch}", ROUNDS, sides)
    yield timed.compare("recording", "plain", training.recording)
    yield timed.compare("self-tuned", "plain", training.tuning)
    yield timed.compare("replay of 64 momenta", "plain", 0.02, "after the training")


def measure_watch(device: str) -> Iterator[Result]:
    """Compare training and evaluation of a network with and without `bnlab.watch`, and time exact statistics."""
    training = next(each for each in _TRAININGS[device] if each.name.startswith("resnet-20"))
    plain = training.build().to(device).train()
    watched = training.build().to(device).train()
    watching = watch(watched)
    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: training.run(plain),
        "watched": lambda: training.run(watched),
        "exact statistics of 512 images": watching.measure,
    }
    timed = alternate(f"{training.steps} steps of {training.name}, batch {training.batch}", ROUNDS, sides)
    yield timed.compare("watched", "plain", 1.02)
    yield timed.compare("exact statistics of 512 images", "plain", note="a validation")

    images = [batch.to(device) for batch in draw_images(1024, 32).split(training.batch)]
    warm_up(plain, images[0])
    warm_up(watched, images[0])
    timed = alternate(
        "predictions of 1,024 images by resnet-20",
        ROUNDS,
        {"plain": lambda: evaluate(plain, images), "watched": lambda: evaluate(watched, images)},
    )
    yield timed.compare("watched", "plain", 1.01)


def make_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw random images as large as CIFAR's, for training and for a test."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (count,), generator=generator)
        return images, labels

    train = draw(6000)
    test = draw(100)
    return train, test


def measure_training(device: str) -> Iterator[Result]:
    """Compare the harness's training, which records all moments and can be continued, with a plain loop."""
    data = OwnData(name="benchmarks.training.make_images", shift=_SHIFT, flip=True)
    config = Config(data=data, model=Resnet(), batch_size=_BATCH, steps=_STEPS, threads=torch.get_num_threads())
    sides: dict[str, Callable[[], object]] = {
        "bnlab": partial(_train, config),
        "plain loop": partial(_train_plainly, config),
        "crops and flips": lambda: list(_draw_batches(config)),
    }
    timed = alternate(f"resnet-20, 32×32, {_STEPS} steps of {_BATCH}", ROUNDS, sides)
    yield timed.compare("bnlab", "plain loop", 1.05)
    yield timed.compare("crops and flips", "plain loop", 0.05)


def _train(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        # A new folder each time, because a network that is trained is not trained again.
        config.results = folder
        ensure_trained(Run(config))


def _train_plainly(config: Config) -> None:
    model = build_resnet().train().to(Run(config).device)
    # What the configuration's optimizer is by default, without bnlab.
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor("onecycle", step, _STEPS))
    for images, labels in _draw_batches(config):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def _draw_batches(config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    train = Run(config).dataset.train
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(train.labels), (_STEPS, _BATCH), generator=generator)
    for index in chosen.to(train.labels.device):
        images = augment(train.images[index], generator, shift=_SHIFT, flip=True)
        yield images, train.labels[index]
