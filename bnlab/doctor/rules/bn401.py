"""BN401: ranks that hold different averages."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Severity, Signs


class RanksDiffer(Rule):
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
    follows_cost = False
    needs = ("ranks",)

    def look(self, case: Case) -> Signs | None:
        assert case.ranks is not None
        spreads = {}
        for name in case.layers:
            buffers = torch.stack([rank[name] for rank in case.ranks])
            spreads[name] = _find_spread(buffers, case.layers[name].eps)
        layers = [name for name, spread in spreads.items() if spread > 0.01]
        if not layers:
            return None

        worst = max(layers, key=spreads.__getitem__)
        most = spreads[worst]
        ranks = len(case.ranks)
        evidence = f"up to {most:.2g} σ between {ranks} ranks, in {worst!r}"
        severity: Severity = "warning" if most > 0.1 else "note"
        return Signs(tuple(layers), evidence, severity)


def _find_spread(buffers: Tensor, eps: float) -> float:
    """Find how far ranks' buffers [ranks, 2, C] are apart in a channel: means in σ, variances relative."""
    var = buffers[:, 1].mean(0) + eps
    distance = buffers.amax(0) - buffers.amin(0)
    return float(torch.stack((distance[0] / var.sqrt(), distance[1] / var)).max())
