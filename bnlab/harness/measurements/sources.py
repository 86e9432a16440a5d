"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bnlab import estimators
from bnlab.estimators import Estimator
from bnlab.harness.errors import UserError

# Statistics of frozen weights, by their `upstream`; `precise(images=1000)` takes a part of the data.
FROZEN = {"exact": "population", "precise": "batch"}


@dataclass(frozen=True)
class Setting:
    """One row key of the tables: an estimator, its momentum and the data that its statistics are of."""

    estimator: str  # canonical name
    momentum: float | None
    split: str
    running: Estimator | None = None  # None: of frozen weights
    images: int | None = None  # of frozen weights: how many; None is all

    @property
    def kind(self) -> str:
        """`exact`, `precise` or `running`."""
        return self.estimator.partition("(")[0] if self.running is None else "running"


def settings(names: list[str], momenta: list[float], population: str) -> list[Setting]:
    """Every estimator with every momentum that means something to it, each once.

    Raises:
        UserError: an unknown estimator or parameter.
    """
    found: dict[Setting, None] = {}
    for name in names:
        for setting in _frozen(name, population) or _running(name, momenta):
            found.setdefault(setting)
    return list(found)


def _frozen(name: str, population: str) -> list[Setting]:
    match = re.fullmatch(r"(\w+)(?:\(images=(\d+)\))?", name)
    if match is None or match[1] not in FROZEN:
        return []
    images = int(match[2]) if match[2] else None
    if images is not None and images < 2:
        raise UserError(f"estimator={name}: images must be 2 or more")
    return [Setting(name, None, population, images=images)]


def _running(name: str, momenta: list[float]) -> list[Setting]:
    try:
        cls, parameters = estimators.parse(name)
        one = cls(**parameters)
        found = [one]
        if hasattr(one, "momentum") and "momentum" not in parameters:
            found = [replace(one, momentum=float(m)) for m in momenta]  # type: ignore[call-arg]
        return [Setting(e.label, getattr(e, "momentum", None), "train", e) for e in found]
    except Exception as error:  # a module of the user's may raise anything
        raise UserError(_unusable(name, error)) from error


def _unusable(name: str, error: Exception) -> str:
    if re.fullmatch(r"\w*", name) and name not in estimators.known():
        known = ", ".join([*sorted(estimators.known()), *FROZEN])
        return f"estimator={name}: unknown; there are {known}, or package.module.Class"
    reason = " ".join(str(error).split()).removeprefix(f"estimator={name!r}: ")
    return f"estimator={name}: {reason if isinstance(error, ValueError) else repr(error)}"
