"""The doctor: what is wrong with a model's batch-norm statistics, what it costs, and what to do.

`bnlab.diagnose` says it, `bnlab.recalibrate` repairs it. A cause is one file of `causes/`, found by its code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bnlab.doctor.codes import explain

if TYPE_CHECKING:
    from bnlab.doctor.backup import undo_from_file
    from bnlab.doctor.catalogue import list_causes
    from bnlab.doctor.cause import Cause, Signs
    from bnlab.doctor.undo import Undo

__all__ = ["Cause", "Signs", "Undo", "explain", "list_causes", "undo_from_file"]
_MODULES = {
    "Cause": "cause",
    "Signs": "cause",
    "Undo": "undo",
    "list_causes": "catalogue",
    "undo_from_file": "backup",
}


def __getattr__(name: str) -> Any:
    # They need torch, which the command `bnlab explain` should not wait for.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Names that nobody has asked for yet are no globals.
    return sorted({*globals(), *__all__})
