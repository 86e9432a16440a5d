"""Recorded batch moments of a training run, their file, and replaying any running estimator on them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from bnlab.common.storage import load_tensors, save_tensors
from bnlab.estimators import Estimator, Stream, fold
from bnlab.model.arguments import require_number
from bnlab.statistics.layout import Layout
from bnlab.statistics.network import Statistics

_FORMAT = "bnlab.MomentTrace/1"
_CHUNK = 256  # entries of one layer that are allocated at a time
NOT_WRITTEN = -1.0  # the variance of a place that torch has not written yet; none that it writes is negative


class LayerTrace:
    """Recorded calls of one layer.

    Attributes:
        start: [2, C], its running mean and variance when recording began.
        end: [2, C], those when recording ended; may be None.
        updates: its `num_batches_tracked` when recording began, 0 for a layer without.
        eps: its eps.
        steps: the step of each call.
        counts: the number of values per channel of each call.
        momenta: the weight of each call in the layer's own average; only of calls recorded in this process.
    """

    def __init__(self, start: Tensor, updates: int, eps: float) -> None:
        self.start = start
        self.updates = updates
        self.eps = eps
        self.end: Tensor | None = None
        self.set_calls(start.new_empty(0, *start.shape), [], [], [])

    def __len__(self) -> int:
        return len(self.steps)

    def set_calls(self, moments: Tensor, steps: list[int], counts: list[int], momenta: list[float]) -> None:
        """Replace all recorded calls by these."""
        self.steps = steps
        self.counts = counts
        self.momenta = momenta
        self._full = [moments.cpu()]
        self._stored = len(moments)  # entries in the full chunks
        self._open: Tensor | None = None  # [_CHUNK, 2, C] on the layer's device: the chunk that is filled now
        self._places: list[tuple[Tensor, Tensor]] = []  # mean and variance [C] of each entry of the open chunk

    @property
    def moments(self) -> Tensor:
        """[calls, 2, C]: batch mean and unbiased batch variance as the layer computed them, in its buffers' type."""
        chunks = list(self._full)
        if self._open is not None:
            written = len(self) - self._stored
            chunks.append(self._open[:written].cpu())
        return torch.cat(chunks)

    def next_place(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return where torch writes the mean and the variance [C] of the next entry, of a buffer's type and device."""
        # The place stays the same until `add` makes an entry of it, so that the next call overwrites what a failed one
        # has left.
        at = len(self) - self._stored
        if at < len(self._places):
            mean, var = self._places[at]
            if mean.dtype == like.dtype and mean.device == like.device:
                return mean, var
        # The buffer decides on type and device, because a model may be moved after recording has begun.
        self._open_chunk(like)
        return self._places[0]

    def _open_chunk(self, like: Tensor) -> None:
        written = len(self) - self._stored
        if self._open is not None and written:
            # A full chunk leaves the accelerator, whose memory the training needs.
            self._full.append(self._open[:written].cpu())
        with torch.inference_mode(False):  # tensors made in it cannot be written by later steps outside of it
            self._open = like.new_zeros(_CHUNK, *self.start.shape)
        self._open[:, 1] = NOT_WRITTEN

        # The chunk is taken apart once: indexing in each call would make two new views for each layer and batch.
        means = self._open[:, 0].unbind()
        variances = self._open[:, 1].unbind()
        self._places = list(zip(means, variances, strict=True))
        self._stored = len(self)

    def add(self, step: int, count: int, momentum: float) -> None:
        """Make an entry of the values that were written into the next place."""
        self.steps.append(step)
        self.counts.append(count)
        self.momenta.append(momentum)

    def truncate(self, step: int) -> None:
        """Forget the calls after `step`."""
        # Steps never decrease, so that all later calls stand at the end.
        length = bisect_right(self.steps, step)
        if length == len(self):
            return

        self.set_calls(self.moments[:length], self.steps[:length], self.counts[:length], self.momenta[:length])

        # The buffers were read after the calls that are forgotten here.
        self.end = None


class MomentTrace:
    """Batch moments of every batch-norm layer over a training run; one entry for each call in train mode.

    An entry of step k was measured on the weights before update k. `record` explains what counts as an update.

    Attributes:
        layers: name → `LayerTrace`.
        first_step: the step at which recording began.
        last_step: the latest step recorded.
        on_step: the function that `step` calls while the trace is recorded; None before and after.

    >>> from bnlab import record
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    >>> with record(model) as trace:
    ...     for batch in torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]):
    ...         output = model(batch)
    >>> trace
    MomentTrace(1 layers, steps 0 to 2)
    >>> trace.layers["0"].moments[:, 0, 0].tolist()  # the mean of each batch
    [2.0, 6.0]
    """

    def __init__(self, layers: dict[str, LayerTrace], first_step: int = 0, last_step: int | None = None) -> None:
        self.layers = layers
        self.first_step = first_step
        self.last_step = first_step if last_step is None else last_step
        self.on_step: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"MomentTrace({len(self.layers)} layers, steps {self.first_step} to {self.last_step})"

    def step(self) -> None:
        """Mark the end of an update that no torch optimizer has made; ValueError if nothing is recorded now."""
        if self.on_step is None:
            raise ValueError("MomentTrace.step: nothing is recorded now; call it inside of the record block")
        self.on_step()

    def truncate(self, step: int) -> None:
        """Forget what was recorded after `step`; before the first step there is nothing to keep."""
        step = max(step, self.first_step)
        for layer in self.layers.values():
            layer.truncate(step)
        self.last_step = min(self.last_step, step)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with `<layer>/moments`, `/steps`, `/counts`, `/start` and `/end` of each layer."""
        tensors: dict[str, Tensor] = {}
        layers = []
        for name, layer in self.layers.items():
            tensors[f"{name}/moments"] = layer.moments
            tensors[f"{name}/start"] = layer.start
            if layer.end is not None:
                tensors[f"{name}/end"] = layer.end
            tensors[f"{name}/steps"] = torch.tensor(layer.steps, dtype=torch.int64, device="cpu")
            tensors[f"{name}/counts"] = torch.tensor(layer.counts, dtype=torch.int64, device="cpu")
            # This is a list, because a safetensors file does not keep the order of its tensors.
            layers.append([name, layer.updates, layer.eps])

        steps = [self.first_step, self.last_step]
        metadata = {"layers": json.dumps(layers), "steps": json.dumps(steps)}
        save_tensors(path, tensors, _FORMAT, metadata)

    @staticmethod
    def load(path: str | Path) -> MomentTrace:
        """Read what `save` wrote; ValueError if it is not a trace, or damaged."""
        tensors, metadata = load_tensors(path, _FORMAT)
        layers: dict[str, LayerTrace] = {}
        for name, updates, eps in json.loads(metadata["layers"]):
            layer = LayerTrace(tensors[f"{name}/start"], updates, eps)
            steps = tensors[f"{name}/steps"].tolist()
            counts = tensors[f"{name}/counts"].tolist()
            # Momenta are not saved, because they only serve to compare the buffers with the entries when recording
            # ends.
            layer.set_calls(tensors[f"{name}/moments"], steps, counts, [])
            layer.end = tensors.get(f"{name}/end")
            layers[name] = layer

        first_step, last_step = json.loads(metadata["steps"])
        return MomentTrace(layers, first_step, last_step)

    @staticmethod
    def join(parts: Sequence[MomentTrace]) -> MomentTrace:
        """Join consecutive parts of a run; ValueError at a gap, other layers, or buffers written in between."""
        if not parts:
            raise ValueError("MomentTrace.join: no parts; pass the traces of a run in order")
        for before, after in pairwise(parts):
            _require_consecutive(before, after)

        layers: dict[str, LayerTrace] = {}
        for name in parts[0].layers:
            recorded = [part.layers[name] for part in parts]
            layers[name] = _join_layers(recorded)
        return MomentTrace(layers, parts[0].first_step, parts[-1].last_step)

    def streams(self) -> Iterator[tuple[list[str], Stream]]:
        """Group the layers that were called at the same steps: their names, and what was recorded of them."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, layer in self.layers.items():
            # A stream has one number of `updates` for all of its channels, so that it is part of the key.
            calls = (layer.updates, *layer.steps)
            groups.setdefault(calls, []).append(name)

        for names in groups.values():
            yield names, _make_stream([self.layers[name] for name in names])

    @property
    def layout(self) -> Layout:
        """The flat channel axis of `replay_bank`, with all layers in order."""
        layers = self.layers.values()
        channels = tuple(layer.start.shape[1] for layer in layers)
        eps = tuple(layer.eps for layer in layers)
        return Layout(tuple(self.layers), channels, eps)


def _require_consecutive(before: MomentTrace, after: MomentTrace) -> None:
    if before.last_step != after.first_step or before.layout != after.layout:
        raise ValueError(f"MomentTrace.join: {after} does not continue {before}")
    for name, layer in before.layers.items():
        # A layer has no end after `truncate`, or if it was left to its own forward.
        if layer.end is None:
            continue
        # One part may be on a device, and another one may have been loaded onto the CPU.
        start = after.layers[name].start.to(layer.start)
        end = layer.end.to(start)
        # `torch.equal` would find a NaN unequal to itself.
        if not torch.allclose(end, start, 0, 0, equal_nan=True):
            raise ValueError(f"MomentTrace.join: buffers of {name!r} were written between {before} and {after}")


def _join_layers(parts: Sequence[LayerTrace]) -> LayerTrace:
    first = parts[0]
    steps: list[int] = []
    counts: list[int] = []
    for part in parts:
        steps += part.steps
        counts += part.counts

    joined = LayerTrace(first.start, first.updates, first.eps)
    moments = torch.cat([part.moments for part in parts])
    joined.set_calls(moments, steps, counts, [])
    joined.end = parts[-1].end
    return joined


def _make_stream(layers: Sequence[LayerTrace]) -> Stream:
    """Put the channels of layers that were called at the same steps side by side."""
    channels = torch.tensor([layer.start.shape[1] for layer in layers], device="cpu")
    counts = torch.tensor([layer.counts for layer in layers], dtype=torch.float64, device="cpu")
    eps = torch.tensor([layer.eps for layer in layers], dtype=torch.float64, device="cpu")
    return Stream(
        # Each by itself, because a network may be spread over several devices.
        start=torch.cat([layer.start.cpu() for layer in layers], dim=1).double(),
        batches=torch.cat([layer.moments for layer in layers], dim=2).double(),
        counts=counts.T.repeat_interleave(channels, dim=1),
        updates=layers[0].updates,
        eps=eps.repeat_interleave(channels),
        layers=tuple(channels.tolist()),
    )


def replay(trace: MomentTrace, estimator: Estimator, steps: Iterable[int] | None = None) -> dict[int, Statistics]:
    """Compute what `estimator` would hold after each of `steps` of the recorded run, from the trace's own start.

    Args:
        estimator: such as EMA(momentum=0.1).
        steps: steps k (after k updates); None takes every step from the trace's first to its last.

    Returns:
        step → `Statistics`, whose counts are NaN and whose `var` is what a buffer would hold.

    Raises:
        TypeError, ValueError: not a trace or not an estimator; no steps, or one outside of the trace.

    >>> from bnlab import record
    >>> from bnlab.estimators import EMA
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    >>> with record(model) as trace:
    ...     for batch in torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]):
    ...         output = model(batch)
    >>> for step, statistics in replay(trace, EMA(momentum=0.5)).items():
    ...     print(step, statistics["0"].mean.item())
    0 0.0
    1 1.0
    2 3.5
    """
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"replay: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    if steps is not None and not isinstance(steps, Iterable):
        raise TypeError(f"replay: steps is a {type(steps).__name__}; pass a list of steps, or None for all")

    every_step = range(trace.first_step, trace.last_step + 1)
    wanted = list(every_step if steps is None else steps)
    states = replay_bank(trace, [estimator], wanted)[0]
    layout = trace.layout
    return {step: layout.unflatten(state) for step, state in zip(wanted, states, strict=True)}


def replay_bank(trace: MomentTrace, estimators: Sequence[Estimator], steps: Sequence[int]) -> Tensor:
    """Replay many estimators at once: float64 [estimators, steps, 2, all channels], channels as in `trace.layout`."""
    for estimator in estimators:
        if not isinstance(estimator, Estimator):
            raise TypeError(f"replay: {estimator!r} is no estimator; pass an instance such as EMA(momentum=0.1)")
    # An array of several steps has no truth value, so that its length is asked.
    if not len(steps):
        raise ValueError("replay: steps is empty; pass steps of the trace, or None for all")
    for step in steps:
        message = f"replay: step {step!r} is not one of the trace ({trace.first_step} to {trace.last_step})"
        require_number(step, lambda s: trace.first_step <= s <= trace.last_step, message, kind=Integral)

    parts: dict[str, Tensor] = {}
    for names, stream in trace.streams():
        # The layers of a stream were called at the same steps, so that the first one speaks for all.
        calls = trace.layers[names[0]].steps
        positions = [bisect_right(calls, step) for step in steps]
        states = fold(estimators, stream, positions)
        by_layer = states.split(stream.layers, dim=3)
        parts.update(zip(names, by_layer, strict=True))
    return torch.cat([parts[name] for name in trace.layers], dim=3)
