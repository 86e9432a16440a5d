"""BN401: ranks that hold different averages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import RANKS_DIFFER, RANKS_DIFFER_MUCH


class RanksDiffer(Cause):
    """Running means of two processes that differ by more than .01 σ in some channel, or variances by more than 1%.

    Each rank averages its own batches. DistributedDataParallel copies those of the first to all before each forward in
    train mode, so that they differ by one update: by little, a note. Above .1 it is a warning: evaluated on several
    ranks, there are several models.

    NaN or infinite averages on some ranks are a warning, too. On all ranks alike they are BN001.

    It is a false alarm if one rank alone evaluates and saves, and its share of the data is like the others'.
    """

    code = "BN401"
    title = "ranks differ"
    meaning = "Each process evaluates with its own averages, and a checkpoint holds those of one process."
    remedy = "Use SyncBatchNorm, or measure over all ranks; a merged variance includes that between the ranks' means."
    needs = ("ranks",)

    def look(self, case: Case) -> Signs | None:
        ranks = case.ranks
        assert ranks is not None
        spreads = {}
        for name, layer in case.layers.items():
            buffers = torch.stack([rank[name] for rank in ranks])
            spreads[name] = _compute_spread(buffers, layer.eps)
        layers = [name for name, spread in spreads.items() if not spread <= RANKS_DIFFER]  # also NaN
        if not layers:
            return None
        unusable = [name for name in layers if math.isnan(spreads[name])]
        if unusable:
            return Signs.of(layers, f"NaN or infinite on some of {len(ranks)} ranks, in {unusable[0]!r}", "warning")
        worst = max(layers, key=lambda name: spreads[name])
        evidence = f"up to {describe_number(spreads[worst], 2)} σ between {len(ranks)} ranks, in {worst!r}"
        return Signs.of(layers, evidence, "warning" if spreads[worst] > RANKS_DIFFER_MUCH else "note")


def _compute_spread(buffers: Tensor, eps: float) -> float:
    """Find how far ranks' buffers [ranks, 2, C] are apart in a channel: means in σ, variances relative."""
    # NaN on all ranks alike is a fault of the network, and no difference between them.
    if torch.allclose(buffers, buffers[:1], rtol=0, atol=0, equal_nan=True):
        return 0.0
    var = buffers[:, 1].mean(0) + eps
    distance = buffers.amax(0) - buffers.amin(0)
    return float(torch.stack((distance[0] / var.sqrt(), distance[1] / var)).max())
