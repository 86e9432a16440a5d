"""What a model or an optimizer keeps in attributes: what changes there is lost to a training that is killed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.attributes import Attributes


class Net(nn.Module):
    """Has attributes of each kind, which its forward leaves alone or changes."""

    def __init__(self, changes: str = "") -> None:
        super().__init__()
        self.changes = changes
        self.layer = nn.Linear(3, 3)
        self.calls = 0
        self.best = math.nan
        self.word = "warm"
        self.mask = torch.ones(3)
        self.spoilt = torch.full((2,), math.nan)
        self.graph = torch.eye(3).to_sparse()
        self.shape_only = torch.ones(3, device="meta")
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.mask = self.mask.to(x.dtype)
        self.seen = self.layer(x)
        if self.changes == "calls":
            self.calls += 1
        elif self.changes == "best":
            self.best = 1.0
        elif self.changes == "word":
            self.word = "hot"
        elif self.changes == "mask":
            self.mask.mul_(2)
        return self.seen * self.mask


@pytest.mark.parametrize("changes", ["", "calls", "best", "word", "mask"])
def test_what_a_forward_changes_is_named(changes: str) -> None:
    """Not what it keeps for a look at it, and what is as it was, also where that is no number or cannot be compared."""
    model = Net(changes)
    attributes = Attributes(model, torch.optim.Adam(model.parameters()))

    model.train()(torch.randn(2, 3)).sum().backward()
    model.eval()

    assert attributes.find_changed() == (f"Net.{changes}" if changes else "")


def test_weights_that_are_computed_from_others_are_no_state() -> None:
    class Layer(nn.Linear):
        pass

    with warnings.catch_warnings():  # the older function is deprecated, and still in use
        warnings.simplefilter("ignore")
        model = nn.utils.weight_norm(Layer(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attributes = Attributes(model, optimizer)

    for _ in range(2):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()

    assert attributes.find_changed() == ""


class Counting(torch.optim.SGD):
    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1


def test_what_an_optimizer_counts_is_named() -> None:
    model = nn.Linear(3, 3)
    optimizer = Counting(model.parameters(), lr=0.1)
    attributes = Attributes(model, optimizer)
    assert attributes.find_changed() == ""

    optimizer.step()

    assert attributes.find_changed() == "Counting.steps"
