"""Recording the batch moments of a training run, and replaying any running estimator on them.

With momentum 1 a batch-norm layer's running buffers *are* the last batch's mean and unbiased variance. `record` lends
each layer a scratch pair of buffers for the time of one call and updates the layer's own average itself, so that the
moments cost no second pass over the activations and whoever looks at the model sees what would be there without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import threading
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_forward, check_number, device_of
from bnlab.estimators import Estimator, Stream, fold
from bnlab.layers import (
    BatchNorm,
    Forward,
    batch_norm_layers,
    borrowed,
    call,
    check_not_lent,
    copied,
    is_compiled,
    layer_input,
    listed,
    resting,
    tracked,
)
from bnlab.module_state import ModuleState, forward_hooks
from bnlab.statistics import Layout, Statistics
from bnlab.storage import load_tensors, save_tensors

_FORMAT, _RESTARTED = "bnlab.MomentTrace/1", "bnlab.MomentTrace/2"  # the second with restarts
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_CHUNK = 256  # entries of one layer that are allocated at a time
_FORGOTTEN = 1e-16  # a weight so small that calls before are left out
_CLEARED = 16  # of them that are cleared at a time: each operation counts where a step takes a millisecond
SPILL_BYTES = 256 * 2**20  # recorded bytes kept in memory; what comes after lies in files of a temporary folder


class Start(NamedTuple):
    """What a layer's running buffers held at some moment of the recording.

    Attributes:
        entries: how many calls had been recorded.
        values: [2, C], the running mean and variance.
        updates: `num_batches_tracked`, 0 for a layer without.
    """

    entries: int
    values: Tensor
    updates: int


class LayerTrace:
    """The recorded calls of one layer.

    Attributes:
        start: [2, C], its running mean and variance before the first call.
        updates: `num_batches_tracked` before the first call.
        eps: the layer's own.
        steps: for each call its step.
        counts: for each call its values per channel.
        restarts: where the buffers were written from outside (`load_state_dict`, `reset_running_stats`) between two
            calls or after the last one: replays begin again there.
    """

    def __init__(
        self,
        start: Tensor,
        updates: int,
        eps: float,
        steps: Sequence[int] = (),
        counts: Sequence[int] = (),
        chunks: Sequence[Tensor] = (),
        restarts: Sequence[Start] = (),
    ) -> None:
        self.start, self.updates, self.eps = start, updates, eps
        self.steps, self.counts, self.restarts = list(steps), list(counts), list(restarts)
        self.chunks = list(chunks)  # the entries that are complete, on the CPU
        self.stored = len(self.steps)  # how many those are
        self.current: Tensor | None = None  # [_CHUNK, 2, C] on the layer's device, the entries after them
        self.begin, self.slots = 0, list[tuple[Tensor, ...]]()  # places in it for the next entries, from which one on
        self.truncated = False  # since the last call: the buffers may be those of any time

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def moments(self) -> Tensor:
        """[calls, 2, C]: batch mean and unbiased batch variance, as the layer computed them (usually float32)."""
        return self.moments_between(0, len(self))

    def moments_between(self, first: int, end: int) -> Tensor:
        """[end − first, 2, C]: `moments` of these calls."""
        parts, begin = [self.start.new_empty(0, *self.start.shape).cpu()], 0
        current = [] if self.current is None else [self.current[: len(self) - self.stored]]
        for chunk in (*self.chunks, *current):
            parts.append(chunk[max(first - begin, 0) : max(end - begin, 0)].cpu())
            begin += len(chunk)
        return torch.cat(parts)

    @property
    def starts(self) -> list[Start]:
        """The start, and the restarts after it."""
        return [Start(0, self.start, self.updates), *self.restarts]

    @property
    def updates_now(self) -> int:
        """What `num_batches_tracked` is after the calls recorded so far."""
        last = self.starts[-1]
        return last.updates + len(self) - last.entries

    def restart(self, values: Tensor, updates: int) -> None:
        """Let what comes next begin from these running buffers."""
        self.restarts = [start for start in self.restarts if start.entries < len(self)]
        if len(self):
            self.restarts.append(Start(len(self), values, updates))
        else:
            self.start, self.updates = values, updates

    def average(self, momentum: float | None) -> Tensor:
        """float64 [2, C]: the layer's own running average after the calls recorded so far."""
        begin = self.starts[-1]
        start, calls = begin.values.cpu().double(), len(self) - begin.entries
        if not calls or momentum == 0:
            return start
        if momentum is None:
            total = self.moments_between(begin.entries, len(self)).double().sum(0)
            return (begin.updates * start + total) / (begin.updates + calls)
        kept = 1.0 - momentum
        newest = calls  # of a long trace as many as hold all of the weight
        if 0 <= kept < 1:
            newest = 1 if kept == 0 else min(calls, math.ceil(math.log(_FORGOTTEN) / math.log(kept)))
        values = self.moments_between(len(self) - newest, len(self)).double()
        ages = torch.arange(newest - 1, -1, -1, dtype=torch.float64, device="cpu")
        recent = momentum * torch.einsum("t,tkc->kc", kept**ages, values)
        return recent + kept**calls * start if newest == calls else recent

    def truncate(self, length: int) -> None:
        """Forget the calls after the first `length`."""
        if length < self.stored:
            self.chunks, self.stored = [self.moments_between(0, length)], length
        if length < len(self):
            self.truncated = True
        del self.steps[length:], self.counts[length:]
        self.restarts = [start for start in self.restarts if start.entries <= length]
        self.slots.clear()

    def extend(self, later: LayerTrace) -> None:
        """Append a later part of the same run."""
        reset = later.updates == 0 and torch.equal(later.start, torch.ones_like(later.start).cumsum(0) - 1)
        if later.updates != self.updates_now and (later.updates or reset):
            self.restart(later.start, later.updates)
        self.restarts += [start._replace(entries=start.entries + len(self)) for start in later.restarts]
        self.chunks.append(later.moments)
        self.steps += later.steps
        self.counts += later.counts
        self.stored = len(self)


