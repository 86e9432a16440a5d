"""BN102: a momentum that looks reversed."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.nn.self_tuned import SelfTuned


class Reversed(Rule):
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

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: _is_reversed(case, name))
        momenta = sorted({case.layers[name].momentum or 0.0 for name in layers})
        told = [f"momentum {momentum:g}, a memory of {(2 - momentum) / momentum:.1f} batches" for momentum in momenta]
        return Signs.of(layers, "; ".join(told))


def _is_reversed(case: Case, name: str) -> bool:
    layer = case.layers[name]
    return layer.momentum is not None and layer.momentum > 0.5 and not isinstance(layer, SelfTuned)
