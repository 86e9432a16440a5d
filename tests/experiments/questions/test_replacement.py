"""Effects for the claims of `replacement`."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.questions.replacement import find_chosen
from tests.experiments.planted import EMA, Effect, Value, plant

COMMON: dict[str, Any] = {
    "estimators": [EMA, ("predictive", None), ("exact", None)],
    "settings": {"order": ("shuffled", "replacement")},
}


def shuffled(row: dict[str, Any], factor: float) -> float:
    """The factor without replacement, by seed a little more or less; 1 with it."""
    return factor * (1 + row["seed"] / 200) if row["order"] == "shuffled" else 1.0


def unclear(row: dict[str, Any]) -> float:
    return shuffled(row, np.exp(1 - 2 * (row["seed"] % 2)))


def far(factor: float) -> Value:
    """A gap of the choice that is so many times as far from the best without replacement."""
    return lambda row: 0.1 * (shuffled(row, factor) if row["estimator"] == "predictive" else 1)


EFFECTS = {
    "as_near_the_best": Effect({**COMMON, "gap": far(1.0)}, {"gap": far(1.5)},
                               gap=lambda row: 0.1 * (unclear(row) if row["estimator"] == "predictive" else 1)),
    "chooses_no_slower": Effect({**COMMON, "values": {"chosen": lambda row: 0.1 * shuffled(row, 1.0)}},
                                {"values": {"chosen": lambda row: 0.1 * shuffled(row, 0.5)}},
                                values={"chosen": lambda row: 0.08 * unclear(row)}),
}  # fmt: skip


def test_the_choice_without_replacement_is_over_that_with_it() -> None:
    tables = plant(values={"chosen": lambda row: 0.1 if row["order"] == "shuffled" else 0.4}, **COMMON)
    found = find_chosen(tables)
    np.testing.assert_allclose(found["chosen"], 0.25)
    assert found.groupby(["batch_size", "seed"]).ngroups == 8  # two batch sizes, four seeds


def test_a_step_that_one_order_lacks_is_left_out_of_both() -> None:
    """The same orders differ by nothing, whatever was measured of one of them only."""
    tables = plant(values={"chosen": lambda row: float(row["step"])}, **COMMON)
    choices = tables["choices"].merge(tables["runs"][["run", "order"]])
    lacking = choices[(choices["order"] == "shuffled") | (choices["step"] > choices["step"].min())]
    found = find_chosen({**tables, "choices": lacking.drop(columns="order")})
    assert len(found) and (found["chosen"] == 1).all()
