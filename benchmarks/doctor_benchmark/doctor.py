"""bnlab's doctor as a tool that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.doctor_benchmark.problem import Answer
from bnlab import diagnose

_ASKED_FOR = ("training_batches", "before")


def ask_doctor(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer:
    """Diagnose a model; an argument is asked for where what is printed names it."""
    diagnosis = diagnose(model, batches, progress=False, **arguments)
    findings = diagnosis.findings
    is_note = findings["severity"] == "note"
    text = str(diagnosis)
    asks = [name for name in _ASKED_FOR if f"{name}=" in text and name not in arguments]
    return Answer(diagnosis.verdict, findings["code"][~is_note].tolist(), findings["code"][is_note].tolist(), asks)
