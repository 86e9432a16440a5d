"""Best momenta: on average, between those of a sweep, and what other seeds know of them."""

import numpy as np
import pandas as pd

from experiments.questions.momentum import LAYER, average_other_seeds, locate_minimum
from experiments.questions.predictive import find_best_on_average

MOMENTA = np.array([0.01, 0.03, 0.1, 0.25, 0.5, 1.0])


def test_the_best_momentum_is_that_with_the_highest_mean() -> None:
    frame = pd.DataFrame({"panel": 0, "momentum": [0.1, 0.5] * 2, "accuracy": [0.95, 0.9, 0.7, 0.9]})

    assert find_best_on_average(frame, ("panel",))["momentum"].tolist() == [0.5, 0.5]


def test_other_seeds_are_all_but_ones_own() -> None:
    frame = pd.DataFrame({"by": 0, "seed": [0, 1, 2], "x": [1.0, 2.0, 6.0]})

    assert average_other_seeds(frame, ("x",), ("by",))["x"].tolist() == [4.0, 3.5, 1.5]
    assert average_other_seeds(frame[:1], ("x",), ("by",)).empty


def test_a_minimum_is_that_of_a_parabola_of_logarithms_or_the_end_of_the_sweep() -> None:
    """log y = (log x − log 0.2)², at uneven steps, and two sweeps that are lowest at an end."""
    parabola = np.exp(np.log(MOMENTA / 0.2) ** 2)
    sweeps = [
        pd.DataFrame({**dict.fromkeys(LAYER, number), "momentum": MOMENTA, "mean_gap": values})
        for number, values in enumerate((parabola, 1 / MOMENTA, np.ones(6)))
    ]

    found = locate_minimum(pd.concat(sweeps))

    np.testing.assert_allclose(found["momentum"], [0.2, 1.0, 0.01])
    assert found["at_end"].tolist() == [False, True, True]
