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
        recorded = {name: traces[other] for name, other in match_names(case.layers, traces).items()}
        layers = [name for name, entries in recorded.items() if _count_calls(entries) > 1]
        if not layers:
            return None
        most = max(_count_calls(recorded[name]) for name in layers)
        told = f"{most:.3g} updates a step"
        repeated = [name for name in layers if _is_repeated(recorded[name])]
        if repeated:
            evidence = f"{told}, of the same batch in {len(repeated)} of {len(layers)} layers"
            return Signs(tuple(layers), evidence, "warning")
        return Signs(tuple(layers), f"{told}, of different batches")


def _count_calls(entries: LayerTrace) -> float:
    """Count a layer's calls in each step that has any, on average."""
    return len(entries) / len(set(entries.steps)) if len(entries) else 0.0


def _is_repeated(entries: LayerTrace) -> bool:
    """Return whether a tenth of the calls have the moments of an earlier call in their step, up to rounding."""
    steps = torch.tensor(entries.steps, device="cpu")
    moments = entries.moments.double()
    is_repeat = torch.zeros(len(steps), dtype=torch.bool, device="cpu")
    most = min(_MOST_CALLS, len(steps))
    for back in range(1, most):
        is_same_step = steps[back:] == steps[:-back]
        is_near = _are_near(moments[back:], moments[:-back])
        is_repeat[back:] |= is_same_step & is_near
    share = is_repeat.double().mean()
    return float(share) > 0.1


def _are_near(moments: Tensor, others: Tensor) -> Tensor:
    """Return for each of two lists of means and variances [calls, 2, C] whether they differ by rounding alone."""
    var = moments[:, 1]
    scale = torch.stack((var.sqrt(), var), dim=1)
    distance = (moments - others).abs()
    return (distance <= 1e-4 * scale).flatten(1).all(1)
