"""Sweeps: configuration → artifacts → statistics → tables → figures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab.harness.reporting.tables import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # `load` needs pandas and pyarrow, which a command that only checks its arguments should not wait for.
    if name == "load":
        from bnlab.harness.reporting.tables import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