class MomentTrace:
    """Batch moments of every batch-norm layer over a training run; one entry for each call in train mode.

    An entry of step k was measured on the weights before update k. What counts as an update, `record` says.

    Attributes:
        layers: name → `LayerTrace`.
        first_step: the step at which recording began.
        last_step: the step of the last entry, or the last that `step` has ended.
    """

    def __init__(self, layers: dict[str, LayerTrace], first_step: int = 0) -> None:
        self.layers = layers
        self.first_step = self.last_step = first_step
        self._recorders: Sequence[_Recorder] = ()  # while it is recording
        self._warned = False
        self._ended: int | None = None  # the last step that `step` has ended; None: forwards are counted
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"MomentTrace({len(self.layers)} layers, steps {self.first_step} to {self.last_step})"

    def step(self) -> None:
        """Mark the end of an update: what is recorded next belongs to the step after it.

        Once this has been called, nothing else counts as a step, and what was recorded before is the first one.

        Raises:
            ValueError: the trace is not recording (any more).
        """
        if not self._recorders:
            raise ValueError("MomentTrace.step: nothing is recorded now; call it inside of the record block")
        self._ended = self._count_updates_only() + 1
        self.last_step = self._ended

    def _count_updates_only(self) -> int:
        """From now on forwards do not count; the last step that was ended."""
        if self._ended is None:
            self._ended = self.first_step
            self.last_step = min(self.last_step, self.first_step + 1)
            for layer in self.layers.values():
                layer.steps = [self.last_step] * len(layer)
        return self._ended

    def _take_up_writes(self) -> None:
        for recorder in self._recorders:
            recorder.take_up_writes()

    def _warn_of_updates_within(self, step: int, name: str) -> None:
        if self._ended is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"record: the weights of layer {name!r} have changed within step {step}, which is one forward of the "
                "model or of a part; call trace.step() after each update, or pass record(..., optimizer=...)",
                stacklevel=2,
            )

    def _step_of_entry(self) -> int:
        """The step of an entry that is made now."""
        self.last_step = max(self.last_step, (self.first_step if self._ended is None else self._ended) + 1)
        return self.last_step

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
            layer.chunks.append(self._kept(layer.current))
            layer.stored = len(layer)
        layer.begin = len(layer) - layer.stored
        # .data has a version of its own: a backward pass that is still to come has saved the slots before.
        # Cleared: the layer computes 0·old + 1·new, and 0·NaN of a bad batch would stay NaN.
        cleared = layer.current.data[layer.begin : layer.begin + _CLEARED].zero_()
        layer.slots = [slot.unbind() for slot in cleared.unbind()]

    def _kept(self, chunk: Tensor) -> Tensor:
        """A copy in memory, or in a file once SPILL_BYTES are there."""
        self._bytes += chunk.nbytes
        if self._bytes <= SPILL_BYTES:
            return chunk.to("cpu", copy=True)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bnlab-trace-")
        path = str(Path(self._folder.name) / f"{self._bytes}.bin")
        return torch.from_file(path, shared=True, size=chunk.numel(), dtype=chunk.dtype).view_as(chunk).copy_(chunk)

    def truncate(self, step: int) -> None:
        """Forget what was recorded after `step` (an update that was not made, say).

        Raises:
            TypeError: `step` is no integer. ValueError: it lies before the trace.
        """
        message = f"MomentTrace.truncate: step={step!r}; pass one from {self.first_step} on"
        check_number(step, lambda s: s >= self.first_step, message, kind=Integral)
        for layer in self.layers.values():
            layer.truncate(bisect_right(layer.steps, step))
        self.last_step = min(self.last_step, int(step))
        if self._ended is not None:
            self._ended = min(self._ended, int(step))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with `<layer>/moments`, `/steps`, `/counts`, `/start` and `/restarts` of each."""
        self._take_up_writes()
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}/moments"] = layer.moments
            tensors[f"{name}/start"] = layer.start
            tensors[f"{name}/steps"] = torch.tensor(layer.steps, dtype=torch.int64, device="cpu")
            tensors[f"{name}/counts"] = torch.tensor(layer.counts, dtype=torch.int64, device="cpu")
        described = [[name, layer.updates, layer.eps] for name, layer in self.layers.items()]
        metadata = {"layers": json.dumps(described), "steps": json.dumps([self.first_step, self.last_step])}
        restarts = {name: layer.restarts for name, layer in self.layers.items() if layer.restarts}
        if restarts:
            tensors |= {f"{name}/restarts": torch.stack([s.values for s in all_]) for name, all_ in restarts.items()}
            ends = {name: [(start.entries, start.updates) for start in all_] for name, all_ in restarts.items()}
            metadata["restarts"] = json.dumps(ends)
        save_tensors(path, tensors, _RESTARTED if restarts else _FORMAT, metadata)

    @staticmethod
    def load(path: str | Path) -> MomentTrace:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file. ValueError: it is not a trace, or damaged.
        """
        tensors, metadata = load_tensors(path, _FORMAT, _RESTARTED)
        restarts = json.loads(metadata.get("restarts", "{}"))
        layers: dict[str, LayerTrace] = {}
        for name, updates, eps in json.loads(metadata["layers"]):
            start, moments = tensors[f"{name}/start"], tensors[f"{name}/moments"]
            steps, counts = tensors[f"{name}/steps"].tolist(), tensors[f"{name}/counts"].tolist()
            values = tensors.get(f"{name}/restarts", ())
            again = [Start(at, v, n) for (at, n), v in zip(restarts.get(name, ()), values, strict=True)]
            layers[name] = LayerTrace(start, updates, eps, steps, counts, [moments], again)
        first, last = json.loads(metadata["steps"])
        trace = MomentTrace(layers, first)
        trace.last_step = last
        return trace

    @staticmethod
    def join(parts: Sequence[MomentTrace]) -> MomentTrace:
        """One trace of consecutive parts of a run (each begins at the step where the one before ended).

        Where `num_batches_tracked` does not go on from the part before, its layer's replays begin again.

        Raises:
            TypeError: a part is no trace. ValueError: no parts, a gap between them, or other layers.
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
            layers[name] = LayerTrace(first.start, first.updates, first.eps)
            for part in parts:
                layers[name].extend(part.layers[name])
        trace = MomentTrace(layers, parts[0].first_step)
        trace.last_step = parts[-1].last_step
        return trace

    def streams(self) -> Iterator[tuple[list[str], int, int | None, Stream]]:
        """Layers that were called at the same steps together, from each of their starts to the next.

        Yields:
            names, the number of their entries before this stream, that before the next one (None: it is the last), the
            stream.
        """
        self._take_up_writes()
        groups: dict[tuple[tuple[int, ...], ...], list[LayerTrace]] = {}
        names: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        for name, layer in self.layers.items():
            key = (tuple(layer.steps), *((start.entries, start.updates) for start in layer.starts))
            groups.setdefault(key, []).append(layer)
            names.setdefault(key, []).append(name)
        for key, members in groups.items():
            firsts = [first for first, _ in key[1:]]
            for part, (first, end) in enumerate(zip(firsts, [*firsts[1:], None], strict=True)):
                yield names[key], first, end, _stream(members, part, first, end)

    @property
    def last_start(self) -> int:
        """The step after which no layer's replay begins again."""
        restarts = [(layer, start) for layer in self.layers.values() for start in layer.restarts]
        return max((layer.steps[start.entries - 1] for layer, start in restarts), default=self.first_step)

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
        TypeError: not a trace or not an estimator. ValueError: no steps, or one outside of the trace.
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
    found: dict[str, Tensor] = {}
    for names, first, end, stream in trace.streams():
        positions = [bisect_right(trace.layers[names[0]].steps, step) for step in steps]
        rows = [row for row, at in enumerate(positions) if at >= first and (end is None or at < end)]
        folded = fold(estimators, stream, [positions[row] - first for row in rows])
        for name, values in zip(names, folded.split(stream.layers, dim=3), strict=True):
            if name not in found:
                found[name] = values.new_empty(len(estimators), len(steps), *values.shape[2:])
            found[name][:, rows] = values
    return torch.cat([found[name] for name in trace.layers], dim=3)


