"""BN203: tiny batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause
from bnlab.doctor.thresholds import FEW_VALUES
from bnlab.doctor.undoing import EXACT


class TinyBatches(Cause):
    """At most 50 values in each channel of a batch: train mode divides by variances that are low and noisy.

    The averages are then of variances within a batch, times n/(n−1), and noisy: if they agree with that, up to the
    noise of as many batches as they remember, it explains them. Without training_batches= these batches have to be as
    small as those of training.
    """

    code = "BN203"
    title = "tiny batches"
    meaning = "So few values make a batch's variance low, by (n−1)/n, and noisy; train and eval mode differ by that."
    remedy = "Use larger or synchronized batches, or another norm."
    undone_by = (EXACT,)
    needs = ("data",)

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        return case.explain(self.predict(case), layers, with_noise=True)

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        averages = {}
        for name in case.seen:
            view = case.find_view(name)
            if view is not None and 1 < view.values <= FEW_VALUES:
                within = view.pooled.var - view.batch_means.var
                unbiased = within * view.values / (view.values - 1)
                averages[name] = torch.stack((view.pooled.mean, unbiased))
        return averages

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        counts = [_count_values(case, name) for name in layers]
        fewest = min(count for count in counts if count > 1)
        ratio = max(case.noise_ratio(name) for name in layers)
        return f"{fewest} values in a batch: n/(n−1) is {fewest / (fewest - 1):.2f}; median |T| up to {ratio:.1f}"


def _count_values(case: Case, name: str) -> int:
    """Count the values in each channel of a batch; 0 where nothing is known."""
    view = case.find_view(name)
    return 0 if view is None else view.values
