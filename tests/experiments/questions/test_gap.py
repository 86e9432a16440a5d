"""Gaps and losses of `gap`, and their rank correlations, on planted tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.questions.gap import PANELS, correlate_ranks, find_costs
from tests.harness.reporting.planted import plant


def plant_both_gaps() -> dict[str, pd.DataFrame]:
    """Variances are off most in the first layer, where means are off least."""
    tables = plant()
    gaps = tables["gaps"]
    return {**tables, "gaps": gaps.assign(var_gap=1 / gaps["mean_gap"])}


def test_the_largest_gap_stands_beside_the_points_that_pytorchs_average_loses_where_a_network_has_learnt() -> None:
    tables = plant_both_gaps()
    evaluations = tables["evaluations"]
    is_first = evaluations["step"] == 1
    tables["evaluations"] = evaluations.assign(accuracy=evaluations["accuracy"].mask(is_first, 0.5))

    means, variances = (frame for _, frame in find_costs(tables).groupby("panel"))

    assert [*PANELS] == [means["panel"].iloc[0], variances["panel"].iloc[0]]
    for frame, depth in ((means, 2), (variances, 1)):
        assert len(frame) == 2 * 2 * 3, "batch sizes, steps but the first, seeds"
        assert {*frame["depth"]} == {depth}
        np.testing.assert_allclose(frame["mean"], 2 + frame["seed"])
    np.testing.assert_allclose(means["gap"], 0.4 * 2 ** means["seed"])
    np.testing.assert_allclose(variances["gap"], 10 / 2 ** variances["seed"])


@pytest.mark.parametrize("within", [("seed",), ("batch_size", "step")])
def test_the_mean_over_a_group_is_spearmans_correlation(within: tuple[str, ...]) -> None:
    tables = plant_both_gaps()
    random = np.random.default_rng(0)
    evaluations = tables["evaluations"]
    # Rounded, so that some ranks are shared.
    tables["evaluations"] = evaluations.assign(accuracy=random.uniform(0.6, 0.9, len(evaluations)).round(1))
    gaps = tables["gaps"]
    tables["gaps"] = gaps.assign(mean_gap=random.random(len(gaps)), var_gap=random.random(len(gaps)))

    found = correlate_ranks(tables, within)

    for _, group in found.groupby(["panel", *within]):
        expected = group["gap"].corr(group["mean"], method="spearman")
        assert group["correlation"].mean() == pytest.approx(expected)