def _stream(members: Sequence[LayerTrace], part: int, first: int, end: int | None) -> Stream:
    """The entries `first` to `end` of layers that were called together, from their start number `part`."""
    starts = [layer.starts[part] for layer in members]
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


@contextlib.contextmanager
def record(model: nn.Module, *, step: int = 0, optimizer: torch.optim.Optimizer | None = None) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block.

    Parameters, outputs and `num_batches_tracked` are bit for bit those of training without it; the running buffers
    are the model's own EMA to float32 rounding, at any moment at which code outside the layer can look. Layers in
    eval mode are not recorded, nor what runs while the model is borrowed (by `population_statistics`, say); a call
    that raises before the layer has taken its statistics leaves no entry. Meanwhile the model's `state_dict()` can be
    saved, the module itself cannot (hooks are not pickled), and its precision must stay. `torch.compile` belongs inside
    the block, where each recorded layer interrupts the graph.

    A step is, in this order of preference,

    - an update: a call of `trace.step()`, or of `optimizer.step()` where the optimizer is given. All forwards since the
      last one belong to it, as with accumulated gradients, or with several networks in one model;
    - a train-mode forward of the model;
    - where only parts of the model are called, as of a container of several networks: such a forward of a part that
      has been called in this step already. (Of two parts that are called in turn, both are on the same step.)

    Where something writes a layer's running buffers (`load_state_dict`, `reset_running_stats`, `write_to`), replays
    begin again from what has been written.

    Args:
        step: the step at which the model is when recording begins.
        optimizer: whose updates count as steps.

    Raises:
        TypeError: not a module, `step` is no integer, or `optimizer` no torch optimizer.
        ValueError: no batch-norm layer with running statistics, a model that has been compiled or that another thread
            is measuring, or a negative step; inside of the block, a layer that takes its statistics several times in a
            call, is called by two threads at once, or is traced or exported in train mode.

    Warns:
        UserWarning: something has trained a layer past its hooks (code that was compiled before the block, a direct
            `layer.forward`), has written its buffers in a way that leaves no trace, or has put another layer into the
            model; or the weights were updated within a step.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"record: optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or None")
    if any(map(is_compiled, model.modules())):
        raise ValueError(
            "record: the model is compiled, and its graphs may not call hooks; record the uncompiled model, and call "
            "torch.compile inside of the block"
        )
    check_not_lent(model.modules())
    trace = MomentTrace({name: _begin(layer) for name, layer in layers.items()}, first_step=int(step))
    counter = _StepCounter(trace, model, layers.values())
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    recorders = [_Recorder(name, layer, trace, counter, trained) for name, layer in layers.items()]
    with contextlib.ExitStack() as undo:
        trace._recorders = recorders
        undo.callback(setattr, trace, "_recorders", ())
        if optimizer is not None:
            trace._count_updates_only()
            count_update = torch.compiler.disable(lambda *_: trace.step())
            undo.callback(optimizer.register_step_post_hook(count_update).remove)
        for module in counter.modules:
            undo.callback(module.register_forward_pre_hook(_hook(counter.enter)).remove)
            undo.callback(module.register_forward_hook(_hook(counter.leave), always_call=True).remove)
        for recorder in recorders:
            layer = recorder.layer
            undo.callback(layer.register_forward_pre_hook(_hook(recorder.before), with_kwargs=True).remove)
            # First of all, so that blocks inside of blocks give back in turn, and other hooks see the layer's own.
            undo.callback(layer.register_forward_hook(_hook(recorder.after), always_call=True, prepend=True).remove)
            undo.callback(recorder.end)
        yield trace
    _warn_of_the_unrecorded(recorders)
    _warn_of_other_layers(model, layers)


