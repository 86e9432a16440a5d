"""The cases of the ground: what a network loses under an estimator at a step, and one curve of it against the gap.

The curve is fitted on some networks and tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.frames import BEHIND, average, gap_over_layers, paired, select
from experiments.tuning import find_collapses, select_tested

SCHEDULE = "optimizer.schedule"
CELL = ("batch_size", SCHEDULE, "steps")
LEARNED = 0.5  # exact accuracy, on average over seeds, from which on a network has something to lose
MEASURES = ("mean_gap", "kl", "output_gap")
LARGEST_FACTOR = 1.5  # between predicted and lost points
LARGEST_ERROR = 0.3  # points
_LEAST_LOST = 1.0  # points, in cases that a measure is chosen by
_KEY = ("run", "step", "estimator", "momentum")


def find_exact(tested: Tables) -> pd.DataFrame:
    """Find the exact test accuracy of each network and step, and what it is on average over seeds.

    Args:
        tested: the tables of `select_tested`.

    Returns:
        run, step; `exact` and `exact_mean`, 0 to 1; `is_learned`, whether the mean is above 50%; `is_collapsed`,
        whether the network's accuracy is below half of the median.
    """
    measured = select(tested["evaluations"], split="test", estimator="exact", statistics_split="train")
    exact = measured.merge(tested["runs"][["run", *CELL]], on="run")
    place = [*CELL, "step"]
    means = exact.groupby(place)["accuracy"].transform("mean")
    exact = exact.assign(
        exact=exact["accuracy"],
        exact_mean=means,
        is_learned=means > LEARNED,
        is_collapsed=find_collapses(exact, place),
    )
    return exact[["run", "step", "exact", "exact_mean", "is_learned", "is_collapsed"]]


def find_cases(tables: Tables) -> pd.DataFrame:
    """Find what each network loses under each estimator at each step, with its gaps behind the first layer.

    Only where exact accuracy is above 50% on average over seeds; collapsed networks are left out.

    Returns:
        A row for each network, step and estimator: its settings; `lost`, in points; a column for each of `MEASURES`,
        over the layers behind the first; `is_held_out`, whether no curve is fitted on it.
    """
    tested = select_tested(tables, CELL)
    runs = tested["runs"][["run", "seed", *CELL]]
    on_test = select(tested["evaluations"], split="test").merge(runs, on="run")

    lost = paired(on_test, "accuracy").drop(columns="statistics_split")
    lost["lost"] = -100 * lost["accuracy"]
    cases = lost.merge(find_exact(tested), on=["run", "step"])
    for measure in MEASURES:
        over_layers = average(tested["gaps"][tested["gaps"]["depth"] > 1], measure, _KEY)
        if measure != "kl":
            over_layers = select(gap_over_layers(tested["gaps"], measure), layers=BEHIND)
        cases = cases.merge(over_layers[[*_KEY, measure]], on=list(_KEY))
    is_short = (cases[SCHEDULE] == "onecycle") & (cases["steps"] == 560)
    cases["is_held_out"] = is_short | (cases["batch_size"] == 16)
    return cases[cases["is_learned"] & ~cases["is_collapsed"]]


def predict_lost(fitted: pd.DataFrame, cases: pd.DataFrame, measure: str) -> np.ndarray:
    """Predict the points that cases lose: by the monotone curve over the logarithm of a gap that fits others best."""
    curve = IsotonicRegression(out_of_bounds="clip").fit(np.log(fitted[measure]), fitted["lost"])
    points: np.ndarray = curve.predict(np.log(cases[measure]))
    return points


def choose_measure(cases: pd.DataFrame, measures: Sequence[str] = MEASURES) -> str:
    """Choose the measure whose curve predicts left-out batch sizes best: the smallest median factor of what is lost."""
    errors = {}
    for measure in measures:
        factors = []
        for size, left_out in cases.groupby("batch_size"):
            others = cases[cases["batch_size"] != size]
            costly = left_out[left_out["lost"] > _LEAST_LOST]
            if others.empty or costly.empty:
                continue
            predicted = predict_lost(others, costly, measure)
            ratio = np.maximum(predicted, 0.01) / costly["lost"]
            factors.append(np.abs(np.log(ratio)))
        errors[measure] = float(np.median(np.concatenate(factors))) if factors else np.inf
    return min(errors, key=lambda measure: errors[measure])


def find_share_of_hits(tables: Tables) -> pd.DataFrame:
    """Find for each seed the share of held-out cases that the curve predicts to a factor of 1.5 or to 0.3 points.

    Cases count that lose over 0.3 points, or that are predicted to: of all others any curve near 0 would be right.

    Returns:
        A row for each seed, batch size and schedule: `hits`, 0 to 1, of the cases of all its lengths together.

    Raises:
        NoRows: fewer than two batch sizes to fit the curve on, or nothing to test it on.
    """
    cases = find_cases(tables)
    fitted = cases[~cases["is_held_out"]]
    tested = cases[cases["is_held_out"]]
    if fitted["batch_size"].nunique() < 2 or tested.empty:
        raise NoRows("the measure is chosen by left-out batch sizes: two are needed to fit on, and one to test on")

    measure = choose_measure(fitted)
    predicted = predict_lost(fitted, tested, measure)
    lost = tested["lost"]
    is_near = (predicted - lost).abs() <= LARGEST_ERROR
    is_alike = (lost > 0) & lost.between(predicted / LARGEST_FACTOR, predicted * LARGEST_FACTOR)
    is_seen = (lost > LARGEST_ERROR) | (predicted > LARGEST_ERROR)

    judged = tested.assign(hits=(is_near | is_alike).astype(float))[is_seen]
    return average(judged, "hits", ["seed", "batch_size", SCHEDULE])
