"""The recorded batch moments of a training run, their file, and replaying any running estimator on them."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from bnlab.arguments import check_number
from bnlab.estimators import Estimator, Stream, fold
from bnlab.statistics import Layout, Statistics
from bnlab.storage import load_tensors, save_tensors

_FORMAT = "bnlab.MomentTrace/1"
_CHUNK = 256  # entries of one layer that are allocated at a time
NOT_WRITTEN = -1.0  # the variance of a place that torch has not written yet
SPILL_BYTES = 256 * 2**20  # recorded bytes kept in memory; what comes after lies in files of a temporary folder


class Shelf:
    """Where a trace keeps full chunks: in memory, and in files once SPILL_BYTES are there."""

    def __init__(self) -> None:
        self._bytes = 0

    def keep(self, chunk: Tensor) -> Tensor:
        self._bytes += chunk.nbytes
        if self._bytes <= SPILL_BYTES:
            return chunk.cpu()
        with tempfile.NamedTemporaryFile(prefix="bnlab-trace-") as file:  # its memory stays when the name is gone
            return torch.from_file(file.name, True, chunk.numel(), dtype=chunk.dtype).view_as(chunk).copy_(chunk)


class LayerTrace:
    """The recorded calls of one layer.

    Attributes:
        start, end: [2, C], its running mean and variance when recording began and ended; the end may be None.
        updates, eps: its `num_batches_tracked` when recording began, 0 for a layer without; its eps.
        steps, counts: for each call its step, and the number of values per channel.
        momenta: for each call its weight in the layer's own average; only of calls recorded in this process.
    """

    def __init__(self, start: Tensor, updates: int, eps: float, shelf: Shelf | None = None) -> None:
        self.start, self.updates, self.eps = start, updates, eps
        self.end: Tensor | None = None
        self._shelf = shelf or Shelf()
        self.set_calls(start.new_empty(0, *start.shape), [], [], [])

    def __len__(self) -> int:
        return len(self.steps)

    def set_calls(self, moments: Tensor, steps: list[int], counts: list[int], momenta: list[float]) -> None:
        """Let these be all calls so far."""
        self.steps, self.counts, self.momenta = steps, counts, momenta
        self._full, self._stored = [moments.cpu()], len(moments)
        self._open: Tensor | None = None  # [_CHUNK, 2, C] on the layer's device, the entries after the full chunks
        self._places: list[tuple[Tensor, Tensor]] = []  # its rows

    @property
    def moments(self) -> Tensor:
        """[calls, 2, C]: batch mean and unbiased batch variance as the layer computed them, in its buffers' type."""
        rest = [] if self._open is None else [self._open[: len(self) - self._stored].cpu()]
        return torch.cat([*self._full, *rest])

    def next_place(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where torch writes the mean and the variance [C] of the next entry, of a buffer's type and device."""
        at = len(self.steps) - self._stored
        if at == len(self._places):
            if self._open is not None:
                self._full.append(self._shelf.keep(self._open))
            with torch.inference_mode(False):  # later steps may be outside of it
                self._open = like.new_zeros(_CHUNK, *self.start.shape)
            self._open[:, 1] = NOT_WRITTEN
            rows = self._open.flatten(0, 1).unbind()
            self._places, self._stored, at = list(zip(rows[::2], rows[1::2], strict=True)), len(self.steps), 0
        return self._places[at]

    def add(self, step: int, count: int, momentum: float) -> None:
        """Make an entry of what is in the next place."""
        self.steps.append(step)
        self.counts.append(count)
        self.momenta.append(momentum)

    def truncate(self, step: int) -> None:
        """Forget the calls after `step`."""
        length = bisect_right(self.steps, step)
        if length < len(self):
            self.set_calls(self.moments[:length], self.steps[:length], self.counts[:length], self.momenta[:length])
            self.end = None


class MomentTrace:
    """Batch moments of every batch-norm layer over a training run; one entry for each call in train mode.

    An entry of step k was measured on the weights before update k. What counts as an update, `record` says.

    Attributes:
        layers: name → `LayerTrace`.
        first_step, last_step: where recording began, and how far it has come.
        end_step: what `step` calls while the trace is recorded; None before and after.
    """

    def __init__(self, layers: dict[str, LayerTrace], first_step: int = 0, last_step: int | None = None) -> None:
        self.layers, self.first_step = layers, first_step
        self.last_step = first_step if last_step is None else last_step
        self.end_step: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"MomentTrace({len(self.layers)} layers, steps {self.first_step} to {self.last_step})"

    def step(self) -> None:
        """Mark the end of an update that no torch optimizer has made; ValueError if nothing is recorded now."""
        if self.end_step is None:
            raise ValueError("MomentTrace.step: nothing is recorded now; call it inside of the record block")
        self.end_step()

    def truncate(self, step: int) -> None:
        """Forget what was recorded after `step`."""
        for layer in self.layers.values():
            layer.truncate(step)
        self.last_step = min(self.last_step, step)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with `<layer>/moments`, `/steps`, `/counts`, `/start` and `/end` of each layer."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors |= {f"{name}/moments": layer.moments, f"{name}/start": layer.start}
            tensors |= {} if layer.end is None else {f"{name}/end": layer.end}
            for key in ("steps", "counts"):
                tensors[f"{name}/{key}"] = torch.tensor(getattr(layer, key), dtype=torch.int64, device="cpu")
        layers = json.dumps([[name, layer.updates, layer.eps] for name, layer in self.layers.items()])
        steps = json.dumps([self.first_step, self.last_step])
        save_tensors(path, tensors, _FORMAT, {"layers": layers, "steps": steps})

    @staticmethod
    def load(path: str | Path) -> MomentTrace:
        """Read what `save` wrote; ValueError if it is not a trace, or damaged."""
        tensors, metadata = load_tensors(path, _FORMAT)
        layers: dict[str, LayerTrace] = {}
        for name, updates, eps in json.loads(metadata["layers"]):
            layers[name] = LayerTrace(tensors[f"{name}/start"], updates, eps)
            steps, counts = (tensors[f"{name}/{key}"].tolist() for key in ("steps", "counts"))
            layers[name].set_calls(tensors[f"{name}/moments"], steps, counts, [])
            layers[name].end = tensors.get(f"{name}/end")
        return MomentTrace(layers, *json.loads(metadata["steps"]))

    @staticmethod
    def join(parts: Sequence[MomentTrace]) -> MomentTrace:
        """One trace of consecutive parts of a run; ValueError at a gap, other layers, or buffers written in between."""
        if not parts:
            raise ValueError("MomentTrace.join: no parts; pass the traces of a run in order")
        for a, b in pairwise(parts):
            if a.last_step != b.first_step or a.layout != b.layout:
                raise ValueError(f"MomentTrace.join: {b} does not continue {a}")
            for name, layer in a.layers.items():
                start = b.layers[name].start.to(layer.start)
                if layer.end is not None and not torch.allclose(layer.end.to(start), start, 0, 0, equal_nan=True):
                    raise ValueError(f"MomentTrace.join: buffers of {name!r} were written between {a} and {b}")
        layers: dict[str, LayerTrace] = {}
        for name, first in parts[0].layers.items():
            own = [part.layers[name] for part in parts]
            layers[name] = LayerTrace(first.start, first.updates, first.eps)
            steps, counts = [s for x in own for s in x.steps], [c for x in own for c in x.counts]
            layers[name].set_calls(torch.cat([x.moments for x in own]), steps, counts, [])
            layers[name].end = own[-1].end
        return MomentTrace(layers, parts[0].first_step, parts[-1].last_step)

    def streams(self) -> Iterator[tuple[list[str], Stream]]:
        """Names of layers that were called at the same steps together, and what was recorded of them."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, layer in self.layers.items():
            groups.setdefault((layer.updates, *layer.steps), []).append(name)
        for names in groups.values():
            members = [self.layers[name] for name in names]
            repeats = torch.tensor([layer.start.shape[1] for layer in members], device="cpu")
            counts = torch.tensor([layer.counts for layer in members], dtype=torch.float64, device="cpu")
            eps = torch.tensor([layer.eps for layer in members], dtype=torch.float64, device="cpu")
            stream = Stream(
                start=torch.cat([layer.start for layer in members], dim=1).cpu().double(),
                batches=torch.cat([layer.moments for layer in members], dim=2).double(),
                counts=counts.T.repeat_interleave(repeats, dim=1),
                updates=members[0].updates,
                eps=eps.repeat_interleave(repeats),
                layers=tuple(repeats.tolist()),
            )
            yield names, stream

    @property
    def layout(self) -> Layout:
        """The flat channel axis of `replay_bank`: all layers in order."""
        layers = self.layers.values()
        return Layout(tuple(self.layers), tuple(x.start.shape[1] for x in layers), tuple(x.eps for x in layers))


def replay(trace: MomentTrace, estimator: Estimator, steps: Iterable[int] | None = None) -> dict[int, Statistics]:
    """What `estimator` would hold after each of `steps` of the recorded run, started from the trace's own start.

    Args:
        estimator: such as EMA(momentum=0.1).
        steps: steps k (after k updates); None takes every step from the trace's first to its last.

    Returns: step → `Statistics`, whose counts are NaN and whose `var` is what a buffer would hold.

    Raises:
        TypeError, ValueError: not a trace or not an estimator; no steps, or one outside of the trace.
    """
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"replay: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    if steps is not None and not isinstance(steps, Iterable):
        raise TypeError(f"replay: steps is a {type(steps).__name__}; pass a list of steps, or None for all")
    wanted = list(range(trace.first_step, trace.last_step + 1) if steps is None else steps)
    values = replay_bank(trace, [estimator], wanted)[0]
    return dict(zip(wanted, map(trace.layout.unflatten, values), strict=True))


def replay_bank(trace: MomentTrace, estimators: Sequence[Estimator], steps: Sequence[int]) -> Tensor:
    """`replay` of many at once: float64 [estimators, steps, 2, all channels], channels as in `trace.layout`."""
    for estimator in estimators:
        if not isinstance(estimator, Estimator):
            raise TypeError(f"replay: {estimator!r} is no estimator; pass an instance such as EMA(momentum=0.1)")
    if not len(steps):
        raise ValueError("replay: steps is empty; pass steps of the trace, or None for all")
    for step in steps:
        message = f"replay: step {step!r} is not one of the trace ({trace.first_step} to {trace.last_step})"
        check_number(step, lambda s: trace.first_step <= s <= trace.last_step, message, kind=Integral)
    parts: dict[str, Tensor] = {}
    for names, stream in trace.streams():
        positions = [bisect_right(trace.layers[names[0]].steps, step) for step in steps]
        parts |= zip(names, fold(estimators, stream, positions).split(stream.layers, dim=3), strict=True)
    return torch.cat([parts[name] for name in trace.layers], dim=3)
