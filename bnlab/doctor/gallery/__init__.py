"""Models broken on purpose: what each fault looks like, for tests, `bnlab doctor --demo` and the documentation.

`FAULTS[name].spoil(make_healthy())` makes a specimen; give the doctor its model, its batches and its arguments.
"""

from bnlab.doctor.gallery.specimen import Healthy, Specimen, make_healthy
from bnlab.doctor.gallery.table import FAULTS, UNSHOWN, Fault

__all__ = ["FAULTS", "UNSHOWN", "Fault", "Healthy", "Specimen", "make_healthy"]
