"""What a user's model or optimizer counts in attributes, which no state dict holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.model.borrow import are_equal


class Attributes:
    """The numbers, words and tensors in attributes of a model and an optimizer, as they are now.

    Where training changes them, no saved state has all from which it could go on. Torch's own classes keep nothing
    there. What is not there yet, as activations that a forward keeps for a look at them, does not count.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._before = {name: _copy(value) for name, value in self._list()}

    def find_changed(self) -> str:
        """Name an attribute that has another value now, with its class; empty if none has."""
        for name, value in self._list():
            before = self._before.get(name)
            if before is not None and not _is_same(before, value):
                return f"{type(self._find_owner(name)).__name__}.{name[-1]}"
        return ""

    def _find_owner(self, name: tuple[str | None, str]) -> Any:
        owner, _ = name
        return self._optimizer if owner is None else self._model.get_submodule(owner)

    def _list(self) -> Iterator[tuple[tuple[str | None, str], Any]]:
        """List attributes by the name of their module, None for the optimizer, and their own."""
        owners: list[tuple[str | None, Any]] = [(None, self._optimizer), *self._model.named_modules()]
        for place, owner in owners:
            if type(owner).__module__.startswith("torch."):
                continue
            for name, value in vars(owner).items():
                if isinstance(value, bool | int | float | str | Tensor) and name != "training":
                    yield (place, name), value


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_same(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return before.shape == now.shape and before.dtype == now.dtype and are_equal(before, now)
    return type(before) is type(now) and bool(before == now)
