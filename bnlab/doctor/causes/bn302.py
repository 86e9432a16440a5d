"""BN302: folded twice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import FOLDED_AGREES
from bnlab.doctor.undo import Undo, pass_through, replace_forwards
from bnlab.model.layers import get_bias, get_weight


class FoldedTwice(Cause):
    """A layer that was folded into the one before it still normalizes.

    What the layer is given already has its bias as mean and its weight as standard deviation. That takes weights and
    biases which differ between channels.
    """

    code = "BN302"
    title = "folded twice"
    meaning = (
        "This layer's statistics, weight and bias were folded into the layer before it already, and are applied twice."
    )
    remedy = "Replace the folded layer with an identity."
    kind = "network"
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        # Where averages fit, the layer is still given what it was given in training, and was not folded.
        off = [name for name in case.fold if case.clearly_differs(name)]
        folded = [name for name in off if _is_folded(case, name)]
        if folded:
            reported = "exact means and variances are the layer's own biases and squared weights"
            layers = [case.layers[name] for name in folded]
            yield Undo(reported, tuple(folded), 0, replace_forwards(layers, pass_through))


def _is_folded(case: Case, name: str) -> bool:
    """Return whether what a layer is given has its bias as mean and its weight as standard deviation."""
    layer = case.layers[name]
    all_weights = get_weight(layer)
    all_biases = get_bias(layer)
    if all_weights is None or all_biases is None:
        return False
    # A channel whose weight is 0 has no spread that could be compared.
    varies = all_weights.detach().cpu() != 0
    if not varies.any():
        return False
    # A weight's sign does not show in a standard deviation.
    weight = all_weights.detach().abs().cpu().double()[varies]
    bias = all_biases.detach().cpu().double()[varies]

    # Of all images, because nothing is fitted here and both halves have to agree on the layers.
    moments = case.exact[name]
    mean_off = (moments.mean[varies] - bias) / weight
    ratio = moments.var[varies].sqrt() / weight
    off = torch.stack((mean_off, ratio.log()))

    # Weights and biases that are nearly the same in all channels would fit by chance.
    stored = torch.stack((bias / weight, weight.log()))
    spread = stored - stored.mean(1, keepdim=True)
    return _average_size(off) < FOLDED_AGREES * _average_size(spread)


def _average_size(values: Tensor) -> float:
    """Average to the root mean square."""
    return float(values.square().mean().sqrt())
