"""How a model is examined, on batches that are read once, and what was measured on these."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.doctor.evidence.labels import Labels, choose_part, is_numbered, read_labels
from bnlab.doctor.evidence.observing import View
from bnlab.doctor.evidence.scores import Difference, Scores
from bnlab.exact.population import population_statistics
from bnlab.exact.source import Source
from bnlab.exact.task import Ranks, Task, watched
from bnlab.model.batches import Forward, call, copy_batch, count_images, find_device, map_batch, take_images
from bnlab.model.borrow import keep_random_state, measured
from bnlab.model.layers import BatchNorm, Extract, Inputs, batch_norm_layers, get_running_buffers, unwrap_parallel
from bnlab.model.reading import choose_reader
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics, using

CALLER = "diagnose"
_FEW = 64  # images by which the output that is scored is chosen


@dataclass(frozen=True)
class Examination:
    """How a model is examined: what the caller was given.

    Attributes:
        model: the caller's model.
        layers: its batch norms with running statistics.
        forward: called with the model and a batch; the caller's, or the usual one.
        inputs: what layers with a forward of their own normalize, as `population_statistics` takes it.
        device: where batches are moved to.
        progress: whether bars are shown.
        caller: the public call that examines, for messages.
        ranks: the processes whose data are measured and scored together; all else is this process's own.
        labels: called with a batch, returns its labels; None: they are looked for.
        part: number of the output that is scored, of several.
    """

    model: nn.Module
    layers: Mapping[str, BatchNorm]
    forward: Forward
    inputs: Mapping[Any, Extract] | None
    device: torch.device
    progress: bool | None
    caller: str
    ranks: Ranks
    labels: Labels | None = None
    part: int = 0

    @staticmethod
    def of(
        model: nn.Module,
        layers: Mapping[str, BatchNorm],
        forward: Forward | None,
        inputs: Mapping[Any, Extract] | None,
        progress: bool | None,
        caller: str = CALLER,
        group: Any = None,
        labels: Labels | None = None,
    ) -> Examination:
        """Make an examination on the model's own device; by the processes of a group together, where one is given.

        A model whose averages have overflown float16, as its activations would too, is examined in a float32 copy.
        """
        if any(has_overflown(layer) for layer in layers.values()):
            model, forward = _widen(model, forward)
            layers = batch_norm_layers(model, caller=caller)
        device = find_device(model, None, caller)
        return Examination(
            model, layers, _name_call(forward), inputs, device, progress, caller, Ranks(group, caller), labels
        )

    def alone(self) -> Examination:
        """Return the same examination by this process alone, of its own data."""
        return replace(self, ranks=Ranks(None, self.caller))

    @property
    def root(self) -> nn.Module:
        """The model without what wraps it to run on several devices: this is called."""
        return unwrap_parallel(self.model)

    def read(self, batches: Iterable[Any], max_images: int | None) -> list[Any]:
        """Read this process's batches once and keep them, until they are so many images.

        Raises:
            ValueError: there are none, one is empty, or they take more than half of the free memory; of any process.
        """
        data: list[Any] = []

        def read() -> None:
            with keep_random_state():
                Source(batches, count_images, self.caller).read(data, max_images)
            if not data:
                advice = "pass at least one batch (an iterator is used up once read)"
                raise ValueError(f"{self.caller}: batches is empty; {advice}")

        self.ranks.run_together(read)
        return data

    def make_task(self, data: list[Any]) -> Task:
        """Make the task of watching the layers while batches are run."""
        ranks = Ranks(None, self.caller)
        reader = choose_reader(self.device, ranks.is_alone)
        inputs = Inputs(self.layers, self.inputs, self.caller)
        return Task(self.root, self.layers, self.forward, self.device, data, ranks, inputs, reader)

    def measure(self, data: Iterable[Any], **options: Any) -> Statistics:
        """Measure exact statistics, with further options of `population_statistics`."""
        return population_statistics(
            self.model,
            data,
            forward=self.forward,
            inputs=self.inputs,
            progress=self.progress,
            group=self.ranks.group,
            **options,
        )

    def measure_under(self, data: list[Any], given: Statistics) -> Statistics:
        """Measure what layers are given under given statistics: one pass, however often each of them is called."""
        task = self.make_task(data)
        parts: dict[str, list[Any]] = {}

        def take(name: str, x: Tensor) -> None:
            parts.setdefault(name, []).append(task.reader.measure(x))

        with using(self.model, given), measured(task.model), watched(task, task.layers, take):
            task.run_all()

        pooled = {}
        eps = {}
        for name, calls in parts.items():
            pooled[name] = task.ranks.merge(task.reader.pool(calls, []))
            eps[name] = self.layers[name].eps
        moments = task.fetch(pooled)
        return Statistics(moments, eps)

    def run(self, batch: Any) -> Any:
        """Run a copy of a batch, on this device alone, as other processes may have fewer; return what is scored."""
        return self.select(self.forward(self.root, copy_batch(batch, self.device)))

    def select(self, output: Any) -> Any:
        """Select the output that is scored, where there are several."""
        has_several = isinstance(output, (tuple, list)) and len(output) > self.part > 0
        return output[self.part] if has_several else output

    def find_labels(self, batch: Any) -> Tensor | None:
        """Find the labels of a batch."""
        return read_labels(batch, self.labels, self.caller)

    def choose_part(self, data: Sequence[Any]) -> Examination:
        """Choose which output is scored: a forward of two images, and one of more if it returns several."""
        if self.find_labels(data[0]) is None:
            return self
        for count in (2, _FEW):
            batch = take_images(data[0], count)
            try:
                with measured(self.model):
                    output = self.forward(self.root, copy_batch(batch, self.device))
            except Exception:  # what is wrong will be said of a whole batch
                return self
            if not isinstance(output, (tuple, list)) or len(output) < 2:
                return self
        labels = self.find_labels(batch)
        return self if labels is None else replace(self, part=choose_part(output, labels))


@dataclass(frozen=True)
class Decisions:
    """How predictions under running averages differ from those under exact statistics, where there are no labels.

    Attributes:
        cost: what the difference costs in accuracy, if the predicted probabilities are right. Value and lower end are
            beyond what chance explains.
        differing: share of the images that get another class.
    """

    cost: Difference
    differing: float


@dataclass(frozen=True)
class Evidence:
    """What was measured on the data.

    Attributes:
        exact: exact statistics of the images, each layer under its population's.
        view: what the layers saw batch by batch.
        scores: of the images, under running, exact and batch statistics; None without labels and `evaluate`.
        images: number of images.
        decisions: how predictions differ, where there are no scores; None where outputs name no classes.
        dropped: pooled variance [C] of layers with dropout on, over that with dropout off; empty where there is none.
        plain: exact statistics without `inputs=`, where that was given.
        twice: how predictions of a few images differ between two runs of a batch, in units of the outputs' spread; NaN
            where outputs cannot be compared, or change together with buffers.
        alone: the same between images alone and inside of a batch; NaN where images cannot be run alone too.
        evaluated: moments of two groups of the calls of `evaluate`, by layer, see `CallLog.group`; empty without it.
        by_batch: how predictions of a few images differ from those of the same images in a larger batch, batch norms
            being in the mode in which the caller left them; NaN where none is in train mode.
        unread: layer → those of mean, variance, weight and bias that its forward in eval mode does not read.
        deviations: layer with a forward of its own → how this differs from the formula in eval mode.
        fills: zeros, ones or noise, in words → what layers would average of them, [2, C] by layer; empty where all
            averages fit.
        warnings: what measuring the exact statistics warned of.
        misfit: why labels could not be compared with the outputs; None where they could, or there are none.
    """

    exact: Statistics
    view: View
    scores: Scores | None
    images: int
    decisions: Decisions | None = None
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    plain: Statistics | None = None
    twice: float = math.nan
    alone: float = math.nan
    evaluated: Mapping[str, Sequence[Moments]] = field(default_factory=dict)
    by_batch: float = math.nan
    unread: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deviations: Mapping[str, Any] = field(default_factory=dict)
    fills: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    misfit: str | None = None


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run the default forward; of (index, images, labels) with the images."""
    return model(batch[1]) if is_numbered(batch) else call(model, batch)


