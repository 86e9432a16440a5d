"""Models of packages, by name: `timm:NAME` and `torchvision:NAME`, with their initial weights."""

from __future__ import annotations

import difflib
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
                _require_known(words, name, models.list_models(module=models))  # classifiers
                return models.get_model(name, weights=None).eval()
            timm = importlib.import_module("timm")
            _require_known(words, name.partition(".")[0], timm.list_models())
            return timm.create_model(name, pretrained=False).eval()
    except ModuleNotFoundError as error:
        raise ValueError(f"{words} needs {error.name}, which is not installed: pip install {package}") from error


def _require_known(words: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known)
        advice = f"is it {' or '.join(close)}?" if close else "its list_models() has their names"
        package, _, _ = words.partition(":")
        raise ValueError(f"{words}: {package} has no such model; {advice}")
