"""Models of packages, by name: `timm:NAME` and `torchvision:NAME`, with their initial weights."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from bnlab.common.vision import torchvision


def is_packaged(words: str) -> bool:
    """Return whether words are `timm:NAME` or `torchvision:NAME`."""
    return words.partition(":")[0] in ("timm", "torchvision")


def make_packaged(words: str) -> Any:
    """Make the model that `timm:NAME` or `torchvision:NAME` says, in eval mode, with its initial weights.

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
                return models.get_model(name, weights=None).eval()
            timm = importlib.import_module("timm")
            return timm.create_model(name, pretrained=False).eval()
    except ModuleNotFoundError as error:
        raise ValueError(f"{words} needs {error.name}, which is not installed: pip install {package}") from error
    except (RuntimeError, ValueError) as error:  # there is no such model
        raise ValueError(f"{words}: {error}") from error
