"""Tasks, which choose the objective: the loss that networks are trained with, and the metric of their predictions.

task=package.module.Class: a class or function of the user's. Classification is what networks do unless one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bnlab.harness.errors import UserError
from bnlab.harness.own import Own, call_own, own
from bnlab.harness.settings import Component, component

if TYPE_CHECKING:
    from bnlab.harness.artifacts.objectives import Objective


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
        from bnlab.harness.artifacts.objectives import CrossEntropy

        return CrossEntropy(label_smoothing)


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
