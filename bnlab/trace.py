"""Recording the batch moments of a training run, and replaying any running estimator on them.

With momentum 1 a batch-norm layer's running buffers *are* the last batch's mean and unbiased variance. `record` lends
each layer a scratch pair of buffers for the time of one call and updates the layer's own average itself, so that the
moments cost no second pass over the activations and whoever looks at the model sees what would be there without it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_forward, check_number, device_of
from bnlab.estimators import Estimator, Stream, fold
from bnlab.layers import BatchNorm, Forward, batch_norm_layers, borrowed, call, copied, layer_input, resting, tracked
from bnlab.statistics import Layout, Statistics
from bnlab.storage import load_tensors, save_tensors
from bnlab.switching import ModuleState, forward_hooks

_FORMAT = "bnlab.MomentTrace/1"
_CHUNK = 256  # entries of one layer that are allocated at a time
_CLEARED = 16  # of them that are cleared at a time: each operation counts where a step takes a millisecond
SPILL_BYTES = 256 * 2**20  # recorded bytes kept in memory; what comes after lies in files of a temporary folder


class LayerTrace:
    """The recorded calls of one layer.

    Attributes:
        start: [2, C], its running mean and variance before the first call. updates: `num_batches_tracked` then.
        eps: the layer's own. steps, counts: for each call its step and its values per channel.
    """

    def __init__(
        self,
        start: Tensor,
        updates: int,
        eps: float,
        steps: Sequence[int] = (),
        counts: Sequence[int] = (),
        chunks: Sequence[Tensor] = (),
    ) -> None:
        self.start, self.updates, self.eps = start, updates, eps
        self.steps, self.counts = list(steps), list(counts)
        self.chunks = list(chunks)  # the entries that are complete, on the CPU
        self.stored = len(self.steps)  # how many those are
        self.current: Tensor | None = None  # [_CHUNK, 2, C] on the layer's device, the entries after them
        self.begin, self.slots = 0, list[Sequence[Tensor]]()  # places in it for the next entries, from which one on

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def moments(self) -> Tensor:
        """[calls, 2, C]: batch mean and unbiased batch variance, as the layer computed them (usually float32)."""
        last = self.start[None] if self.current is None else self.current
        return torch.cat([*self.chunks, last[: len(self) - self.stored].cpu()])

    def truncate(self, length: int) -> None:
        """Forget the calls after the first `length`."""
        if length < self.stored:
            self.chunks, self.stored = [self.moments[:length]], length
        del self.steps[length:], self.counts[length:]
        self.slots.clear()


class MomentTrace:
    """Batch moments of every batch-norm layer over a training run; one entry for each call in train mode.

    Step k counts train-mode forwards of the model: an entry of step k was measured on the weights before update k.

    Attributes:
        layers: name → `LayerTrace`. first_step, last_step: the steps at which recording began and where it is now.
    """

    def __init__(self, layers: dict[str, LayerTrace], first_step: int = 0) -> None:
        self.layers = layers
        self.first_step = self.last_step = first_step
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"MomentTrace({len(self.layers)} layers, steps {self.first_step} to {self.last_step})"

    def slot(self, layer: LayerTrace) -> Sequence[Tensor]:
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

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with `<layer>/moments`, `/steps`, `/counts` and `/start` of each layer."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}/moments"] = layer.moments
            tensors[f"{name}/start"] = layer.start
            tensors[f"{name}/steps"] = torch.tensor(layer.steps, dtype=torch.int64, device="cpu")
            tensors[f"{name}/counts"] = torch.tensor(layer.counts, dtype=torch.int64, device="cpu")
        described = [[name, layer.updates, layer.eps] for name, layer in self.layers.items()]
        steps = json.dumps([self.first_step, self.last_step])
        save_tensors(path, tensors, _FORMAT, {"layers": json.dumps(described), "steps": steps})

    @staticmethod
    def load(path: str | Path) -> MomentTrace:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file. ValueError: it is not a trace, or damaged.
        """
        tensors, metadata = load_tensors(path, _FORMAT)
        layers: dict[str, LayerTrace] = {}
        for name, updates, eps in json.loads(metadata["layers"]):
            start, moments = tensors[f"{name}/start"], tensors[f"{name}/moments"]
            steps, counts = tensors[f"{name}/steps"].tolist(), tensors[f"{name}/counts"].tolist()
            layers[name] = LayerTrace(start, updates, eps, steps, counts, [moments])
        first, last = json.loads(metadata["steps"])
        trace = MomentTrace(layers, first)
        trace.last_step = last
        return trace

    @staticmethod
    def join(parts: Sequence[MomentTrace]) -> MomentTrace:
        """One trace of consecutive parts of a run (each begins at the step where the one before ended).

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
            same = [part.layers[name] for part in parts]
            steps, counts = [k for x in same for k in x.steps], [n for x in same for n in x.counts]
            moments = [x.moments for x in same]
            layers[name] = LayerTrace(first.start, first.updates, first.eps, steps, counts, moments)
        trace = MomentTrace(layers, parts[0].first_step)
        trace.last_step = parts[-1].last_step
        return trace

    def streams(self) -> Iterator[tuple[list[str], list[int], Stream]]:
        """Layers that were called at the same steps together: (names, the entries' steps, their stream)."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, layer in self.layers.items():
            groups.setdefault((layer.updates, *layer.steps), []).append(name)
        for (updates, *steps), names in groups.items():
            members = [self.layers[name] for name in names]
            channels = [m.start.shape[1] for m in members]
            counts = torch.tensor([m.counts for m in members], dtype=torch.float64, device="cpu")
            repeats = torch.tensor(channels, device="cpu")
            eps = torch.tensor([m.eps for m in members], dtype=torch.float64, device="cpu")
            stream = Stream(
                start=torch.cat([m.start for m in members], dim=1).cpu().double(),
                batches=torch.cat([m.moments for m in members], dim=2).double(),
                counts=counts.T.repeat_interleave(repeats, dim=1),
                updates=updates,
                eps=eps.repeat_interleave(repeats),
                layers=tuple(channels),
            )
            yield names, list(steps), stream

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
    for names, entries, stream in trace.streams():
        folded = fold(estimators, stream, [bisect_right(entries, step) for step in steps])
        found.update(zip(names, folded.split([trace.layers[n].start.shape[1] for n in names], dim=3), strict=True))
    return torch.cat([found[name] for name in trace.layers], dim=3)


@contextlib.contextmanager
def record(model: nn.Module, *, step: int = 0) -> Iterator[MomentTrace]:
    """Record the moments of every batch that `model` is trained on inside the block.

    Parameters, outputs and `num_batches_tracked` are bit for bit those of training without it; the running buffers
    are the model's own EMA to float32 rounding, at any moment at which code outside the layer can look. Layers in
    eval mode are not recorded, nor what runs while the model is borrowed (by `population_statistics`, say); a call
    that raises before the layer has taken its statistics leaves no entry. Meanwhile the model's `state_dict()` can be
    saved, the module itself cannot (hooks are not pickled), and its precision must stay.

    Args:
        step: the step at which the model is when recording begins.

    Raises:
        TypeError: not a module, or `step` is no integer. ValueError: no batch-norm layer with running statistics, a
            compiled model, or a negative step.
    """
    layers = batch_norm_layers(model, caller="record")
    check_number(step, lambda s: s >= 0, f"record: step={step!r}; pass the number of updates so far", kind=Integral)
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        raise ValueError(
            "record: the model is compiled, and hooks do not reach its layers; record before torch.compile"
        )
    trace = MomentTrace({name: _begin(layer) for name, layer in layers.items()}, first_step=int(step))

    def count_step(module: nn.Module, args: object) -> None:
        if module is model and (module.training or any(layer.training for layer in layers.values())):
            trace.last_step += 1

    with contextlib.ExitStack() as undo:
        undo.callback(model.register_forward_pre_hook(resting(count_step)).remove)
        for name, layer in layers.items():
            before, after = _hooks(trace, layer, trace.layers[name])
            undo.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            # First of all, so that blocks inside of blocks give back in turn, and other hooks see the layer's own.
            undo.callback(layer.register_forward_hook(after, always_call=True, prepend=True).remove)
            undo.callback(after, layer, (), None)  # hooks are not called after a KeyboardInterrupt
        yield trace


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
            for number, batch in enumerate(batches, start=1):
                state.accept()
                with state.undone():
                    (forward or call)(model, copied(batch, place))
                trace.last_step = number
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


def _hooks(
    trace: MomentTrace, layer: BatchNorm, entries: LayerTrace
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The pair around one layer's call: lend scratch buffers and momentum 1; take the entry, give the own ones back."""
    buffers, own = layer._buffers, vars(layer)  # nn.Module's own way to set an attribute is slow
    lent: list[Any] = []

    def give_back() -> Any:
        slot, count, mean, var, momentum = lent
        lent.clear()
        buffers["running_mean"], buffers["running_var"], own["momentum"] = mean, var, momentum
        return slot, count, mean, var, momentum

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A deep copy carries the hooks along.
        if module is not layer:
            return
        if lent:  # the call before was interrupted: hooks are not called after a KeyboardInterrupt
            give_back()
        # A layer that does not track leaves its buffers alone.
        if not layer.training or not layer.track_running_stats:
            return
        count = layer_input(args, kwargs).numel() // layer.num_features
        if count == 0:  # torch lets an empty batch pass and leaves the buffers as they are
            return
        slot = trace.slot(entries)
        lent[:] = (slot, count, buffers["running_mean"], buffers["running_var"], layer.momentum)
        buffers["running_mean"], buffers["running_var"] = slot
        own["momentum"] = 1.0

    def after(module: nn.Module, args: object, output: object) -> None:
        if module is not layer or not lent:
            return
        slot, count, mean, var, momentum = give_back()
        # It raised; after its statistics were taken where gradient checkpointing ends a second forward inside of it.
        if output is None and not (slot[0].any() or slot[1].any()):
            return
        trace.last_step = max(trace.last_step, trace.first_step + 1)
        entries.steps.append(trace.last_step)
        entries.counts.append(count)
        if momentum is None:
            momentum = 0.0 if layer.num_batches_tracked is None else 1.0 / float(layer.num_batches_tracked)
        # .data, because torch's own update does not count as a change to a backward pass that is still to come.
        torch._foreach_lerp_((mean.data, var.data), slot, momentum)

    return resting(before), resting(after)
