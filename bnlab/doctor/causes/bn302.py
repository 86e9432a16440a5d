"""BN302: folded twice, or a bias lost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import torch
from torch import Tensor, nn

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.patient import Patient
from bnlab.doctor.thresholds import FOLDED_AGREES, FUSION_SHOWS, IS_LOST_BIAS
from bnlab.doctor.undoing import Undo, pass_through, replace_forwards, write_averages
from bnlab.model.layers import BatchNorm

_LINEAR = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)


class FoldedTwice(Cause):
    """A layer that was folded into the one before it still normalizes, or only one of the two knows of a bias.

    Folded twice: what the layer is given already has its bias as mean and its weight as standard deviation. That takes
    weights and biases which differ between channels. A bias lost: the running mean is off by just the bias of the layer
    before, and the running variance is right.
    """

    code = "BN302"
    title = "folded twice, or a bias lost"
    meaning = "The layer and the one before it do not belong together: a fusion was done twice, or left out a bias."
    remedy = "Mend the fusion: an identity in the place of the folded layer, or the bias in the running mean."
    kind = "network"
    needs = ("data",)

    def propose(self, patient: Patient) -> Iterator[Undo]:
        case = patient.case
        off = [name for name in patient.exact if case.clearly_differs(name)]
        folded = [name for name in off if _is_folded(case, name)]
        if folded:
            reported = "exact means and variances are the layer's own biases and squared weights"
            layers = [case.layers[name] for name in folded]
            yield Undo(reported, tuple(folded), 0, replace_forwards(layers, pass_through), name="folded")

        shifts = {name: _find_lost_bias(case, name) for name in off}
        averages = {}
        for name, shift in shifts.items():
            if shift is not None:
                averages[name] = case.buffers[name] + torch.stack((shift, torch.zeros_like(shift)))
        if averages:
            reported = "running means are off by the bias of the layer before, variances are right"
            yield Undo(reported, tuple(averages), 0, write_averages(case.layers, averages), name="bias")


def _is_folded(case: Case, name: str) -> bool:
    """Return whether what a layer is given has its bias as mean and its weight as standard deviation."""
    layer = case.layers[name]
    if layer.weight is None or layer.bias is None:
        return False
    weight = layer.weight.detach().abs().cpu().double()
    bias = layer.bias.detach().cpu().double()

    moments = case.data.exact[name]
    mean_off = (moments.mean - bias) / weight
    ratio = moments.var.sqrt() / weight
    off = torch.stack((mean_off, ratio.log()))

    # Weights and biases that are nearly the same in all channels would fit by chance.
    own = torch.stack((bias / weight, weight.log()))
    spread = own - own.mean(1, keepdim=True)
    return _average_size(off) < FOLDED_AGREES * _average_size(spread)


def _find_lost_bias(case: Case, name: str) -> Tensor | None:
    """Find what a running mean lacks [C], where that is the bias of the layer before, to either side."""
    bias = _find_bias_before(case.model, case.layers[name])
    _, var_gap = case.measure_gap(name)
    if bias is None or var_gap > FUSION_SHOWS:
        return None
    exact = case.data.exact
    scaled = bias / (exact[name].var + exact.eps[name]).sqrt()
    size = _average_size(scaled)

    gaps = case.mean_gaps(name)
    off_above = _average_size(gaps - scaled)
    off_below = _average_size(gaps + scaled)
    if size <= FUSION_SHOWS or min(off_above, off_below) >= IS_LOST_BIAS * size:
        return None
    return -bias if off_above < off_below else bias


def _average_size(values: Tensor) -> float:
    """Average to the root mean square."""
    return float(values.square().mean().sqrt())


def _find_bias_before(model: nn.Module, layer: BatchNorm) -> Tensor | None:
    """Find the bias [C] of the convolution or linear layer that the model lists before a layer; None without."""
    listed = takewhile(lambda module: module is not layer, model.modules())
    linear = [module for module in listed if isinstance(module, _LINEAR)]
    bias = linear[-1].bias if linear else None
    if bias is None or len(bias) != layer.num_features:
        return None
    return bias.detach().cpu().double()
