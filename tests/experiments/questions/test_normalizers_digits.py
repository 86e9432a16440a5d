"""Effects for the claims of `normalizers_digits`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from experiments import by_norm
from experiments.questions.normalizers_digits import score_tiny
from tests.experiments.planted import Effect, Value, alternate, plant

COMMON: dict[str, Any] = {
    "estimators": [("ema", 0.1), ("exact", None)],
    "sizes": (2, 4, 16, 64, 256),
    "shares": (1.0,),
    "settings": {"norm.name": ("batch", "renorm", "group", "layer", "instance", "gain_control", "none")},
}
Where = Callable[[dict[str, Any]], bool]


def effect(where: Where, holds: float, fails: float) -> Effect:
    """Points that are gained in these rows against all others."""

    def gain(points: float, noise: float = 0) -> Value:
        return lambda row: 0.5 + (points + row["seed"] / 50 + noise * alternate(row)) / 100 * where(row)

    return Effect({**COMMON, "accuracy": gain(holds)}, {"accuracy": gain(fails)}, accuracy=gain(0, 30))


def trained(norm: str, *sizes: int) -> Where:
    return lambda row: row["norm.name"] == norm and (not sizes or row["batch_size"] in sizes)


EFFECTS = {
    "batches_of_two_hurt_batch_norm": effect(trained("batch", 2), -3, 3),
    "group_norm_is_flat": effect(trained("group", 2), 0, 3),
    "group_norm_wins_when_tiny": effect(trained("group", 2), 3, -3),
    "group_norm_is_level_otherwise": effect(trained("group", 16, 64, 256), 0, 3),
    "renorm_wins_when_tiny": effect(trained("renorm", 2), 3, -3),
    "gain_control_keeps_up": effect(trained("gain_control"), 0, -3),
    "no_norm_keeps_up": effect(trained("none"), 0, -3),
}


def test_batches_of_two_are_compared_with_batches_of_64_of_the_same_seed() -> None:
    tables = plant(accuracy=lambda row: row["seed"] / 10 + row["batch_size"] / 1000, **COMMON)
    found = score_tiny(by_norm.GROUP)(tables)
    assert found[["batch_size", "mean", "low", "high"]].values.tolist() == [[2, *[pytest.approx(-6.2)] * 3]]
