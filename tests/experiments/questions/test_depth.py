"""Effects for the claims of `depth`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.questions.depth import EVERYWHERE, MIXED, find_gaps, find_growth
from tests.experiments.planted import EMA, Effect, Value, alternate, plant

COMMON: dict[str, Any] = {
    "estimators": [EMA, ("precise", None), ("exact", None)],
    "sizes": (16,),
    "shares": (0.1, 1.0),
    "settings": {"model.name": ("resnet", "cnn"), "model.depth": (20,), "norm.every_second": ("none", "group")},
}


def grow(times: float, noise: float = 0) -> Value:
    """A gap that is so many times as large with each layer."""
    return lambda row: (times * (1 + row["seed"] / 50) * np.exp(noise * alternate(row))) ** row["depth"]


def block(times: float, noise: float = 0) -> Value:
    """A gap that is so many times as large where every second norm is a group norm."""
    return lambda row: (
        (times * (1 + row["seed"] / 50) * np.exp(noise * alternate(row))) ** (row["norm.every_second"] == "group")
    )


EFFECTS = {
    f"{estimator}_{claim}": Effect(
        {**COMMON, "gap": effect(holds)}, {"gap": effect(1 / holds)}, gap=effect(1 / 1.03, 3)
    )
    for estimator in ("ema", "precise")
    for claim, effect, holds in (("grows", grow, 2.0), ("is_blocked", block, 0.5))
}


def test_layers_keep_the_places_that_they_have_where_batch_norm_is_everywhere() -> None:
    tables = plant(gap=lambda row: 0.1, **COMMON)
    mixed = tables["gaps"]["run"].str.contains("group")
    kept = tables["gaps"][~mixed | (tables["gaps"]["layer"] == "z")].copy()
    kept.loc[kept["run"].str.contains("group"), "depth"] = 1  # it is the first batch norm there
    found = find_gaps(tables | {"gaps": kept})
    assert set(found[found["norms"] == MIXED]["depth"]) == {3}
    assert set(found[found["norms"] == EVERYWHERE]["depth"]) == {2, 3}, "without the first layer"


def test_the_halves_of_five_layers_are_of_two_each() -> None:
    tables = plant(gap=lambda row: 2.0 ** row["depth"], **COMMON)
    more = [tables["gaps"].assign(layer=f"{n}", depth=n, mean_gap=2.0**n) for n in (4, 5)]
    gaps = pd.concat([tables["gaps"], *more]).drop_duplicates(["run", "step", "estimator", "momentum", "layer"])
    found = find_growth(tables | {"gaps": gaps})
    np.testing.assert_allclose(found["mean_gap"], 2 ** (4.5 - 2.5))
