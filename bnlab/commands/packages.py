"""Models of packages, by name: `timm:NAME` and `torchvision:NAME`, and how their published weights see images."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

from bnlab.commands.images import Preparation
from bnlab.common.vision import torchvision


def is_packaged(words: str) -> bool:
    """Return whether words are `timm:NAME` or `torchvision:NAME`."""
    return words.partition(":")[0] in ("timm", "torchvision")


def make_packaged(words: str, is_for_weights: bool = False) -> Any:
    """Make the model that `timm:NAME` or `torchvision:NAME` says, in eval mode, with its initial weights.

    Args:
        words: the package and the name.
        is_for_weights: whether trained weights will be loaded. Two of torchvision's models transform their input if and
            only if they are made with weights, which do not hold this.

    Raises:
        ValueError: the package is not installed, or has no such model.
    """
    package, _, name = words.partition(":")
    try:
        # Some models warn that their initialization is slow, or will change.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = torchvision().models  # also for timm, which imports it
            if package == "torchvision":
                if name not in models.list_models(module=models):  # others download weights of their backbone
                    raise ValueError(f"torchvision has no classifier {name}")
                model = models.get_model(name, weights=None).eval()
                if hasattr(model, "transform_input"):  # Inception v3 and GoogLeNet
                    model.transform_input = is_for_weights
                return model
            timm = importlib.import_module("timm")
            return timm.create_model(name, pretrained=False).eval()
    except ModuleNotFoundError as error:
        raise ValueError(f"{words} needs {error.name}, which is not installed: pip install {package}") from error
    except (RuntimeError, ValueError) as error:  # there is no such model
        raise ValueError(f"{words}: {error}") from error


def find_preparation(words: str, model: Any) -> Preparation:
    """Find how the published weights of a model that `make_packaged` has made see images.

    The weights may be the user's own, but most are trained on from published ones, or as these were.
    """
    package, _, name = words.partition(":")
    if package == "torchvision":
        stored = torchvision().models.get_model_weights(name).DEFAULT.transforms()
        return Preparation(
            size=stored.crop_size[0],
            resize=stored.resize_size[0],
            mean=tuple(stored.mean),
            std=tuple(stored.std),
            interpolation=stored.interpolation.value,
        )
    config = importlib.import_module("timm.data").resolve_data_config({}, model=model)
    size = config["input_size"][-1]
    return Preparation(
        size=size,
        resize=math.floor(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
