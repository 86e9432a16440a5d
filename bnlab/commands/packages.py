"""Models of packages, by name: `timm:NAME` and `torchvision:NAME`, with their initial weights."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from bnlab.vision import torchvision


def is_packaged(words: str) -> bool:
    """Return whether words are `timm:NAME` or `torchvision:NAME`."""
    return words.partition(":")[0] in _PACKAGES


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
            return _PACKAGES[package](name).eval()
    except ModuleNotFoundError as error:
        raise ValueError(f"{words} needs {error.name}, which is not installed: pip install {package}") from error


def _make_of_timm(name: str) -> Any:
    torchvision()  # timm imports it, and cannot where its operators do not load
    timm = importlib.import_module("timm")
    _require_known("timm", name.partition(".")[0], timm.list_models())
    return timm.create_model(name, pretrained=False)


def _make_of_torchvision(name: str) -> Any:
    models: ModuleType = torchvision().models
    _require_known("torchvision", name, models.list_models(module=models))  # classifiers
    return models.get_model(name, weights=None)


def _require_known(package: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known)
        advice = f"is it {' or '.join(close)}?" if close else "its list_models() has their names"
        raise ValueError(f"{package}:{name}: {package} has no such model; {advice}")


_PACKAGES: dict[str, Callable[[str], Any]] = {"timm": _make_of_timm, "torchvision": _make_of_torchvision}
