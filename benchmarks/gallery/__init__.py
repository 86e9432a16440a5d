"""Models broken on purpose: what each fault looks like, for benchmarks, tests and the documentation.

`FAULTS[name].spoil(make_healthy())` makes a specimen; give the doctor its model, its batches and its arguments. The
healthy network and five of the faults are those that `bnlab doctor --demo` shows, in `bnlab/commands/demo`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gallery import planters
from bnlab.commands.demo import faults
from bnlab.commands.demo.faults import Fault
from bnlab.commands.demo.specimen import Healthy, Specimen, make_healthy

__all__ = ["FAULTS", "Fault", "Healthy", "Specimen", "make_healthy"]


def _read_faults() -> Iterator[Fault]:
    """Read the table of faults, with the function that makes each of them."""
    text = Path(__file__).with_name("faults.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        yield Fault(
            row["name"],
            row["code"],
            row["recalibration"],
            row["verdicts"].split("/"),
            [float(strength) for strength in row["strengths"].split()],
            row["base"] == "any",
            row["done"],
            getattr(planters, row["name"].replace(" ", "_")),
        )


FAULTS = {fault.name: fault for fault in (*faults.FAULTS, *_read_faults())}
"""All faults, by name."""
