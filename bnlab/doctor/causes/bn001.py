"""BN001: values that are not finite, negative variances, or averages in low precision."""

from __future__ import annotations

import torch

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case, has_bad_values
from bnlab.doctor.evidence.setup import has_overflown
from bnlab.doctor.words import count_things
from bnlab.model.layers import BatchNorm, get_momentum, get_running_buffers


class NotHeld(Cause):
    """A running mean or variance that is NaN or infinite, a variance below 0, or a type below float32.

    One batch with a NaN, or one that overflows float16, is enough: an average never forgets it. The first layer in
    depth is where to look; later ones were given its output. Float16 ends at 65,504: a variance above it becomes
    infinite when the model is cast.

    In a type below float32 an update of an average r by m·(x − r) is lost in rounding once it is below half of the
    distance to the next number: with momentum .1 a bfloat16 average stops 2 to 4% short of its goal, with .01 ten times
    as far. In train mode this is a warning.

    It is a false alarm in a model that was converted for inference: rounding finished averages costs nothing
    measurable.
    """

    code = "BN001"
    title = "not finite, negative, or in low precision"
    meaning = "The averages cannot represent what was averaged, or a single bad batch has ruined them for good."
    remedy = (
        "Keep batch norm in float32 even if the rest is cast. Load the averages from before the cast, or recalibrate, "
        "and look for the batch, the overflow or the tool."
    )

    def look(self, case: Case) -> Signs | None:
        # A variance that overflowed float16 is in low precision too. That it cannot be used comes first.
        spoiled = case.select(lambda name: has_bad_values(case.buffers[name]))
        if spoiled:
            return Signs.of(spoiled, _describe_spoiled(case, spoiled), "error")
        rounded = case.select(lambda name: torch.finfo(_find_type(case.layers[name])).bits < 32)
        if not rounded:
            return None

        # Rounding swallows updates, of which none come in eval mode. Rounding finished averages costs next to
        # nothing.
        worst = max((case.layers[name] for name in rounded), key=compute_stall)
        kind = str(_find_type(worst)).removeprefix("torch.")
        reported = f"{kind}: an average may stop {describe_number(100 * compute_stall(worst), 2)}% short of its goal"
        is_training = any(case.layers[name].training for name in rounded)
        return Signs.of(rounded, reported, "warning" if is_training else "note")


def _describe_spoiled(case: Case, layers: list[str]) -> str:
    if all(has_overflown(case.layers[name]) for name in layers):
        spoiled = count_things(len(layers), "layer")
        return f"a variance above 65,504, the largest float16, has become infinite in {spoiled}"
    first = layers[0]
    buffers = case.buffers[first]
    counts = {
        "not finite": int((~buffers.isfinite().all(0)).sum()),
        "negative": int((buffers[1] < 0).sum()),
    }
    reported = " and ".join(f"{what} in {count}" for what, count in counts.items() if count)
    return f"{reported} of {buffers.shape[1]} channels of {first!r}, the first in depth"


def _find_type(layer: BatchNorm) -> torch.dtype:
    return get_running_buffers(layer)[1].dtype


def compute_stall(layer: BatchNorm) -> float:
    """Compute how far short of its goal a layer's average may stop for want of digits, relative to it; at most 1."""
    half_step = torch.finfo(_find_type(layer)).eps / 2
    momentum = get_momentum(layer)
    # Momentum None gives batch t the weight 1/t, which falls below any rounding step, and momentum 0 moves
    # nothing. Either may stop anywhere short of its goal.
    return min(1.0, half_step / momentum) if momentum else 1.0
