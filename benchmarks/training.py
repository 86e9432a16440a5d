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

from benchmarks.timing import Result, alternate
from bnlab.harness.artifacts.data import OwnData, augment
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.updates import lr_factor

ROUNDS = 3
_BATCH, _STEPS, _SHIFT = 128, 80, 4
_AT_MOST = 1.05


def make_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Random images as large as CIFAR's, for training and for a test."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (count,), generator=generator)
        return images, labels

    train = draw(6000)
    test = draw(100)
    return train, test


def results() -> list[Result]:
    return compare(_STEPS)


def compare(steps: int) -> list[Result]:
    """Compare so many steps on the device that a sweep would choose."""
    data = OwnData(name="benchmarks.training.make_images", shift=_SHIFT, flip=True)
    config = Config(data=data, model=Resnet(), batch_size=_BATCH, steps=steps, threads=torch.get_num_threads())
    sides: dict[str, Callable[[], object]] = {
        "bnlab": partial(_train, config),
        "plain": partial(_train_plainly, config),
        "augmentation": lambda: list(_draw_batches(config)),
    }
    median = alternate(sides, ROUNDS)
    what = f"resnet-20, 32×32, {steps} steps of {_BATCH}"
    return [
        Result(what, "bnlab", median["bnlab"], "plain loop", median["plain"], _AT_MOST),
        Result(what, "crops and flips", median["augmentation"], "plain loop", median["plain"], 0.05),
    ]


def _train(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config.results = folder
        ensure_trained(Run(config))


def _train_plainly(config: Config) -> None:
    device = Run(config).device
    model = build_model(config.model, channels=3, image_size=32, classes=10, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = config.steps or _STEPS
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor("onecycle", step, steps))
    for images, labels in _draw_batches(config):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draw_batches(config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    train = Run(config).dataset.train
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(train.labels), (config.steps or _STEPS, _BATCH), generator=generator)
    for index in chosen.to(train.labels.device):
        images = augment(train.images[index], generator, shift=_SHIFT, flip=True)
        yield images, train.labels[index]
