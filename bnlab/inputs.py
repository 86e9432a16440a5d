"""Values that a layer normalizes: its input, or what the caller's function takes from the arguments of its call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab.layers import TORCH_FORWARDS, BatchNorm, find_replaced_forward, get_input, join_names, require_input

Extract = Callable[[BatchNorm, tuple[Any, ...], dict[str, Any]], Any]
"""Called with a layer and the arguments of its call; returns the values that it normalizes, or (values, channels)."""


class OtherInput(ValueError):
    """A layer that normalizes something else than its input, where nobody has said what.

    Attributes:
        found: which layer it is, and how that was found.
    """

    def __init__(self, caller: str, found: str, key: str) -> None:
        self.found = found
        function = f"inputs={{{key}: function(layer, args, kwargs) -> values}}"
        super().__init__(f"{caller}: {found}; say what it normalizes: {function}")


class Values(NamedTuple):
    """Values that a layer normalizes in one call.

    Attributes:
        x: [N, C, ...].
        channels: int64 [C], numbers of the layer's channels that `x` is of; None: all of them.
    """

    x: Tensor
    channels: Tensor | None


class Inputs:
    """Finds what the layers of a model normalize.

    Args:
        layers: the layers, by name.
        given: name or class of a layer → the function that says what it normalizes.
        caller: the public call, for messages.

    Attributes:
        extracts: name of each layer of which the caller says what it normalizes → the function that does.
        channels: name of each layer that was called → the channels that it was given; None: all of them.

    Raises:
        TypeError: `given` is no mapping to functions.
        ValueError: a name or class in it is none of these layers'.
    """

    def __init__(self, layers: Mapping[str, BatchNorm], given: Mapping[Any, Extract] | None, caller: str) -> None:
        self._caller = caller
        self.extracts = _find_extracts(layers, given or {}, caller)
        self.channels: dict[str, Tensor | None] = {}

    def select(self, name: str, layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values | None:
        """Find what a layer normalizes in one call; None if it gets no rows.

        Raises:
            ValueError: the layer cannot normalize this.
        """
        extract = self.extracts.get(name)
        if extract is None:
            x = get_input(args, kwargs)
            channels = None
        else:
            x, channels = self._split(name, extract(layer, args, kwargs))
        if isinstance(x, Tensor) and x.numel() == 0:
            return None
        if channels is None:
            require_input(name, layer, x, self._caller)
            chosen = None
        else:
            chosen = self._find_channels(name, layer, x, channels)
        self.set_channels(name, chosen)
        return Values(x, chosen)

    def set_channels(self, name: str, channels: Tensor | None) -> None:
        """Keep which channels a layer is given; ValueError if they differ from those of an earlier call."""
        before = self.channels.setdefault(name, channels)
        is_same = before is channels
        if before is not None and channels is not None:
            is_same = torch.equal(before, channels)
        if not is_same:
            raise ValueError(
                f"{self._caller}: layer {name!r} is given other channels in another call; "
                "measure the others: name them in layers= of population_statistics or recalibrate"
            )

    def select_channels(self, name: str, values: Tensor) -> Tensor:
        """Select from `values`, one for each channel of a layer, those of the channels that the layer was given."""
        channels = self.channels.get(name)
        return values if channels is None else values[channels.to(values.device)]

    def _split(self, name: str, returned: Any) -> tuple[Any, Any]:
        """Split what the caller's function has returned into values and channels (None: all)."""
        if not isinstance(returned, tuple):
            return returned, None
        if len(returned) != 2:
            raise ValueError(
                f"{self._caller}: inputs= for layer {name!r} returned {len(returned)} values; return the values that "
                "it normalizes, or (values, channels)"
            )
        return returned

    def _find_channels(self, name: str, layer: BatchNorm, x: Any, channels: Any) -> Tensor:
        """Check channels that the caller has given in any form that indexes a tensor; int64 [C]."""
        known = torch.arange(layer.num_features)
        try:
            chosen = known[channels.cpu() if isinstance(channels, Tensor) else channels].reshape(-1)
        except (IndexError, TypeError) as error:
            raise ValueError(f"{self._caller}: inputs= for layer {name!r} gives no channels of it: {error}") from error
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != len(chosen):
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{self._caller}: inputs= for layer {name!r} gives values {shape} and {len(chosen)} channels; "
                "pass values [M, C] or [N, C, ...] with as many channels"
            )
        if len(chosen.unique()) < len(chosen):
            raise ValueError(f"{self._caller}: inputs= for layer {name!r} gives a channel twice")
        return chosen


def _find_extracts(layers: Mapping[str, BatchNorm], given: Mapping[Any, Extract], caller: str) -> dict[str, Extract]:
    """Find the function for each layer that has one, by the layer's name."""
    if not isinstance(given, Mapping) or not all(callable(extract) for extract in given.values()):
        raise TypeError(f"{caller}: inputs={given!r}; pass functions by a layer's name or class")

    extracts: dict[str, Extract] = {}
    for key, extract in given.items():
        if isinstance(key, type):
            names = [name for name, layer in layers.items() if isinstance(layer, key)]
        else:
            names = [name for name in layers if name == key]
        if not names:
            raise ValueError(f"{caller}: inputs has {key!r}, which is no layer here; there are {join_names(layers)}")
        extracts |= dict.fromkeys(names, extract)
    return extracts


def has_own_forward(layer: BatchNorm) -> bool:
    """Return whether a layer may normalize something else than its input, as its forward is not torch's or bnlab's."""
    if find_replaced_forward(layer) is not None:
        return True
    kind = type(layer)
    return kind.forward not in TORCH_FORWARDS and not kind.__module__.startswith("bnlab.")
