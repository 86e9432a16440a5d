"""Sweeps: configuration → artifacts → statistics → tables → figures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab.harness.lab.from_python import sweep
    from bnlab.harness.loading import load_images, load_model
    from bnlab.harness.reporting.means import average_gap
    from bnlab.harness.reporting.tables import load

__all__ = ["average_gap", "load", "load_images", "load_model", "sweep"]
_MODULES = {
    "average_gap": "reporting.means",
    "load": "reporting.tables",
    "load_images": "loading",
    "load_model": "loading",
    "sweep": "lab.from_python",
}


def __getattr__(name: str) -> Any:
    # They need pandas and torch, which a command that only checks its arguments should not wait for.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Names that nobody has asked for yet are no globals.
    return sorted({*globals(), *__all__})
