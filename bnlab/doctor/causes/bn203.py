"""BN203: small batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import FEW_VALUES
from bnlab.doctor.undo import EACH_BATCH, EXACT, Undo, normalize_each_batch
from bnlab.doctor.words import count_things, describe_ratio


class SmallBatches(Cause):
    """Batches of few images, by whose statistics train mode normalizes.

    With at most 50 values in each channel of a batch, variances are low and noisy. The averages are then of variances
    within a batch, times n/(n−1): if they agree with that, up to the noise of as many batches as they remember, it
    explains them.

    Where each batch's own statistics score better than any averages, and its batches differ no more than so few images
    of one population do, the network needs the images that stand beside each other in a batch: it has memorized a few
    batches, or recognizes an image by the others in its batch.

    It is a false alarm if these batches are smaller than those of training: then pass training_batches=.
    """

    code = "BN203"
    title = "small batches"
    meaning = (
        "Statistics of so few images are noisy, their variance is too low by the factor (n−1)/n, and the network "
        "learns with them."
    )
    remedy = "Train with larger or synchronized batches, on more images if these are few, or with another norm."
    undone_by = (EXACT, EACH_BATCH)
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        if case.is_batch_better:
            layers = {name: case.layers[name] for name in case.fold}
            # Each batch's own statistics can fit anything, hence infinite degrees: any other undo that brings back as
            # much is preferred.
            yield Undo(EACH_BATCH, tuple(layers), math.inf, normalize_each_batch(layers), EACH_BATCH)

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        # Averages of so few values are noisy besides.
        explained = case.explain(self.predict(case), layers, with_noise=True)
        return {"averages": explained, "batches": float(case.is_batch_better)}

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        averages = {}
        for name in case.seen:
            view = case.find_view(name)
            # A single value in a channel has no variance, and n − 1 would be 0.
            if view is not None and 1 < view.values <= FEW_VALUES:
                # The variance of all values is that within batches plus that between their means, both without a
                # correction for their number.
                between = view.batch_means.var * (1 - 1 / view.batch_means.count)
                within = view.pooled.var - between.nan_to_num(nan=0.0)  # a single batch has nothing between
                unbiased = within * view.values / (view.values - 1)
                averages[name] = torch.stack((view.pooled.mean, unbiased))
        return averages

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        if case.is_batch_better:
            # Not `find_view`: it is these images, not the training batches, that score better by batches.
            view = case.view
            images = count_things(round(view.batch_size), "image")
            return f"{view.batches} batches of {images}, no more unlike than shuffled ones"
        views = [case.find_view(name) for name in layers]
        values = [view.values for view in views if view is not None and view.values > 1]
        if not values:
            return ""
        fewest = min(values)
        reported = f"{fewest} values in a batch: n/(n−1) is {fewest / (fewest - 1):.2f}"
        ratios = [case.noise_ratio(name) for name in layers]  # NaN of too few batches, and of momentum 0
        known = [ratio for ratio in ratios if not math.isnan(ratio)]
        return f"{reported}; median |T| up to {describe_ratio(max(known))}" if known else reported
