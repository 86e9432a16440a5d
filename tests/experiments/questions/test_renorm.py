"""Effects for the claims of `renorm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.experiments.planted import Effect, Value, alternate

COMMON: dict[str, Any] = {
    "estimators": [("ema", 0.01), ("exact", None)],
    "sizes": (64,),
    "shares": (1.0,),
    "settings": {"norm.name": ("batch", "renorm"), "order": ("shuffled", "blocks:16")},
}


def effect(chosen: Callable[[dict[str, Any]], bool], holds: float, fails: float) -> Effect:
    """Points that the chosen rows gain against all others."""

    def gain(points: float, noise: float = 0) -> Value:
        return lambda row: 0.5 + (points + row["seed"] / 50 + noise * alternate(row)) / 100 * chosen(row)

    return Effect({**COMMON, "accuracy": gain(holds)}, {"accuracy": gain(fails)}, accuracy=gain(0, 30))


EFFECTS = {
    "renorm_rescues_blocks": effect(lambda row: row["norm.name"] == "renorm", 9, 2),
    "renorm_is_no_worse_shuffled": effect(lambda row: row["norm.name"] == "renorm", 0, 3),
    "exact_adds_nothing": effect(lambda row: row["estimator"] == "exact", 0, 3),
}
