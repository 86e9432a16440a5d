"""The harness's training, which records all moments and can be continued, against a plain loop with the same recipe."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.networks import build_resnet
from benchmarks.timing import Result, alternate
from bnlab.harness.artifacts.data import OwnData, augment
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.models import Resnet
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.updates import lr_factor

ROUNDS = 3
_BATCH, _STEPS, _SHIFT = 128, 80, 4


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


def measure() -> Iterator[Result]:
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
        config.results = folder
        ensure_trained(Run(config))


def _train_plainly(config: Config) -> None:
    model = build_resnet().train().to(Run(config).device)
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
