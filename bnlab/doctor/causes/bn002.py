"""BN002: never updated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undoing import EXACT


class NeverUpdated(Cause):
    """Running mean 0 and variance 1, where averages start, in more than 99% of a layer's channels.

    With data a layer whose exact statistics are near 0 and 1 too is no finding: the first layer behind standardized
    images, for example. Without data a layer that has counted updates is none, as its averages may be 0 and 1 rightly.
    """

    code = "BN002"
    title = "never updated"
    meaning = "The averages still are where they start, mean 0 and variance 1."
    remedy = "Train in train(), or load a checkpoint that has buffers; bnlab.recalibrate mends what there is."
    undone_by = (EXACT,)
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        initial = [name for name in case.select(case.is_initial) if name not in case.seen]
        layers = [name for name in initial if not case.count_updates(name)]
        return Signs.of(layers, self.describe(case, layers))

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        start = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        return {name: start.expand(2, case.layers[name].num_features) for name in case.select(case.is_initial)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        known = [count for name in layers if (count := case.count_updates(name)) is not None]
        counted = f"{max(known):,} updates counted" if known else "no count of updates"
        return f"mean 0 and variance 1 in all channels, {counted}"
