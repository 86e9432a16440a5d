"""How far statistics are from a reference, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnlab.statistics import Layout, Statistics

if TYPE_CHECKING:
    import pandas as pd

GAP_COLUMNS = ("mean_gap", "var_gap", "kl")


def gap(reference: Statistics, estimate: Statistics) -> pd.DataFrame:
    """The gap of `estimate` from `reference`, a row per layer of the reference, in order of depth (from 1).

    Columns (r reference, e estimate, the layer's own eps; root mean square over channels):
        layer, depth, channels
        mean_gap: rms((μ_e−μ_r)/sqrt(var_r+eps)), in standard deviations
        var_gap: rms(log((var_e+eps)/(var_r+eps))), a log ratio
        kl: mean KL(N(μ_r, var_r+eps) ‖ N(μ_e, var_e+eps)), in nats
    A variance that is so negative that var+eps ≤ 0 gives NaN for its layer's var_gap and kl.

    Raises:
        TypeError: an argument is not `Statistics`. ValueError: layers or channels differ.
    """
    import pandas as pd

    for name, value in (("reference", reference), ("estimate", estimate)):
        if not isinstance(value, Statistics):
            raise TypeError(f"gap: {name} is a {type(value).__name__}; pass bnlab.Statistics")
    if set(reference) != set(estimate):
        odd = sorted(set(reference) ^ set(estimate))
        raise ValueError(
            f"gap: layer {odd[0]!r} is on one side only ({len(odd)} such); pass statistics of the same layers"
        )
    for name in reference:
        sides = reference[name].mean.numel(), estimate[name].mean.numel()
        if sides[0] != sides[1]:
            raise ValueError(
                f"gap: layer {name!r} has {sides[0]} channels in the reference, {sides[1]} in the estimate"
            )
    layout = Layout.of(reference)
    values = layer_gaps(layout, layout.flatten(reference), layout.flatten(estimate))
    return pd.DataFrame(
        {"layer": layout.names, "depth": range(1, len(layout.names) + 1), "channels": layout.channels}
        | dict(zip(GAP_COLUMNS, values.numpy(), strict=True))
    )


def layer_gaps(layout: Layout, reference: Tensor, estimate: Tensor) -> Tensor:
    """`GAP_COLUMNS` as float64 [3, ..., layers] of flat statistics [..., 2, channels] from [2, channels]."""
    var_r = reference[1] + layout.channel_eps
    var_e = estimate[..., 1, :] + layout.channel_eps
    var_e = torch.where(var_e > 0, var_e, torch.nan)
    shift = (estimate[..., 0, :] - reference[0]).square()
    ratio = torch.log(var_e / var_r)
    kl = 0.5 * (ratio + (var_r + shift) / var_e - 1)
    means = layout.layer_means(torch.stack((shift / var_r, ratio.square(), kl)))
    return torch.cat((means[:2].sqrt(), means[2:]))
