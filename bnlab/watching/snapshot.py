"""A model's parameters and buffers at a moment: what has changed since, and how they are put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from bnlab.model.borrow import are_equal
from bnlab.model.layers import BatchNorm, get_running_buffers
from bnlab.statistics.network import read_buffers


class Snapshot:
    """The parameters and buffers of a model, and the running averages of its watched layers, as they are now.

    Args:
        model: the model.
        layers: its watched batch norms.
    """

    def __init__(self, model: nn.Module, layers: Sequence[BatchNorm]) -> None:
        self._model = model
        for layer in layers:
            read_buffers(layer)  # self-tuned layers write what is pending, which would look like a change later
        # Only copies show whether something has changed.
        self._parameters = _copy_values(model.named_parameters())
        self._buffers = _copy_values(model.named_buffers())
        self._averages = [
            (layer, [buffer.detach().clone() for buffer in get_running_buffers(layer)]) for layer in layers
        ]

    def list_changed(self) -> list[str]:
        """List the parameters that hold other values than at that moment, or are other parameters."""
        now = dict(self._model.named_parameters())
        changed = []
        for name, (parameter, values) in self._parameters.items():
            if now.get(name) is not parameter or not _are_equal(parameter, values):
                changed.append(name)
        return changed

    def has_other_averages(self) -> bool:
        """Return whether a watched layer holds other running averages than at that moment."""
        for layer, averages in self._averages:
            pairs = zip(get_running_buffers(layer), averages, strict=True)
            if not all(_are_equal(buffer, values) for buffer, values in pairs):
                return True
        return False

    def put_back(self) -> None:
        """Put all parameters and buffers back: the same tensors, with the values and types of that moment."""
        for name, (tensor, values) in (*self._parameters.items(), *self._buffers.items()):
            place, _, attribute = name.rpartition(".")
            owner = self._model.get_submodule(place)
            if getattr(owner, attribute, None) is not tensor:
                setattr(owner, attribute, tensor)
            # `.data`: a backward pass still to come may have saved the tensor.
            if tensor.dtype == values.dtype and tensor.device == values.device:
                tensor.data.copy_(values)
            else:
                tensor.data = values.clone()


def _copy_values(named: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (tensor, tensor.detach().clone()) for name, tensor in named}


def _are_equal(tensor: Tensor, values: Tensor) -> bool:
    """Return whether a tensor still has these values; one that was NaN and still is counts as unchanged."""
    if tensor.dtype != values.dtype or tensor.shape != values.shape:
        return False
    # An evaluation may have moved the model to another device for a while.
    return are_equal(tensor.to(values.device), values)
