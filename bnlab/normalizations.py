"""The batch normalizations that torch computes, and whether what they normalize is what a layer was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Computation(NamedTuple):
    """What an operation has computed with, each tensor with where its memory begins, and what it has given."""

    given: list[tuple[Tensor, int]]
    results: list[Tensor]

    @classmethod
    def read(cls, args: Any, result: Any) -> Computation | None:
        """None of one whose result nothing is normalized with: a number for a log, say, or whether all is finite."""
        tensors = [leaf for leaf in tree_leaves(args) if type(leaf) in (Tensor, nn.Parameter)]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if _is_single(*results) > _is_single(*tensors) or not any(map(torch.is_floating_point, results)):
            return None
        return cls([(tensor, point_to(tensor)) for tensor in tensors], results)


class Followed:
    """Statistics, and what operations make of them without other values, such as copies in another type.

    Args:
        tensors: by the name of what they are of.
    """

    def __init__(self, tensors: Mapping[str, Iterable[Tensor]]) -> None:
        self._held = [tensor for kept in tensors.values() for tensor in kept]  # no other may come to lie where they do
        self._owners = {point_to(tensor): name for name, kept in tensors.items() for tensor in kept}
        self._owners.pop(0, None)

    def find_owner(self, tensor: Tensor | None) -> str | None:
        """The name of what a tensor is of."""
        return None if tensor is None else self._owners.get(point_to(tensor))

    def look(self, computation: Computation, copies: bool) -> dict[str, None]:
        """Names of those that meet other values in an operation; otherwise its results are followed too.

        With single numbers alone they give other statistics, which nothing has used yet.
        """
        names = {self._owners[place]: None for _, place in computation.given if place in self._owners}
        if not names:
            return names
        if not copies and any(not _is_single(t) and place not in self._owners for t, place in computation.given):
            return names
        self._held += computation.results
        places = [place for place in map(point_to, computation.results) if place]
        self._owners |= {place: name for name in names for place in places}
        return {}


def _is_single(*values: Any) -> bool:
    """Whether all tensors have one value."""
    return all(isinstance(value, Tensor) and value.numel() == 1 for value in values)


def _list_written(func: OpOverload, args: Any) -> list[Any]:
    """The arguments that an operation writes into."""
    specifications = zip(func._schema.arguments, args, strict=False)
    return [given for spec, given in specifications if spec.alias_info is not None and spec.alias_info.is_write]
