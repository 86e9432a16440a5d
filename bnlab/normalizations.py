"""The batch normalizations that torch computes, and whether what they normalize is what a layer was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from bnlab.borrowing import count_writes
from bnlab.moments import Moments, compare_moments


def identify(x: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors only if they have the same values, as far as writes are counted (see `count_writes`)."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype, count_writes(x)


def point_to(tensor: Tensor) -> int:
    """Where its memory begins; 0 where it has none."""
    try:
        return tensor.data_ptr()
    except RuntimeError:  # sparse, or a wrapper
        return 0


def agree(one: Moments, other: Moments, tolerance: float) -> bool:
    """Whether two inputs of a layer have the same moments, relative to the first one's variance."""
    return one.mean.shape == other.mean.shape and max(compare_moments(one, other)) <= tolerance


def allowed_rounding(dtype: torch.dtype) -> float:
    """Ten thousand roundings: what another number of images at once makes of moments in a deep network.

    At least the fixed point's own tolerance, with room.
    """
    return min(0.1, max(1e-5, 1e4 * torch.finfo(dtype).eps))


_COPYING = {"aten::copy_", "aten::_foreach_copy_"}  # one tensor into another


class Normalizations(TorchDispatchMode):
    """Calls `tell(input, running mean, running variance, weight, training)` at every batch normalization that runs.

    `look`, if it is given, is called with the arguments and the result of all other operations, and whether these copy
    one tensor into another.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        tell: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, bool], None],
        look: Callable[[Any, Any, bool], object] | None = None,
    ) -> None:
        super().__init__()
        self._tell, self._look = tell, look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, OpOverload):  # torch.cond or flex_attention, say, which run operations themselves
            return func(*args, **(kwargs or {}))
        name = func._schema.name
        if "batch_norm" in name and "stats" not in name and "elemt" not in name and "backward" not in name:
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (
                kwargs or {}
            )
            mean = given.get("running_mean")
            training = given.get("training", given.get("train", mean is None and "no_training" not in name))
            self._tell(given["input"], mean, given.get("running_var"), given.get("weight"), bool(training))
        result = func(*args, **(kwargs or {}))
        if self._look is not None and "batch_norm" not in name:
            self._look(args, result if func._schema.returns else _list_written(func, args), name in _COPYING)
        return result


def _list_written(func: OpOverload, args: Any) -> list[Any]:
    """The arguments that an operation writes into."""
    specifications = zip(func._schema.arguments, args, strict=False)
    return [given for spec, given in specifications if spec.alias_info is not None and spec.alias_info.is_write]
