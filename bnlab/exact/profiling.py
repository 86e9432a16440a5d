"""Trial forwards of a few images: the layout in which the model runs, the memory it holds, and unusual layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab.batches import count_bytes, count_images, take_images
from bnlab.borrow import borrowed
from bnlab.exact.probe import ProbeResult, probe
from bnlab.exact.task import CALLER, Layers, Task, watched
from bnlab.inputs import OtherInput, Values, has_own_forward
from bnlab.layers import BatchNorm, find_replaced_forward, get_running_buffers, join_names
from bnlab.memory import LiveBytes, Profile
from bnlab.warn import warn

_SAMPLE_SIZE = 4  # images of a batch that are evaluated in place of all


def prepare(task: Task) -> Profile:
    """Prepare a measurement by forwards of a few images of the first batch.

    Sets `task.channels_last` and `task.sample_size` to the fastest with which the model runs, and asks layers with a
    forward of their own what they normalize.

    Returns:
        How much memory a forward holds, by which batches are let wait at a layer. Without batches it is empty.

    Raises:
        ValueError: a layer does not normalize its input, and `inputs=` does not say what it normalizes.

    Warns:
        RuntimeWarning: layers that cannot be judged, or whose buffers are used outside of their forward.
    """
    if not task.data:
        return Profile({}, 0.0)

    first = task.data[0]
    profile = _choose_layout(task, first)
    sample = take_images(first, task.sample_size)
    with borrowed(task.model):
        _require_inputs_normalized(task, sample)
    return profile


def _choose_layout(task: Task, batch: Any) -> Profile:
    """Set the task's layout and sample size to the first with which the model runs, and profile that forward."""
    *attempts, last = _list_layouts(task, batch)
    for channels_last, sample_size in attempts:
        with contextlib.suppress(Exception):  # what is wrong with the model itself, the last one raises too
            return _profile_layout(task, batch, channels_last, sample_size)
    channels_last, sample_size = last
    return _profile_layout(task, batch, channels_last, sample_size)


def _list_layouts(task: Task, batch: Any) -> list[tuple[bool, int]]:
    """List what to try, the fastest first: whether channels are innermost, and how many images stand for the batch."""
    is_cpu = task.device.type == "cpu"  # where channels that are innermost are faster
    all_images = count_images(batch)
    layouts = [(is_cpu, _SAMPLE_SIZE), (is_cpu, all_images), (False, all_images)]
    return list(dict.fromkeys(layouts))  # each once: elsewhere the last two are the same


def _profile_layout(task: Task, batch: Any, channels_last: bool, sample_size: int) -> Profile:
    """Set the task's layout and sample size, and profile a forward of so many images of a batch."""
    task.channels_last = channels_last
    task.sample_size = sample_size
    sample = take_images(batch, sample_size)
    with borrowed(task.model):  # takes back what a sample leaves in the model, such as the index of a queue
        return _profile_forward(task, sample)


def _profile_forward(task: Task, batch: Any) -> Profile:
    """Run a forward, find how much memory it holds, and warn of calls that cannot be measured."""
    live = LiveBytes([*task.model.parameters(), *task.model.buffers()])
    calls: list[tuple[str, int]] = []

    def note_call(name: str, values: Values) -> None:
        calls.append((name, live.now()))

    outside = _OutsideCalls(task.model, task.layers)
    with live, outside.watching(), watched(task, task.layers, note_call):
        task.evaluate(batch)
    _warn_of_outside_calls(outside)
    return Profile.of(calls, live.peak, max(1, count_bytes(batch)))


def _warn_of_outside_calls(outside: _OutsideCalls) -> None:
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


class _BufferIndex:
    """Index of buffers by their memory, which finds the ones that a tensor is part of.

    It compares addresses, not storages only: buffers of several layers may be views of one flat tensor.
    """

    def __init__(self, buffers: Iterable[tuple[str, Tensor]]) -> None:
        self._by_storage: dict[int, list[tuple[str, int, int]]] = {}
        for name, buffer in buffers:
            if buffer.layout == torch.strided:  # others have no storage
                storage = buffer.untyped_storage().data_ptr()
                start, end = _find_addresses(buffer)
                self._by_storage.setdefault(storage, []).append((name, start, end))

    def find_names(self, tensor: Tensor) -> list[str]:
        """Find the names of the buffers that share values with a strided tensor."""
        storage = tensor.untyped_storage().data_ptr()
        candidates = self._by_storage.get(storage)
        if not candidates:
            return []
        start, end = _find_addresses(tensor)
        return [name for name, first, last in candidates if start <= last and first <= end]


