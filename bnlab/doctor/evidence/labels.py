"""Labels of batches, the outputs that they are compared with, and what is said where the two do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnlab.model.batches import count_images, is_dense

_IGNORED = 255  # label of positions that do not count, as torchvision's and Pascal VOC's masks have it


KEYS = ("labels", "label", "targets", "target", "y")
"""What a dictionary may call its labels; the first that is there counts."""

Labels = Callable[[Any], Any]
"""Called with a batch; returns its labels."""


def require_labels(labels: object, caller: str) -> None:
    """TypeError unless it is None or can be called."""
    if labels is not None and not callable(labels):
        raise TypeError(f"{caller}: labels is a {type(labels).__name__}; pass a function of a batch")


def read_labels(batch: Any, labels: Labels | None, caller: str) -> Tensor | None:
    """Read the labels of a batch by the caller's function; without one see `find_labels`.

    Raises:
        TypeError: the function returns no tensor with a label for each image.
    """
    if labels is None:
        return find_labels(batch)
    returned = labels(batch)
    if not isinstance(returned, Tensor) or returned.dim() == 0:
        kind = "a number" if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
        raise TypeError(f"{caller}: labels= returned {kind}; return a tensor with a label for each image")
    return returned


def require_as_many_labels(output: Any, labels: Tensor, caller: str) -> None:
    """ValueError if the caller's function has returned another number of labels than there are outputs."""
    logits = find_logits(output)
    if logits is not None and len(logits) != len(labels):
        raise ValueError(
            f"{caller}: labels= returned {len(labels)} labels for {len(logits)} outputs; return a label for each"
        )


def find_labels(batch: Any) -> Tensor | None:
    """Find the labels of a batch: what it calls by one of `KEYS`, or the second part of a tuple or list.

    Of (images, anything, labels) and (index, images, labels) the third, where the second is no label for each image.
    """
    labels = _get_labels(batch)
    return labels if isinstance(labels, Tensor) and labels.dim() > 0 else None


def _get_labels(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in KEYS if key in batch), None)
    named = next((getattr(batch, key) for key in KEYS if hasattr(batch, key)), None)
    if named is not None:  # of a named tuple, say
        return named
    return batch[find_part(batch)] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def find_part(batch: Sequence[Any]) -> int:
    """Find the number of the part of a tuple or list that looks like its labels: 1, or 2."""
    if len(batch) != 3:
        return 1
    # Labels are usually second, so the third part is taken only where the second cannot be labels.
    is_third = not _is_one_for_each(batch[0], batch[1]) and _are_classes(batch[0], batch[2])
    return 2 if is_numbered(batch) or is_third else 1


def list_parts(batch: Any) -> list[int]:
    """List the numbers of the parts of a batch that may be its labels.

    Empty where labels are found by their name, of a pair, and of (index, images, labels).
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 3 or is_numbered(batch):
        return []
    if any(hasattr(batch, key) for key in KEYS):
        return []
    images = count_images(batch)
    # The first part is what the model is called with.
    return [number for number in range(1, len(batch)) if _is_for_each(batch[number], images)]


def _is_for_each(part: Any, images: int) -> bool:
    """Return whether a part is a tensor of numbers with one, or several, for each image."""
    if not isinstance(part, Tensor) or not is_dense(part) or part.is_complex():
        return False
    return part.dim() > 0 and len(part) == images


def is_numbered(batch: Any) -> bool:
    """Return whether a batch is (index, images, labels): distinct whole numbers, then images, then whole numbers."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 3:
        return False
    index, images, labels = batch
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2:
        return False
    # An index has distinct numbers; class labels in its place would repeat.
    return _are_classes(images, index) and len(index.unique()) == len(index) and _are_classes(images, labels)


def _is_one_for_each(images: Any, part: Any) -> bool:
    """Return whether a part is a tensor, or a list or array that stands where labels do, as long as the images."""
    if isinstance(part, (np.ndarray, Tensor)):
        # Images that are no tensor have no length to compare with.
        return not isinstance(images, Tensor) or (part.ndim > 0 and len(part) == len(images))
    return _are_numbers(part)


