"""Models of public reports, in small: what is right, what is refused, and what comes back as it was."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, using
from bnlab.moments import compare_moments
from tests import references


def images(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 6, 6, generator=generator) for size in sizes]


# -- the model comes back as it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_a_teacher_that_is_moved_in_the_forward_comes_back(in_place: bool) -> None:
    """As of MoCo and BYOL."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher, self.bn = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.teacher.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            moved = self.teacher.weight * 0.999 + self.student.weight.detach() * 0.001
            if in_place:
                self.teacher.weight.data.copy_(moved)
            else:
                self.teacher.weight.data = moved
            return self.bn(self.teacher(x))  # type: ignore[no-any-return]

    model = Teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(model, [torch.randn(8, 2)] * 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_queue_whose_place_depends_on_the_batch_fits_all_images() -> None:
    class Queue(nn.Module):
        place: Tensor
        queue: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.register_buffer("queue", torch.zeros(32, 2))
            self.register_buffer("place", torch.zeros(1, dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(x)
            place = int(self.place)
            self.queue[place : place + len(x)] = x
            self.place[0] = (place + len(x)) % 32
            return x

    model = Queue()
    found = population_statistics(model, [torch.randn(32, 2)] * 2)
    assert found["bn"].count == 64 and int(model.place) == 0 and not model.queue.any()


def test_buffers_that_get_their_size_in_the_forward_come_back_empty() -> None:
    """As of observers of quantization."""

    class Observed(nn.Module):
        least: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("least", torch.tensor([]))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.least.numel():
                self.least.resize_(3)
            self.least.copy_(x.amin((0, 2, 3)))
            return self.bn(x)  # type: ignore[no-any-return]

    model = Observed()
    model.bn.running_var.fill_(7.0)  # type: ignore[union-attr]
    population_statistics(model, images(8, 8))
    assert model.training and model.least.numel() == 0
    assert torch.equal(model.bn.running_var, torch.full((3,), 7.0))  # type: ignore[arg-type]
