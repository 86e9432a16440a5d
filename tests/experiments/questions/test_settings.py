"""Effects for the claims of `settings`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.questions.settings import UNCHANGED, USUAL, name_settings
from tests.experiments.planted import EMA, Effect, Value, lose

SETTINGS: dict[str, Any] = {column: (value,) for column, value in USUAL.items()} | {
    "optimizer.lr": (0.1, 0.025, 0.4),
    "optimizer.schedule": ("onecycle", "constant"),
}
COMMON: dict[str, Any] = {
    "estimators": [EMA, ("exact", None)],
    "sizes": (256,),
    "shares": (0.1, 0.55, 1.0),
    "settings": SETTINGS,
}


def far(column: str, value: Any, factor: float) -> Value:
    """A gap that is so many times as large where a setting has this value."""
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 50) if row[column] == value else 1)


def times(column: str, value: Any, holds: float, fails: float) -> Effect:
    return Effect({**COMMON, "gap": far(column, value, holds)}, {"gap": far(column, value, fails)},
                  gap=lambda row: 0.2 * np.exp(1 - 2 * (row["seed"] % 2)) if row[column] == value else 0.1)  # fmt: skip


EFFECTS = {
    "harmless_late": Effect({**COMMON, "accuracy": lose("ema", 0)}, {"accuracy": lose("ema", 9)}),
    "constant_rate_costs_late": times("optimizer.schedule", "constant", 4, 1),
    "high_rate_is_farther": times("optimizer.lr", 0.4, 2, 0.5),
}


def test_settings_are_named_by_what_differs() -> None:
    others = USUAL | {"optimizer.name": "adamw", "optimizer.lr": 0.003}
    found = name_settings(pd.DataFrame([USUAL, others]))["setting"]
    assert found.to_list() == [UNCHANGED, "adamw, learning rate 0.003"]
