"""What a user's model or optimizer keeps in attributes, which no state dict holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.model.batches import is_dense
from bnlab.model.borrow import are_equal


class Attributes:
    """The numbers, words and tensors in attributes of a model and an optimizer, as they are when this is made.

    Where training changes one of them, a saved state lacks something, and training could not go on from it. Not looked
    at are attributes of torch's own classes; attributes that a forward adds, such as activations that are kept for a
    look at them; and tensors that are computed from parameters, as by weight norm.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._before = {name: _copy(value) for name, value in self._list()}

    def find_changed(self) -> str:
        """Name an attribute that has another value now, with its class; empty if none has."""
        for attribute, held in vars(self._optimizer).items():
            # Nobody writes its state, unless it is that of the outer one, which then also knows how to read it.
            is_shared = isinstance(held, torch.optim.Optimizer) and held.state is self._optimizer.state
            reads_itself = type(self._optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
            if isinstance(held, torch.optim.Optimizer) and not (is_shared and reads_itself):
                return f"{type(self._optimizer).__name__}.{attribute}"
        for name, value in self._list():
            before = self._before.get(name)
            if before is not None and not _is_same(before, value):
                return f"{type(self._find_owner(name)).__name__}.{name[-1]}"
        return ""

    def _find_owner(self, name: tuple[str | None, str]) -> Any:
        owner_name, _ = name
        return self._optimizer if owner_name is None else self._model.get_submodule(owner_name)

    def _list(self) -> Iterator[tuple[tuple[str | None, str], Any]]:
        """List attributes by the name of their module, None for the optimizer, and their name in it."""
        owners: list[tuple[str | None, Any]] = [(None, self._optimizer), *self._model.named_modules()]
        for owner_name, owner in owners:
            if type(owner).__module__.startswith("torch."):
                continue
            computed = _list_computed(owner) if isinstance(owner, nn.Module) else set()
            for name, value in vars(owner).items():
                is_kept = isinstance(value, bool | int | float | str) or _is_plain(value)
                # `training` is the mode, which a continued training sets again by itself.
                if is_kept and name != "training" and name not in computed:
                    yield (owner_name, name), value


def _list_computed(module: nn.Module) -> set[str]:
    """List the attributes that `torch.nn.utils` computes before each forward from parameters of a longer name."""
    # `weight_norm` keeps weight_g and weight_v, `spectral_norm` weight_orig, and both compute weight.
    parts = [name.rpartition("_") for name, _ in module.named_parameters(recurse=False)]
    return {name for name, _, ending in parts if ending in ("g", "v", "orig")}


def _is_plain(value: Any) -> bool:
    """Return whether this is a tensor with values that can be compared."""
    return isinstance(value, Tensor) and is_dense(value) and not value.is_meta and not value.is_quantized


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_same(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        if before.shape != now.shape or before.dtype != now.dtype:
            return False
        # It may have been moved to another device.
        return are_equal(before, now.detach().to(before.device))
    if type(before) is not type(now):
        return False
    return bool(before == now) or bool(before != before and now != now)  # NaN differs from itself
