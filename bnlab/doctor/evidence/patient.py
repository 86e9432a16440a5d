"""A patient: a model with those of its images from which causes propose undos."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.examination import Examination
from bnlab.doctor.thresholds import NOT_AFFINE
from bnlab.doctor.undo import Change, change_images
from bnlab.exact.task import watched
from bnlab.model.batches import list_tensors, take_images
from bnlab.model.borrow import measured
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics

_FEW = 8  # images whose first layer shows how it answers to a change of them
_MOST_COLOURS = 8  # of which each gets a shift of its own


@dataclass(frozen=True)
class Answer:
    """How the first layer's input answers to a change of the images, which it does affinely.

    Attributes:
        at_zero: its mean [C] on images that are 0.
        slopes: the change of its mean [K, C] where a colour is larger by 1.
        colours: K, channels of the images; 1 where these are no images, and all of it is larger by 1.
    """

    at_zero: Tensor
    slopes: Tensor
    colours: int


@dataclass(frozen=True)
class Patient:
    """A model and a part of its images.

    Attributes:
        case: all that is known of it, from all images.
        examination: how it is called.
        data: the batches of this part.
        exact: exact statistics of these.
    """

    case: Case
    examination: Examination
    data: Sequence[Any]
    exact: Statistics

    @property
    def first(self) -> str:
        """The layer that data reaches first."""
        return next(iter(self.exact))

    @cached_property
    def fits_first(self) -> bool:
        """Whether the first layer's averages fit these images, so that nothing was done to these."""
        return not self.case.clearly_differs(self.first)

    @cached_property
    def answer(self) -> Answer | None:
        """How the first layer answers to a change of the images; None where it does not answer affinely."""
        batch = take_images(self.data[0], _FEW)
        images = next((each for each in list_tensors(batch) if each.is_floating_point() and each.dim() > 1), None)
        if images is None or self.first not in self.case.layers:
            return None
        colours = images.shape[1] if images.dim() == 4 else 1
        if colours > _MOST_COLOURS:
            colours = 1

        changes: list[Change] = [torch.clone, torch.zeros_like, shift_colour(0, colours, 2.0)]
        changes += [shift_colour(number, colours, 1.0) for number in range(colours)]
        means = []
        for change in changes:
            moments = self._measure_first([batch], change)
            if moments is None:
                return None
            means.append(moments.mean)
        as_is, at_zero, twice, *more = means
        slopes = torch.stack([mean - as_is for mean in more])
        again = twice - as_is
        size = slopes[0].abs().max()
        if not size > 0 or float((again - 2 * slopes[0]).abs().max()) > NOT_AFFINE * float(size):
            return None  # it does not answer affinely, or not at all: what is called goes past the model
        return Answer(at_zero, slopes, colours)

    def read_exact(self, name: str) -> Tensor:
        """Read a layer's exact mean and variance [2, C]."""
        moments = self.exact[name]
        return torch.stack((moments.mean, moments.var))

    def measure_first(self, change: Change) -> Moments | None:
        """Measure what the first layer is given of these images, changed; None where it is not reached."""
        return self._measure_first(self.data, change)

    @cached_property
    def first_as_is(self) -> Moments | None:
        """What the first layer is given of these images, as they are; None where it is not reached."""
        return self._measure_first(self.data, None)

    def explain(self, averages: Mapping[str, Tensor]) -> float:
        """Measure which share of the gap of layers is gone with other averages [2, C]: 1 all, 0 none."""
        before = 0.0
        after = 0.0
        changed = replace(self.case, buffers={**self.case.buffers, **averages})
        for name in averages:
            before += self.case.measure_distance(name, self.exact) ** 2
            after += changed.measure_distance(name, self.exact) ** 2
        return 1 - math.sqrt(after / before) if before > 0 else 0.0

    def explain_first(self, change: Change) -> float:
        """Measure which share of the first layer's gap is gone on images that are changed: 1 all, 0 none."""
        now = self.first_as_is
        changed = self.measure_first(change)
        if now is None or changed is None:
            return 0.0
        eps = {self.first: self.case.layers[self.first].eps}
        before = self.case.measure_distance(self.first, Statistics({self.first: now}, eps))
        after = self.case.measure_distance(self.first, Statistics({self.first: changed}, eps))
        return 1 - after / before if before > 0 else 0.0

    def _measure_first(self, data: Sequence[Any], change: Change | None) -> Moments | None:
        """Run batches up to the first call of the first layer, and pool what it is given there."""
        examination = self.examination
        task = examination.make_task(list(data))
        layer = self.case.layers[self.first]
        parts = []

        def take(_: str, x: Tensor) -> None:
            parts.append(task.reader.measure(x))
            raise _LayerReached

        with measured(task.model), ExitStack() as stack, watched(task, {self.first: layer}, take):
            if change is not None:
                change_images(change)(task.model, stack)
            try:
                for batch in task.data:
                    with contextlib.suppress(_LayerReached):
                        task.evaluate(batch)
                if not parts:
                    return None
                return task.fetch({self.first: task.reader.pool(parts, [])})[self.first]
            except Exception:  # a model that takes no other images may raise anything, or divide by their 0
                if change is None:
                    raise
                return None


def shift_colour(number: int, colours: int, size: float) -> Change:
    """Make what adds a number to one colour of images [..., colours, H, W], or to all where there is one colour."""
    if colours == 1:
        return lambda images: images + size
    shift = torch.zeros(colours, 1, 1)
    shift[number] = size
    return lambda images: images + shift.to(images)


class _LayerReached(BaseException):
    """The end of a forward. It is no `Exception`, which the model or `forward=` might catch."""
