"""Models broken on purpose: what each fault looks like, for tests, `bnlab doctor --demo` and the documentation.

`FAULTS[name].spoil(make_healthy())` makes a specimen; give the doctor its model, its batches and its arguments.
"""

# Modules of faults put these into FAULTS when they are imported.
from bnlab.doctor.gallery import averages, populations, weights
from bnlab.doctor.gallery.specimen import FAULTS, Fault, Healthy, Specimen, make_healthy

__all__ = ["FAULTS", "Fault", "Healthy", "Specimen", "averages", "make_healthy", "populations", "weights"]
