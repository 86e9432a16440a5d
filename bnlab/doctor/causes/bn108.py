"""BN108: averages that describe other images, or other weights, such as those before the last steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_high

import torch

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.lag import compare_with_drift
from bnlab.doctor.undo import EXACT, Undo, write_averages
from bnlab.doctor.words import describe_ratio


class OtherWeights(Cause):
    """Running statistics that score worse than exact ones, where no smaller change explains it.

    It is undone by exact statistics of the layers that fit worst: of one, two, four and so on, and of all. Where other
    causes that are undone so predict the averages, or show other signs, they are named instead.

    An average of momentum m is 1/m steps behind its weights. A trace, or an earlier checkpoint at most 5/m updates ago,
    shows how statistics drift: a gap along the drift (cosine above .5) and at most twice what m predicts is a lag.
    Otherwise the averages may be of other images, which have passed in train mode since, or the weights were averaged,
    pruned, cut out of a larger network, fine-tuned or loaded from elsewhere. Images that differ from those of training
    by more than scale and shift look the same: training_batches= tells them apart.

    A lag in the middle of training is normal, and is forgotten as the learning rate falls.
    """

    code = "BN108"
    title = "averages of other images or weights"
    meaning = "The averages belong to weights other than the current ones, or to images other than these."
    remedy = (
        "Recalibrate before you evaluate, unless these images are preprocessed differently than in training. Still "
        "training? "
        "A lag is normal, and a larger or self-tuned momentum lags less."
    )
    undone_by = (EXACT,)
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        names = [name for name in case.fold if name in case.layers]
        # Gaps that are small in each layer may add up: where scores suffer, no single layer has to differ
        # clearly.
        if not case.is_costly and not any(case.clearly_differs(name) for name in names):
            return
        # By all images rather than the fold, because both halves have to propose the same sets of layers.
        by_gap = sorted(names, key=lambda name: case.measure_distance(name, case.exact), reverse=True)
        count = 1
        # The last set has all layers, also where their number is no power of two.
        while count < 2 * len(names):
            # In order of depth again, as `Undo.layers` asks.
            layers = [name for name in names if name in by_gap[:count]]
            averages = {name: case.read_fold(name) for name in layers}
            degrees = sum(values.numel() for values in averages.values())
            apply = write_averages(case.layers, averages)
            yield Undo(_describe(layers, names), tuple(layers), degrees, apply, EXACT, name=str(len(layers)))
            count *= 2

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        # It accounts for whatever is left. This ground ranks so low that every cause which explains more than
        # half of the gap comes first.
        return {"remainder": 1.0}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        drift = compare_with_drift(case, layers)
        ratios = [case.noise_ratio(name) for name in layers]
        known = [ratio for ratio in ratios if not math.isnan(ratio)]  # it is NaN where batches are too few
        reported = [] if drift is None else [drift.describe()]
        if known:
            ratio = median_high(known)
            if ratio > 1:
                reported.append(f"{describe_ratio(ratio)} times farther off than chance explains")
            else:  # so that it is the variances
                reference = case.reference
                changes = [case.log_ratios(name, reference).abs() for name in layers if name in reference]
                most = describe_number(float(torch.cat(changes).nan_to_num().max().exp()), 2)
                explained = "means of most channels no farther off than chance explains"
                reported.append(f"{explained}, variances up to {most}-fold")
        else:
            gaps = [case.measure_distance(name, case.reference) for name in layers if name in case.reference]
            # Training batches may reach other layers only.
            off = f"off by up to {describe_number(max(gaps), 2)} σ; " if gaps else ""
            reported.append(f"{off}too few batches to tell chance")
        return "; ".join(reported)


def _describe(layers: Sequence[str], names: Sequence[str]) -> str:
    if len(layers) == len(names):
        return "exact statistics of all layers"
    named = ", ".join(layers) if len(layers) <= 3 else f"{len(layers)} layers"
    return f"exact statistics of {named}"
