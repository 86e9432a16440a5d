"""Scores of images: by a metric of the caller's, by labels, or by another evaluation's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.common.scores import read_values

CALLER = "diagnose"
_FARTHEST = 100.0  # an output that is farther off, in variances of the reference, counts as this
_LEAST = -10.0  # log-likelihood of a label: one that is named surely and wrongly is no worse

Metric = Callable[[Any, Any], Any]
"""`metric(output, batch)` returns a value for each image [N], higher is better."""


@dataclass(frozen=True)
class Scores:
    """Scores of the same images, float64 [N].

    Attributes:
        values: what is to be brought back, such as whether an image is named rightly.
        likelihoods: a finer measure by which changes are compared, such as the log-likelihood of the label; the values
            where there is none.
    """

    values: Tensor
    likelihoods: Tensor

    @staticmethod
    def of_metric(returned: Any, function: str = "metric") -> Scores:
        """Read what a caller's metric has returned, or another function of this name."""
        values = read_values(returned, CALLER, must_be_finite=False, function=function)
        values = values.nan_to_num(nan=-torch.inf).clamp(min=torch.finfo(torch.float32).min)
        return Scores(values, values)

    @staticmethod
    def empty() -> Scores:
        """Make scores of no images."""
        none = torch.empty(0, dtype=torch.float64)
        return Scores(none, none)

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Put the scores of batches behind each other."""
        if not parts:
            return Scores.empty()
        return Scores(torch.cat([part.values for part in parts]), torch.cat([part.likelihoods for part in parts]))

    @property
    def are_shares(self) -> bool:
        """Whether all values lie between 0 and 1, as those of accuracy do."""
        return bool(((self.values >= 0) & (self.values <= 1)).all())


def score_labels(output: Any, batch: Any) -> Scores:
    """Score by labels: whether they are named, and their log-likelihood; numbers by their squared distance.

    Raises:
        ValueError: labels and output do not belong together; the message shows a metric to pass.
    """
    logits = find_logits(output)
    labels = find_labels(batch)
    reason = "do not name classes"
    if isinstance(labels, Tensor) and isinstance(logits, Tensor):
        labels = labels.to(logits.device)
        is_one_number = len(logits) > 0 and logits[0].numel() == 1
        if labels.is_floating_point() and labels.numel() == logits.numel() and is_one_number:
            # Yes and no look like numbers, too, as shares of classes do: what is right is the caller's to say.
            if not _are_yes_or_no(labels):
                return _score_numbers(logits, labels)
            reason = "are yes or no"
        elif not labels.is_floating_point() and logits.dim() == labels.dim() + 1 and logits.shape[1] > 1:
            labels = labels.long()
            if _are_classes(labels, logits.shape[1]):
                return _score_classes(logits, labels)
            reason = f"go from {int(labels.min())} to {int(labels.max())}"
    raise ValueError(
        f"{CALLER}: labels {_describe(labels)} {reason}, of outputs {_describe(logits)}; pass a metric that returns a "
        "value for each image, higher is better, such as "
        "metric=lambda output, batch: (output.argmax(1) == batch[1]).float(), or "
        "metric=lambda output, batch: ((output.flatten() > 0) == (batch[1].flatten() > 0)).float()"
    )


def _are_yes_or_no(labels: Tensor) -> bool:
    return bool((labels == 1).any()) and bool(((labels == 0) | (labels == 1) | (labels == -1)).all())


def _are_classes(labels: Tensor, classes: int) -> bool:
    """Return whether all labels name a class; of pixels some may be left out, by 255 or a label below 0."""
    is_left_out = (labels < 0) | (labels == 255) if labels.dim() > 1 else torch.zeros_like(labels, dtype=torch.bool)
    return bool((((labels >= 0) & (labels < classes)) | is_left_out).all())


def _score_numbers(outputs: Tensor, labels: Tensor) -> Scores:
    distances = (outputs.reshape(labels.shape) - labels).double().square()
    values = -distances.reshape(len(labels), -1).mean(1).cpu().nan_to_num(nan=torch.finfo(torch.float32).max)
    return Scores(values, values)


def _score_classes(logits: Tensor, labels: Tensor) -> Scores:
    """Score labels [N] or, of pixels, [N, ...], by logits [N, C] or [N, C, ...]."""
    likelihood = logits.double().log_softmax(1).nan_to_num(nan=_LEAST).clamp(min=_LEAST)
    known = (labels >= 0) & (labels < logits.shape[1])
    chosen = labels.where(known, 0)
    likelihoods = likelihood.gather(1, chosen[:, None]).squeeze(1)
    right = (logits.argmax(1) == labels).double()
    if labels.dim() == 1:
        return Scores(right.cpu(), likelihoods.cpu())

    # Each class in an image counts alike, so that background does not hide a lost foreground.
    members = torch.nn.functional.one_hot(chosen, logits.shape[1]).movedim(-1, 1) * known[:, None]
    members = members.flatten(2).double()
    sizes = members.sum(2)
    present = sizes > 0
    by_class = (members * right[:, None].flatten(2)).sum(2) / sizes.clamp(min=1)
    finer = (members * likelihoods[:, None].flatten(2)).sum(2) / sizes.clamp(min=1)
    classes = present.sum(1).clamp(min=1)
    return Scores((by_class.sum(1) / classes).cpu(), (finer.sum(1) / classes).cpu())


def compare_outputs(output: Any, reference: Any) -> Scores:
    """Score by how near an output is to another evaluation's, which is taken for right.

    Of classes [N, C] it is what naming another one costs by the reference's own probabilities, taken from 1; of all
    others the share of the reference's variance that agrees.
    """
    if not isinstance(find_logits(reference), Tensor):
        raise ValueError(
            f"{CALLER}: without labels outputs are compared, and these are no tensors but {_describe(reference)}; pass "
            "a metric that returns a value for each image, or a forward that returns a tensor"
        )
    logits, goal = find_logits(output).double().cpu(), find_logits(reference).double().cpu()
    if goal.dim() == 2 and goal.shape[1] > 1:
        return _compare_classes(logits, goal)
    spread = goal.var(0, correction=0).mean().clamp(min=1e-12)
    distance = (logits - goal).square().reshape(len(goal), -1).mean(1) / spread
    distance = distance.nan_to_num(nan=_FARTHEST).clamp(max=_FARTHEST)
    return Scores(1 - distance.clamp(max=1), -distance)


def _compare_classes(logits: Tensor, goal: Tensor) -> Scores:
    believed = goal.softmax(1).nan_to_num()
    named = logits.nan_to_num(nan=-torch.inf).argmax(1)
    cost = believed.amax(1) - believed.gather(1, named[:, None]).squeeze(1)
    likelihood = logits.log_softmax(1).nan_to_num(nan=_LEAST).clamp(min=_LEAST)
    return Scores(1 - cost, (believed * likelihood).sum(1))


def find_labels(batch: Any) -> Any:
    """Find labels: the second part of a tuple or list, or what a dictionary calls labels; None without."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def find_images(batch: Any) -> Tensor | None:
    """Find the floating-point input: the first part of a tuple or list, or the first of a dictionary with two axes."""
    images = batch
    if isinstance(batch, Mapping):
        images = next((part for part in batch.values() if isinstance(part, Tensor) and part.dim() > 1), None)
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    return images if isinstance(images, Tensor) and images.is_floating_point() else None


def relabel(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with other labels."""
    if isinstance(batch, Mapping):
        return {**batch, "labels": change(batch["labels"])}
    return (batch[0], change(batch[1]), *batch[2:])


def find_logits(output: Any) -> Any:
    """Find the tensor that is scored: the output, what a dictionary calls logits, or the first of several."""
    if isinstance(output, Mapping):
        return output.get("logits", output.get("out"))
    if isinstance(output, (tuple, list)):
        return output[0]
    return getattr(output, "logits", output)


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
