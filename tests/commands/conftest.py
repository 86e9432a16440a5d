"""A package of models in the place of timm, which is not installed everywhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn


def make_model(name: str, pretrained: bool) -> nn.Module:
    """As `timm.create_model`: a network of a thousand classes; it keeps what was asked for."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    model.asked = (name, pretrained)  # type: ignore[assignment]
    return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its models want images of 288 × 288 pixels, 95% of the shorter side."""
    half = (0.5, 0.5, 0.5)
    config = {"input_size": (3, 288, 288), "crop_pct": 0.95, "mean": half, "std": half, "interpolation": "bicubic"}
    module = SimpleNamespace(create_model=make_model)
    data = SimpleNamespace(resolve_data_config=lambda arguments, model: config)
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return module
