"""The training of a network as a plain loop of torch, which the harness's training is compared with.

Models, norms and stored pixels are the harness's. All else is written out here, from the settings alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.artifacts.data import Data
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.network import build_model
from tests.helpers import rise_and_fall


class Update(NamedTuple):
    """An update that was made."""

    model: nn.Module  # after it; the next update changes it again
    loss: float  # of the batch, on the weights before it
    accuracy: float  # as the loss
    rate: float


def train_plainly(config: Config) -> Iterator[Update]:
    """Train a network on the CPU, and yield after each update; without freezing and without averages of weights."""
    seeds = torch.randint(2**31, (3,), generator=make_generator(config.seed))
    seed_of_weights, seed_of_order, seed_of_augmentation = seeds.tolist()
    images, labels = read_training_images(config.data)
    epochs = draw_epochs(config, labels.tolist(), seed_of_order)
    first_epoch = next(epochs)
    steps = config.steps
    if steps is None:
        steps = config.epochs * len(first_epoch)

    _, channels, size, _ = images.shape
    torch.manual_seed(config.seed)  # of dropout
    model = build_model(
        config.model,
        config.norm,
        channels=channels,
        image_size=size,
        classes=config.data.find_size().classes,
        seed=seed_of_weights,
        steps=steps,
    )
    model.train()
    peak = config.optimizer.lr * SCALES[config.optimizer.lr_scaling](config.batch_size / 128)
    optimizer = OPTIMIZERS[config.optimizer.name](model.parameters(), peak, config.optimizer)

    batches = chain(first_epoch, chain.from_iterable(epochs))
    for step, batch in enumerate(islice(batches, steps)):
        generator = make_generator(seed_of_augmentation + step)
        drawn = augment(images[batch], config.data.shift, config.data.flips, generator)
        rate = peak * SCHEDULES[config.optimizer.schedule](step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate

        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = model(drawn.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=config.optimizer.label_smoothing)
        loss.backward()
        optimizer.step()

        right = int((logits.argmax(1) == labels[batch]).sum())
        yield Update(model, loss.item(), right / len(batch), rate)


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read_training_images(data: Data) -> tuple[Tensor, Tensor]:
    """Images and labels of the training split: nine in ten of an order that is drawn once, standardized."""
    stored, labels = data.read().train
    order = torch.randperm(len(labels), generator=make_generator(0))[: data.images]
    train = order[len(order) // 10 :]
    pixels = stored[train]
    mean = pixels.double().mean((0, 2, 3), keepdim=True)
    std = pixels.double().std((0, 2, 3), correction=0, keepdim=True)
    return (pixels.float() - mean.float()) / std.float(), labels[train]


def draw_epochs(config: Config, labels: list[int], seed: int) -> Iterator[list[list[int]]]:
    """Yield the batches of one epoch after the other, each as numbers of images, without end."""
    size = config.batch_size
    kind, _, block = config.order.partition(":")
    while True:
        generator = make_generator(seed)
        shuffled = torch.randperm(len(labels), generator=generator).tolist()
        order = ORDERS[kind](shuffled, labels, block, generator)

        batches = [order[start : start + size] for start in range(0, len(order), size)]
        left = len(order) % size
        if left == 1 or (left and config.last_batch == "drop"):
            batches.pop()  # one image alone has no variance
        yield batches
        seed += 1


def sort_by_class(shuffled: list[int], labels: list[int], *_: object) -> list[int]:
    """Put class after class; those of a class stay shuffled."""
    return sorted(shuffled, key=lambda image: labels[image])


def draw_blocks(shuffled: list[int], labels: list[int], block: str, generator: torch.Generator) -> list[int]:
    """Put blocks of images of one class, the last of a class with its rest, into an order that is drawn."""
    size = int(block)
    blocks = []
    for _, members in groupby(sort_by_class(shuffled, labels), key=lambda image: labels[image]):
        of_class = list(members)
        blocks += [of_class[start : start + size] for start in range(0, len(of_class), size)]
    ranks = torch.randperm(len(blocks), generator=generator).tolist()
    ranked = sorted(zip(ranks, blocks, strict=True))
    return [image for _, members in ranked for image in members]


def augment(images: Tensor, shift: int, flips: bool, generator: torch.Generator) -> Tensor:
    """Shift one image after the other, with zeros around it, and mirror half of them."""
    if not shift and not flips:
        return images

    count, _, height, width = images.shape
    down, right = torch.randint(2 * shift + 1, (2, count), generator=generator).tolist()
    is_mirrored = [0] * count
    if flips:
        is_mirrored = torch.randint(2, (count,), generator=generator).tolist()

    augmented = []
    for image, top, left, mirror in zip(images, down, right, is_mirrored, strict=True):
        padded = F.pad(image, [shift] * 4)
        window = padded[:, top : top + height, left : left + width]
        augmented.append(window.flip(2) if mirror else window)
    return torch.stack(augmented)


def build_sgd(weights: Iterable[nn.Parameter], rate: float, settings: Any) -> torch.optim.Optimizer:
    has_momentum = settings.momentum > 0
    return torch.optim.SGD(
        weights, lr=rate, momentum=settings.momentum, nesterov=has_momentum, weight_decay=settings.weight_decay
    )


def build_adamw(weights: Iterable[nn.Parameter], rate: float, settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay)


def fall_twice(step: int, steps: int) -> float:
    if step < steps / 2:
        return 1.0
    return 0.1 if step < steps * 3 / 4 else 0.01


def warm_up_and_follow_cosine(step: int, steps: int) -> float:
    """Rise in equal steps over a twentieth; then fall as (1 + cos x) / 2 = cos²(x / 2) does."""
    warm_up = steps / 20
    if step + 1 <= warm_up:
        return (step + 1) / warm_up
    share = max(0.0, step - warm_up) / (steps - warm_up)
    return math.cos(math.pi / 2 * share) ** 2


# What each name means. A choice that the harness has and these have not fails its test: write here what it does.
ORDERS: dict[str, Callable[..., list[int]]] = {
    "shuffled": lambda shuffled, *_: shuffled,
    "sorted": sort_by_class,
    "blocks": draw_blocks,
}
OPTIMIZERS = {"sgd": build_sgd, "adamw": build_adamw}
SCALES: dict[str, Callable[[float], float]] = {"sqrt": math.sqrt, "linear": float, "none": lambda _: 1.0}
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "onecycle": rise_and_fall,
    "cosine": warm_up_and_follow_cosine,
    "step": fall_twice,
    "constant": lambda *_: 1.0,
}
