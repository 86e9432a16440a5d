"""BN204: one layer, several populations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import NamedTuple

import torch

from bnlab.doctor.cause import Cause, Ground, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.observing import MOST_CALLS, LayerView, measure_share
from bnlab.doctor.thresholds import CALLS_RATIO, CALLS_RATIO_CHANCE, CALLS_SHARE, CALLS_SHARE_CHANCE
from bnlab.doctor.undo import EACH_BATCH, Undo, write_each_call
from bnlab.model.layers import count_channels


class SeveralPopulations(Cause):
    """What a layer is given differs from call to call, where it is called several times in a forward.

    Train mode normalizes each call by its own statistics, eval mode all by the same: no single set of averages fits.
    Calls differ where a tenth of the variance lies between their means, or their variances do by a factor of 1.2. Where
    each batch's own statistics score better than all others, it is enough that there are several calls. Layers behind
    the first such one that are called as often are named too, as train mode made what they are given alike.

    So do forwards of a metric that takes turns between two kinds of inputs, such as anchors and others of pairs: with
    `evaluate=` its calls are compared as well, every other one, and the first half with the last.

    Two views of the same images, as in contrastive learning, are one population.
    """

    code = "BN204"
    title = "one layer, several populations"
    meaning = (
        "The layer sees inputs from different populations: train mode normalizes each with its own statistics, eval "
        "mode all with the same."
    )
    remedy = (
        "New averages mend a part at best: train again with batches that mix them, a batch norm for each, or group or "
        "instance norm."
    )
    kind = "network"
    undone_by = (EACH_BATCH,)
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        if self.look(case) is None or case.evaluated:
            return  # nobody knows which of the metric's calls is of which kind
        views = case.view.layers
        calls = {name: views[name].calls for name in case.fold if name in views}
        several = {name: moments for name, moments in calls.items() if len(moments) > 1}
        # A mean and a variance in each channel, for each call.
        degrees = sum(2 * count_channels(case.layers[name]) * len(moments) for name, moments in several.items())
        reported = "the statistics of each call by itself"
        yield Undo(reported, tuple(several), degrees, write_each_call(case.layers, several))

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        return {"populations": float(self.look(case) is not None)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        signs = self.look(case)
        return "" if signs is None else signs.evidence

    def look(self, case: Case) -> Signs | None:
        views = case.view.layers
        called = [name for name in case.seen if name in views and len(views[name].calls) > 1]
        of_images = [name for name in called if views[name].image_means.count > 1]  # whose rows are images
        unlike = {}
        for name in of_images:
            comparison = _compare_calls(views[name])
            # Where each batch's statistics beat all averages, several calls are reason enough by themselves.
            if comparison.are_unlike or case.is_batch_better:
                unlike[name] = comparison
        if not unlike:
            return _compare_evaluated(case)
        clearest = max(unlike.values(), key=lambda comparison: (comparison.share, comparison.words))
        # Later layers are named too: normalizing each call by itself has made what these are given alike.
        from_first_unlike = dropwhile(lambda name: name not in unlike, of_images)
        return Signs.of(from_first_unlike, clearest.words)


def _compare_evaluated(case: Case) -> Signs | None:
    """Compare two groups of the calls of a metric; in the first layer, as later ones may have been made alike."""
    groups = case.evaluated
    first = next(iter(groups), None)
    if first is None:
        return None
    share = measure_share(groups[first])
    if share <= CALLS_SHARE:
        return None
    reported = f"evaluate= runs two kinds of batches: their means make up {share:.0%} of the variance of {first!r}"
    return Signs.of(groups, reported)


class _Comparison(NamedTuple):
    """How the calls of a layer in a forward differ.

    Attributes:
        are_unlike: whether they differ by more than calls of one population do.
        share: which share of the variance lies between their means.
        words: by how much they differ, in words.
    """

    are_unlike: bool
    share: float
    words: str


def _compare_calls(view: LayerView) -> _Comparison:
    """Compare the calls of a layer in a forward.

    Means of so many images differ by chance, and variances by less than 8/sqrt(images), also where images differ much
    in contrast.
    """
    number = len(view.calls)
    pooled = view.pooled
    share = measure_share(view.calls)

    # The median over channels leaves out dead ones, whose ratio is 0/0.
    variances = torch.stack([call.var for call in view.calls])
    ratio = variances.amax(0) / variances.amin(0)
    log_ratio = float(ratio.log().nanmedian())

    # The mean of n images varies by 1/n of the variance between images. With few images, or images that
    # differ much, calls of one population differ by more than the fixed lines.
    images = view.image_means.count / number
    by_chance = float((view.image_means.var / pooled.var).nanmean()) / images
    most_share = max(CALLS_SHARE, CALLS_SHARE_CHANCE * by_chance)
    most_ratio = max(CALLS_RATIO, CALLS_RATIO_CHANCE / math.sqrt(images))
    times = f"variances differ {math.exp(log_ratio):.1f}-fold"
    at_least = "at least " if number == MOST_CALLS else ""
    reported = f"{at_least}{number} calls a forward: their means make up {share:.0%} of the variance, their {times}"
    are_unlike = share > most_share or log_ratio > most_ratio
    return _Comparison(are_unlike, share, reported)
