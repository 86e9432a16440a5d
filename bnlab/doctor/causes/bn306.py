"""BN306: the weights are not those that were trained."""

from __future__ import annotations

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.words import count_things


class UntrainedWeights(Cause):
    """Weights (γ) of exactly 1 and biases (β) of exactly 0 in all batch norms, although these have counted updates.

    Weights that are all 0 count as well: they begin so at the end of a residual branch.

    One update of an optimizer moves them. So the network that is evaluated is not the one whose batches were averaged:
    a copy that was made before the training and shares or was given its buffers, a checkpoint whose weights were not
    loaded, an optimizer that was given the parameters of another network. New averages cannot bring back what the
    weights never learnt. It is an error where no statistics bring the score above chance, or above what is expected.

    It is a false alarm, and a note, if these parameters were left out of the training on purpose, or the batches were
    averaged to start with.
    """

    code = "BN306"
    title = "weights as constructed, although updates were counted"
    meaning = "The averages come from a training run that these weights have not been through."
    remedy = (
        "Load the trained weights, and look at what load_state_dict returns; pass the network that they should be as "
        "before=. Do not recalibrate."
    )
    kind = "network"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        if not case.is_unloaded:
            return None
        counts = [case.count_updates(name) or 0 for name in case.layers]
        reported = f"weights and biases as constructed, and {count_things(max(counts), 'update')} counted"
        return Signs.of(case.layers, reported, "error" if _is_poor(case) else "note")


def _is_poor(case: Case) -> bool:
    """Return whether no statistics bring the score above chance, or above what is expected."""
    scores = case.scores
    if scores is None:
        return False
    return scores.is_near_chance if case.expected is None else scores.best < case.expected
