"""BN103: several updates of the averages in a step."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.layers import match_names
from bnlab.recording.trace import LayerTrace

_MOST_CALLS = 8  # calls of a step that are compared with each other


class SeveralUpdates(Rule):
    """More than one call of a layer in train mode for each step of a recorded training.

    A warning where the same batch was averaged twice, so that its mean and variance came back in the same step:
    activation checkpointing runs forwards again.

    A false alarm where the calls are of different batches, as with gradient accumulation: each deserves its update, and
    the finding is a note.
    """

    code = "BN103"
    title = "several updates a step"
    meaning = "The averages forget faster than their momentum says, counted in steps."
    remedy = "With k updates of the same batch a step use momentum 1 − (1 − m)^(1/k), or none in the repeated forward."
    severity = "note"
    follows_cost = False
    needs = ("trace",)

    def look(self, case: Case) -> Signs | None:
        assert case.trace is not None
        traces = case.trace.layers
        counts: dict[str, float] = {}
        repeated = []
        for name, other in match_names(case.layers, traces).items():
            entries = traces[other]
            calls = _count_calls(entries)
            if calls > 1:
                counts[name] = calls
                if _is_repeated(entries):
                    repeated.append(name)
        if not counts:
            return None

        most = max(counts.values())
        told = f"{most:.3g} updates a step"
        layers = tuple(counts)
        if not repeated:
            return Signs(layers, f"{told}, of different batches")
        evidence = f"{told}, of the same batch in {len(repeated)} of {len(layers)} layers"
        return Signs(layers, evidence, "warning")


def _count_calls(entries: LayerTrace) -> float:
    """Count a layer's calls in each step that has any, on average."""
    return len(entries) / len(set(entries.steps)) if len(entries) else 0.0


def _is_repeated(entries: LayerTrace) -> bool:
    """Return whether a tenth of the calls have the moments of an earlier call in their step, up to rounding."""
    steps = torch.tensor(entries.steps, device="cpu")
    moments = entries.moments.double()
    calls = len(steps)
    is_repeat = torch.zeros(calls, dtype=torch.bool, device="cpu")

    most = min(_MOST_CALLS, calls)
    for back in range(1, most):
        earlier = slice(None, -back)
        later = slice(back, None)
        is_same_step = steps[later] == steps[earlier]
        is_near = _are_near(moments[later], moments[earlier])
        is_repeat[later] |= is_same_step & is_near
    share = is_repeat.double().mean()
    return float(share) > 0.1


def _are_near(moments: Tensor, others: Tensor) -> Tensor:
    """Return for each of two lists of means and variances [calls, 2, C] whether they differ by rounding alone."""
    var = moments[:, 1]
    scale = torch.stack((var.sqrt(), var), dim=1)
    distance = (moments - others).abs()
    return (distance <= 1e-4 * scale).flatten(1).all(1)
