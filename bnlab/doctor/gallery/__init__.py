"""Models broken on purpose: what each fault looks like, for tests, `bnlab doctor --demo` and the documentation.

`FAULTS[name].spoil(make_healthy())` makes a specimen; give the doctor its model, its batches and its arguments.
"""

# Modules of faults put these into FAULTS when they are imported.
from bnlab.doctor.gallery import averages, forwards, populations, weights
from bnlab.doctor.gallery.specimen import FAULTS, UNSHOWN, Fault, Healthy, Specimen, make_healthy

__all__ = [
    "FAULTS",
    "UNSHOWN",
    "Fault",
    "Healthy",
    "Specimen",
    "averages",
    "forwards",
    "make_healthy",
    "populations",
    "weights",
]
