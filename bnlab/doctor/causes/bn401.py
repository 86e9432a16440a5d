"""BN401: ranks that hold different averages."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity, Signs


class RanksDiffer(Cause):
    """Running means of two processes that differ by more than .01 σ in some channel, or variances by more than 1%.

    Each rank averages its own batches. DistributedDataParallel copies those of the first to all before each forward in
    train mode, so that they differ by one update: by little, a note. Above .1 it is a warning: evaluated on several
    ranks, there are several models.

    A false alarm where one rank alone evaluates and saves, and its share of the data is like the others'.
    """

    code = "BN401"
    title = "ranks differ"
    meaning = "Each process evaluates with averages of its own, and a checkpoint has those of one."
    remedy = "Use SyncBatchNorm, or measure over all ranks; a merged variance includes that between the ranks' means."
    severity = "note"
    needs = ("ranks",)

    def look(self, case: Case) -> Signs | None:
        assert case.ranks is not None
        spreads = {}
        for name, layer in case.layers.items():
            of_ranks = [rank[name] for rank in case.ranks]
            spread = _find_spread(torch.stack(of_ranks), layer.eps)
            if spread > 0.01:
                spreads[name] = spread
        if not spreads:
            return None

        worst = max(spreads, key=spreads.__getitem__)
        most = spreads[worst]
        evidence = f"up to {most:.2g} σ between {len(case.ranks)} ranks, in {worst!r}"
        severity: Severity = "warning" if most > 0.1 else "note"
        return Signs(tuple(spreads), evidence, severity)


def _find_spread(buffers: Tensor, eps: float) -> float:
    """Find how far ranks' buffers [ranks, 2, C] are apart in a channel: means in σ, variances relative."""
    var = buffers[:, 1].mean(0) + eps
    distance = buffers.amax(0) - buffers.amin(0)
    return float(torch.stack((distance[0] / var.sqrt(), distance[1] / var)).max())
