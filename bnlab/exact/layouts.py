"""Batches and weights with the channels innermost, in which the CPU computes faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnlab.batches import copy_batch
from bnlab.memory import tensor_bytes


def set_weights_channels_last(model: nn.Module, most: int) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give the convolutions of a borrowed model copies of their weights with the channels innermost.

    oneDNN arranges weights for itself at every call, and has less to do then. Results differ by
    float32 rounding where an input does not have its channels innermost.

    Returns:
        (module, key, own weight) of what was replaced; nothing, where that would take more than `most` bytes.
    """
    layout = torch.channels_last
    weights = [m._parameters.get("weight") for m in model.modules() if type(m) is nn.Conv2d]
    own = {id(w): w for w in weights if type(w) is nn.Parameter and not w.is_contiguous(memory_format=layout)}
    if sum(w.nbytes for w in own.values()) > most:
        return []
    lent = {key: nn.Parameter(w.detach().contiguous(memory_format=layout), w.requires_grad) for key, w in own.items()}
    # Wherever the model has them: weights may be shared.
    places = [(m, key, w) for m in model.modules() for key, w in m._parameters.items() if id(w) in own]
    for module, key, weight in places:
        module._parameters[key] = lent[id(weight)]
    return places  # type: ignore[return-value]


class Layouts:
    """Lays out copies of batches, and weights of a borrowed model, until a forward raises for it.

    Attributes:
        channels_last: whether the channels are innermost now; else all is as the caller has it.
        nbytes: of the copies of weights that the model has been given.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, channels_last: bool, most: int) -> None:
        """`channels_last`: where that is faster; of the weights up to `most` bytes."""
        self._device = device
        self.channels_last = channels_last and device.type == "cpu"  # measured on CPUs only
        self._own_weights = set_weights_channels_last(model, most) if self.channels_last else []
        self.nbytes = tensor_bytes(list({id(weight): weight for *_, weight in self._own_weights}.values()))

    def copy(self, batch: Any) -> Any:
        """A copy of a batch on the device."""
        return copy_batch(batch, self._device, channels_last=self.channels_last)

    def restore(self) -> None:
        """From now on batches and weights come as the caller has them."""
        self.channels_last = False
        for module, key, weight in self._own_weights:
            module._parameters[key] = weight
