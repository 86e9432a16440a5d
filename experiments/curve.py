"""One curve of points lost against the gap: fitted on some networks of the ground, tested on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.frames import paired
from experiments.tuning import select_tested

SCHEDULE = "optimizer.schedule"
CELL = ("batch_size", SCHEDULE, "steps")
MEASURES = ("mean_gap", "kl", "output_gap")
WITHIN = 1.5  # times
POINTS = 0.3
_SEEN = 1.0  # points from which on a factor is worth measuring
_KEY = ("run", "step", "estimator", "momentum")


def find_cases(tables: Tables) -> pd.DataFrame:
    """Find what each network lost under each estimator at each step, in points, with its gaps behind the first layer.

    Only where exact accuracy is above 50% on average over the seeds.

    Returns:
        A row a network, step and estimator: its settings, `lost`, and a column for each of `MEASURES`; the mean gap and
        the output gap are root mean squares over layers, kl is their mean.
    """
    tested = select_tested(tables, CELL)
    runs = tested["runs"][["run", "seed", *CELL]]
    predicted = tested["evaluations"]
    on_test = predicted[predicted["split"] == "test"].merge(runs, on="run")

    lost = paired(on_test, "accuracy").drop(columns="statistics_split")
    lost["lost"] = -100 * lost["accuracy"]
    gaps = _average_over_layers(tested["gaps"])
    cases = lost.merge(gaps, on=list(_KEY))

    exact = on_test[on_test["estimator"] == "exact"]
    means = exact.groupby([*CELL, "step"])["accuracy"].mean()
    places = pd.MultiIndex.from_frame(cases[[*CELL, "step"]])
    return cases[(means.reindex(places) > 0.5).to_numpy()]


def _average_over_layers(gaps: pd.DataFrame) -> pd.DataFrame:
    """Average the gaps of each network, step and estimator over the layers behind the first."""
    behind = gaps[gaps["depth"] > 1]
    squares = behind.assign(
        mean_gap=behind["mean_gap"] ** 2,
        output_gap=behind["output_gap"] ** 2,
    )
    means = squares.groupby(list(_KEY), dropna=False)[list(MEASURES)].mean().reset_index()
    means["mean_gap"] = np.sqrt(means["mean_gap"])
    means["output_gap"] = np.sqrt(means["output_gap"])
    return means


def is_held_out(cases: pd.DataFrame) -> pd.Series:
    """Find the cases that no curve is fitted on: batches of 16, and one-cycle schedules of 560 updates."""
    is_short: pd.Series = (cases[SCHEDULE] == "onecycle") & (cases["steps"] == 560)
    return is_short | (cases["batch_size"] == 16)


def fit_curve(cases: pd.DataFrame, measure: str) -> IsotonicRegression:
    """Fit the monotone curve of points lost against the logarithm of a gap, by least squares."""
    curve = IsotonicRegression(out_of_bounds="clip")
    return curve.fit(np.log(cases[measure]), cases["lost"])


def predict(curve: IsotonicRegression, cases: pd.DataFrame, measure: str) -> np.ndarray:
    """Predict the points that cases lose from their gaps: [cases]."""
    points: np.ndarray = curve.predict(np.log(cases[measure]))
    return points


def choose_measure(cases: pd.DataFrame, measures: Sequence[str] = MEASURES) -> str:
    """Choose the measure whose curve predicts left-out batch sizes best: the smallest median factor of what is lost."""
    errors = {}
    for measure in measures:
        factors = []
        for size, left_out in cases.groupby("batch_size"):
            others = cases[cases["batch_size"] != size]
            seen = left_out[left_out["lost"] > _SEEN]
            if others.empty or seen.empty:
                continue
            predicted = predict(fit_curve(others, measure), seen, measure)
            ratio = np.maximum(predicted, 0.01) / seen["lost"]
            factors.append(np.abs(np.log(ratio)))
        errors[measure] = float(np.median(np.concatenate(factors))) if factors else np.inf
    return min(errors, key=lambda measure: errors[measure])


def find_share_of_hits(tables: Tables) -> pd.DataFrame:
    """Find for each held-out network the share of its steps and estimators that the curve predicts well.

    Returns:
        A row a network: its settings, and as `accuracy` the share within a factor of 1.5 or 0.3 points.
    """
    cases = find_cases(tables)
    held_out = is_held_out(cases)
    fitted = cases[~held_out]
    tested = cases[held_out]
    if fitted.empty or tested.empty:
        return tested.assign(accuracy=np.nan)

    measure = choose_measure(fitted)
    predicted = predict(fit_curve(fitted, measure), tested, measure)
    lost = tested["lost"].to_numpy()
    is_near = np.abs(predicted - lost) <= POINTS
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.abs(np.log(predicted / lost))
    is_hit = is_near | (factor <= np.log(WITHIN))

    network = ["run", "seed", *CELL]
    hits = tested.assign(accuracy=is_hit.astype(float)).groupby(network)["accuracy"].mean().reset_index()
    # A seed has a network for each length of one-cycle: the average over these is one draw.
    return hits.groupby(["seed", "batch_size", SCHEDULE])["accuracy"].mean().reset_index()
