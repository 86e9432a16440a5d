"""Small convolutional networks of three batch norms, trained on scikit-learn's digits in three colours.

What a training ends with is loaded from `networks/`, so that no test depends on the processor that it runs on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, record
from bnlab.commands.demo.network import choose_images
from bnlab.commands.demo.specimen import Batches
from bnlab.commands.demo.store import History, Networks
from bnlab.doctor.report.diagnosis import Diagnosis

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks of the doctor's tests; `make networks` trains those that are missing."""

NORMS = ("1", "4", "7")
CLASSES = 10
_TRAINING = 797  # of 1,797 images; the others are tested on
_BATCH_SIZE = 64
_TINT = torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)
_SHADE = torch.tensor([0.0, 0.0, 0.5]).view(3, 1, 1)


@cache
def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load images [N, 3, 8, 8] and labels for training, then 1,000 for testing; not to be changed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = grey * _TINT + _SHADE
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    training = order[:_TRAINING]
    testing = order[_TRAINING:]
    return images[training], labels[training], images[testing], labels[testing]


def split(images: Tensor, labels: Tensor, size: int = 50) -> Batches:
    """Split images into batches."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def make_batches(change: Callable[[Tensor], Tensor] | None = None, size: int = 50, images: int = 1000) -> Batches:
    """Make batches of test images, changed where a change is given."""
    _, _, tested, labels = load_images()
    chosen = tested[:images]
    return split(chosen if change is None else change(chosen), labels[:images], size)


def make_hundreds(change: Callable[[Tensor], Tensor] | None = None) -> Batches:
    """Make large batches of all test images: a diagnosis runs each of them many times."""
    return make_batches(change, size=100)


def make_few(images: int = 300) -> Batches:
    """Make large batches of some of the test images, which show what costs much."""
    return make_batches(size=100, images=images)


def make_training_batches(size: int = _BATCH_SIZE) -> Batches:
    """Make batches of the training images."""
    images, labels, _, _ = load_images()
    return split(images, labels, size)


def draw_batches(count: int, size: int = 32, seed: int = 1) -> Batches:
    """Draw batches of test images, or of training images if the seed is below 0."""
    training, its_labels, tested, labels = load_images()
    images, labels = (training, its_labels) if seed < 0 else (tested, labels)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(abs(seed)))[: count * size]
    return split(images[chosen], labels[chosen], size)


def list_images(batches: Batches) -> list[Tensor]:
    """Leave out the labels."""
    return [images for images, _ in batches]


def build(seed: int = 0, momentum: float | None = 0.1) -> nn.Sequential:
    """Build three blocks with the batch norms "1", "4" and "7", and a linear layer on all that they return."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 2)):
        conv = nn.Conv2d(inside, outside, 3, stride, padding=1)
        layers += [conv, nn.BatchNorm2d(outside, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, CLASSES))


def fit(
    model: nn.Module,
    steps: int = 144,
    rate: float = 0.1,
    *,
    is_constant: bool = False,
    change: Callable[[Tensor], Tensor] | None = None,
    keep_mode: bool = False,
    after: Callable[[], object] | None = None,
) -> None:
    """Train on the digits with SGD, in eval mode afterwards.

    Args:
        model: returns logits.
        steps: of batches of 64.
        rate: the largest learning rate.
        is_constant: whether the rate stays; else it rises and falls (one-cycle).
        change: of the images.
        keep_mode: whether layers stay in the mode in which they are.
        after: called once, after three quarters of the steps.
    """
    images, labels, _, _ = load_images()
    if change is not None:
        images = change(images)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, rate, momentum=0.9)
    schedule = None if is_constant else torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    if not keep_mode:
        model.train()
    torch.manual_seed(0)
    for step, chosen in enumerate(choose_images(len(images), steps, _BATCH_SIZE), start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if after is not None and step == 3 * steps // 4:
            after()
    model.eval()


def fit_and_record(name: str, model: nn.Module, change: Callable[[Tensor], Tensor] | None = None) -> History:
    """Train a network with its history, once and for all; see `Networks.recall` and `fit`."""

    def train() -> History:
        before: dict[str, Tensor] = {}
        with record(model) as trace:
            fit(model, change=change, after=lambda: before.update(copy.deepcopy(model.state_dict())))
        return History(before, trace)

    return NETWORKS.recall(name, model, train)


@cache
def _load(seed: int) -> nn.Sequential:
    model = build(seed)
    NETWORKS.recall(f"digits {seed}", model, partial(fit, model))
    return model


def make_healthy(seed: int = 0) -> nn.Sequential:
    """Make a trained network of its own, in eval mode; of seed 0, 1 or 2."""
    return copy.deepcopy(_load(seed))


@cache
def load_with_history() -> tuple[nn.Sequential, History]:
    """Load a fourth trained network, in eval mode, with its history; not to be changed."""
    model = build(3)
    history = fit_and_record("digits 3", model)
    return model, history


def make_exact(images: Sequence[Tensor]) -> nn.Sequential:
    """Make a trained network whose buffers are the exact statistics of these images."""
    model = make_healthy()
    population_statistics(model, images, progress=False).write_to(model)
    return model


def get_norm(model: nn.Module, name: str) -> nn.BatchNorm2d:
    """Return a batch norm."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.BatchNorm2d)
    return layer


def list_codes(diagnosis: Diagnosis) -> list[str]:
    """List the codes of the findings."""
    return [finding.cause.code for finding in diagnosis.faults]


# Loaders


def join(batches: Batches) -> tuple[Tensor, Tensor]:
    """Join batches to one."""
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def sort_by_class(batches: Batches) -> Batches:
    images, labels = join(batches)
    order = labels.argsort(stable=True)
    return split(images[order], labels[order], len(batches[0][1]))


def end_with_one_image(batches: Batches) -> Batches:
    images, labels = batches[-1]
    return [*batches[:-1], (images[:1], labels[:1])]


LOADERS: Mapping[str, Callable[[Batches], Iterable[Any]]] = {
    "sorted by class": sort_by_class,
    "one image each": lambda batches: split(*join(batches), 1),
    "all in one": lambda batches: [join(batches)],
    "a last one of one image": end_with_one_image,
    "a generator": iter,
}
"""What loaders of users make of labelled images."""
