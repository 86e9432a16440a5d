"""BN201: off by the noise of an average."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_VISIBLE = 0.05  # σ, or log ratio: a smaller gap is not worth a word
_NOISE = 3.0  # median |T|, above which BN108 begins


class AverageNoise(Rule):
    """The running mean is about as far from the exact one as an average of so few batches always is (median |T| ≤ 3).

    Batches are taken to be as large as in training: pass training_batches= if they are not.
    """

    code = "BN201"
    title = "noise of the averages"
    meaning = "The averages are off by no more than the noise of the few batches they remember, and of these images."
    remedy = "Recalibrate before an evaluation that matters, or lower the momentum."
    severity = "note"
    needs = ("data",)
    unless = ("BN002", "BN003", "BN101", "BN102", "BN106", "BN107", "BN109", "BN202", "BN203", "BN210")

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if _is_noise(case, name)]
        return Signs.of(layers, _tell(case, layers)) if layers else None


def _is_noise(case: Case, name: str) -> bool:
    view = case.find_view(name)
    reference = case.reference
    if view is None or name not in reference or len(view.calls) > 1:
        return False

    mean_gap, var_gap = case.find_gap(name, reference)
    largest_gap = max(mean_gap, var_gap)
    if not largest_gap > _VISIBLE:
        return False
    gap_here = max(case.find_gap(name))
    if gap_here > 2 * largest_gap:
        return False  # these images differ from those of training

    # The log of a variance is noisier than a mean in σ, by a factor that depends on the tails of the values.
    noise = case.find_expected_gap(name)
    most = max(_VISIBLE, 6 * noise)
    return var_gap <= most and case.noise_ratio(name) <= _NOISE


def _tell(case: Case, layers: Sequence[str]) -> str:
    gaps = [case.find_gap(name, case.reference)[0] for name in layers]
    ratios = [case.noise_ratio(name) for name in layers]
    momentum = case.layers[layers[0]].momentum
    return f"means up to {max(gaps):.2f} σ off, |T| up to {max(ratios):.1f}, with momentum {momentum}"
