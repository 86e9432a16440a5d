"""BN102: a momentum that looks reversed."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
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
        layers = list(_list_reversed(case))
        return Signs.of(layers, self.describe(case, layers), None if case.evidence is None else "note")

    def weigh(self, case: Case, layers: Sequence[str]) -> float:
        reversed_ones = [name for name in layers if name in _list_reversed(case)]
        return case.explain(case.read_exact(reversed_ones), layers, with_noise=True)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        momenta = {momentum for name, momentum in _list_reversed(case).items() if name in layers}
        told = [f"momentum {value:g}, a memory of {(2 - value) / value:.1f} batches" for value in sorted(momenta)]
        return "; ".join(told)


def _list_reversed(case: Case) -> dict[str, float]:
    """List the momentum of the layers that have a large one, and do not choose it themselves."""
    fixed = {name: layer.momentum for name, layer in case.layers.items() if not isinstance(layer, SelfTuned)}
    return {name: momentum for name, momentum in fixed.items() if momentum is not None and momentum > MOMENTUM_IS_LARGE}
