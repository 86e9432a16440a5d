"""Tasks: the loss that networks are trained with, and the metric by which their predictions are judged.

task=package.module.Class: a class or function of the user's. Classification is what networks do unless one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.components import Component, component
from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own

Batch = tuple[Tensor, Tensor]
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

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of a batch, a number whose gradients train the network."""

    def metric(self, output: Tensor, batch: Batch) -> Tensor:
        """Compute the metric of each item of a batch, [N]; tables have means of it."""


@dataclass(unsafe_hash=True)
class Task(Component):
    """A task: it builds the loss and the metric."""

    group: ClassVar[str] = "task"

    def build(self, label_smoothing: float = 0.0) -> Objective:
        """Build loss and metric; `label_smoothing` is for the loss of a training."""
        raise NotImplementedError


@component
@dataclass(unsafe_hash=True)
class Classification(Task):
    """Classification: the cross-entropy of logits [N, classes], and the share of images that are predicted right."""

    name: str = "classification"

    def build(self, label_smoothing: float = 0.0) -> Objective:
        return _CrossEntropy(label_smoothing)


@dataclass
class _CrossEntropy:
    label_smoothing: float
    name: str = "accuracy"
    unit: str = ""
    larger_is_better: bool = True

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        _, labels = batch
        return F.cross_entropy(output, labels, label_smoothing=self.label_smoothing)

    def metric(self, output: Tensor, batch: Batch) -> Tensor:
        _, labels = batch
        is_right = output.argmax(1) == labels
        return is_right.double()


def compute_metric(objective: Objective, output: Tensor, batch: Batch) -> Tensor:
    """Compute the metric of each item, float64 [N]; UserError for values of another shape, as a broadcast gives."""
    values = objective.metric(output, batch)
    _, labels = batch
    if values.shape != labels.shape[:1]:
        raise UserError(
            f"the metric {objective.name!r} has to give a value of each item, [{len(labels)}], and gives "
            f"{list(values.shape)}"
        )
    return values.double()


@own
@dataclass(eq=False)
class OwnTask(Own, Task):
    """The user's own: `name` is the import path of a class or function that makes an `Objective`."""

    @property
    def metric(self) -> str:
        """The metric's name, for the table `runs`."""
        return self.build().name

    @property
    def unit(self) -> str:
        """The metric's unit, for the table `runs`."""
        return self.build().unit

    @property
    def larger_is_better(self) -> bool:
        """The metric's direction, for the table `runs`."""
        return self.build().larger_is_better

    def build(self, label_smoothing: float = 0.0) -> Objective:
        objective: Objective = call_own("task", self.name, **self.arguments)
        needed = ("name", "unit", "larger_is_better", "loss", "metric")
        lacking = [name for name in needed if not hasattr(objective, name)]
        if lacking:
            raise UserError(f"task={self.name}: lacks {', '.join(lacking)}; a task has all of {', '.join(needed)}")
        return objective
