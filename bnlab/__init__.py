"""How far are batch norm's running averages from the true statistics, when does it matter, and what to use instead?

The public names are here. Each is imported when it is asked for: a program that reads tables does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Type checkers and editors cannot follow `__getattr__`, so the names are listed for them once more.
if TYPE_CHECKING:
    from bnlab import callbacks, doctor, estimators, inference, memory, nn, theory
    from bnlab.doctor.diagnose import assert_healthy, diagnose, recalibrate
    from bnlab.exact.population import population_statistics
    from bnlab.gaps.decomposition import decompose
    from bnlab.gaps.gap import gap
    from bnlab.recording.block import record
    from bnlab.recording.frozen import record_frozen
    from bnlab.recording.trace import MomentTrace, replay
    from bnlab.statistics.moments import Moments
    from bnlab.statistics.network import Statistics, running_statistics, using
    from bnlab.watching.watch import Watch, watch

__version__ = "0.1.0"

__all__ = [
    "MomentTrace",
    "Moments",
    "Statistics",
    "Watch",
    "assert_healthy",
    "callbacks",
    "decompose",
    "diagnose",
    "doctor",
    "estimators",
    "gap",
    "inference",
    "memory",
    "nn",
    "population_statistics",
    "recalibrate",
    "record",
    "record_frozen",
    "replay",
    "running_statistics",
    "theory",
    "using",
    "watch",
]

# No module has the name of something else that is public: importing it would put itself in that one's place.
_MODULES = {
    "decompose": "gaps.decomposition",
    "assert_healthy": "doctor.diagnose",
    "diagnose": "doctor.diagnose",
    "recalibrate": "doctor.diagnose",
    "population_statistics": "exact.population",
    "gap": "gaps.gap",
    "Moments": "statistics.moments",
    "Statistics": "statistics.network",
    "running_statistics": "statistics.network",
    "using": "statistics.network",
    "record": "recording.block",
    "record_frozen": "recording.frozen",
    "MomentTrace": "recording.trace",
    "replay": "recording.trace",
    "Watch": "watching.watch",
    "watch": "watching.watch",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _MODULES:
        # The import makes the module an attribute of this package, so that there is nothing to keep.
        return import_module(f"{__name__}.{name}")

    module = import_module(f"{__name__}.{_MODULES[name]}")
    value = getattr(module, name)
    # From now on Python finds the value without calling this function.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # Tab completion would not offer names that have not been imported yet.
    return sorted({*globals(), *__all__})
