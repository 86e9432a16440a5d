"""Layout of arrays over the channels of all layers: between these arrays and `Statistics`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics, make_channel_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Layout:
    """Layers on a flat axis [all channels], in order.

    Attributes:
        names: the layers' names.
        channels: the number of channels of each layer.
        eps: each layer's own eps.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    eps: tuple[float, ...]

    @staticmethod
    def of(statistics: Statistics) -> Layout:
        """Lay out the layers of `statistics` in their order."""
        channels = tuple(moments.mean.numel() for moments in statistics.values())
        return Layout(tuple(statistics), channels, tuple(statistics.eps.values()))

    def channel_frame(self) -> pd.DataFrame:
        """Make a table of a row for each channel: layer, depth (from 1), channels (of the layer), channel (from 0)."""
        return make_channel_frame(dict(zip(self.names, self.channels, strict=True)))

    @cached_property
    def channel_eps(self) -> Tensor:
        """Each channel's eps, float64 [all channels]."""
        # Statistics are on the CPU, whatever default device the caller has set.
        eps = torch.tensor(self.eps, dtype=torch.float64, device="cpu")
        channels = torch.tensor(self.channels, device="cpu")
        return eps.repeat_interleave(channels)

    def layer_means(self, values: Tensor) -> Tensor:
        """Average over each layer's channels: [..., all channels] → [..., layers]."""
        # Not a product with a matrix of weights: a NaN in one layer would reach all of them.
        parts = values.split(self.channels, dim=-1)
        means = [part.mean(-1) for part in parts]
        return torch.stack(means, dim=-1)

    def flatten(self, statistics: Statistics) -> Tensor:
        """Put mean and var side by side in this layout's order: float64 [2, all channels]."""
        pairs = []
        for name in self.names:
            moments = statistics[name]
            pairs.append(torch.stack((moments.mean, moments.var)))
        return torch.cat(pairs, dim=1)

    def unflatten(self, values: Tensor) -> Statistics:
        """Undo `flatten`, with NaN counts."""
        parts = values.split(self.channels, dim=1)
        moments = {}
        for name, (mean, var) in zip(self.names, parts, strict=True):
            # Without copies, writing into the moments of a layer would change the flat array.
            moments[name] = Moments(math.nan, mean.clone(), var.clone())
        eps = dict(zip(self.names, self.eps, strict=True))
        return Statistics(moments, eps)
