"""Gaps: how far statistics are from a reference, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnlab.model.layers import join_names, match_names, strip_wrappers
from bnlab.model.warn import warn
from bnlab.statistics.layout import Layout
from bnlab.statistics.network import Statistics

if TYPE_CHECKING:
    import pandas as pd

GAP_COLUMNS = ("mean_gap", "var_gap", "kl")


def gap(reference: Statistics, estimate: Statistics) -> pd.DataFrame:
    """Measure how far `estimate` is from `reference`, layer by layer.

    Layers that one side has and that no data reached on the other (its `unseen`; an auxiliary head, say) are left out:
    `frame.attrs["unseen"]` lists them. Names may differ by what wrappers add, `module.` and `_orig_mod.`.

    Args:
        reference: usually exact statistics.
        estimate: statistics of the same layers, such as running ones.

    Returns:
        A row for each layer of the reference, in the order of depth, with these columns (r is the reference, e the
        estimate, eps that of the layer, rms the root mean square over channels):

        - layer, depth (from 1), channels;
        - mean_gap: rms((μ_e−μ_r)/sqrt(var_r+eps)), in standard deviations;
        - var_gap: rms(log((var_e+eps)/(var_r+eps))), a log ratio;
        - kl: mean KL(N(μ_r, var_r+eps) ‖ N(μ_e, var_e+eps)), in nats;
        - output_gap: rms(abs(γ)·sqrt((μ_e−μ_r)² + (σ_r−σ_e)²)/σ_e) with σ² = var+eps: how far the layer's output is
          off. A channel whose weight γ is 0 does nothing and has 0. NaN where neither side knows the weights.

        A variance that is so negative that var+eps ≤ 0 gives NaN for its layer's var_gap, kl and output_gap.

    Raises:
        TypeError: an argument is not `Statistics`.
        ValueError: layers or channels differ.

    Warns:
        RuntimeWarning: values that are not finite, or negative variances.

    >>> from bnlab import Moments
    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> reference = Statistics({"norm": Moments(64, mean=zero, var=4 * one)}, eps={"norm": 0.0})
    >>> estimate = Statistics({"norm": Moments(64, mean=one, var=4 * one)}, eps={"norm": 0.0})
    >>> gap(reference, estimate)[["layer", "mean_gap", "var_gap"]]  # half a standard deviation
      layer  mean_gap  var_gap
    0  norm       0.5      0.0
    """
    import pandas as pd

    reference, estimate, unseen = _pair(reference, estimate)
    _warn_of_bad_values(reference, "reference")
    _warn_of_bad_values(estimate, "estimate")
    layout = Layout.of(reference)
    flat_reference = layout.flatten(reference)
    flat_estimate = layout.flatten(estimate)
    # One side may know no weights, as replayed averages do. Where both do, those of the reference count.
    weights = {**estimate.weights, **reference.weights}

    depths = range(1, len(layout.names) + 1)
    keys = pd.DataFrame({"layer": layout.names, "depth": depths, "channels": layout.channels})
    gaps = layer_gaps(layout, flat_reference, flat_estimate)
    output_gaps = layer_output_gaps(layout, flat_reference, flat_estimate, weights)

    columns = dict(zip(GAP_COLUMNS, gaps.numpy(), strict=True))
    frame = keys.assign(**columns, output_gap=output_gaps.numpy())
    frame.attrs["unseen"] = unseen
    return frame


def _pair(reference: Statistics, estimate: Statistics) -> tuple[Statistics, Statistics, list[str]]:
    """Select the layers that both sides have, under the names of the reference.

    Returns:
        both sides, and the names of layers that one of them has not seen.
    """
    for side, value in (("reference", reference), ("estimate", estimate)):
        if not isinstance(value, Statistics):
            raise TypeError(f"gap: {side} is a {type(value).__name__}; pass bnlab.Statistics")

    pairs = match_names(reference, estimate)
    unpaired = _list_unpaired(reference, estimate, pairs)
    for name, other in pairs.items():
        expected = reference[name].mean.numel()
        given = estimate[other].mean.numel()
        if expected != given:
            raise ValueError(f"gap: layer {name!r} has {expected} channels in the reference, {given} in the estimate")

    common = {name: reference[name] for name in pairs}
    others = {name: estimate[other] for name, other in pairs.items()}
    weights = {name: estimate.weights[other] for name, other in pairs.items() if other in estimate.weights}
    return (
        Statistics(common, reference.eps, weights=reference.weights),
        # Both sides describe the same layers, so that the estimate takes the names and the eps of the reference.
        Statistics(others, reference.eps, weights=weights),
        unpaired,
    )


def _list_unpaired(reference: Statistics, estimate: Statistics, pairs: Mapping[str, str]) -> list[str]:
    """List the layers of one side only; ValueError unless the other side is known not to have seen them."""
    unpaired = [name for name in reference if name not in pairs]
    unpaired += [name for name in estimate if name not in pairs.values()]

    # Either side may come from a wrapped model, so that names are compared without what wrappers add.
    unseen = {strip_wrappers(name) for name in (*reference.unseen, *estimate.unseen)}
    unexplained = [name for name in unpaired if strip_wrappers(name) not in unseen]
    if not unexplained and not pairs:
        unexplained = unpaired  # nothing is left to compare
    if unexplained:
        first = min(unexplained)
        raise ValueError(
            f"gap: layer {first!r} is on one side only ({len(unexplained)} such); pass statistics of the same layers"
        )
    return unpaired


def _warn_of_bad_values(statistics: Statistics, side: str) -> None:
    """Name the layers with values that are not finite, or with negative variances."""
    bad = []
    for name, moments in statistics.items():
        is_finite = moments.mean.isfinite() & moments.var.isfinite()
        if not (is_finite & (moments.var >= 0)).all():
            bad.append(name)
    if bad:
        names = join_names(bad)
        warn(f"gap: {side}: NaN, infinite values or negative variances in {names}; recalibrate, and look for the batch")


def _flatten_weights(layout: Layout, weights: Mapping[str, Tensor]) -> Tensor:
    """Put the layers' weights side by side: float64 [all channels], NaN where a layer's weights are not known."""
    parts = []
    for name, channels in zip(layout.names, layout.channels, strict=True):
        unknown = torch.full((channels,), torch.nan, dtype=torch.float64, device="cpu")
        parts.append(weights.get(name, unknown))
    return torch.cat(parts)


def layer_output_gaps(layout: Layout, reference: Tensor, estimate: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Compute `output_gap` of each layer, see `gap`.

    Args:
        layout: of the flat statistics.
        reference: [2, channels].
        estimate: [..., 2, channels].
        weights: the size of each channel's γ, by layer; of a layer that is missing the gap is NaN.

    Returns:
        float64 [..., layers].
    """
    flat_weights = _flatten_weights(layout, weights)
    mean_r, var_r = reference
    mean_e, var_e = estimate.unbind(-2)
    deviation_r = (var_r + layout.channel_eps).sqrt()
    deviation_e = (var_e + layout.channel_eps).sqrt()
    off = torch.hypot(mean_e - mean_r, deviation_r - deviation_e)  # for inputs with the reference's moments
    # A channel with weight 0 has no gap, whatever its statistics are; 0 times NaN would be NaN.
    output_gaps = torch.where(flat_weights == 0, 0.0, flat_weights * off / deviation_e)
    return layout.layer_means(output_gaps.square()).sqrt()


def layer_gaps(layout: Layout, reference: Tensor, estimate: Tensor) -> Tensor:
    """Compute `GAP_COLUMNS` as float64 [3, ..., layers] of flat statistics [..., 2, channels] from [2, channels]."""
    mean_r, var_r = reference
    mean_e, var_e = estimate.unbind(-2)
    var_r = var_r + layout.channel_eps
    var_e = var_e + layout.channel_eps
    # A value of 0 becomes NaN, too, because its logarithm would be −∞.
    var_e = torch.where(var_e > 0, var_e, torch.nan)

    difference = mean_e - mean_r
    log_ratio = torch.log(var_e / var_r)
    kl = 0.5 * (log_ratio + (var_r + difference.square()) / var_e - 1)
    means = layout.layer_means(torch.stack((difference.square() / var_r, log_ratio.square(), kl)))
    # mean_gap and var_gap are root mean squares, kl is a plain mean.
    return torch.cat((means[:2].sqrt(), means[2:]))
