"""The doctor: what is wrong with a model's batch-norm statistics, what it costs, and what to do.

`bnlab.diagnose` says it, `bnlab.recalibrate` repairs it. A cause is one file of `causes/`, found by its code.
"""

from bnlab.doctor.catalogue import explain, list_causes
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.undo import undo_from_file
from bnlab.doctor.undoing import Undo
from bnlab.warn import warn

_FORMER = {"Rule": "Cause", "list_rules": "list_causes"}

__all__ = ["Cause", "Signs", "Undo", "explain", "list_causes", "undo_from_file"]


def __getattr__(name: str) -> object:
    """Find what had another name in earlier versions, with a warning."""
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn(f"bnlab.doctor.{name} is called {_FORMER[name]} now")
    found: object = globals()[_FORMER[name]]
    return found