def _are_classes(images: Any, part: Any) -> bool:
    """Return whether a part is a whole number for each image."""
    if not isinstance(part, Tensor) or part.dim() != 1 or part.is_floating_point() or part.is_complex():
        return False
    return isinstance(images, Tensor) and len(part) == len(images)


def _are_numbers(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) > 0 and all(isinstance(label, Number) for label in part)


def name_unread(batch: Any) -> str | None:
    """Name the type of an array, or a list of numbers or names, that stands where labels do; None without."""
    labels = _get_labels(batch)
    are_names = isinstance(labels, (list, tuple)) and len(labels) > 0 and all(isinstance(name, str) for name in labels)
    if not are_names and not _are_numbers(labels) and not isinstance(labels, np.ndarray):
        return None
    return type(labels).__name__


def describe_unread(batch: Any) -> str | None:
    """Say that labels were not read, and what to do; None where nothing stands in their place."""
    kind = name_unread(batch)
    return None if kind is None else f"Labels were not read, as they are a {kind}: pass a tensor of class numbers."


def find_logits(output: Any) -> Tensor | None:
    """Find the tensor [N, ...] of an output; on the CPU where its device has no float64, in which it is scored."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        logits = logits.get("logits")
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        return None
    return logits.cpu() if logits.device.type == "mps" else logits


def choose_part(output: Any, labels: Tensor) -> int:
    """Choose which of several outputs names classes: the number of the first one that predicts the labels.

    Another one than the first takes its place if it is narrower, has enough classes for all labels, and does not
    predict worse: features are wider than what names classes.

    Args:
        output: of the model.
        labels: whole numbers [N].
    """
    parts = list(output) if isinstance(output, (tuple, list)) else []
    if labels.is_floating_point() or labels.dim() != 1:
        return 0
    naming = [number for number, part in enumerate(parts) if _names_classes(part, labels)]
    if not naming:
        return 0
    chosen = naming[0]
    for number in naming:
        is_narrower = parts[number].shape[1] < parts[chosen].shape[1]
        if is_narrower and _count_right(parts[number], labels) >= _count_right(parts[chosen], labels):
            chosen = number
    return chosen


def _names_classes(part: Any, labels: Tensor) -> bool:
    """Return whether a part of an output is [N, classes], with a class for each label; one column tells two apart."""
    is_table = isinstance(part, Tensor) and part.is_floating_point() and part.dim() == 2 and len(part) == len(labels)
    return is_table and max(2, part.shape[1]) > int(labels.max())


def _count_right(part: Tensor, labels: Tensor) -> int:
    if part.shape[1] > 1:
        named = part.argmax(1)
    else:
        # One column is the logit, or the share, of the second of two classes.
        line = 0.5 if has_only_shares(part) else 0.0
        named = (part[:, 0] > line).long()
    return int((named == labels.to(part.device)).sum())


def has_only_shares(values: Tensor) -> bool:
    """Return whether all values lie between 0 and 1."""
    return bool(((values >= 0) & (values <= 1)).all())


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


def describe_only_class(number: int | None) -> str | None:
    """Say that all labels are of this class, which nothing can be judged by; None without one."""
    if number is None:
        return None
    return f"All labels are class {number}, by which nothing can be judged: pass shuffled batches, or all of them."


def find_out_of_range_labels(output: Any, labels: Tensor | None) -> Tensor | None:
    """Find which images have a label that counts and is no class of the output: bool [N]; None without classes."""
    logits = find_logits(output)
    if logits is None or labels is None or labels.is_floating_point() or logits.dim() < 2:
        return None
    # A single column tells two classes apart.
    classes = max(2, logits.shape[1])
    is_out_of_range = (labels < 0) | (labels >= classes)
    is_wrong = is_out_of_range & find_counted(labels)
    return is_wrong.reshape(len(labels), -1).any(1)


def describe_out_of_range(parts: Sequence[Tensor]) -> str | None:
    """Say how many images have labels that are no class, as `find_out_of_range_labels` has found them batch by batch.

    None where none has.
    """
    if not parts:
        return None
    is_out_of_range = torch.cat(list(parts))
    count = int(is_out_of_range.sum())
    if count == 0:
        return None
    return (
        f"The labels of {count:,} of {len(is_out_of_range):,} images are no class of the outputs, and count as wrong: "
        "do classes begin at 0, and are these labels? Else pass evaluate=."
    )
