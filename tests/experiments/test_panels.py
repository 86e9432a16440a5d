"""Rows at the same share of training; one network for each seed."""

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from experiments.panels import at_shares, networks

RUNS = pd.DataFrame({"run": ["a", "b"], "seed": [0, 0], "batch_size": [8, 64], "steps": [200, 11]})


def test_the_nearest_step_if_it_is_near() -> None:
    frame = pd.DataFrame({"run": ["a"] * 4 + ["b"] * 3, "step": [10, 20, 60, 200, 1, 6, 11]})
    found = at_shares(frame, RUNS, (0.1, 0.5, 1.0))
    rows = list(found[["run", "step", "panel"]].itertuples(index=False, name=None))
    # Run a has nothing near 50%; step 6 of 11 is within half a step of it.
    assert rows == [
        ("a", 20, "after 10% of training"),
        ("b", 1, "after 10% of training"),
        ("b", 6, "after 50% of training"),
        ("a", 200, "at the end of training"),
        ("b", 11, "at the end of training"),
    ]


def test_networks_with_other_settings_are_not_mixed() -> None:
    runs = pd.concat([RUNS, RUNS.assign(run=["c", "d"])], ignore_index=True)
    runs = runs.assign(lr=[0.1, 0.1, 0.2, 0.2], final_loss=[1.0, 2.0, 3.0, 4.0])
    networks(pd.DataFrame({"run": ["a", "b"], "step": [1, 1]}), runs)  # the others have no rows here
    with pytest.raises(UserError) as caught:
        networks(pd.DataFrame({"run": ["a", "c"], "step": [1, 1]}), runs)
    first, second = str(caught.value).splitlines()
    assert first == "batch size 8, seed 0 has several networks (a, lr 0.1; c, lr 0.2)"
    assert "name=" in second and "parts" in second


def test_one_of_two_steps_that_are_equally_near() -> None:
    frame = pd.DataFrame({"run": ["a", "a", "a"], "step": [99, 101, 101], "layer": ["x", "x", "y"]})
    assert list(at_shares(frame, RUNS, (0.5,))["step"]) == [101, 101]
