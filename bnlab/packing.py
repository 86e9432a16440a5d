"""Convolutions on the CPU that arrange their weights once for all batches.

oneDNN computes with weights in blocks of its own and rearranges a layer's weights at every call, which takes up to a
third of the time where channels are many and images small. Breadth-first, all batches meet the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.memory import tensor_bytes

_Geometry = tuple[Any, Sequence[int], Sequence[int], int]  # padding, stride, dilation, groups

_CERTAIN = 16  # images; with fewer it depends on threads and sizes whether torch takes oneDNN


def pack_convolutions(model: nn.Module, most: int) -> int:
    """Let the convolutions of a borrowed model keep their weights as arranged for the first call.

    What they return is the same to the bit. Calls for which torch does not use oneDNN, or that somebody watches, and
    weights that are computed anew for each call, are left to torch.

    Returns:
        bytes that this will take, at most; 0 where that would be more than `most`, and nothing is done.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and _ordinary(m)] if _available() else []
    size = tensor_bytes([layer.weight for layer in layers])
    if size > most:
        return 0
    for layer in layers:
        layer._conv_forward = _Packed(layer)  # type: ignore[assignment]
    return size


def _ordinary(layer: nn.Conv2d) -> bool:
    own = "_conv_forward" in vars(layer) or type(layer)._conv_forward is not nn.Conv2d._conv_forward
    return not own and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


class _Packed:
    """Stands in for one layer's `_conv_forward`."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._plain = layer._conv_forward
        self._geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        self._weight: Tensor | None = None
        self._version = -1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _left_alone(x):
            return self._plain(x, weight, bias)
        if self._weight is None and weight.dtype == torch.float32 and not weight.is_inference():
            result = self._plain(x, weight, bias)  # which raises in its own words
            self._weight, self._version = weight, weight._version
            self._packed = _pack(weight, self._geometry, x.shape)
            return result
        if weight is not self._weight or weight._version != self._version:
            return self._plain(x, weight, bias)
        return _convolve(x, self._packed, bias, self._geometry)


def _left_alone(x: Tensor) -> bool:
    """Whether torch hands `x` to oneDNN as it is, channels innermost, and nobody looks on or wants gradients."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.dtype == torch.float32
        and x.dim() == 4
        and len(x) >= _CERTAIN
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()  # of one channel or pixel: then the weights' layout would decide
        and torch._C._get_mkldnn_enabled()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


def _pack(weight: Tensor, geometry: _Geometry, shape: Sequence[int]) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight.default(weight, *geometry, shape)


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise.default(x, packed, bias, *geometry, "none", [], "")


@cache
def _available() -> bool:
    """Whether the operators are there and do what they do in the torch that this was written for.

    They are what torch.compile calls for frozen models, and not documented.
    """
    x, weight = (torch.arange(n, dtype=torch.float32, device="cpu") for n in (96, 108))
    x, weight = x.view(2, 4, 4, 3).permute(0, 3, 1, 2), weight.view(4, 3, 3, 3)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = _convolve(x, _pack(weight, geometry, x.shape), None, geometry)
            return torch.equal(found, F.conv2d(x, weight, padding=1))
    except (AttributeError, RuntimeError):
        return False
