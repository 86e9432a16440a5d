"""Networks of one or two batch norms, on values of 99 and 101."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def make_two_layers(weight: float = 3.0) -> Any:
    """A batch norm, z ↦ weight·z + 1, and another batch norm."""
    linear = nn.Linear(1, 1)
    linear.weight.data.fill_(weight)
    linear.bias.data.fill_(1.0)
    return nn.Sequential(nn.BatchNorm1d(1, eps=1e-12), linear, nn.BatchNorm1d(1, eps=1e-12)).eval()


def make_classifier() -> Any:
    """A network that tells whether a value is above the running mean, which has never been updated."""
    linear = nn.Linear(1, 2, bias=False)
    linear.weight.data = torch.tensor([[-1.0], [1.0]])
    return nn.Sequential(nn.BatchNorm1d(1), linear).eval()


def draw(count: int) -> Batches:
    """Values 99 and 101 in turn, labelled 0 and 1: only above the mean of 0, half of the predictions are right."""
    labels = torch.arange(count) % 2
    values = 99.0 + 2.0 * labels
    return [(values[:, None], labels)]


def score_images(model: nn.Module) -> Any:
    """Score the images of `draw(100)` by labels of one's own."""
    ((values, labels),) = draw(100)
    return model(values).argmax(1) == labels
