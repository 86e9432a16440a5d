"""`bnlab doctor --demo`: a small network that is broken in five ways, and what the doctor says of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import bnlab
from bnlab.commands.loading import name_options
from bnlab.doctor.gallery import FAULTS, Fault, Healthy, make_healthy
from bnlab.doctor.report.diagnosis import Diagnosis

CHOSEN = (
    "never updated",
    "moved while frozen",
    "average of weights without buffers",
    "folded twice",
    "images not scaled",
)
"""Faults of the gallery that are shown: from a checkpoint, fine-tuning, averaging, deployment and preprocessing."""

_NEXT = """\
Next
  bnlab doctor package.module:model package.module:batches   ask about a model of your own
  bnlab doctor torchvision:NAME photos --weights FILE        or of a package's, on a folder of images
  bnlab explain CODE                                         what a code means, how it is detected, false alarms
  bnlab recalibrate MODEL BATCHES --out NEW.safetensors      new statistics where they gain, with an undo file"""


def show_demo(names: Sequence[str] = CHOSEN) -> None:
    """Print what the doctor says of the healthy network, and of each of these faults."""
    print("A small trained network is broken in five ways, one at a time.\n")
    healthy = make_healthy()
    _show("0. As it was trained", bnlab.diagnose(healthy.model, healthy.batches, progress=False))
    for number, name in enumerate(names, start=1):
        fault = FAULTS[name]
        _show(f"{number}. {name.capitalize()}. {fault.done}", _diagnose(fault, healthy))
    print(_NEXT)


def _diagnose(fault: Fault, healthy: Healthy) -> Diagnosis:
    """Diagnose a network that has a fault."""
    specimen = fault.spoil(healthy)
    return bnlab.diagnose(specimen.model, specimen.batches, progress=False, **specimen.arguments)


def _show(title: str, diagnosis: Diagnosis) -> None:
    print(textwrap.fill(title, 100, subsequent_indent="   "))
    # Each diagnosis is flushed, so that it appears as soon as it is made.
    print(textwrap.indent(name_options(str(diagnosis)), "   "), end="\n\n", flush=True)