def _hook(function: Callable[..., None]) -> Callable[..., None]:
    """A hook that compiled code calls as it is, interrupting its graph, and that measurements leave out."""
    # Also a function, not a method: a deep copy of the model does not copy what it belongs to.
    return resting(torch.compiler.disable(function))


def record_frozen(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, training: bool = False
) -> MomentTrace:
    """The batch moments of one pass over `batches` with the weights as they are; `model` comes back as it was.

    Batch-norm layers normalize with their batch's statistics, all else runs as for inference. Replaying running
    estimators on this trace gives the estimators of frozen weights: `Cumulative` what torch's `update_bn` computes,
    which leaves dropout on as `training=True` does.

    Args:
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        training: all else runs as in training too, dropout and the like.

    Raises:
        as `record`; ValueError if there are no batches.
    """
    layers, hooks = batch_norm_layers(model, caller="record_frozen"), forward_hooks(model)
    check_batches(batches, "record_frozen")
    check_forward(forward, "record_frozen")
    place = device_of(model, None, "record_frozen")
    with borrowed(model), torch.no_grad():
        state = ModuleState(model, hooks)
        with record(model) as trace:
            model.train(training)
            for layer in layers.values():
                layer.train()
            for batch in batches:
                state.accept()
                with state.undone():
                    (forward or call)(model, copied(batch, place))
                trace.step()
    if trace.last_step == trace.first_step:
        raise ValueError("record_frozen: batches is empty; pass at least one batch")
    for name, entries in trace.layers.items():
        if not entries.moments.isfinite().all():
            raise ValueError(
                f"record_frozen: the input of layer {name!r} has NaN or infinite values; look at data and weights"
            )
        entries.updates = 0  # an average of this pass alone: what the buffers had seen before is not its start
    return trace


