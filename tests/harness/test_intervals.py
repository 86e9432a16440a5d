import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bnlab.harness.intervals import summarize, t_interval


def test_against_scipy() -> None:
    values = [0.3, 1.2, -0.4, 2.2, 0.9]
    low, high = stats.t.interval(0.9, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values, level=90) == pytest.approx((np.mean(values), low, high, 5))


def test_few_values() -> None:
    mean, low, high, n = t_interval([2.0])
    assert (mean, n) == (2.0, 1) and np.isnan([low, high]).all()
    assert t_interval([]) == pytest.approx((np.nan, np.nan, np.nan, 0), nan_ok=True)
    assert t_interval([1.0, np.nan, 3.0])[0::3] == (2.0, 2)


def test_summarize_against_plain_pandas() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"seed": list(range(4)) * 3, "momentum": np.repeat([0.1, 0.5, np.nan], 4), "x": rng.random(12)}
    )
    found = summarize(frame, "x", ["momentum"])
    grouped = frame.groupby("momentum", dropna=False, sort=False)["x"]
    half = stats.t.ppf(0.975, 3) * grouped.sem().to_numpy()
    np.testing.assert_array_equal(found["momentum"], [0.1, 0.5, np.nan])
    np.testing.assert_allclose(found["mean"], grouped.mean())
    np.testing.assert_allclose(found["low"], grouped.mean() - half)
    np.testing.assert_allclose(found["high"], grouped.mean() + half)
    assert list(found["n"]) == [4, 4, 4]


def test_a_seed_counts_once() -> None:
    """Rows of several layers are no more seeds: an average over layers comes first."""
    layers = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "momentum": np.nan, "layer": ["a", "b"] * 2, "x": [1.0, 2.0, 3.0, 4.0]}
    )
    with pytest.raises(ValueError, match=r"several rows of one seed \(momentum nan, seed 0\); average over layers"):
        summarize(layers, "x", ["momentum"])
    networks = layers.groupby(["momentum", "seed"], dropna=False)["x"].mean().reset_index()
    assert list(summarize(networks, "x", ["momentum"])["n"]) == [2]
    assert list(summarize(layers, "x", ["layer"])["n"]) == [2, 2]
    with pytest.raises(ValueError, match="no column 'seed'"):
        summarize(layers.drop(columns="seed"), "x", ["layer"])
