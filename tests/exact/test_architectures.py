"""Exact statistics of architectures as they come, against the full batch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnlab import population_statistics
from tests import references
from tests.helpers import images, measure_difference, torchvision, unchanged

slow = pytest.mark.slow
# float32 against float64: every operation rounds by 2⁻²⁴, which up to 60 layers that divide by their σ amplify.
FLOAT32 = 1e-4
TWIN = 1e-9  # two orders of summing in float64
NAMES = [
    pytest.param("resnet18", marks=slow),
    pytest.param("mobilenet_v3_small", marks=slow),
    pytest.param("shufflenet_v2_x0_5", marks=slow),
    pytest.param("densenet121", marks=slow),
    pytest.param("efficientnet_b0", marks=slow),
    pytest.param("googlenet", marks=slow),
]


def make_lively(model: nn.Module) -> nn.Module:
    """`model` with batch norms away from their start, but so little that the deepest stays finite."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),  # a weight that begins at 0 would take its block out
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.8, 1.2),
            ):
                tensor.data.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
    return model


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    make: Callable[..., nn.Module] = getattr(torchvision().models, name)
    return make_lively(make(num_classes=10, **options))


@pytest.mark.parametrize("name", NAMES)
def test_breadth_first_equals_its_twin(name: str) -> None:
    model = build(name)
    batches = images(4, 3, side=64)
    with unchanged(model):
        found = population_statistics(model, batches)

    assert found.check is not None
    assert found.check.held
    assert not found.unseen

    wide = copy.deepcopy(model).double()
    small = [batch.double() for batch in batches]
    twin = references.full_batch_population(wide, torch.cat(small))
    assert measure_difference(found, twin, found.eps) <= FLOAT32
    assert measure_difference(population_statistics(wide, small), twin, found.eps) <= TWIN


def test_timm_overrides_the_forward_of_its_norms() -> None:
    timm = pytest.importorskip("timm")
    model = make_lively(timm.create_model("regnety_002", num_classes=10))
    batches = images(4, 4, side=64)
    found = population_statistics(model, batches)
    twin = references.full_batch_population(model, torch.cat(batches))
    assert measure_difference(found, twin, found.eps) <= FLOAT32
