"""Match the channels of two networks that were trained apart: the second one's are put into the first one's order.

The order of a layer's channels is arbitrary: a network computes the same if they are permuted together with the weights
that read them. So two networks can have learnt nearly the same in different orders (Li et al. 2015, Convergent
learning), and are matched before they are averaged (Jordan et al. 2023, REPAIR).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bnlab.layers import BatchNorm


@torch.no_grad()
def match_channels(first: nn.Module, second: nn.Module, images: Tensor) -> None:
    """Permute the channels of `second` in place, layer by layer, so that they correlate best with those of `first`.

    Args:
        first: a chain of convolutions, each with a batch norm behind it, and a linear head.
        second: a network of the same form. It predicts as before.
        images: [N, channels, H, W], on which correlations are measured.
    """
    correlations = correlate_channels(first, second, images)
    norms = [layer for layer in second.children() if isinstance(layer, BatchNorm)]
    weighted = [layer for layer in second.children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for norm, correlation, (writer, reader) in zip(norms, correlations, pairwise(weighted), strict=True):
        _, order = linear_sum_assignment(correlation.numpy(), maximize=True)
        chosen = torch.as_tensor(order, device=images.device)

        writer.weight.copy_(writer.weight[chosen])
        reader.weight.copy_(reader.weight[:, chosen])
        for values in norm.state_dict().values():
            if values.dim() == 1:  # not the count of batches
                values.copy_(values[chosen])


@torch.no_grad()
def correlate_channels(first: nn.Module, second: nn.Module, images: Tensor) -> list[Tensor]:
    """Correlate the outputs of each norm over images and pixels, under running averages, in float64.

    Returns:
        For each norm [C, C]: a row for each channel of `first`, a column for each of `second`.
    """
    first.eval()
    second.eval()
    correlations = []
    ours = theirs = images
    for layer, other in zip(first.children(), second.children(), strict=True):
        ours = layer(ours)
        theirs = other(theirs)
        if isinstance(layer, BatchNorm):
            channels = ours.shape[1]
            both = torch.cat([_list_values(ours), _list_values(theirs)])
            correlations.append(both.corrcoef()[:channels, channels:].cpu())
    return correlations


def _list_values(outputs: Tensor) -> Tensor:
    """Reshape [N, C, H, W] to float64 [C, N * H * W]."""
    return outputs.transpose(0, 1).flatten(1).double()
