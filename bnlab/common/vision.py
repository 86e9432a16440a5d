"""Torchvision, also where its compiled operators do not load (a CPU build of torch beside it)."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def torchvision() -> ModuleType:
    """Import the torchvision module; models, data sets and transforms work, `torchvision.io` may not."""
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # The import only registers shape functions for these two; nothing here calls them.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", _SCHEMA)
    return import_module("torchvision")
