"""How the first layer answers to a change of the images: what was done to these is undone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.causes.bn209 import OtherInput
from bnlab.doctor.examination import Examination
from bnlab.doctor.patient import Patient
from bnlab.doctor.undoing import Undo
from bnlab.layers import batch_norm_layers
from tests.helpers import images

IMAGES = images(16, 16, 16, channels=3, side=10)
ROWS = [torch.randn(40, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def list_undos(model: nn.Module, data: Sequence[Tensor]) -> list[Undo]:
    """List what BN209 proposes."""
    case = diagnose(model, data, progress=False).case
    examination = Examination.of(model, batch_norm_layers(model, caller="test"), None, None, False)
    return list(OtherInput().propose(Patient(case, examination, data, case.data.exact)))


def build(first: nn.Module, norm: nn.Module, data: Sequence[Tensor]) -> nn.Sequential:
    """Build two layers, the second with exact averages."""
    model = nn.Sequential(first, norm).eval()
    population_statistics(model, data, progress=False).write_to(model)
    return model


@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0, -1.5])
@pytest.mark.parametrize(("kind", "close"), [("conv", 1e-4), ("padded", 2e-3), ("linear", 1e-4)])
def test_scale_and_shifts_of_images_are_recovered(kind: str, close: float, scale: float) -> None:
    """A shift for each colour, or one for rows; behind padding in rounds, as zeros around images do not change."""
    torch.manual_seed(0)
    if kind == "linear":
        data = ROWS
        degrees = 2
        model = build(nn.Linear(5, 8), nn.BatchNorm1d(8), data)
        shift = torch.tensor(0.7)
    else:
        data = IMAGES
        degrees = 4
        model = build(nn.Conv2d(3, 12, 3, padding=int(kind == "padded")), nn.BatchNorm2d(12), data)
        shift = torch.tensor([0.3, -1.0, 2.0]).view(3, 1, 1)
    changed = [scale * batch + shift for batch in data]

    seen: list[Tensor] = []
    undos = list_undos(model, changed)
    handle = model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for undo in undos:
        if undo.degrees == degrees:
            with ExitStack() as stack, torch.no_grad():
                undo.apply(model, stack)
                model(torch.cat(changed))
    handle.remove()

    assert min(float((images - torch.cat(data)).abs().max()) for images in seen) < close


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Standardizes(nn.Module):
    """Divides each batch by its own standard deviation, which is 0 where it is constant."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std()


@pytest.mark.parametrize("before", [Squares(), Standardizes()])
def test_what_does_not_answer_affinely_is_not_rescaled(before: nn.Module) -> None:
    model = build(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), IMAGES)

    assert list_undos(model, [3 * batch for batch in IMAGES])
    assert list_undos(nn.Sequential(before, *model).eval(), [3 * batch for batch in IMAGES]) == []
