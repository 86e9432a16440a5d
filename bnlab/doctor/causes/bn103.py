"""BN103: several updates of the averages in a step."""

from __future__ import annotations

import math

import torch

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import SAME_BATCH
from bnlab.model.layers import match_names
from bnlab.recording.trace import LayerTrace

# Of the distance between steps. Checkpointing repeats a call up to rounding; the same images at other
# weights, as in sharpness-aware training, differ by 1% and more.
_ROUNDING = 1e-3
_TINY = 1e-12


class SeveralUpdates(Cause):
    """More than one call of a layer in train mode for each step of a recorded training.

    A warning where it is the same batch: mean and variance of the calls of a step are nearer to each other than to
    those of other steps, by half. Up to rounding the same, it is activation checkpointing, which runs forwards again;
    to some percent, a forward of the same images at other weights, as in sharpness-aware training.

    It is a false alarm if the calls are of different batches, as with gradient accumulation: each deserves its update,
    and the finding is a note. A smaller momentum then restores the memory that the averages have without
    accumulation.
    """

    code = "BN103"
    title = "several updates a step"
    meaning = "The averages forget faster than their momentum says, counted in steps."
    remedy = (
        "Let only one forward pass of a step update the averages, the one at the weights that are kept, and set "
        "momentum to 0 in the others; or, with k updates of the same batch, use momentum 1 − (1 − m)^(1/k)."
    )
    needs = ("trace",)

    def look(self, case: Case) -> Signs | None:
        assert case.trace is not None
        traces = case.trace.layers
        recorded = {name: traces[other] for name, other in match_names(case.layers, traces).items()}
        several = {name: entries for name, entries in recorded.items() if len(entries) > len(set(entries.steps))}
        if not several:
            return None

        calls = max(len(entries) / len(set(entries.steps)) for entries in several.values())
        reported = f"{calls:.3g} updates a step" if calls >= 1.005 else "a second update in a few steps"

        # Several calls are a mistake only if they average the same batch. Different batches all count.
        distances = [_compare_steps(entries) for entries in several.values()]
        near = [distance for distance in distances if distance < SAME_BATCH]
        if 2 * len(near) < len(several):
            return Signs.of(several, f"{reported}, of different batches", "note")
        farthest = max(near)
        how = ""
        if farthest >= _ROUNDING:
            how = f" at other weights ({describe_number(100 * farthest, 2)}% of the way to another batch)"
        return Signs.of(several, f"{reported}, of the same batch{how}", "warning")


def _compare_steps(entries: LayerTrace) -> float:
    """Compare successive calls of one step with successive calls of two steps: the ratio of their median distances."""
    steps = torch.tensor(entries.steps, device="cpu")
    moments = entries.moments.double().cpu()
    # Means are compared in σ and variances as ratios, so that all channels count
    # alike. The clamp keeps dead channels from dividing by 0.
    variance = moments[:, 1].mean(0).clamp(min=_TINY)
    scale = torch.stack((variance.sqrt(), variance))

    distance = (moments.diff(dim=0) / scale).square().flatten(1).mean(1).sqrt()
    is_same_step = steps.diff() == 0
    # A single step has no next one to compare with; infinity leaves it at a note.
    if not is_same_step.any() or is_same_step.all():
        return math.inf
    within = distance[is_same_step].median()
    between = distance[~is_same_step].median()
    # The distance between steps is 0 where the same batch comes again at the same weights.
    return float(within / between.clamp(min=_TINY))
