"""BN004: buffers in low precision."""

from __future__ import annotations

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.examination import has_overflown
from bnlab.layers import BatchNorm, get_running_buffers


class LowPrecision(Cause):
    """Running statistics in a type below float32, such as bfloat16.

    An update of an average r by m·(x − r) is lost in rounding once it is below half of the distance to the next number:
    with momentum .1 a bfloat16 average stops 2 to 4% short of its goal, with .01 ten times as far. In train mode this
    is a warning. Float16 ends at 65,504: a variance above it becomes infinite when the model is cast, an error.

    A false alarm in a model that was converted for inference: rounding finished averages costs nothing measurable.
    """

    code = "BN004"
    title = "averages in low precision"
    meaning = "Small updates of these averages are lost in rounding, so that they stop short of their goal."
    remedy = "Keep batch norm in float32, where the rest is cast; load its averages from before the cast."

    def look(self, case: Case) -> Signs | None:
        overflown = case.select(lambda name: has_overflown(case.layers[name]))
        if overflown:
            told = f"a variance above 65,504, the largest float16, has become infinite in {len(overflown)} layers"
            return Signs.of(overflown, told, "error")
        layers = case.select(lambda name: torch.finfo(_find_type(case.layers[name])).bits < 32)
        if not layers:
            return None
        worst = max((case.layers[name] for name in layers), key=find_stall)
        kind = str(_find_type(worst)).removeprefix("torch.")
        told = f"{kind}: an average may stop {100 * find_stall(worst):.2g}% short of its goal"
        is_training = any(case.layers[name].training for name in layers)
        return Signs.of(layers, told, "warning" if is_training else "note")


def _find_type(layer: BatchNorm) -> torch.dtype:
    return get_running_buffers(layer)[1].dtype


def find_stall(layer: BatchNorm) -> float:
    """Find how far short of its goal a layer's average may stop for want of digits, relative to it; at most 1."""
    half_step = torch.finfo(_find_type(layer)).eps / 2
    return min(1.0, half_step / layer.momentum) if layer.momentum else 1.0
