"""How the first layer answers to a change of the images, and what that says of their scale and shift."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.causes.bn209 import OtherInput
from bnlab.doctor.examination import Examination
from bnlab.doctor.patient import Patient
from bnlab.layers import batch_norm_layers
from tests.helpers import images

BATCHES = images(16, 16, 16, channels=3, side=10)


def make_patient(model: nn.Module, data: Sequence[Any]) -> Patient:
    case = diagnose(model, data, progress=False).case
    layers = batch_norm_layers(model, caller="test")
    examination = Examination.of(model, layers, None, None, False)
    return Patient(case, examination, data, case.data.exact)


def build(*, padding: int = 0) -> nn.Sequential:
    """A convolution with a bias, and batch norm whose averages are exact on BATCHES."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=padding), nn.BatchNorm2d(12)).eval()
    population_statistics(model, BATCHES, progress=False).write_to(model)
    return model


def undo_best(model: nn.Sequential, changed: Sequence[Tensor]) -> Tensor:
    """Undo what a proposal of four degrees says of changed images: the one of the two signs that is nearer."""
    patient = make_patient(model, changed)
    undos = [undo for undo in OtherInput().propose(patient) if undo.degrees == 4]
    seen: list[Tensor] = []
    handle = model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for undo in undos:
        with ExitStack() as stack, torch.no_grad():
            undo.apply(model, stack)
            model(torch.cat(list(changed)))
    handle.remove()
    original = torch.cat(BATCHES)
    return min(seen, key=lambda images: float((images - original).abs().max()))


SHIFT = torch.tensor([0.3, -1.0, 2.0]).view(3, 1, 1)


@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0, -1.5])
def test_scale_and_shift_of_each_colour_are_recovered(scale: float) -> None:
    changed = [scale * batch + SHIFT for batch in BATCHES]

    undone = undo_best(build(), changed)

    assert torch.allclose(undone, torch.cat(BATCHES), atol=1e-4)


@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0, -1.5])
def test_scale_and_shift_are_recovered_behind_padding_too(scale: float) -> None:
    """In rounds, as the zeros around images are not changed with them."""
    changed = [scale * batch + SHIFT for batch in BATCHES]

    undone = undo_best(build(padding=1), changed)

    assert torch.allclose(undone, torch.cat(BATCHES), atol=2e-3)


def test_the_answer_of_a_convolution_by_definition() -> None:
    """With images of 0 the mean is the bias, and a colour that is larger by 1 adds the sum of its weights."""
    model = build()

    answer = make_patient(model, BATCHES).answer

    assert answer is not None and answer.colours == 3
    assert torch.allclose(answer.at_zero, model.get_submodule("0").get_parameter("bias").detach().double(), atol=1e-6)
    assert torch.allclose(
        answer.slopes, model.get_submodule("0").get_parameter("weight").detach().double().sum((2, 3)).T, atol=1e-5
    )


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Standardizes(nn.Module):
    """Divides each batch by its own standard deviation, which is 0 where it is constant."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std()


@pytest.mark.parametrize("before", [Squares(), Standardizes()])
def test_what_does_not_answer_affinely_is_not_rescaled(before: nn.Module) -> None:
    patient = make_patient(nn.Sequential(before, *build()).eval(), BATCHES)

    assert patient.answer is None
    assert list(OtherInput().propose(patient)) == []


def test_what_is_no_image_has_one_shift() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)).eval()
    rows = [torch.randn(40, 5, generator=torch.Generator().manual_seed(0))]

    answer = make_patient(model, rows).answer

    assert answer is not None and answer.colours == 1
    assert torch.allclose(
        answer.slopes[0], model.get_submodule("0").get_parameter("weight").detach().double().sum(1), atol=1e-6
    )
