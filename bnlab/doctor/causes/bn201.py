"""BN201: off by the noise of an average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import FEW_VALUES, MOMENTUM_IS_LARGE
from bnlab.doctor.undo import EXACT
from bnlab.doctor.words import describe_ratio
from bnlab.model.layers import get_momentum


class AverageNoise(Cause):
    """The running mean is about as far from the exact one as an average of so few batches always is.

    Batches are taken to be as large as in training: pass training_batches= if they are not. A training image of another
    scale than the rest is such noise, too, if one of these batches had it.
    """

    code = "BN201"
    title = "noise of the averages"
    meaning = "The averages are off by no more than the noise of the few batches they remember, and of these images."
    remedy = "Recalibrate before an evaluation that matters, or lower the momentum."
    undone_by = (EXACT,)
    needs = ("data",)

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        # A reversed momentum and batches of a few values leave noise as well, but are causes of their own.
        ordinary = [name for name in layers if _is_ordinary(case, name)]
        return {"noise": case.explain(case.read_exact(ordinary), layers, with_noise=True)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        # Training batches may reach other layers only, and an average that remembers no batch has no noise.
        known = [name for name in layers if name in case.reference and _is_ordinary(case, name)]
        if not known:
            return ""
        mean_gap = max(case.measure_gap(name, case.reference)[0] for name in known)
        ratios = [case.noise_ratio(name) for name in known]  # NaN with fewer than three batches
        ratio = f"|T| up to {describe_ratio(max(ratios))}, " if all(map(math.isfinite, ratios)) else ""
        momenta = dict.fromkeys(get_momentum(case.layers[name]) for name in known)
        averaged = " and ".join(map(_describe_momentum, momenta))
        return f"means up to {mean_gap:.2f} σ off, {ratio}averaged {averaged}"


def _describe_momentum(momentum: float | None) -> str:
    return "over all batches" if momentum is None else f"with momentum {momentum:g}"


def _is_ordinary(case: Case, name: str) -> bool:
    """Return whether a layer remembers some batches, of more than a few values."""
    view = case.find_view(name)
    momentum = get_momentum(case.layers[name])
    remembers = momentum is None or 0 < momentum <= MOMENTUM_IS_LARGE
    return remembers and view is not None and view.values > FEW_VALUES
