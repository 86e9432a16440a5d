"""A patient: a model with the images that it is asked about, scored as it is and under any change.

`Patient.run` is the one loop over data. It scores each image, and notes what the layers normalize.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.scores import Metric, Scores, compare_outputs, find_labels, find_logits, relabel, score_labels
from bnlab.exact.population import population_statistics
from bnlab.model.batches import Forward, call, copy_batch, count_images, find_device
from bnlab.model.borrow import measured
from bnlab.model.calls import NormCall, NormCallMode
from bnlab.model.layers import BatchNorm, get_running_buffers, is_batch_norm, require_watchable
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics

CALLER = "diagnose"
IMAGES = 1024  # about so many are scored; an interval of a share of these is at most six points wide

Change = Callable[[NormCall], NormCall | None]
"""What runs in the place of a batch-norm operation; None: that operation itself."""

ByLayer = Mapping[str, Moments]


def keep(call: NormCall) -> None:
    """Change nothing."""


def normalize_by_batch(call: NormCall) -> NormCall | None:
    """Normalize by mean and variance of what is normalized, as in train mode."""
    # A single value in a channel is its own mean, and has no variance to divide by.
    if call.x.numel() == call.x.shape[1]:
        return None
    moments = Moments.of(call.x)
    return call.normalize_by(moments.mean, moments.var)


def normalize_by(statistics: ByLayer) -> Change:
    """Make the change to these statistics, for the layers that they have."""

    def change(call: NormCall) -> NormCall | None:
        moments = statistics.get(call.name or "")
        return None if moments is None else call.normalize_by(moments.mean, moments.var)

    return change


@dataclass(frozen=True)
class Run:
    """What came of running all batches once.

    Attributes:
        scores: of each image.
        calls: by layer, the moments of what it normalized in each of its calls, in order.
        outputs: of the batches, where they are wanted.
    """

    scores: Scores
    calls: Mapping[str, Sequence[Moments]]
    outputs: Sequence[Any]

    def pool(self) -> dict[str, Moments]:
        """Pool the moments of each layer's calls."""
        return {name: merge(parts) for name, parts in self.calls.items()}