def _begin(layer: BatchNorm) -> LayerTrace:
    updates = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    return LayerTrace(torch.stack(tracked(layer)).detach(), updates, layer.eps)


class _StepCounter:
    """Counts forwards as steps: those of the model, or of its outermost parts that are called.

    Args:
        trace: whose `last_step` is the count.
        model: what is recorded.
        layers: its recorded layers.

    Attributes:
        modules: those with a recorded layer inside, which get `enter` and `leave` as hooks.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Iterable[BatchNorm]) -> None:
        recorded = {id(layer): layer for layer in layers}
        self._trace = trace
        self._inside = {id(layer): {id(layer): layer} for layer in recorded.values()}
        self.modules: list[nn.Module] = []
        for module in model.modules():
            inside = {id(m): recorded[id(m)] for m in module.modules() if id(m) in recorded}
            if inside and id(module) not in recorded:
                self.modules.append(module)
                self._inside[id(module)] = inside
        self._parts = {id(m): set(map(id, m.modules())) for m in (*self.modules, *recorded.values())}
        self._outermost: tuple[int, int] | None = None  # which module is being called, and by which thread
        self._counting = set[int]()  # modules whose calls count
        self._called = set[int]()  # those of them that have been called in this step
        self._step: int | None = None

    def enter(self, module: nn.Module, args: object) -> None:
        # A deep copy carries the hooks along.
        if id(module) not in self._parts:
            return
        caller = id(module), threading.get_ident()
        if self._outermost is None:
            self.count(module)
        elif self._outermost[0] != caller[0]:
            return
        elif self._outermost != caller:
            raise ValueError("record: the model is called by two threads at once; give each thread a model of its own")
        else:  # the call before was interrupted: hooks are not called after a KeyboardInterrupt
            self.count(module)
        self._outermost = caller

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        if self._outermost == (id(module), threading.get_ident()):
            self._outermost = None

    def enter_layer(self, layer: BatchNorm) -> None:
        if self._outermost is None:
            self.count(layer)

    def count(self, module: nn.Module) -> None:
        """Begin a step if a call of `module`, which is not inside of another's, is the next one's."""
        trace, key = self._trace, id(module)
        layers = self._inside[key].values()
        if trace._ended is not None or not (module.training or any(layer.training for layer in layers)):
            return
        # A part of what counts already: gradient checkpointing runs it again.
        if any(key in self._parts[other] for other in self._counting if other != key):
            return
        self._counting = {other for other in self._counting if other not in self._parts[key]} | {key}
        if key in self._called or self._step != trace.last_step:
            trace.last_step += 1
            self._step, self._called = trace.last_step, set()
        self._called.add(key)


class _Average(NamedTuple):
    """A layer's running average."""

    mean: Tensor
    var: Tensor
    momentum: float | None


