"""What a program has to wait for its device for, counted on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.overrides import TorchFunctionMode

WAITS = {"item", "__bool__", "__float__", "__int__", "tolist", "numpy", "cpu", "nonzero", "equal", "allclose"}


class Waits(TorchFunctionMode):
    """Counts calls for which a program has to wait for its device.

    Attributes:
        counts: by the name of the function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in WAITS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
