"""What several questions share, where another setting than the batch size was swept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.reporting.frames import interval
from experiments.recipes import compute_gaps, divide_by_best_momentum, select_largest
from tests.harness.reporting.planted import plant

DECAY = "optimizer.weight_decay"


@pytest.mark.parametrize(
    ("compute", "average", "expected"),
    [
        # Gaps are 2^seed · momentum in the first layer, and 4 times as large in the other.
        (partial(compute_gaps, estimator="ema"), "layers", 2 * 0.1 * 2),
        (divide_by_best_momentum, "layer", 1.0),
        (partial(select_largest, value="mean_gap", by=("panel", DECAY)), None, 4 * 0.1 * 2),
    ],
)
def test_any_setting_can_be_swept(compute: Callable[..., pd.DataFrame], average: str | None, expected: float) -> None:
    tables = plant()
    decays = tables["runs"]["batch_size"] / 320
    tables["runs"] = tables["runs"].assign(**{DECAY: decays}).assign(batch_size=4)

    frame = compute(tables, at=1.0)

    of_default = frame[frame["momentum"] == 0.1]
    means = interval(of_default, "mean_gap", (DECAY,), average=average, geometric=True)
    assert means[DECAY].tolist() == [0.0125, 0.1]
    assert means["n"].tolist() == [3, 3]
    np.testing.assert_allclose(means["mean"], expected)