class _Loan(NamedTuple):
    """Places for an entry that a layer has instead of `taken` for the time of a call, by one thread."""

    slot: tuple[Tensor, ...]
    values: int
    taken: _Average
    thread: int


# A layer's own average, by the identity of the mean that it has on loan: blocks inside of blocks lend in turn.
_own_averages: dict[int, _Average] = {}


class _Recorder:
    """The hooks of one layer: lend scratch buffers and momentum 1; take the entry, give the own ones back.

    Args:
        name, layer: which layer it is.
        trace: what its entries go to.
        counter: what is told of calls that no module surrounds.
        trained: a parameter that tells an update where the layer has none of its own.

    Attributes:
        name, layer: which layer it is.
        unrecorded: batches by which something else has trained it.
        overwritten: whether its buffers are found to be neither what was recorded nor noticed to be written.
    """

    def __init__(
        self, name: str, layer: BatchNorm, trace: MomentTrace, counter: _StepCounter, trained: Tensor | None
    ) -> None:
        self.name, self.layer = name, layer
        self.unrecorded, self.overwritten = 0, False
        self._trace, self._entries, self._counter = trace, trace.layers[name], counter
        self._buffers, self._attributes = layer._buffers, vars(layer)  # nn.Module's own way to set them is slow
        self._called = False
        self._loan: _Loan | None = None
        self._ended = False
        self._momentum, self._momentum_varied = layer.momentum, False
        weight = layer.weight
        self._trained = trained if weight is None or not weight.requires_grad else weight
        self._trained_versions: tuple[int, ...] = ()
        self._updates = self._entries.updates
        self._look(self._averages()[1])

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layer
        # A deep copy carries the hooks along, and code that was compiled inside of the block calls them after it.
        if module is not layer or self._ended:
            return
        if self._called:
            self._end_interrupted_call()
        # A layer that does not track leaves its buffers alone.
        if not layer.training or not layer.track_running_stats:
            return
        count = layer_input(args, kwargs).numel() // layer.num_features
        if _is_tracing():
            raise ValueError(
                f"record: layer {self.name!r} is traced or exported in train mode; do that before the block or after it"
            )
        held, own = self._averages()
        if self._is_written(own):
            self._notice(own)
        self._called = True
        if count == 0:  # torch lets an empty batch pass and leaves the buffers as they are
            return
        self._counter.enter_layer(layer)
        slot = self._trace.slot(self._entries)
        _own_averages[id(slot[0])] = own
        self._loan = _Loan(slot, count, held, threading.get_ident())
        self._momentum_varied |= own.momentum != self._momentum
        self._buffers["running_mean"], self._buffers["running_var"] = slot
        self._attributes["momentum"] = 1.0

    def after(self, module: nn.Module, args: object, output: object) -> None:
        if module is not self.layer or not self._called:
            return
        self._called, loan = False, self._loan
        updated = self._count_updates()
        if loan is None:
            return
        self._give_back(loan)
        # It raised; after its statistics were taken where gradient checkpointing ends a second forward inside of it.
        if output is None and not (loan.slot[0].any() or loan.slot[1].any()):
            return
        if updated > 1:
            raise ValueError(
                f"record: layer {self.name!r} takes its statistics {updated} times in one call (ghost batch norm?), of "
                "which only the last could be recorded"
            )
        self._append(loan.values)
        mean, var, momentum = loan.taken
        if momentum is None:
            batches = self.layer.num_batches_tracked
            momentum = 0.0 if batches is None else 1.0 / float(batches)
        # .data, because torch's own update does not count as a change to a backward pass that is still to come.
        torch._foreach_lerp_((mean.data, var.data), loan.slot, momentum)

    def end(self) -> None:
        """Give back what is lent still, and look for the last time what was written past the hooks."""
        if self._called:
            self._end_interrupted_call()
        self._ended = True
        self.take_up_writes()
        _, own = self._averages()
        if not self._momentum_varied:
            self.overwritten = not self._holds(torch.stack(own[:2]))

    def take_up_writes(self) -> None:
        """Begin again where something has written the buffers since the last call."""
        _, own = self._averages()
        if self._loan is None and self._is_written(own):
            self._notice(own)

    def _end_interrupted_call(self) -> None:
        """Hooks are not called after a KeyboardInterrupt."""
        if self._loan is not None and self._loan.thread != threading.get_ident():
            raise ValueError(
                f"record: layer {self.name!r} is called by two threads at once; give each thread a model of its own"
            )
        self.after(self.layer, (), None)

    def _averages(self) -> tuple[_Average, _Average]:
        """What the layer has now, and what it has when nothing is lent."""
        mean: Any = self._buffers["running_mean"]  # nn.Module's own way to get them is slow too
        held = _Average(mean, self._buffers["running_var"], self._attributes["momentum"])  # type: ignore[arg-type]
        return held, _own_averages.get(id(mean), held)

    def _give_back(self, loan: _Loan) -> None:
        self._loan = None
        del _own_averages[id(loan.slot[0])]
        self._buffers["running_mean"], self._buffers["running_var"], self._attributes["momentum"] = loan.taken

    def _append(self, count: int) -> None:
        trace, entries = self._trace, self._entries
        step, trained = trace._step_of_entry(), _versions(self._trained)
        if trained != self._trained_versions and entries.steps and entries.steps[-1] == step:
            trace._warn_of_updates_within(step, self.name)
        self._trained_versions = trained
        entries.steps.append(step)
        entries.counts.append(count)

    # What is written from outside

    def _look(self, own: _Average) -> None:
        """Take the buffers as they are for what the calls have left."""
        self._seen = own.mean, own.var, self._buffers.get("num_batches_tracked")
        self._versions = _versions(*self._seen)

    def _is_written(self, own: _Average) -> bool:
        """Whether the buffers are others than at the last look, or have been written since."""
        mean, var, batches = self._seen
        same = own.mean is mean and own.var is var and self._buffers.get("num_batches_tracked") is batches
        return not same or self._entries.truncated or _versions(mean, var, batches) != self._versions

    def _count_updates(self) -> int:
        """How often the layer has counted a batch since the last look, as is right in a call."""
        before, batches = self._updates, self._seen[2]
        versions = _versions(*self._seen)
        writes = versions[2] - self._versions[2]
        if batches is not None and writes:
            # Usually one write adds one; reading the value waits for an accelerator. Compiled code writes twice.
            self._updates = before + 1 if writes == 1 else int(batches)
        self._versions = *self._versions[:2], versions[2]
        return self._updates - before

    def _notice(self, own: _Average) -> None:
        """Begin again where the buffers are not what the recorded calls have left."""
        batches = self._buffers.get("num_batches_tracked")
        updates = 0 if batches is None else int(batches)
        # Counting adds 1 at a time, loading writes any number at once.
        if batches is self._seen[2] and 0 < updates - self._updates <= _versions(*self._seen)[2] - self._versions[2]:
            self.unrecorded += updates - self._updates
        values, entries = torch.stack(own[:2]).detach(), self._entries
        expected = 0 if batches is None else entries.updates_now
        if updates != expected or not self._holds(values):
            entries.restart(values, updates)
        entries.truncated, self._updates = False, updates
        self._look(own)

    def _holds(self, values: Tensor) -> bool:
        """Whether these are the layer's own average of what is recorded, to rounding."""
        entries, momentum = self._entries, self._momentum
        if momentum is None and self.layer.num_batches_tracked is None:
            momentum = 0.0
        mean, var = average = entries.average(momentum)
        # Each update rounds, and is forgotten after 1/momentum others; each sum has a few roundings.
        memory = entries.updates_now + 1 if momentum is None else 1 / momentum if momentum else 1
        tolerance = 8 * torch.finfo(values.dtype).eps * memory
        scale = torch.stack((mean.abs() + var.abs().sqrt(), var.abs()))
        values = values.cpu().double()
        close = (values - average).abs() <= tolerance * scale
        return bool((close | (values == average) | (values.isnan() & average.isnan())).all())


