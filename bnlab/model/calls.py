"""See torch's batch-norm operations while a model runs: what each is given to normalize, and by which averages.

A hook on a layer sees what the layer is given. What it normalizes may be something else, where its forward masks,
scales or divides its input first, or where the forward around it calls no layer at all and reads its averages. The
operation itself is the same in all of them, and the address of its running mean names the layer.

`TorchFunctionMode` would be public, but it sees no operation inside TorchScript, and those of an exported graph under
another name. `TorchDispatchMode` sees them all, one level below; torch's own counter of operations uses it, too. A norm
that is written as arithmetic, `(x - mean) / (var + eps).sqrt()`, runs no batch-norm operation, and is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bnlab.model.batches import copy_batch, list_tensors, map_batch
from bnlab.model.layers import BatchNorm, count_channels, get_running_buffers

# Torch's batch-norm operations that are given running averages. Which of them runs depends on the mode, on gradients
# and on the device.
_OPERATIONS = frozenset(
    {
        "aten::batch_norm",
        "aten::native_batch_norm",
        "aten::cudnn_batch_norm",
        "aten::miopen_batch_norm",
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_functional",
        "aten::_native_batch_norm_legit_no_training",
        "aten::_batch_norm_with_update",
        "aten::_batch_norm_with_update_functional",
        "aten::_batch_norm_no_update",
    }
)
# Places of their arguments, the same in all of them.
_X, _WEIGHT, _BIAS, _MEAN, _VAR, _TRAINING = range(6)


@dataclass(frozen=True)
class NormCall:
    """One batch-norm operation.

    Attributes:
        name: of the layer whose running mean or variance it was given; None: they are no layer's, or there are none.
        x: what it normalizes, [N, C, ...].
        mean, var: the running averages [C]; None: it was given none.
        uses_batch: whether it normalizes by mean and variance of `x`, as in train mode.
        weight, bias: [C], by which it scales and shifts what is normalized; None: by 1 and 0.
    """

    name: str | None
    x: Tensor
    mean: Tensor | None
    var: Tensor | None
    uses_batch: bool
    weight: Tensor | None = None
    bias: Tensor | None = None

    def normalize_by(self, mean: Tensor, var: Tensor) -> NormCall:
        """Return the call that normalizes by these [C], as in eval mode."""
        return replace(self, mean=mean, var=var, uses_batch=False)


Answer = Callable[[NormCall], NormCall | None]
"""Called with each operation before it runs; returns what is to run in its place, or None to let it be."""


class NormCallMode(TorchDispatchMode):
    """In the block `answer` is called with each batch-norm operation, before it runs.

    Nothing is written into the model. In place of an operation the answer runs, as in eval mode: what is normalized, by
    which mean and variance, weight and bias. A forward that waits, in a greenlet or a thread, must not do so in the
    block: torch keeps one stack of modes, and others would run under this one.

    Args:
        layers: the layers by which operations are named.
        answer: see `Answer`.

    >>> import torch
    >>> layer = torch.nn.BatchNorm1d(1).eval()
    >>> with NormCallMode({"norm": layer}, lambda call: print(call.name, call.x.tolist())):
    ...     output = torch.nn.functional.batch_norm(torch.ones(2, 1), layer.running_mean, layer.running_var)
    norm [[1.0], [1.0]]
    """

    def __init__(self, layers: Mapping[str, BatchNorm], answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self._names: dict[tuple[int, int], str] = {}
        for name, layer in layers.items():
            # By its address: what reaches an operation is another Python object for the same memory. A part of it, of
            # some channels, is none of the layer's own. By the variance too, as a forward may subtract no mean.
            for buffer in get_running_buffers(layer):
                self._names.setdefault((buffer.data_ptr(), buffer.numel()), name)

    def _run(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run any operation of torch's, which calls this for each."""
        operation = func.name()
        if operation in _OPERATIONS:
            args = self._see(operation, args)
        return func(*args, **(kwargs or {}))

    def _see(self, operation: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Call `answer` with an operation; return the arguments with which it runs."""
        mean, var = args[_MEAN], args[_VAR]
        # Some operations are of one mode, and say so by their name in place of an argument.
        says_mode = isinstance(args[_TRAINING], bool)
        uses_batch = args[_TRAINING] if says_mode else "with_update" in operation
        given = [self._names.get((buffer.data_ptr(), buffer.numel())) for buffer in (mean, var) if buffer is not None]
        name = next((name for name in given if name is not None), None)
        answer = self._answer(NormCall(name, args[_X], mean, var, uses_batch, args[_WEIGHT], args[_BIAS]))
        if answer is None or answer.mean is None or answer.var is None:
            return args

        changed = list(args)
        changed[_X], changed[_WEIGHT], changed[_BIAS] = answer.x, answer.weight, answer.bias
        # Averages are of the type of those that were given, else of the weights': on the CPU torch takes no others.
        dtype = next(tensor.dtype for tensor in (mean, answer.weight, answer.x) if tensor is not None)
        changed[_MEAN], changed[_VAR] = [values.to(answer.x.device, dtype) for values in (answer.mean, answer.var)]
        if says_mode:
            changed[_TRAINING] = False
        return tuple(changed)


# Not in the class: there torch wraps it in what imports the compiler at its first call, which takes more than a second.
NormCallMode.__torch_dispatch__ = NormCallMode._run  # type: ignore[assignment, method-assign]


def read_normalized(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Read what a layer with a forward of its own normalizes in a call: its forward is run once, on copies.

    Args:
        layer: as it is, in either mode. A forward in train mode leaves its averages, and counts its batches.
        args, kwargs: of the call, which the forward may write into.

    Returns:
        The values of all of its operations, [N, C, ...], or [M, C] where their shapes differ; None if none was seen.
    """
    values: list[Tensor] = []
    by_batch: list[Tensor] = []

    def note(call: NormCall) -> NormCall | None:
        if call.name is not None and call.mean is not None and call.var is not None:
            values.append(call.x.detach().clone())  # the forward may write into it afterwards, as InPlaceABN's does
            return call.normalize_by(call.mean, call.var)  # in train mode, too, so that it does not average
        # A layer may normalize by each batch, without averages, in eval mode too.
        if call.mean is None and call.x.shape[1] == count_channels(layer):
            by_batch.append(call.x.detach().clone())
        return None

    devices = {value.device for value in list_tensors([args, kwargs]) if value.is_cuda}
    attributes = [(vars(module), dict(vars(module))) for module in layer.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), NormCallMode({"": layer}, note):
            layer.forward(*map_batch(_copy, args), **map_batch(_copy, kwargs))
    finally:
        # What it counts or keeps in attributes, the call itself counts and keeps once more.
        for now, before in attributes:
            now.clear()
            now.update(before)
    found = values or by_batch
    return join_values(found) if found else None


def join_values(values: Sequence[Tensor]) -> Tensor:
    """Join values [N, C, ...] of several operations, at least of one; [M, C] where their shapes differ."""
    if len(values) == 1:
        return values[0]
    if len({value.shape[2:] for value in values}) == 1:
        return torch.cat([*values])
    return torch.cat([value.movedim(1, -1).flatten(0, -2) for value in values])


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    # An object that holds the values, into which the forward writes, or whose attributes it sets.
    return copy_batch(leaf, None) if hasattr(leaf, "__dict__") and not callable(leaf) else leaf
