"""The table of faults, `faults.csv`, with what makes each of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from bnlab.doctor.gallery import faults
from bnlab.doctor.gallery.specimen import Healthy, Specimen, Spoil


@dataclass(frozen=True)
class Fault:
    """One way to break a network.

    Attributes:
        name: a few words.
        code: under which the doctor finds it.
        recalibration: what new statistics do: "repairs" (as good as unspoiled, within half a point), "falls short" (not
            as good), "hides" (as good, and the mistake stays), "not needed" (the old ones were right).
        verdicts: those that are right.
        strengths: a weak, a medium and a strong one.
        is_portable: whether it is a function of any trained network of convolutions; the others take a training of
            their own, or the layers of the gallery's network.
        done: one sentence on what was done.
        make: makes the specimen.
    """

    name: str
    code: str
    recalibration: str
    verdicts: Sequence[str]
    strengths: Sequence[float]
    is_portable: bool
    done: str
    make: Spoil

    def spoil(self, healthy: Healthy, strength: float | None = None) -> Specimen:
        """Make the specimen, at the largest strength if none is given."""
        if not self.strengths:
            return self.make(healthy)
        return self.make(healthy, self.strengths[-1] if strength is None else strength)


def _read_faults() -> dict[str, Fault]:
    text = files("bnlab.doctor.gallery").joinpath("faults.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        name = row["name"]
        verdicts = row["verdicts"].split("/")
        strengths = [float(strength) for strength in row["strengths"].split()]
        is_portable = row["base"] == "any"
        make = getattr(faults, name.replace(" ", "_"))
        found[name] = Fault(
            name, row["code"], row["recalibration"], verdicts, strengths, is_portable, row["done"], make
        )
    return found


FAULTS: dict[str, Fault] = _read_faults()
"""All faults, by name."""

UNSHOWN = {
    "BN401": "It takes several processes; the recipe for several processes shows an example.",
}
"""Codes of which there is no specimen, and why."""
