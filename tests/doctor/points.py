"""Perceptrons of two batch norms, and labelled points around four centers that they learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.doctor.diagnosis import Diagnosis
from bnlab.model.layers import get_running_buffers

Batch = tuple[Tensor, Tensor]
CLASSES = 4
FEATURES = 8


def make_batches(count: int, size: int = 32, seed: int = 0) -> list[Batch]:
    """Make batches of points around the centers of four classes, off from 0 and of small variance."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(100))
    batches = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (size,), generator=generator)
        noise = torch.randn(size, FEATURES, generator=generator)
        batches.append((0.5 + 0.3 * (centers[labels] + noise), labels))
    return batches


def make_net(momentum: float | None = 0.1, seed: int = 0) -> nn.Sequential:
    """Make a network of two batch norms, "1" and "4"."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 16, bias=False),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


def train(model: nn.Module, batches: Sequence[Batch], lr: float = 0.05, falls: bool = True) -> None:
    """Take a step of SGD on each batch, in train mode; the rate falls to 0 unless it is told not to."""
    model.train()
    take_steps(model, batches, lr, falls)


def take_steps(model: nn.Module, batches: Sequence[Batch], lr: float = 0.05, falls: bool = True) -> None:
    """Take a step of SGD on each batch, in the modes that the layers are in; see `train`."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr, momentum=0.9)
    for step, (inputs, labels) in enumerate(batches):
        if falls:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@cache
def _train_healthy() -> nn.Sequential:
    model = make_net()
    train(model, make_batches(200))
    return model.eval()


def make_healthy() -> nn.Sequential:
    """Make a network that was trained for 200 steps with momentum .1, in eval mode."""
    return copy.deepcopy(_train_healthy())


def get_buffers(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer, which can be written to."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.BatchNorm1d)
    return get_running_buffers(layer)


def list_codes(diagnosis: Diagnosis) -> list[str]:
    """List the codes of the findings."""
    return [finding.cause.code for finding in diagnosis.faults]
