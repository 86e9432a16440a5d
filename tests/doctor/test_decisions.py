"""Predictions that are compared without labels: what other averages cost, in closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.doctor.evidence.scores import Decisions

LOG9 = math.log(9)  # a share of .9 of two classes


class Head(nn.Module):
    """Returns what a function makes of normalized values."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, eps=1e-12)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.norm(x))


def compare(answer: Any, mean: float, images: int = 1000, offset: float = 0.0) -> Decisions | None:
    """Compare decisions on −1 and 1 in turn, whose exact mean is 0, with a running mean that is another one.

    An offset is added to every other batch, and taken from the others.
    """
    model = Head(answer).eval()
    model.norm.get_buffer("running_mean").fill_(mean)
    values = torch.tensor([-1.0, 1.0]).repeat(images // 2)[:, None]
    batches = values.split(max(1, images // 10))
    shifted = [batch + (-offset if number % 2 else offset) for number, batch in enumerate(batches)]
    return diagnose(model, shifted, progress=False).case.decisions


def decide(x: Tensor) -> Tensor:
    """Name the first class of values below 0 and the second of others, with a share of .9."""
    return torch.cat((-x.sign(), x.sign()), 1) * LOG9 / 2


@pytest.mark.parametrize(
    ("answer", "mean", "cost", "differing"),
    [
        (decide, 0.0, 0.0, 0.0),
        (decide, 2.0, 0.4, 0.5),  # half of the images are named otherwise, each at .9 − .1
        (decide, math.nan, 0.4, 0.5),  # one class for all
        (lambda x: decide(x).softmax(1), 2.0, 0.4, 0.5),
        (lambda x: (decide(x), x), 2.0, 0.4, 0.5),
        (lambda x: decide(x)[:, :, None].expand(-1, -1, 5), 2.0, 0.4, 0.5),
        (lambda x: {"features": x, "logits": decide(x)}, 2.0, 0.4, 0.5),
        (lambda x: (decide(x) / 9).softmax(1).bfloat16(), 0.0, 0.0, 0.0),  # hardly sure, but probabilities
    ],
)
def test_the_cost_of_other_averages_without_labels(answer: Any, mean: float, cost: float, differing: float) -> None:
    decisions = compare(answer, mean)

    assert decisions is not None
    assert decisions.cost.value == pytest.approx(cost, abs=1e-6)
    assert decisions.differing == pytest.approx(differing)


def test_what_halves_of_the_images_cost_beside_each_other_is_chance() -> None:
    """Of 3 and 5, −5 and −3, a running mean of 4 takes the 3 for another class; so do exact means of either half, and
    the −3 as well."""
    decisions = compare(decide, 4.0, offset=4.0)

    assert decisions is not None
    assert decisions.differing == 0.25
    assert decisions.cost.value == 0 and decisions.cost.low < 0
    assert decisions.cost.high == pytest.approx(0.2, abs=0.03)  # a quarter of .9 − .1, and what few images may hide


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x[:, 0],
        lambda x: x.expand(-1, 3),  # each gets a third
        lambda x: 100 + 50 * decide(x),  # coordinates lie on one side of 0
        lambda x: torch.cat((x + 9, x), 1) - 4,  # all are of one class
        lambda x: x.sum(),
        lambda x: {"boxes": x[:1]},
    ],
)
def test_what_names_no_classes_is_not_compared(answer: Any) -> None:
    assert compare(answer, 2.0) is None


def test_few_images_do_not_tell() -> None:
    one_each = compare(decide, 2.0, images=2)

    assert one_each is not None and math.isinf(one_each.cost.high)