def _find_addresses(tensor: Tensor) -> tuple[int, int]:
    """Find the memory addresses of the first and the last value of a strided tensor."""
    first = tensor.data_ptr()
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + steps * tensor.element_size()


class _OutsideCalls(TorchFunctionMode):
    """Watcher for calls of `F.batch_norm` that no layer makes with its own buffers in its forward.

    Attributes:
        names: measured layers whose buffers were given to a call outside of their forward.
        hidden: what calls outside of all measured layers' forwards were given as running mean, if that is no layer's:
            the name of a buffer of the model, in quotes, or that it is not the model's.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        super().__init__()
        self.names = set[str]()
        self.hidden = set[str]()
        self._layers = layers
        self._inside: list[nn.Module] = []  # layers whose forwards are running, the innermost last
        self._running_buffers = _BufferIndex(
            (name, buffer) for name, layer in layers.items() for buffer in get_running_buffers(layer)
        )
        self._model_buffers = _BufferIndex(model.named_buffers(remove_duplicate=False))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls that are made in the block."""
        with contextlib.ExitStack() as undo:
            for layer in self._layers.values():
                undo.callback(layer.register_forward_pre_hook(self._enter).remove)
                undo.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
            undo.enter_context(self)
            yield

    def _enter(self, layer: nn.Module, *_: object) -> None:
        self._inside.append(layer)

    def _leave(self, *_: object) -> None:  # returns nothing: a hook's result would replace the layer's output
        self._inside.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if function in (F.batch_norm, torch.batch_norm):
            for value in (*args, *keywords.values()):
                self._note_layers(value)
            if not self._inside:
                position = 1 if function is F.batch_norm else 3  # of running_mean among the arguments
                mean = args[position] if len(args) > position else keywords.get("running_mean")
                self._note_hidden(mean)
        return function(*args, **keywords)

    def _note_layers(self, value: Any) -> None:
        """Note the layers whose buffers an argument is part of, unless the call is in their forward."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return
        for name in self._running_buffers.find_names(value):
            if self._layers[name] not in self._inside:
                self.names.add(name)

    def _note_hidden(self, mean: Any) -> None:
        """Note a running mean that is no layer's: neither of one that is measured nor of one that is left out."""
        if not isinstance(mean, Tensor) or mean.layout != torch.strided:
            return
        if self._running_buffers.find_names(mean):
            return
        names = self._model_buffers.find_names(mean)
        if not names:
            self.hidden.add("buffers that are not the model's")
        elif not any(name.split(".")[-1] == "running_mean" for name in names):
            self.hidden.add(repr(names[-1]))


def _require_inputs_normalized(task: Task, batch: Any) -> None:
    """Require that each layer with a forward of its own normalizes its input, unless `inputs=` says what it does.

    Each is asked in its first call of the forward of `batch`, see `probe`.

    Raises:
        ValueError: a layer averages something other than its input.

    Warns:
        RuntimeWarning: layers that cannot be asked.
    """
    unknown = {
        name: layer
        for name, layer in task.layers.items()
        if has_own_forward(layer) and name not in task.inputs.extracts
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
            raise _refuse_other_input(name, unknown[name], result)

    with contextlib.ExitStack() as undo:
        for name, layer in unknown.items():
            undo.callback(layer.register_forward_pre_hook(partial(ask, name), with_kwargs=True).remove)
        task.evaluate(batch)
    if unclear:
        warn(
            f"{CALLER}: {join_names(unclear)} never average in train mode, or cannot be called in it; they are "
            "measured as if they normalized their input"
        )


def _refuse_other_input(name: str, layer: BatchNorm, result: ProbeResult) -> OtherInput:
    """Describe what a layer averages in place of its input, and how `inputs=` says what that is."""
    kind = type(layer).__name__
    if math.isinf(result.off):
        difference = "averages other channels than those of its input"
    else:
        difference = f"does not average the moments of its input (they differ by {result.off:.2g} σ)"

    key = kind
    if find_replaced_forward(layer) is not None:  # set on this layer, not by its class
        key = repr(name)
    return OtherInput(CALLER, f"layer {name!r} ({kind}) {difference}", key)
