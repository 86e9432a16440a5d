"""Forwards of a few images: the memory that they hold, the layout in which they run, and unusual layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab.batches import count_bytes, count_images, take_images
from bnlab.borrow import borrowed
from bnlab.exact.inputs import Values, has_own_forward
from bnlab.exact.probe import ProbeResult, probe
from bnlab.exact.task import CALLER, Layers, Task, watched
from bnlab.layers import BatchNorm, find_replaced_forward, get_running_buffers, join_names
from bnlab.memory import LiveBytes, Profile
from bnlab.warn import warn

_SAMPLE_SIZE = 4  # images of a batch that are evaluated in its place


def prepare(task: Task) -> Profile:
    """Prepare a measurement by forwards of a few images, and find what a forward of the first batch holds.

    Sets the task's layout and sample size to the fastest with which the model runs, and asks layers with a forward of
    their own what they normalize. That is needed however the layers are measured; only the profile is for batches that
    wait.

    Raises:
        ValueError: a layer does not normalize its input, and `inputs=` does not say what it normalizes.

    Warns:
        RuntimeWarning: layers that cannot be judged, or whose buffers are used outside of their forward.
    """
    if not task.data:
        return Profile({}, 0.0)
    first = task.data[0]
    layouts = _list_layouts(task, first)
    for channels_last, sample_size in layouts:
        task.channels_last = channels_last
        task.sample_size = sample_size
        sample = take_images(first, sample_size)
        try:
            with borrowed(task.model):  # takes back what a sample leaves in the model, such as a queue's place
                profile = _profile(task, sample)
            break
        except Exception:
            if (channels_last, sample_size) == layouts[-1]:
                raise
    with borrowed(task.model):
        _require_own_forwards(task, sample)
    return profile


def _list_layouts(task: Task, batch: Any) -> list[tuple[bool, int]]:
    """List what to try, the fastest first: whether channels are innermost, and how many images stand for the batch."""
    is_cpu = task.device.type == "cpu"
    all_images = count_images(batch)
    return list(dict.fromkeys([(is_cpu, _SAMPLE_SIZE), (is_cpu, all_images), (False, all_images)]))


def _profile(task: Task, batch: Any) -> Profile:
    live = LiveBytes([*task.model.parameters(), *task.model.buffers()])
    calls: list[tuple[str, int]] = []

    def note(name: str, values: Values) -> None:
        calls.append((name, live.now()))

    outside = _OutsideCalls(task.model, task.layers)
    with live, outside.watching(), watched(task, task.layers, note):
        task.evaluate(batch)
    if outside.names:
        warn(
            f"{CALLER}: F.batch_norm is called on the buffers of {join_names(sorted(outside.names))} outside of their "
            "forward, which cannot be measured"
        )
    if outside.hidden:
        warn(
            f"{CALLER}: F.batch_norm is called on {', '.join(sorted(outside.hidden))}: no batch-norm layer of the "
            "model has these as running_mean, so they are not measured; a layer in a plain list belongs in a "
            "ModuleList"
        )
    return Profile.of(calls, live.peak, max(1, count_bytes(batch)))


class _OutsideCalls(TorchFunctionMode):
    """Notices calls of `F.batch_norm` outside of the forwards of the layers that are measured.

    Attributes:
        names: layers whose buffers were given to such a call.
        hidden: descriptions of what else such calls were given as running mean: the name of a buffer of the model, or
            that it is none.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        super().__init__()
        self._layers = layers
        self._inside: list[nn.Module] = []
        self._owners = {
            buffer.untyped_storage().data_ptr(): (name, layer)
            for name, layer in layers.items()
            for buffer in get_running_buffers(layer)
        }
        self._buffers = {
            buffer.untyped_storage().data_ptr(): name
            for name, buffer in model.named_buffers(remove_duplicate=False)
            if buffer.layout == torch.strided
        }
        self.names = set[str]()
        self.hidden = set[str]()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch in the block."""
        with contextlib.ExitStack() as undo:
            for layer in self._layers.values():
                undo.callback(layer.register_forward_pre_hook(self._enter).remove)
                undo.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
            undo.enter_context(self)
            yield

    def _enter(self, layer: nn.Module, *_: object) -> None:
        self._inside.append(layer)

    def _leave(self, *_: object) -> None:  # what a hook returns would take the place of the output
        self._inside.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (F.batch_norm, torch.batch_norm):
            named = kwargs or {}
            for value in (*args, *named.values()):
                self._look(value)
            if not self._inside:
                position = 1 if function is F.batch_norm else 3  # of running_mean among the arguments
                self._look_for_hidden(args[position] if len(args) > position else named.get("running_mean"))
        return function(*args, **(kwargs or {}))

    def _look(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return
        name, layer = self._owners.get(value.untyped_storage().data_ptr(), ("", None))
        if layer is not None and layer not in self._inside:
            self.names.add(name)

    def _look_for_hidden(self, mean: Any) -> None:
        if not isinstance(mean, Tensor) or mean.layout != torch.strided:
            return
        key = mean.untyped_storage().data_ptr()
        name = self._buffers.get(key, "")
        # A batch norm's running_mean belongs to a layer that is measured, or that the caller has left out.
        is_of_layer = key in self._owners or name.split(".")[-1] == "running_mean"
        if not is_of_layer:
            self.hidden.add(repr(name) if name else "buffers that are not the model's")


def _require_own_forwards(task: Task, batch: Any) -> None:
    """Ask each layer with a forward of its own, in its first call, what it averages; ValueError if not its input."""
    unknown = {
        name: layer
        for name, layer in task.layers.items()
        if has_own_forward(layer) and not task.inputs.has_extract(name)
    }
    if not unknown:
        return
    unclear: list[str] = []
    asked = set[str]()

    def ask(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in asked:
            return
        asked.add(name)
        result = probe(unknown[name], args, kwargs)
        if result is None or not result.averages:
            unclear.append(name)
        elif not result.is_input:
            raise ValueError(_describe_other_input(name, unknown[name], result))

    with contextlib.ExitStack() as undo:
        for name, layer in unknown.items():
            undo.callback(layer.register_forward_pre_hook(partial(ask, name), with_kwargs=True).remove)
        task.evaluate(batch)
    if unclear:
        warn(
            f"{CALLER}: {join_names(unclear)} never average in train mode, or cannot be called in it; they are "
            "measured as if they normalized their input"
        )


def _describe_other_input(name: str, layer: BatchNorm, result: ProbeResult) -> str:
    kind = type(layer).__name__
    if math.isinf(result.off):
        difference = "averages other channels than those of its input"
    else:
        difference = f"does not average the moments of its input (they differ by {result.off:.2g} σ)"
    key = kind if find_replaced_forward(layer) is None else repr(name)
    return (
        f"{CALLER}: layer {name!r} ({kind}) {difference}; say what it normalizes: inputs={{{key}: function(layer, "
        "args, kwargs) -> values}"
    )
