"""What the first layer is given where the images are changed: what was done to these shows there first."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bnlab.common.precision import widen
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import NOT_AFFINE
from bnlab.doctor.undo import Change, change_images
from bnlab.exact.task import watched
from bnlab.model.batches import list_tensors, take_images
from bnlab.model.borrow import measured
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics

_FEW = 8  # images whose first layer shows how it responds to a change of them
_MOST_COLOURS = 8  # of which each gets a shift of its own


@dataclass(frozen=True)
class Response:
    """How the first layer's input responds to a change of the images, which it does affinely.

    Attributes:
        at_zero: its mean [C] on images that are 0.
        slopes: the change of its mean [K, C] where a colour is larger by 1.
        colours: K, channels of the images; 1 where these are no images, and all of it is larger by 1.
    """

    at_zero: Tensor
    slopes: Tensor
    colours: int


class FirstLayer:
    """The layer that the images of a case's fold reach first.

    Attributes:
        name: the layer's.
    """

    def __init__(self, case: Case) -> None:
        assert case.task is not None
        self._case = case
        self._task = case.task
        self.name = case.first

    @cached_property
    def response(self) -> Response | None:
        """How the first layer responds to a change of the images; None where it does not respond affinely."""
        batch = take_images(self._task.data[0], _FEW)
        images = next((each for each in list_tensors(batch) if each.is_floating_point() and each.dim() > 1), None)
        if images is None or self.name not in self._case.layers:
            return None
        colours = images.shape[1] if images.dim() == 4 else 1
        if colours > _MOST_COLOURS:
            colours = 1

        # Shifts are about as large as the images: half precision rounds a smaller one away, as of 1 beside 255. A power
        # of two is added and divided by exactly.
        size_of_images = float(widen(images.detach()).square().mean().sqrt())
        shift = 2.0 ** round(math.log2(size_of_images)) if 0 < size_of_images < math.inf else 1.0

        # If the response is affine, the first colour shifted twice as far has twice the effect.
        changes: list[Change] = [torch.clone, torch.zeros_like, shift_colour(0, colours, 2 * shift)]
        changes += [shift_colour(number, colours, shift) for number in range(colours)]
        means = []
        for change in changes:
            moments = self._measure([batch], change)
            if moments is None:
                return None
            means.append(moments.mean)
        as_is, at_zero, twice, *more = means
        slopes = torch.stack([mean - as_is for mean in more])
        again = twice - as_is
        size = slopes[0].abs().max()
        if not size > 0 or float((again - 2 * slopes[0]).abs().max()) > NOT_AFFINE * float(size):
            return None  # it does not respond affinely, or not at all: what is called goes past the model
        return Response(at_zero, slopes / shift, colours)

    def measure(self, change: Change) -> Moments | None:
        """Measure what the first layer is given of these images, changed; None where it is not reached."""
        return self._measure(self._task.data, change)

    @cached_property
    def as_is(self) -> Moments | None:
        """What the first layer is given of these images, as they are; None where it is not reached."""
        return self._measure(self._task.data, None)

    def explain(self, change: Change) -> float:
        """Measure which share of the first layer's gap is gone on images that are changed: 1 all, 0 none."""
        now = self.as_is
        changed = self.measure(change)
        if now is None or changed is None:
            return 0.0
        eps = {self.name: self._case.layers[self.name].eps}
        # Each in the σ of its own images: those that are changed have training's σ if the change is right.
        before = self._case.measure_distance(self.name, Statistics({self.name: now}, eps))
        after = self._case.measure_distance(self.name, Statistics({self.name: changed}, eps))
        return 1 - after / before if before > 0 else 0.0

    def _measure(self, data: Sequence[Any], change: Change | None) -> Moments | None:
        """Run batches up to the first call of the first layer, and pool what it is given there."""
        task = self._task.on(data)
        layer = self._case.layers[self.name]
        parts = []

        def take(_: str, x: Tensor) -> None:
            parts.append(task.reader.measure(x))
            # What comes after the first layer would take most of the time, and is not needed.
            raise _LayerReached

        with measured(task.root), ExitStack() as stack, watched(task, {self.name: layer}, take):
            if change is not None:
                change_images(change)(task.root, stack)
            try:
                for batch in task.data:
                    with contextlib.suppress(_LayerReached):
                        task.evaluate(batch)
                if not parts:
                    return None
                return task.fetch({self.name: task.reader.pool(parts)})[self.name]
            except Exception:  # a model that takes no other images may raise anything, or divide by their 0
                # Unchanged images have been run before, so that an error of theirs is not to be passed over.
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