def merge(parts: Sequence[Moments]) -> Moments:
    """Merge moments, at least one."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


@dataclass
class Patient:
    """A model with what its owner has given.

    Attributes:
        model: as it was given; each run borrows it.
        batches: what `forward` takes; one to two thousand images are used, of batches that are spread over all.
        forward: called as `forward(model, batch)`.
        metric: called as `metric(output, batch)`, returns a value for each image, higher is better; None: by labels, or
            where there are none by how far outputs are from those under exact statistics.
        evaluate: called with the model in place of `metric`, returns a value for each image.
        training_batches: as the model was trained on; None if they are not known.
        before: an earlier state of the model, or the model that it is a copy of; None if there is none.
        expected: the mean score that the model should reach; None if it is not known.
        passes: over the images, so far.
    """

    model: nn.Module
    batches: Sequence[Any]
    forward: Forward = call
    metric: Metric | None = None
    evaluate: Callable[[nn.Module], Any] | None = None
    training_batches: Sequence[Any] | None = None
    before: Mapping[str, Tensor] | None = None
    expected: float | None = None
    passes: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        require_watchable(self.model, CALLER)
        self.device = find_device(self.model, None, CALLER)
        self.layers = {name: module for name, module in self.model.named_modules() if is_batch_norm(module)}
        self.averages = {name: read_averages(layer) for name, layer in self.layers.items()}
        self.modes = {module: module.training for module in self.model.modules()}
        self.batches = _spread(self.batches, IMAGES)
        self.images = sum(map(count_images, self.batches))
        self._references: Sequence[Any] | None = None
        self._answers: dict[Callable[[Patient], Any], Any] = {}

    def ask(self, question: Callable[[Patient], Any]) -> Any:
        """Answer a question about the patient, once: some take passes over the images."""
        if question not in self._answers:
            answer = question(self)
            self._answers[question] = list(answer) if isinstance(answer, Iterator) else answer
        return self._answers[question]

    # -- what is run ---------------------------------------------------------------------------------------------------

    def run(
        self,
        change: Change = keep,
        *,
        unnamed: Change = keep,
        images: Callable[[Tensor], Tensor] | None = None,
        labels: Callable[[Tensor], Tensor] | None = None,
        within: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None,
        regrouped: Sequence[Any] | None = None,
        others: Sequence[Any] | None = None,
        looks_at: Iterable[str] = (),
        mode: str = "eval",
    ) -> Run:
        """Run all batches, and put everything back.

        Args:
            change: of the layers' batch-norm operations.
            unnamed: of those that are of no layer that the model knows.
            images: changes the first tensor that the model is called with.
            labels: changes the labels.
            within: a block in which the model is run, such as one that exchanges its weights.
            regrouped: the same images in the same order, in other batches.
            others: batches of other images; they are not scored.
            looks_at: the layers of which moments are noted.
            mode: "eval"; "given": as the model came, except that nothing is averaged.
        """
        wanted = {*looks_at}
        calls: dict[str, list[Moments]] = {}

        def answer(call: NormCall) -> NormCall | None:
            if call.name in wanted and call.x.numel():
                calls.setdefault(call.name or "", []).append(Moments.of(call.x))
            changed = unnamed(call) if call.name is None else change(call)
            # A layer in train mode would average otherwise; one without averages, as InstanceNorm, has none to spoil.
            would_average = call.uses_batch and call.mean is not None
            return normalize_by_batch(call) if changed is None and would_average else changed

        scores: list[Scores] = []
        outputs: list[Any] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(measured(self.model))
            if mode == "given":
                for module, training in self.modes.items():
                    module.training = training
            if within is not None:
                stack.enter_context(within(self.model))
            if images is not None:
                stack.callback(self.model.register_forward_pre_hook(_change_first(images), with_kwargs=True).remove)
            stack.enter_context(NormCallMode(self.layers, answer))
            ran = others or regrouped or self.batches
            if self.evaluate is not None and others is None:
                scores.append(Scores.of_metric(self.evaluate(self.model), "evaluate"))
            else:
                for number, batch in enumerate(ran):
                    # A copy, as a forward may write into its images, and where the model is, as loaders are elsewhere.
                    output = self.forward(self.model, copy_batch(batch, self.device))
                    outputs.append(output)
                    if others is None:
                        scores.append(self._score(output, batch if labels is None else relabel(batch, labels), number))
        self.passes += sum(map(count_images, ran)) / max(self.images, 1)
        return Run(Scores.join(scores), calls, outputs)

    def look(self, batches: Sequence[Any], **how: Any) -> list[Tensor]:
        """Run batches without scoring them, and find the outputs' tensors."""
        return [find_logits(output) for output in self.run(others=batches, **how).outputs]

    def _score(self, output: Any, batch: Any, number: int) -> Scores:
        if self.metric is not None:
            return Scores.of_metric(self.metric(output, copy_batch(batch, self.device)))
        if self.is_scored:
            return score_labels(output, batch)
        if self._references is None:
            return Scores.empty()
        return compare_outputs(output, self._references[number])

    @cached_property
    def is_scored(self) -> bool:
        """Whether images can be scored: batches have labels, or the caller passed `metric` or `evaluate`."""
        if self.metric is not None or self.evaluate is not None:
            return True
        return bool(self.batches) and find_labels(self.batches[0]) is not None

    @cached_property
    def gives_tensors(self) -> bool:
        """Whether outputs are tensors of images, and no lists of boxes, say, which a metric of the caller's reads."""
        outputs = [find_logits(output) for output in self.as_is.outputs]
        return bool(outputs) and all(isinstance(output, Tensor) and output.dim() > 0 for output in outputs)

    @cached_property
    def chance(self) -> float | None:
        """The score of always naming the commonest label; None where labels are not of images."""
        if self.metric is not None or self.evaluate is not None or not self.is_scored:
            return None
        labels = [find_labels(batch) for batch in self.batches]
        if not all(isinstance(each, Tensor) and each.dim() == 1 and not each.is_floating_point() for each in labels):
            return None
        return float(torch.cat(labels).bincount().max()) / self.images

    # -- what is measured, once ----------------------------------------------------------------------------------------

    @cached_property
    def unreached(self) -> int:
        """How many batch norms average in train mode, although eval() was called: of the first batch."""
        seen: set[int] = set()

        def note(call: NormCall) -> None:
            if call.uses_batch and call.mean is not None:
                seen.add(call.mean.data_ptr())

        self.run(note, unnamed=note, others=self.batches[:1])
        return len(seen)

    @cached_property
    def statistics(self) -> Statistics | None:
        """Exact statistics of the patient's images; None where they cannot be measured."""
        return self.measure(self.batches)

    @cached_property
    def exact(self) -> dict[str, Moments]:
        """Exact statistics by layer; of those that are reached and can be measured."""
        return dict(self.statistics or {})

    @cached_property
    def of_training(self) -> dict[str, Moments]:
        """Exact statistics of training batches; nothing without any."""
        return dict((self.measure(self.training_batches) if self.training_batches else None) or {})

    def measure(self, batches: Sequence[Any]) -> Statistics | None:
        """Measure exact statistics of batches; None where the model cannot be measured."""
        if not self.layers or self.unreached:  # measuring would move the averages of what eval() does not reach
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model that is random, say, is a finding and no warning
            try:
                statistics = population_statistics(self.model, batches, forward=self.forward)
            except ValueError:
                return None
        checked = 1 + 1 / 8  # the check takes up to an eighth of the batches
        self.passes += checked * sum(map(count_images, batches)) / max(self.images, 1)
        return statistics

    @cached_property
    def as_is(self) -> Run:
        """The model in eval mode."""
        if not self.is_scored:
            _ = self.under_exact  # with which outputs are compared
        return self.run(looks_at=self.layers)

    @cached_property
    def under_exact(self) -> Run:
        """The model under exact statistics."""
        ran = self.run(normalize_by(self.exact))
        if not self.is_scored:
            self._references = ran.outputs
            pairs = zip(ran.outputs, ran.outputs, strict=True)
            return Run(Scores.join([compare_outputs(*pair) for pair in pairs]), ran.calls, ran.outputs)
        return ran

    @cached_property
    def by_batch(self) -> Run:
        """The model in which each batch is normalized by its own statistics."""
        return self.run(normalize_by_batch, looks_at=self.layers)

    @cached_property
    def training_calls(self) -> dict[str, list[Moments]]:
        """What layers normalize in each training batch, each by its own statistics; by layer, in order."""
        if not self.training_batches:
            return {}
        ran = self.run(normalize_by_batch, others=self.training_batches, looks_at=self.layers)
        return {name: list(parts) for name, parts in ran.calls.items()}

    @cached_property
    def training_sizes(self) -> list[int]:
        """Images in each training batch."""
        return [count_images(batch) for batch in self.training_batches or ()]

    @property
    def in_train_mode(self) -> list[str]:
        """The layers that were given in train mode."""
        return [name for name, layer in self.layers.items() if self.modes[layer]]


def read_averages(layer: BatchNorm) -> Moments:
    """Read a layer's running mean and variance."""
    mean, var = (buffer.detach().double().cpu() for buffer in get_running_buffers(layer))
    return Moments(torch.nan, mean.clone(), var.clone())


def _spread(batches: Sequence[Any], images: int) -> list[Any]:
    """Choose batches that are spread over all, with about so many images."""
    every = max(1, sum(map(count_images, batches)) // images)
    return list(batches)[::every]


def _change_first(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Make a hook that changes the first tensor of floating-point numbers that a model is called with."""

    def hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        changed = list(args)
        for place, value in enumerate(changed):
            if isinstance(value, Tensor) and value.is_floating_point():
                changed[place] = function(value)
                return tuple(changed), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                return args, {**kwargs, name: function(value)}
        return args, kwargs

    return hook
