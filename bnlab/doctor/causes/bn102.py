"""BN102: a momentum that looks reversed."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity, Signs
from bnlab.doctor.thresholds import MOMENTUM_IS_LARGE
from bnlab.doctor.undoing import EXACT
from bnlab.nn.self_tuned import SelfTuned


class Reversed(Cause):
    """Momentum above .5: an average that remembers (2−m)/m, fewer than three, batches.

    Torch's momentum is the weight of the new batch; that of Keras and of papers, often .9 or .99, the weight of the
    old average. MaxViT in torchvision has .99.

    A false alarm where the averages were recalibrated, or are meant to follow the latest batch; with labels the cost
    decides. Momentum None, a cumulative average, is none.
    """

    code = "BN102"
    title = "momentum looks reversed"
    meaning = "The averages are little more than the last batch, and as noisy."
    remedy = "Set momentum to one minus it, as torch's is the weight of the new batch, and recalibrate."
    undone_by = (EXACT,)
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: _is_reversed(case, name))
        severity: Severity | None = None if case.evidence is None else "note"
        return Signs.of(layers, self.describe(case, layers), severity)

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        reversed_ones = [name for name in layers if _is_reversed(case, name)]
        return case.explain(case.read_exact(reversed_ones), layers, with_noise=True)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        momenta = sorted({case.layers[name].momentum or 0.0 for name in layers if _is_reversed(case, name)})
        told = [f"momentum {momentum:g}, a memory of {(2 - momentum) / momentum:.1f} batches" for momentum in momenta]
        return "; ".join(told)


def _is_reversed(case: Case, name: str) -> bool:
    layer = case.layers[name]
    if layer.momentum is None or isinstance(layer, SelfTuned):
        return False
    return layer.momentum > MOMENTUM_IS_LARGE
