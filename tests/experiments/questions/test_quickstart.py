"""Effects for the claims of `quickstart`, and its scores against plain pandas."""

from __future__ import annotations

import numpy as np
import pytest

from bnlab.harness.reporting.experiment import declared
from experiments.questions.quickstart import EXPERIMENT
from tests.experiments.planted import EMA, accuracy_lost, gap_times, plant, reference, score_claim

EFFECTS = {
    "default_costs_early": accuracy_lost(EMA, 5, -5),
    "default_is_harmless_late": accuracy_lost(EMA, 0.1, 5),
    "predictive_is_nearer": gap_times("ema", 2, 0.5, estimators=[EMA, ("predictive", None)]),
}


def test_predictive_is_compared_by_step_and_layer() -> None:
    """What steps and layers differ in cancels: of 2, 8 and 4 times at three layers, 4 remains, at any step."""
    times = {"x": 2.0, "y": 8.0, "z": 4.0}
    tables = plant([EMA, ("ema", 0.01), ("predictive", None)],
                   lambda row: row["step"] * (times[row["layer"]] if row["momentum"] == 0.1 else 1.0))  # fmt: skip
    tables["gaps"].loc[tables["gaps"]["momentum"] == 0.01, "mean_gap"] = 99
    frame = score_claim("quickstart", "predictive_is_nearer", tables)
    assert frame[["batch_size", "n"]].values.tolist() == [[4, 4], [256, 4]]
    np.testing.assert_allclose(frame[["mean", "low", "high"]], 4)


def test_against_plain_pandas_on_the_reference_tables() -> None:
    tables = reference("quickstart")
    available = declared(EXPERIMENT, tables)
    late = tables["evaluations"].merge(tables["runs"], on="run", suffixes=("", "_run"))
    late = late[(late["step"] == late["steps"]) & (late["batch_size"] == 256)]
    exact = late[late["estimator"] == "exact"].set_index("run")["accuracy"]
    default = late[(late["estimator"] == "ema") & (late["momentum"] == 0.1)].set_index("run")["accuracy"]
    row = score_claim("quickstart", "default_is_harmless_late", available).set_index("batch_size").loc[256]
    assert row["mean"] == pytest.approx(100 * (exact - default).mean()) and row["n"] == len(exact) == 5
    gaps = tables["gaps"].merge(tables["runs"], on="run", suffixes=("", "_run"))
    gaps = gaps[(gaps["step"] == gaps["steps"]) & (gaps["batch_size"] == 4) & (gaps["momentum"] == 0.05)]
    layers = gaps[gaps["estimator"] == "ema"]["mean_gap"]  # as many in each network
    drawn = EXPERIMENT.figures[0].score(available).set_index(["panel", "batch_size", "momentum"])
    mean = drawn.loc["at the end of training", 4, 0.05]["mean"]
    assert mean == pytest.approx(np.exp(np.log(layers).mean()))
