"""How far statistics are from a reference, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
        output_gap: rms(|γ|·sqrt((μ_e−μ_r)² + (σ_r−σ_e)²)/σ_e) with σ² = var+eps: how far the layer's output is off. A
            channel whose weight γ is 0 does nothing and has 0. NaN where neither side knows the weights.
    A variance that is so negative that var+eps ≤ 0 gives NaN for its layer's var_gap, kl and output_gap.

    Layers that one side has and that no data reached on the other (its `unseen`; an auxiliary head, say) are left out:
    `frame.attrs["unseen"]` lists them. Names may differ by what wrappers add, `module.` and `_orig_mod.`.

    Args:
        per_channel: a row for each layer and channel instead, with a column `channel` (from 0) after `channels`. Mean
            and variance gap are signed then, positive where the estimate is larger.

    Raises:
        TypeError: an argument is not `Statistics`.
        ValueError: layers or channels differ.

    Warns:
        RuntimeWarning: values that are not finite, or negative variances.
    """
    import pandas as pd

    reference, estimate, unseen = _pair(reference, estimate)
    _warn_of_bad_values(reference, "reference")
    _warn_of_bad_values(estimate, "estimate")
    layout = Layout.of(reference)
    sides = layout.flatten(reference), layout.flatten(estimate)
    weights = _flatten_weights(layout, {**estimate.weights, **reference.weights})
    if per_channel:
        keys = layout.channel_frame()
        values = channel_gaps(layout, *sides)
        output = _output_gaps(layout, *sides, weights)
    else:
        depths = range(1, len(layout.names) + 1)
        keys = pd.DataFrame({"layer": layout.names, "depth": depths, "channels": layout.channels})
        values = layer_gaps(layout, *sides)
        output = layout.layer_means(_output_gaps(layout, *sides, weights).square()).sqrt()
    frame = keys.assign(**dict(zip(GAP_COLUMNS, values.numpy(), strict=True)), output_gap=output.numpy())
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
    own = {name: reference[name] for name in names}
    others = {name: estimate[pairs[name]] for name in names}
    weights = {name: estimate.weights[pairs[name]] for name in names if pairs[name] in estimate.weights}
    common = Statistics(own, reference.eps, weights=reference.weights)
    return common, Statistics(others, reference.eps, weights=weights), alone


def _warn_of_bad_values(statistics: Statistics, side: str) -> None:
    """Name the channels with values that are not finite, and with negative variances."""
    parts = []
    for name, moments in statistics.items():
        spoilt = ~(moments.mean.isfinite() & moments.var.isfinite())
        negative = moments.var < 0
        if spoilt.any():
            parts.append(f"layer {name!r} has NaN or infinite values in {_list_channels(spoilt)}")
        if negative.any():
            parts.append(f"layer {name!r} has a negative variance in {_list_channels(negative)}")
    if parts:
        text = "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")
        warnings.warn(f"gap: {side}: {text}; recalibrate, and look for the batch", RuntimeWarning, stacklevel=3)


def _list_channels(chosen: Tensor) -> str:
    channels = chosen.nonzero().flatten().tolist()
    if len(channels) == len(chosen):
        return "all channels"
    shown = ", ".join(map(str, channels[:5])) + (f" and {len(channels) - 5} more" if len(channels) > 5 else "")
    return f"channel{'s' * (len(channels) > 1)} {shown}"


def _flatten_weights(layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    """float64 [all channels], NaN where a layer's weights are not known."""
    unknown = [torch.full((channels,), torch.nan, dtype=torch.float64, device="cpu") for channels in layout.channels]
    return torch.cat([weights.get(name, nan) for name, nan in zip(layout.names, unknown, strict=True)])


def _output_gaps(layout: Layout, reference: Tensor, estimate: Tensor, weights: Tensor) -> Tensor:
    """How far each channel's output is off for inputs with the reference's moments, float64 [channels]."""
    deviation_r = (reference[1] + layout.channel_eps).sqrt()
    deviation_e = (estimate[1] + layout.channel_eps).sqrt()
    off = torch.hypot(estimate[0] - reference[0], deviation_r - deviation_e)
    return torch.where(weights == 0, 0.0, weights * off / deviation_e)


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
