"""Models of packages, by name: `timm:NAME` and `torchvision:NAME`, and the packages' transforms of images."""

from __future__ import annotations

import argparse
import importlib
import warnings
from typing import Any

from bnlab.commands.images import Transform
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


def make_transform(words: str, model: Any, arguments: argparse.Namespace) -> Transform:
    """Make the transform that belongs to the default weights of a packaged model, else to those of ResNet-18.

    The weights may be the user's own, but most are trained on from published ones, or as these were. Arguments of
    `add_image_arguments` say what is different.
    """
    package, _, name = words.partition(":")
    changes = {key: getattr(arguments, key) for key in ("mean", "std") if getattr(arguments, key) is not None}
    size = arguments.size
    # Who names a size has images of about that size, such as CIFAR-10's, which are not to lose a border.
    if package == "timm":
        if size is not None:
            changes.update(img_size=size, crop_pct=1.0)
        data = importlib.import_module("timm.data")
        return data.create_transform(**data.resolve_data_config(changes, model=model))

    if size is not None:
        changes.update(crop_size=size, resize_size=size)
    weights = torchvision().models.get_model_weights(name if package == "torchvision" else "resnet18")
    return weights.DEFAULT.transforms(**changes)
