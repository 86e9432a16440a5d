"""Models by the names of packages."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from bnlab.commands.packages import find_preparation, is_packaged, make_packaged


def test_names_of_functions_are_no_packages() -> None:
    assert is_packaged("timm:resnet18")
    assert is_packaged("torchvision:resnet18")
    assert not is_packaged("mine:model")
    assert not is_packaged("timm.models:resnet18")


def test_a_model_of_torchvision_in_eval_mode() -> None:
    model = make_packaged("torchvision:shufflenet_v2_x0_5")

    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_weights_find_the_input_that_they_were_trained_on() -> None:
    """With published weights torchvision has Inception v3 and this one transform their input; they do not say so."""
    assert make_packaged("torchvision:googlenet", is_for_weights=True).transform_input
    assert not make_packaged("torchvision:googlenet").transform_input


def test_images_are_prepared_as_published_weights_want_them() -> None:
    found = find_preparation("torchvision:efficientnet_v2_s", None)

    assert (found.size, found.resize, found.interpolation) == (384, 384, "bilinear")
    found = find_preparation("torchvision:efficientnet_v2_l", None)
    assert (found.size, found.resize, found.interpolation) == (480, 480, "bicubic")
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_images_are_prepared_as_timm_says(timm: Any) -> None:
    """The shorter side is 288 / 0.95, rounded down, as in timm's own transforms."""
    found = find_preparation("timm:resnet18", timm.create_model("resnet18", pretrained=False))

    assert (found.size, found.resize, found.mean, found.interpolation) == (288, 303, (0.5, 0.5, 0.5), "bicubic")


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

    with pytest.raises(ValueError, match=f"{package}:resnet18 .*pip install {package}"):
        make_packaged(f"{package}:resnet18")
