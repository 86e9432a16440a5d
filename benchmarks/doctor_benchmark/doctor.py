"""bnlab's doctor as a tool that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.doctor_benchmark.problem import Answer
from bnlab import diagnose


def ask_doctor(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer:
    """Diagnose a model."""
    diagnosis = diagnose(model, batches, **arguments)
    return Answer(diagnosis.verdict, diagnosis.causes, diagnosis.notes, diagnosis.asks)
