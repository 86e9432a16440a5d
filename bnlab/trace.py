"""The recorded batch moments of a training run, their files, and replaying any running estimator on them."""

from __future__ import annotations

import json
import math
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bnlab.arguments import check_number
from bnlab.estimators import Estimator, Stream, fold
from bnlab.layer_trace import LayerTrace, Start
from bnlab.statistics import Layout, Statistics
from bnlab.storage import load_tensors, save_tensors

_FORMAT, _WITH_RESTARTS = "bnlab.MomentTrace/1", "bnlab.MomentTrace/3"
_WITHOUT_STEPS = "bnlab.MomentTrace/2"  # its restarts are at the step of the call before them
_CHUNK = 256  # entries of one layer that are allocated at a time
_CLEARED = 16  # of them that are cleared at a time: each operation counts where a step takes a millisecond
NOT_TAKEN = -1.0  # the variance of an entry before the layer has written it
SPILL_BYTES = 256 * 2**20  # recorded bytes kept in memory; what comes after lies in files of a temporary folder


class Recording(Protocol):
    """The block in which a trace is recorded, as far as the trace calls it."""

    def end_step(self) -> None:
        """Count an update."""

    def truncate(self, step: int) -> None:
        """Continue from `step`, which the trace has gone back to."""

    def take_up_writes(self) -> None:
        """Let replays begin again where something has written the buffers since the last look."""


