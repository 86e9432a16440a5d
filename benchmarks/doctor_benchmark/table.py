"""The doctor as a table and one loop (`bnlab.diagnosis`), as a tool that is scored.

`python -m benchmarks.doctor_benchmark --tool benchmarks.doctor_benchmark.table:ask_table`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.doctor_benchmark.problem import Answer
from bnlab.diagnosis.diagnose import diagnose

_NOT_ASKED = ("inputs", "trace")  # arguments of the other doctor that this one has none for


def ask_table(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer:
    """Diagnose a model."""
    known = {name: value for name, value in arguments.items() if name not in _NOT_ASKED}
    diagnosis = diagnose(model, batches, **known)
    return Answer(diagnosis.verdict, diagnosis.causes, diagnosis.notes, diagnosis.asks)
