"""BN004: buffers in low precision."""

from __future__ import annotations

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity, Signs
from bnlab.doctor.examination import has_overflown
from bnlab.layers import BatchNorm, get_running_buffers

_FULL = (torch.float32, torch.float64)


class LowPrecision(Cause):
    """Running statistics in a type below float32, such as bfloat16.

    An update of an average r by m·(x − r) is lost in rounding once it is below half of the distance to the next number,
    which is a quarter to half of the type's eps times |r|: with momentum .1 a bfloat16 average stops 2 to 4% short of
    its goal, with .01 ten times as far. In train mode this is a warning. Float16 ends at 65,504: a variance above it
    becomes infinite when the model is cast, which is an error.

    A false alarm in a model that was converted for inference: rounding finished averages costs nothing measurable.
    """

    code = "BN004"
    title = "averages in low precision"
    meaning = "Small updates of these averages are lost in rounding, so that they stop short of their goal."
    remedy = "Keep batch norm in float32, where the rest is cast; load its averages from before the cast."
    severity = "note"

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: _find_type(case.layers[name]) not in _FULL)
        if not layers:
            return None

        stalls = {name: find_stall(case.layers[name]) for name in layers}
        worst = max(stalls, key=stalls.__getitem__)
        dtype = _find_type(case.layers[worst])
        kind = str(dtype).removeprefix("torch.")
        short = 100 * stalls[worst]
        evidence = f"{kind}: an average may stop {short:.2g}% short of its goal"

        overflown = [name for name in layers if has_overflown(case.layers[name])]
        if overflown:
            told = f"a variance above 65,504, the largest float16, has become infinite in {len(overflown)} layers"
            return Signs(tuple(overflown), told, "error")

        is_training = any(case.layers[name].training for name in layers)
        severity: Severity = "note"
        if is_training:
            severity = "warning"
        return Signs(tuple(layers), evidence, severity)


def _find_type(layer: BatchNorm) -> torch.dtype:
    return get_running_buffers(layer)[1].dtype


def find_stall(layer: BatchNorm) -> float:
    """Find how far short of its goal a layer's average may stop for want of digits, relative to it; at most 1."""
    half_step = torch.finfo(_find_type(layer)).eps / 2
    return min(1.0, half_step / layer.momentum) if layer.momentum else 1.0
