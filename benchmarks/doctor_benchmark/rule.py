"""What many do by hand, as a tool that is scored: is train mode better than eval mode?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.doctor_benchmark.parts import list_norms, score
from benchmarks.doctor_benchmark.problem import Answer

_WORTH = 0.01


def ask_rule(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer:
    """Blame the averages where each batch's statistics do better, and name them if all are 0 and 1."""
    if model.training:
        return Answer("mode", ["BN402"])
    # `score` counts the images whose class is named rightly: without classes it cannot be asked.
    if "evaluate" in arguments or not isinstance(batches[0], tuple) or batches[0][1].is_floating_point():
        return Answer(None)

    gained = score(copy.deepcopy(model).train(), batches) - score(model, batches)
    if gained < _WORTH:
        return Answer("healthy")
    is_new = all(norm.get_buffer("running_mean").count_nonzero() == 0 for norm in list_norms(model))
    return Answer("averages", ["BN002" if is_new else "BN108"])