class MomentTrace:
    """Batch moments of every batch-norm layer over a training run; one entry for each call in train mode.

    An entry of step k was measured on the weights before update k. What counts as an update, `record` says.

    Attributes:
        layers: name → `LayerTrace`.
        first_step: the step at which recording began.
        last_step: the step of the last entry, or the last that `step` has ended.
        recording: the block that it is being recorded in; None before and after.
    """

    def __init__(self, layers: dict[str, LayerTrace], first_step: int = 0) -> None:
        self.layers = layers
        self.first_step = self.last_step = first_step
        self.recording: Recording | None = None
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"MomentTrace({len(self.layers)} layers, steps {self.first_step} to {self.last_step})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy is of what has been recorded so far: it is not being recorded."""
        self._take_up_writes()
        return {**vars(self), "recording": None, "_folder": None}

    def step(self) -> None:
        """Mark the end of an update: what is recorded next belongs to the step after it.

        Once this has been called, nothing else counts as a step, and what was recorded before is the first one.

        Raises:
            ValueError: the trace is not recording (any more), or an optimizer's updates count.
        """
        if self.recording is None:
            raise ValueError("MomentTrace.step: nothing is recorded now; call it inside of the record block")
        self.recording.end_step()

    def _take_up_writes(self) -> None:
        if self.recording is not None:
            self.recording.take_up_writes()

    def slot(self, layer: LayerTrace) -> tuple[Tensor, ...]:
        """Cleared places [C] for mean and variance of the layer's next entry."""
        at = len(layer) - layer.stored
        if not layer.begin <= at < layer.begin + len(layer.slots):
            self._clear(layer)
            at = layer.begin
        return layer.slots[at - layer.begin]

    def _clear(self, layer: LayerTrace) -> None:
        """Make the layer's next slots."""
        if layer.current is None:
            with torch.inference_mode(False):  # later steps may be outside of it
                layer.current = layer.start.new_empty(_CHUNK, *layer.start.shape)
        if len(layer) - layer.stored == len(layer.current):
            layer.chunks.append(self._keep(layer.current))
            layer.stored = len(layer)
        layer.begin = len(layer) - layer.stored
        # .data has a version of its own: a backward pass that is still to come has saved the slots before.
        # Cleared: the layer computes 0·old + 1·new, and 0·NaN of a bad batch would stay NaN.
        cleared = layer.current.data[layer.begin : layer.begin + _CLEARED].zero_()
        cleared[:, 1] = NOT_TAKEN
        places = cleared.flatten(0, 1).unbind()
        layer.slots = list(zip(places[::2], places[1::2], strict=True))

    def _keep(self, chunk: Tensor) -> Tensor:
        """A copy in memory, or in a file once SPILL_BYTES are there."""
        self._bytes += chunk.nbytes
        if self._bytes <= SPILL_BYTES:
            return chunk.to("cpu", copy=True)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bnlab-trace-")
        path = str(Path(self._folder.name) / f"{self._bytes}.bin")
        return torch.from_file(path, shared=True, size=chunk.numel(), dtype=chunk.dtype).view_as(chunk).copy_(chunk)

    def truncate(self, step: int) -> None:
        """Forget what was recorded or written after `step` (an update that was not made, say).

        Raises:
            TypeError: `step` is no integer.
            ValueError: it lies before the trace.
        """
        message = f"MomentTrace.truncate: step={step!r}; pass one from {self.first_step} on"
        check_number(step, lambda s: s >= self.first_step, message, kind=Integral)
        self._take_up_writes()
        for layer in self.layers.values():
            layer.truncate(int(step))
        self.last_step = min(self.last_step, int(step))
        if self.recording is not None:
            self.recording.truncate(int(step))

    def save(self, path: str | Path, about: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file with `<layer>/moments`, `/steps`, `/counts`, `/start`, `/restarts`, `/end` of each.

        Args:
            path: of the file; what was there is replaced in one step.
            about: what it is of, `{"run": "a1"}` say, as more metadata; keys other than layers, steps, restarts,
                format and sha256.

        Raises:
            ValueError: `about` has one of these keys.
            OSError: the file cannot be written.
        """
        self._take_up_writes()
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}/moments"] = layer.moments
            tensors[f"{name}/start"] = layer.start
            tensors[f"{name}/steps"] = torch.tensor(layer.steps, dtype=torch.int64, device="cpu")
            tensors[f"{name}/counts"] = torch.tensor(layer.counts, dtype=torch.int64, device="cpu")
            if layer.end is not None:
                tensors[f"{name}/end"] = layer.end
        described = [[name, layer.updates, layer.eps] for name, layer in self.layers.items()]
        restarts = {name: layer.restarts for name, layer in self.layers.items() if layer.restarts}
        tensors |= {f"{name}/restarts": torch.stack([s.values for s in all_]) for name, all_ in restarts.items()}
        places = {
            name: [(start.entries, start.updates, start.step) for start in all_] for name, all_ in restarts.items()
        }
        metadata = {
            "layers": json.dumps(described),
            "steps": json.dumps([self.first_step, self.last_step]),
            "restarts": json.dumps(places),
        }
        save_tensors(path, tensors, _WITH_RESTARTS if restarts else _FORMAT, metadata, about)

    @staticmethod
    def load(path: str | Path, about: Mapping[str, str] | None = None) -> MomentTrace:
        """Read what `save` wrote.

        Args:
            path: of the file.
            about: what it must be of, if the file says so: it may be a copy of another one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a trace, damaged, or about another thing.
        """
        tensors, metadata = load_tensors(path, _FORMAT, _WITH_RESTARTS, _WITHOUT_STEPS, about=about)
        restarts, (first, last) = json.loads(metadata.get("restarts", "{}")), json.loads(metadata["steps"])
        layers: dict[str, LayerTrace] = {}
        for name, updates, eps in json.loads(metadata["layers"]):
            start, moments = tensors[f"{name}/start"], tensors[f"{name}/moments"]
            steps, counts = tensors[f"{name}/steps"].tolist(), tensors[f"{name}/counts"].tolist()
            values = tensors.get(f"{name}/restarts", ())
            again = [
                Start(at, v, n, *(step or [steps[at - 1]]))
                for (at, n, *step), v in zip(restarts.get(name, ()), values, strict=True)
            ]
            end = tensors.get(f"{name}/end")
            layers[name] = LayerTrace(start, updates, eps, steps, counts, [moments], again, first, end)
        trace = MomentTrace(layers, first)
        trace.last_step = last
        return trace

    @staticmethod
    def join(parts: Sequence[MomentTrace]) -> MomentTrace:
        """One trace of consecutive parts of a run (each begins at the step where the one before ended).

        Where the running buffers do not go on from the part before (or `num_batches_tracked`, unless it has counted
        batches that have no entry), replays of that layer begin again. After a part that was saved or copied inside of
        its block, or truncated, or written by an earlier version, only `num_batches_tracked` is compared.

        Raises:
            TypeError: a part is no trace.
            ValueError: no parts, a gap between them, or other layers.
        """
        for part in parts:
            if not isinstance(part, MomentTrace):
                raise TypeError(f"MomentTrace.join: found a {type(part).__name__}; pass traces")
        if not parts:
            raise ValueError("MomentTrace.join: no parts; pass the traces of a run in order")
        for a, b in pairwise(parts):
            if a.last_step != b.first_step or a.layout != b.layout:
                raise ValueError(f"MomentTrace.join: {b} does not continue {a}")
        layers: dict[str, LayerTrace] = {}
        for name, first in parts[0].layers.items():
            layers[name] = LayerTrace(first.start, first.updates, first.eps, first_step=first.first_step)
            for part in parts:
                layers[name].extend(part.layers[name], part.first_step)
        trace = MomentTrace(layers, parts[0].first_step)
        trace.last_step = parts[-1].last_step
        return trace

    def streams(self, steps: Sequence[int] | None = None) -> Iterator[tuple[list[str], Start, list[int], Stream]]:
        """Layers that were called at the same steps together, from each of their starts to the next.

        Args:
            steps: only starts after which, and before the next, there is one of these; None: all starts.

        Yields:
            names, the start (its values are the first layer's), which of `steps` are after it, the stream to the next.
        """
        self._take_up_writes()
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, layer in self.layers.items():
            key = (tuple(layer.steps), *((start.entries, start.updates, start.step) for start in layer.starts))
            groups.setdefault(key, []).append(name)
        for names in groups.values():
            members = [self.layers[name] for name in names]
            starts = members[0].starts
            for part, (start, following) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
                until, end = (math.inf, None) if following is None else (following.step, following.entries)
                rows = [row for row, step in enumerate(steps or ()) if start.step <= step < until]
                if rows or steps is None:
                    yield names, start, rows, make_stream(members, part, start.entries, end)

    @property
    def last_start(self) -> int:
        """The step after which no layer's replay begins again; those that have not been called since do not count."""
        called = [layer for layer in self.layers.values() if layer.calls_since_start]
        return max((layer.last_start.step for layer in called), default=self.last_step)

    @property
    def layout(self) -> Layout:
        """The flat channel axis of `replay_bank`: all layers in order."""
        layers = self.layers.values()
        return Layout(tuple(self.layers), tuple(x.start.shape[1] for x in layers), tuple(x.eps for x in layers))


def replay(trace: MomentTrace, estimator: Estimator, steps: Iterable[int] | None = None) -> dict[int, Statistics]:
    """What `estimator` would hold after each of `steps` of the recorded run, started from the trace's own start.

    Args:
        steps: steps k (after k updates); None takes every step from the trace's first to its last.

    Returns:
        step → `Statistics`, whose counts are NaN and whose `var` is what a buffer would hold.

    Raises:
        TypeError: not a trace or not an estimator.
        ValueError: no steps, or one outside of the trace.
    """
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"replay: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    if steps is not None and not isinstance(steps, Iterable):
        raise TypeError(f"replay: steps is a {type(steps).__name__}; pass a list of steps, or None for all")
    wanted = list(range(trace.first_step, trace.last_step + 1) if steps is None else steps)
    values = replay_bank(trace, [estimator], wanted)[0]
    layout = trace.layout
    return {step: layout.unflatten(value) for step, value in zip(wanted, values, strict=True)}


def replay_bank(trace: MomentTrace, estimators: Sequence[Estimator], steps: Sequence[int]) -> Tensor:
    """`replay` of many estimators at once, as one array.

    Returns:
        float64 [estimators, steps, 2, all channels], channels in the order of `trace.layout`.
    """
    for estimator in estimators:
        if not isinstance(estimator, Estimator):
            raise TypeError(f"replay: {estimator!r} is no estimator; pass an instance such as EMA(momentum=0.1)")
    if not len(steps):
        raise ValueError("replay: steps is empty; pass steps of the trace, or None for all")
    for step in steps:
        message = f"replay: step {step!r} is not one of the trace ({trace.first_step} to {trace.last_step})"
        check_number(step, lambda s: trace.first_step <= s <= trace.last_step, message, kind=Integral)
    parts: dict[str, Tensor] = {}
    for names, start, rows, stream in trace.streams(steps):
        of_calls = trace.layers[names[0]].steps
        folded = fold(estimators, stream, [bisect_right(of_calls, steps[row]) - start.entries for row in rows])
        for name, values in zip(names, folded.split(stream.layers, dim=3), strict=True):
            if name not in parts:
                parts[name] = values.new_empty(len(estimators), len(steps), *values.shape[2:])
            parts[name][:, rows] = values
    return torch.cat([parts[name] for name in trace.layers], dim=3)


def make_stream(members: Sequence[LayerTrace], part: int, first: int, end: int | None) -> Stream:
    """The entries `first` to `end` of layers that were called together, from their start number `part`."""
    starts = [layer.restarts[part - 1] if part > 0 else layer.starts[part] for layer in members]
    end = len(members[0]) if end is None else end
    channels = [start.values.shape[1] for start in starts]
    counts = torch.tensor([layer.counts[first:end] for layer in members], dtype=torch.float64, device="cpu")
    repeats = torch.tensor(channels, device="cpu")
    eps = torch.tensor([layer.eps for layer in members], dtype=torch.float64, device="cpu")
    return Stream(
        start=torch.cat([start.values for start in starts], dim=1).cpu().double(),
        batches=torch.cat([layer.moments_between(first, end) for layer in members], dim=2).double(),
        counts=counts.T.repeat_interleave(repeats, dim=1),
        updates=starts[0].updates,
        eps=eps.repeat_interleave(repeats),
        layers=tuple(channels),
    )
