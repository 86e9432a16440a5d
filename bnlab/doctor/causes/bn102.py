"""BN102: a momentum that is reversed, or 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnlab.doctor.cause import Cause, Ground, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import MOMENTUM_IS_LARGE
from bnlab.doctor.undo import EXACT, RESCALED
from bnlab.doctor.words import count_things
from bnlab.model.layers import AveragesByItself, get_momentum


class OddMomentum(Cause):
    """Momentum above .5, so that an average remembers (2−m)/m, fewer than three, batches; or 0 in layers that have
    counted updates, none of which has moved the averages.

    Torch's momentum is the weight of the new batch; that of Keras and of papers, often .9 or .99, the weight of the
    old average. MaxViT in torchvision has .99. Networks that were ported from another library have 0, and fine-tuning
    leaves them the averages of the images before. With data it is named where exact statistics bring something back.

    It is a false alarm if the averages were recalibrated, are meant to follow the latest batch, or to stay. Momentum
    None, a cumulative average, is none, and layers whose own weight is frozen may have 0.
    """

    code = "BN102"
    title = "momentum reversed, or 0"
    meaning = (
        "The averages are little more than the last batch, or have not moved: in PyTorch, momentum is the weight of "
        "the new batch."
    )
    remedy = "Set momentum to 0.1 or, where it is reversed, to one minus its value, and recalibrate."
    undone_by = (EXACT, RESCALED)
    severity = "warning"

    def list_layers(self, case: Case) -> Sequence[str]:
        return case.select(lambda name: _is_zero(case, name))

    def look(self, case: Case) -> Signs | None:
        # With data, undoing shows what the averages cost, so that the setting by itself is only a note.
        layers = case.select(lambda name: _is_reversed(case, name))
        if case.has_data:
            return Signs.of(layers, self.describe(case, layers), "note")
        both = case.select(lambda name: _is_reversed(case, name) or _is_zero(case, name))
        return Signs.of(both, self.describe(case, both))

    def support(self, case: Case, layers: Sequence[str]) -> Mapping[Ground, float]:
        # A large momentum leaves averages that are right except for the noise of few batches: exact ones have
        # to explain them up to that noise. Momentum 0 is a trace instead (`list_layers`).
        reversed_ones = [name for name in layers if name in case.layers and _is_reversed(case, name)]
        explained = case.explain(case.read_exact(reversed_ones), layers, with_noise=True)
        return {"averages": explained, "traces": self.measure_traces(case, layers)}

    def name_layers(self, case: Case, layers: Sequence[str]) -> Sequence[str]:
        return case.select(lambda name: name in layers or _is_reversed(case, name) or _is_zero(case, name))

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        momenta = {_read_momentum(case, name) for name in layers if _is_reversed(case, name)}
        reported = []
        for momentum in momenta:
            memory = (2 - momentum) / momentum
            reported.append(f"momentum {momentum:g}, a memory of {memory:.1f} batches")

        counts = [case.count_updates(name) or 0 for name in layers if _is_zero(case, name)]
        if counts or not reported:
            reported.append(f"{count_things(max(counts, default=0), 'update')} of momentum 0")
        return "; ".join(sorted(reported))


def _read_momentum(case: Case, name: str) -> float:
    """Read a layer's momentum; 0 for None, as a cumulative average has no large momentum."""
    return get_momentum(case.layers[name]) or 0


def _is_reversed(case: Case, name: str) -> bool:
    # Layers that average in another way do not go by their momentum, whatever it says.
    if isinstance(case.layers[name], AveragesByItself):
        return False
    return _read_momentum(case, name) > MOMENTUM_IS_LARGE


def _is_zero(case: Case, name: str) -> bool:
    layer = case.layers[name]
    is_set = get_momentum(layer) == 0 and not isinstance(layer, AveragesByItself)
    # Without counted updates the momentum has kept nothing back, and frozen layers are given 0 on purpose.
    return is_set and bool(case.count_updates(name)) and not case.has_fixed_weight(name)
