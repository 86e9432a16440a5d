"""BN101: averages that are still on their way from 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import START_FORGOTTEN, START_ROUNDED, START_SHOWS
from bnlab.doctor.undo import EXACT, Undo, write_averages
from bnlab.doctor.words import count_things
from bnlab.model.layers import get_momentum

# Averages are compared in float64 on the CPU, whatever torch's default device is.
_START = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device="cpu")


class OnItsWay(Cause):
    """Averages that still hold part of mean 0 and variance 1, where they start.

    After t updates of momentum m the start has the weight (1−m)^t: there were too few updates, or the momentum is too
    small for them. It is undone by taking this weight out, (r − w·start)/(1 − w). Without data count and momentum are
    believed if the weight is above .2, and no variance, of all layers with the same count, is smaller than what the
    start alone leaves of its 1.

    Without data it is a false alarm if the count is wrong: it began again on averages that were there before, or
    momentum was larger earlier.
    """

    code = "BN101"
    title = "averages have not converged from their start at 0 and 1"
    meaning = (
        "The averages have seen too few updates for their momentum, and still contain part of their starting values."
    )
    remedy = "Recalibrate, train longer, or use a larger momentum."
    undone_by = (EXACT,)
    severity = "warning"

    def propose(self, case: Case) -> Iterator[Undo]:
        weights = _list_weights(case)
        averages = {}
        for name, weight in weights.items():
            # Averages of exactly 0 and 1 hold no batch: taking the start out would leave 0 and 1 again.
            if name in case.fold and not case.is_initial(name):
                averages[name] = _take_out_start(case.buffers[name], weight)
        if any(case.clearly_differs(name) for name in averages):
            reported = self.describe(case, list(weights))
            apply = write_averages(case.layers, averages)
            # 0 degrees: the weight follows from count and momentum alone, nothing is fitted to the images.
            yield Undo(reported, tuple(averages), 0, apply, explains=case.measure_repaired(averages))

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        weights = _list_weights(case)
        moved = [name for name in case.seen if name in weights and not case.is_initial(name)]
        return {name: goal.lerp(_START, weights[name]) for name, goal in case.read_exact(moved).items()}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        weights = _list_weights(case)
        of_layers = [name for name in weights if name in layers]
        if not of_layers:
            return ""
        worst = max(of_layers, key=lambda name: weights[name])
        updates = count_things(case.count_updates(worst) or 0, "update")
        way = 100 * (1 - weights[worst])
        return f"{updates} of momentum {get_momentum(case.layers[worst]):g}: {way:.2g}% of the way"

    def look(self, case: Case) -> Signs | None:
        # With data, undoing decides. Count and momentum are believed by themselves only where nothing is measured.
        if case.has_data:
            return None
        weights = _list_weights(case)
        # A variance is no smaller than what the start leaves of its 1, up to rounding.
        # Layers of the same count and momentum have the same weight, so one of them refutes the count of all.
        refuted = {weight for name, weight in weights.items() if case.buffers[name][1].min() < START_ROUNDED * weight}
        believed = {name: weight for name, weight in weights.items() if weight not in refuted}
        layers = [name for name, weight in believed.items() if weight > START_SHOWS]
        return Signs.of(layers, self.describe(case, layers))


def _list_weights(case: Case) -> dict[str, float]:
    """List the weight of the start in each layer, where it is not forgotten by count and momentum."""
    weights = {name: case.start_weight(name) for name in case.layers}
    return {name: weight for name, weight in weights.items() if weight is not None and weight > START_FORGOTTEN}


def _take_out_start(buffers: Tensor, weight: float) -> Tensor:
    """Take the start out of averages [2, C]: what they are on the way to."""
    # The weight is 1 to the last bit where momentum is tiny. If the count is too low, more than the start is
    # taken out, which can make a variance negative.
    mean, var = (buffers - weight * _START) / max(1 - weight, 1e-12)
    return torch.stack((mean, var.clamp(min=0)))