def _is_tracing() -> bool:
    """Whether the operations that run now go into a graph of torch.jit.trace, torch.export or make_fx."""
    proxies = torch._C._get_dispatch_mode(_PROXY)
    return torch._C._get_tracing_state() is not None or proxies is not None or torch.compiler.is_exporting()


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """They grow with each write in place; inference tensors have none."""
    try:
        return tuple([-1 if tensor is None else tensor._version for tensor in tensors])
    except RuntimeError:
        return tuple(-1 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors)


def _warn_of_the_unrecorded(recorders: Iterable[_Recorder]) -> None:
    missed = {recorder.name: recorder.unrecorded for recorder in recorders if recorder.unrecorded > 0}
    if missed:
        warnings.warn(
            f"record: {listed(missed)} were trained on {max(missed.values())} batches past their hooks, which are not "
            "in the trace; code that was compiled before the block, or a direct call of layer.forward does that",
            stacklevel=3,
        )
    overwritten = [recorder.name for recorder in recorders if recorder.overwritten and recorder.name not in missed]
    if overwritten:
        warnings.warn(
            f"record: the running buffers of {listed(overwritten)} are not the average of what was recorded: something "
            "has written them, through .data say; what is replayed is not what they hold",
            stacklevel=3,
        )


def _warn_of_other_layers(model: nn.Module, recorded: dict[str, BatchNorm]) -> None:
    """Say which layers have come into the model, or have taken the place of recorded ones."""
    known = set(map(id, recorded.values()))
    new = [name for name, m in model.named_modules() if isinstance(m, BatchNorm) and id(m) not in known]
    new = [name for name in new if model.get_submodule(name).running_mean is not None]
    if new:
        warnings.warn(
            f"record: {listed(new)} came into the model inside of the block and are not recorded, nor what they have "
            "taken the place of from then on; change the model before the block",
            stacklevel=3,
        )