def _name_call(forward: Forward | None) -> Forward:
    """Make a forward of which an error says how the model was called."""

    def run(model: nn.Module, batch: Any) -> Any:
        try:
            return call_model(model, batch) if forward is None else forward(model, batch)
        except Exception as error:
            if not getattr(error, "__notes__", None):
                given = "forward= was called with the model and" if forward is not None else "the model was called with"
                error.add_note(f"{given} {_describe_batch(batch, is_whole=forward is not None)}")
            raise

    return run


def _describe_batch(batch: Any, *, is_whole: bool) -> str:
    """Describe what a forward was given: all of a batch, or the part that the usual forward takes."""
    if not is_whole and isinstance(batch, (tuple, list)) and batch:
        number = 1 if is_numbered(batch) else 0
        return f"batch[{number}], {_describe_batch(batch[number], is_whole=True)}"
    if isinstance(batch, Tensor):
        return f"a tensor {list(batch.shape)} of {str(batch.dtype).removeprefix('torch.')}"
    advice = "; pass tensors" if isinstance(batch, np.ndarray) else ""
    return f"a {type(batch).__name__}{advice}"


def has_overflown(layer: BatchNorm) -> bool:
    """Return whether a variance is infinite because its type, float16, holds nothing above 65,504."""
    _, var = get_running_buffers(layer)
    return var.dtype == torch.float16 and bool(var.isinf().any()) and not bool(var.isnan().any())


def _widen(model: nn.Module, forward: Forward | None) -> tuple[nn.Module, Forward]:
    """Copy a model to float32, with a forward that takes the batches of the one in float16."""
    run = forward or call

    def widen(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.float16 else leaf

    def run_in_float32(model: nn.Module, batch: Any) -> Any:
        return run(model, map_batch(widen, batch))

    return copy.deepcopy(model).float(), run_in_float32
