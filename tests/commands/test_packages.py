"""Models by the names of packages."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import pytest
import torch
from PIL import Image

from bnlab.commands.packages import is_packaged, make_packaged, make_transform
from tests.helpers import require, torchvision


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


HALF = (0.5, 0.5, 0.5)
PREPARED = [
    # the model, what is typed, and the keywords of torchvision's transforms
    ("mine:model", {}, {"crop_size": 224, "resize_size": 256}),
    ("mine:model", {"size": 32, "std": HALF}, {"crop_size": 32, "resize_size": 32, "std": HALF}),
    ("torchvision:efficientnet_v2_s", {}, {"crop_size": 384, "resize_size": 384}),
    ("torchvision:efficientnet_v2_s", {"size": 32, "mean": HALF}, {"crop_size": 32, "resize_size": 32, "mean": HALF}),
    ("timm:test_resnet", {}, {"crop_size": 160, "resize_size": 168, "mean": HALF, "std": HALF}),  # 160 / 0.95
    ("timm:test_resnet", {"size": 32, "std": (1,)}, {"crop_size": 32, "resize_size": 32, "mean": HALF, "std": (1,)}),
]


@pytest.mark.parametrize(("words", "typed", "expected"), PREPARED)
def test_images_are_prepared_as_the_package_does(words: str, typed: dict[str, Any], expected: dict[str, Any]) -> None:
    model = None
    if words.startswith("timm"):
        require("timm")
        model = make_packaged(words)
    arguments = {"size": None, "mean": None, "std": None} | typed
    image = Image.effect_noise((320, 400), 50).convert("RGB")

    transform = make_transform(words, model, Namespace(**arguments))

    theirs = torchvision().models.ResNet18_Weights.DEFAULT.transforms(**expected)
    torch.testing.assert_close(transform(image), theirs(image))


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
