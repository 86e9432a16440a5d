"""Models by the names of packages."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bnlab.commands.packages import is_packaged, make_packaged


def make_model(name: str, pretrained: bool) -> nn.Module:
    """As `timm.create_model`; the module says what was asked for."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.asked = (name, pretrained)  # type: ignore[assignment]
    return model


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Something in the place of timm, which is not installed everywhere."""
    module = SimpleNamespace(create_model=make_model)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_names_of_functions_are_no_packages() -> None:
    assert is_packaged("timm:resnet18")
    assert is_packaged("torchvision:resnet18")
    assert not is_packaged("mine:model")
    assert not is_packaged("timm.models:resnet18")


def test_a_model_of_torchvision_in_eval_mode() -> None:
    model = make_packaged("torchvision:shufflenet_v2_x0_5")

    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_with_its_initial_weights() -> None:
    model = make_packaged("timm:resnet18.some_tag")

    assert model.asked == ("resnet18.some_tag", False)
    assert not model.training


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_is_said(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    if package == "torchvision":
        monkeypatch.setattr("bnlab.commands.packages.torchvision", lambda: __import__("torchvision"))

    with pytest.raises(ValueError, match=f"{package}:resnet18 needs {package}, which is not installed: pip install"):
        make_packaged(f"{package}:resnet18")
