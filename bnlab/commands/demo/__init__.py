"""`bnlab doctor --demo`: a small network that is broken in five ways, and what the doctor says of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch

import bnlab
from bnlab.commands.demo.faults import FAULTS, Fault
from bnlab.commands.demo.specimen import Specimen, make_healthy
from bnlab.commands.loading import name_options

_NEXT = """\
Next
  bnlab doctor package.module:model package.module:batches   ask about a model of your own
  bnlab doctor torchvision:NAME photos --weights FILE        or of a package's, on a folder of images
  bnlab explain CODE                                         what a code means, how it is looked for, what to do
  bnlab recalibrate MODEL BATCHES --out NEW.safetensors      new statistics where the averages are at fault"""


def show_demo(faults: Sequence[Fault] = FAULTS) -> None:
    """Print what the doctor says of the healthy network, and of each of these faults."""
    print("A small trained network is broken in five ways, one at a time.\n")
    torch.set_num_threads(1)  # several wait for each other, on networks this small for minutes beside other programs
    healthy = make_healthy()
    _show("0. As it was trained", healthy.show(healthy.model))
    for number, fault in enumerate(faults, start=1):
        _show(f"{number}. {fault.name.capitalize()}. {fault.done}", fault.spoil(healthy))
    print(_NEXT)


def _show(title: str, specimen: Specimen) -> None:
    diagnosis = bnlab.diagnose(specimen.model, specimen.batches, **specimen.arguments)
    print(textwrap.fill(title, 100, subsequent_indent="   "))
    # Each diagnosis is flushed, so that it appears as soon as it is made.
    print(textwrap.indent(name_options(str(diagnosis)), "   "), end="\n\n", flush=True)
