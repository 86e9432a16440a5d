"""The doctor: what is wrong with a model's batch-norm statistics, what it costs, and what to do.

`bnlab.diagnose` says it, `bnlab.recalibrate` repairs it. A cause is one file of `causes/`, found by its code.
"""

from bnlab.doctor.backup import undo_from_file
from bnlab.doctor.catalogue import explain, list_causes
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undo import Undo

__all__ = ["Cause", "Signs", "Undo", "explain", "list_causes", "undo_from_file"]
