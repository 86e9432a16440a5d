"""Move weights a little, as another processor would: what a test asks for has to hold all the same.

Trained weights differ from processor to processor. `install` lets every optimizer begin with weights that are changed
by a relative 1e-6, and every committed network be loaded so. Only weights of at least two dimensions are: a bias or a
running average that a test has set stays what it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LOW_BITS = 15  # of a float32's 23 bits behind the point: 15 units of 1.2e-7
_MULTIPLIER = 2654435761  # spreads neighbouring numbers over all bits (Knuth's multiplicative hash)


def nudge(values: Tensor, seed: int) -> Tensor:
    """Replace the last four bits of float32 numbers by others, which the seed and the other bits choose.

    A number that was nudged before stays as it is: a training that is continued goes on with the weights that it had.
    Tensors of another type, or of fewer than two dimensions, stay too.
    """
    import torch

    if values.dtype != torch.float32 or values.dim() < 2:
        return values
    bits = values.detach().contiguous().view(torch.int32).long()
    kept = bits & ~_LOW_BITS
    mixed = ((kept + (_LOW_BITS + 1) * seed) * _MULTIPLIER) >> 40  # where also numbers with few digits differ
    nudged = (kept | (mixed & _LOW_BITS)).int().view(torch.float32)
    return torch.where(values == 0, values, nudged)  # a weight that was pruned stays 0


def install(seed: int) -> None:
    """Nudge in this process from now on, once the modules are imported that make optimizers and load networks."""
    patches = {
        "torch.optim.optimizer": partial(_patch_optimizers, seed=seed),
        "bnlab.commands.demo.store": partial(_patch_networks, seed=seed),
    }
    for name, patch in patches.items():
        if name in sys.modules:
            patch(sys.modules[name])
        else:
            sys.meta_path.insert(0, _Finder(name, patch))


def _patch_optimizers(module: ModuleType, seed: int) -> None:
    """Nudge each weight once: a training in parts, or of a copy, has further optimizers, and goes on as it was."""
    from torch.nn import Parameter

    original = module.Optimizer.__init__
    copy_parameter = Parameter.__deepcopy__

    @wraps(original)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for group in self.param_groups:
            for parameter in group["params"]:
                if not getattr(parameter, "is_nudged", False):
                    parameter.data.copy_(nudge(parameter.data, seed))
                    parameter.is_nudged = True

    def copy(self: Any, memo: Any) -> Any:
        copied = copy_parameter(self, memo)
        copied.is_nudged = getattr(self, "is_nudged", False)
        return copied

    module.Optimizer.__init__ = initialize  # type: ignore[attr-defined]
    Parameter.__deepcopy__ = copy  # type: ignore[method-assign]


def _patch_networks(module: ModuleType, seed: int) -> None:
    original = module.Networks.recall

    @wraps(original)
    def recall(self: Any, name: str, model: Any, train: Any) -> Any:
        before = original(self, name, model, train)
        for parameter in model.parameters():
            parameter.data.copy_(nudge(parameter.data, seed))
        return {key: nudge(values, seed) for key, values in before.items()}

    module.Networks.recall = recall  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    """Finds one module as Python does, and calls a function with it once it is imported."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.patch = patch

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patching(spec.loader, self.patch)
        return spec


class _Patching(Loader):
    """Loads a module, then calls a function with it."""

    def __init__(self, loader: Loader, patch: Callable[[ModuleType], None]) -> None:
        self.loader = loader
        self.patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.patch(module)
