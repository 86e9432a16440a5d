"""Labels of batches, the outputs that they are compared with, and what is said where the two do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

_IGNORED = 255  # label of positions that do not count, as torchvision's and Pascal VOC's masks have it


def find_labels(batch: Any) -> Tensor | None:
    """Find the labels of a batch: the second part of a tuple or list, or what a dictionary calls label or labels."""
    labels = _get_labels(batch)
    return labels if isinstance(labels, Tensor) and labels.dim() > 0 else None


def _get_labels(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[1]
    if isinstance(batch, Mapping):
        return batch.get("labels", batch.get("label"))
    return None


def describe_unread(batch: Any) -> str | None:
    """Say that a list of numbers, or an array, stands where labels do; None where that is not so."""
    labels = _get_labels(batch)
    is_list = isinstance(labels, list) and all(isinstance(label, Number) for label in labels)
    if not is_list and not isinstance(labels, np.ndarray):
        return None
    return f"Labels were not read, as they are a {type(labels).__name__}: pass a tensor."


def find_logits(output: Any) -> Tensor | None:
    """Find the tensor [N, ...] of an output."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        logits = logits.get("logits")
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    return logits if isinstance(logits, Tensor) and logits.dim() > 0 else None


def find_counted(labels: Tensor) -> Tensor:
    """Find which labels count: of images all; of positions those that are not negative or 255, which losses ignore."""
    if labels.dim() < 2:
        return torch.ones_like(labels, dtype=torch.bool)
    return (labels >= 0) & (labels != _IGNORED)


def describe_misfit(output: Any, labels: Tensor) -> str:
    """Say that labels cannot be compared with an output, and what to do."""

    def describe(tensor: Tensor) -> str:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"{list(tensor.shape)} of {kind}"

    logits = find_logits(output)
    reported = f"a {type(output).__name__}" if logits is None else describe(logits)
    return f"Labels {describe(labels)} cannot be compared with outputs {reported}: pass evaluate=."


def find_strangers(output: Any, labels: Tensor | None) -> Tensor | None:
    """Find which images have a label that counts and is no class of the output: bool [N]; None without classes."""
    logits = find_logits(output)
    if logits is None or labels is None or labels.is_floating_point() or logits.dim() < 2:
        return None
    is_strange = (labels < 0) | (labels >= max(2, logits.shape[1]))
    is_counted = is_strange & find_counted(labels)
    return is_counted.reshape(len(labels), -1).any(1)


def describe_strangers(strangers: Sequence[Tensor]) -> str | None:
    """Say how many images have labels that are no class; None where none has."""
    if not strangers:
        return None
    strange = torch.cat(list(strangers))
    count = int(strange.sum())
    if count == 0:
        return None
    return (
        f"The labels of {count:,} of {len(strange):,} images are no class of the outputs, and count as wrong: do "
        "classes begin at 0, and are these labels? Else pass evaluate=."
    )
