"""Objectives: the loss that networks are trained with, and the metric by which their predictions are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.errors import UserError

LabelledBatch = tuple[Tensor, Tensor]
"""Images [N, C, H, W] and their labels [N, ...]."""


class Objective(Protocol):
    """What a task is made of, also one of the user's.

    Attributes:
        name: of the metric, in figures.
        unit: of the metric, such as "mm"; empty: none.
        larger_is_better: whether a larger value of the metric is a better one.
    """

    name: str
    unit: str
    larger_is_better: bool

    def loss(self, output: Tensor, batch: LabelledBatch) -> Tensor:
        """Compute the loss of a batch, a number whose gradients train the network."""

    def metric(self, output: Tensor, batch: LabelledBatch) -> Tensor:
        """Compute the metric of each item of a batch, [N]; tables have means of it."""


@dataclass
class CrossEntropy:
    """The objective of classification, see `tasks.Classification`."""

    label_smoothing: float
    name: str = "accuracy"
    unit: str = ""
    larger_is_better: bool = True

    def loss(self, output: Tensor, batch: LabelledBatch) -> Tensor:
        _, labels = batch
        return F.cross_entropy(output, labels, label_smoothing=self.label_smoothing)

    def metric(self, output: Tensor, batch: LabelledBatch) -> Tensor:
        _, labels = batch
        is_right = output.argmax(1) == labels
        return is_right.double()


def compute_metric(objective: Objective, output: Tensor, batch: LabelledBatch) -> Tensor:
    """Compute the metric of each item, float64 [N]; UserError for values of another shape, as a broadcast gives."""
    values = objective.metric(output, batch)
    _, labels = batch
    if values.shape != labels.shape[:1]:
        raise UserError(
            f"the metric {objective.name!r} has to give a value of each item, [{len(labels)}], and gives "
            f"{list(values.shape)}"
        )
    return values.double()
