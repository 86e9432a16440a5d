"""How far statistics are from a reference, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnlab.layers import match_names, strip_wrappers
from bnlab.statistics import Layout, Statistics

if TYPE_CHECKING:
    import pandas as pd

GAP_COLUMNS = ("mean_gap", "var_gap", "kl")


def gap(reference: Statistics, estimate: Statistics, *, per_channel: bool = False) -> pd.DataFrame:
    """The gap of `estimate` from `reference`, a row per layer of the reference, in order of depth (from 1).

    Columns (r reference, e estimate, the layer's own eps; root mean square over channels):
        layer, depth, channels
        mean_gap: rms((μ_e−μ_r)/sqrt(var_r+eps)), in standard deviations
        var_gap: rms(log((var_e+eps)/(var_r+eps))), a log ratio
        kl: mean KL(N(μ_r, var_r+eps) ‖ N(μ_e, var_e+eps)), in nats
    A variance that is so negative that var+eps ≤ 0 gives NaN for its layer's var_gap and kl.

    Layers that one side has and that no data reached on the other (its `unseen`; an auxiliary head, say) are left out:
    `frame.attrs["unseen"]` lists them. Names may differ by what wrappers add, `module.` and `_orig_mod.`.

    Args:
        per_channel: a row for each layer and channel instead, with a column `channel` (from 0) after `channels`. Mean
            and variance gap are signed then, positive where the estimate is larger.

    Raises:
        TypeError: an argument is not `Statistics`.
        ValueError: layers or channels differ.
    """
    import pandas as pd

    reference, estimate, unseen = _pair(reference, estimate)
    layout = Layout.of(reference)
    sides = layout.flatten(reference), layout.flatten(estimate)
    if per_channel:
        keys, values = layout.channel_frame(), channel_gaps(layout, *sides)
    else:
        depths = range(1, len(layout.names) + 1)
        keys = pd.DataFrame({"layer": layout.names, "depth": depths, "channels": layout.channels})
        values = layer_gaps(layout, *sides)
    frame = keys.assign(**dict(zip(GAP_COLUMNS, values.numpy(), strict=True)))
    frame.attrs["unseen"] = unseen
    return frame


def _pair(reference: Statistics, estimate: Statistics) -> tuple[Statistics, Statistics, list[str]]:
    """What both sides have, under the names of the reference, and the names of what one of them has not seen."""
    for side, value in (("reference", reference), ("estimate", estimate)):
        if not isinstance(value, Statistics):
            raise TypeError(f"gap: {side} is a {type(value).__name__}; pass bnlab.Statistics")
    pairs = match_names(reference, estimate)
    alone = [name for name in reference if name not in pairs]
    alone += [name for name in estimate if name not in pairs.values()]
    unseen = {strip_wrappers(name) for name in (*reference.unseen, *estimate.unseen)}
    odd = sorted(name for name in alone if strip_wrappers(name) not in unseen) or ([] if pairs else sorted(alone))
    if odd:
        raise ValueError(
            f"gap: layer {odd[0]!r} is on one side only ({len(odd)} such); pass statistics of the same layers"
        )
    for name, other in pairs.items():
        sizes = reference[name].mean.numel(), estimate[other].mean.numel()
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"gap: layer {name!r} has {sizes[0]} channels in the reference, {sizes[1]} in the estimate"
            )
    names = [name for name in reference if name in pairs]
    common = Statistics({name: reference[name] for name in names}, reference.eps)
    return common, Statistics({name: estimate[pairs[name]] for name in names}, reference.eps), alone


def layer_gaps(layout: Layout, reference: Tensor, estimate: Tensor) -> Tensor:
    """`GAP_COLUMNS` as float64 [3, ..., layers] of flat statistics [..., 2, channels] from [2, channels]."""
    difference, var_r, ratio, kl = _terms(layout, reference, estimate)
    means = layout.layer_means(torch.stack((difference.square() / var_r, ratio.square(), kl)))
    return torch.cat((means[:2].sqrt(), means[2:]))


def channel_gaps(layout: Layout, reference: Tensor, estimate: Tensor) -> Tensor:
    """`GAP_COLUMNS` of each channel, the first two signed: float64 [3, ..., channels]; arguments as of `layer_gaps`."""
    difference, var_r, ratio, kl = _terms(layout, reference, estimate)
    return torch.stack((difference / var_r.sqrt(), ratio, kl))


def _terms(layout: Layout, reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each channel: the difference of the means, the reference's variance + eps, the log ratio of these, KL."""
    var_r = reference[1] + layout.channel_eps
    var_e = estimate[..., 1, :] + layout.channel_eps
    var_e = torch.where(var_e > 0, var_e, torch.nan)
    difference = estimate[..., 0, :] - reference[0]
    ratio = torch.log(var_e / var_r)
    return difference, var_r, ratio, 0.5 * (ratio + (var_r + difference.square()) / var_e - 1)
