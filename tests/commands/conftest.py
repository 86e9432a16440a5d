"""A package of models in the place of timm, which is not installed everywhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.helpers import torchvision


def make_model(name: str, pretrained: bool) -> nn.Module:
    """As `timm.create_model`: a network of a thousand classes; it keeps what was asked for."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    model.asked = (name, pretrained)  # type: ignore[assignment]
    return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its images are prepared as torchvision's are, and of the size that is asked for."""
    transforms = torchvision().models.ResNet18_Weights.DEFAULT.transforms
    data = SimpleNamespace(
        resolve_data_config=lambda changes, model: changes,
        create_transform=lambda img_size, crop_pct: transforms(crop_size=img_size, resize_size=img_size),
    )
    module = SimpleNamespace(create_model=make_model)
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return module
