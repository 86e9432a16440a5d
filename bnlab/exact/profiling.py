"""A forward of a few images: what it holds, how batches can be laid out, and which layers are not what they seem."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab.batches import count_bytes, count_images, take_images
from bnlab.borrow import borrowed
from bnlab.exact.inputs import Values, has_own_forward
from bnlab.exact.probe import Probed, probe
from bnlab.exact.task import CALLER, Layers, Task, watched
from bnlab.layers import BatchNorm, find_replaced_forward, get_running_buffers, join_names
from bnlab.memory import LiveBytes, Profile
from bnlab.warn import warn

_FEW = 4  # images of a batch that stand for it


def profile_forward(task: Task) -> Profile:
    """Find what a forward of a few images of the first batch holds; the task gets a layout in which it runs.

    Raises:
        ValueError: a layer does not normalize its input, and nobody says what it does normalize.

    Warns:
        RuntimeWarning: layers that cannot be judged, or whose buffers are used elsewhere.
    """
    if not task.data:
        return Profile({}, 0.0)
    first = task.data[0]
    layouts = _list_layouts(task, first)
    for channels_last, images in layouts:
        task.channels_last = channels_last
        task.few = images
        few = take_images(first, images)
        try:
            with borrowed(task.model):  # so that what a few images leave, such as a queue's place, is taken back
                profile = _profile(task, few)
            break
        except Exception:
            if (channels_last, images) == layouts[-1]:
                raise
    with borrowed(task.model):
        _check_own_forwards(task, few)
    return profile


def _list_layouts(task: Task, batch: Any) -> list[tuple[bool, int]]:
    """Whether channels are innermost, and how many images stand for a batch: what is fastest comes first."""
    is_cpu = task.device.type == "cpu"
    every = count_images(batch)
    return list(dict.fromkeys([(is_cpu, _FEW), (is_cpu, every), (False, every)]))


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
    """Notices `F.batch_norm` outside of the layers that are known.

    Attributes:
        names: of known layers whose buffers were given to it outside of their forward.
        hidden: what else was given to it as running mean: names of buffers, or that it is none of the model's.
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
                place = 1 if function is F.batch_norm else 3
                self._look_for_hidden(args[place] if len(args) > place else named.get("running_mean"))
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
        is_layers = key in self._owners or name.split(".")[-1] == "running_mean"
        if not is_layers:  # layers with such a buffer are known, or left out
            self.hidden.add(repr(name) if name else "buffers that are not the model's")


def _check_own_forwards(task: Task, batch: Any) -> None:
    """Ask layers with a forward of their own what they average; see `probe`."""
    asked = {
        name: layer for name, layer in task.layers.items() if has_own_forward(layer) and not task.inputs.is_told(name)
    }
    if not asked:
        return
    unclear: list[str] = []
    judged = set[str]()

    def ask(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in judged:
            return
        judged.add(name)
        found = probe(asked[name], args, kwargs)
        if found is None or not found.averages:
            unclear.append(name)
        elif not found.is_input:
            raise ValueError(_describe_other_input(name, asked[name], found))

    with contextlib.ExitStack() as undo:
        for name, layer in asked.items():

            def hook(of: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                ask(name, args, kwargs)

            undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        task.evaluate(batch)
    if unclear:
        warn(
            f"{CALLER}: {join_names(unclear)} never average in train mode, or cannot be asked; it is taken that they "
            "normalize their input"
        )


def _describe_other_input(name: str, layer: BatchNorm, found: Probed) -> str:
    kind = type(layer).__name__
    if math.isinf(found.off):
        difference = "averages other channels than those of its input"
    else:
        difference = f"does not average the moments of its input (they differ by {found.off:.2g} σ)"
    key = kind if find_replaced_forward(layer) is None else repr(name)
    return (
        f"{CALLER}: layer {name!r} ({kind}) {difference}; say what it normalizes: inputs={{{key}: function(layer, "
        "args, kwargs) -> values}"
    )
