"""The layer that data reaches first, measured on changed images by forwards that end there.

Changed images are compared by this layer alone, so that whole forwards of them would be for nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.borrow import measured
from bnlab.doctor.examination import Examination
from bnlab.doctor.observing import View
from bnlab.exact.population import population_statistics
from bnlab.exact.task import Task, watched
from bnlab.inputs import Values
from bnlab.layers import BatchNorm
from bnlab.statistics import Statistics


@dataclass(frozen=True)
class FirstLayer:
    """The layer that data reaches first.

    Attributes:
        examination: of its model.
        name: of the layer.
        is_called_once: whether each forward calls it once. What it is given in later calls may depend on its own
            statistics.
    """

    examination: Examination
    name: str
    is_called_once: bool

    @staticmethod
    def of(examination: Examination, name: str, view: View) -> FirstLayer:
        """Make it; a view of the images that will be changed says whether each forward calls it once."""
        layer_view = view.layers.get(name)
        is_called_once = layer_view is not None and len(layer_view.calls) == 1
        return FirstLayer(examination, name, is_called_once)

    @property
    def layer(self) -> BatchNorm:
        """The layer itself."""
        return self.examination.layers[self.name]

    def measure(self, data: Sequence[Any]) -> Statistics:
        """Measure its exact statistics of batches, on this device alone.

        Raises:
            ValueError: what it is given is not finite, or has no variance.
        """
        examination = self.examination
        if self.is_called_once:
            return _measure_first_call(examination.make_task(list(data)), self.name)
        return population_statistics(
            examination.model, data, forward=examination.forward, layers=[self.name], progress=False
        )


class _LayerReached(BaseException):
    """The end of a forward. It is no `Exception`, which the model or `forward=` might catch."""


def _measure_first_call(task: Task, name: str) -> Statistics:
    """Run each batch up to the first call of a layer, and pool what it is given there."""
    parts = []

    def take(_: str, values: Values) -> None:
        parts.append(task.reader.read_exactly(values.x))
        raise _LayerReached

    layer = task.layers[name]
    with measured(task.model), watched(task, {name: layer}, take):
        for batch in task.data:
            with contextlib.suppress(_LayerReached):
                task.evaluate(batch)
    moments = task.fetch({name: task.reader.pool(parts, [])})
    return Statistics(moments, {name: layer.eps})
