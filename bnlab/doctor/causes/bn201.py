"""BN201: off by the noise of an average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import FEW_VALUES, MOMENTUM_IS_LARGE
from bnlab.doctor.undo import EXACT
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
        ordinary = [name for name in layers if _is_ordinary(case, name)]
        return {"noise": case.explain(case.read_exact(ordinary), layers, with_noise=True)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        known = [name for name in layers if name in case.reference]
        if not known:  # the training batches reach other layers only
            return ""
        mean_gaps = [case.measure_gap(name, case.reference)[0] for name in known]
        ratio = max(case.noise_ratio(name) for name in known)
        momentum = get_momentum(case.layers[layers[0]])
        return f"means up to {max(mean_gaps):.2f} σ off, |T| up to {ratio:.1f}, with momentum {momentum}"


def _is_ordinary(case: Case, name: str) -> bool:
    """Return whether a layer remembers some batches, of more than a few values."""
    view = case.find_view(name)
    momentum = get_momentum(case.layers[name])
    remembers = momentum is None or 0 < momentum <= MOMENTUM_IS_LARGE
    return remembers and view is not None and view.values > FEW_VALUES
