"""Effects for the claims of `image_correlation`, and its prediction by hand."""

from __future__ import annotations

import pytest

from bnlab.harness.reporting.experiment import declared, verdicts
from experiments.questions.image_correlation import EXPERIMENT, ratios, score_at
from tests.experiments.planted import Effect, Value, plant, reference, sign

IMAGES: dict[str, Value] = {"mean_error": lambda row: 0.6}  # of 9,000 images of 16 positions


def ratio(mean: float) -> dict[str, Value]:
    """A ratio of variances, by seed a little more or less."""
    return {**IMAGES, "var_ratio": lambda row: mean + 0.0005 * (row["seed"] - 1.5)}


def effect(holds: float, fails: float, *sizes: int) -> Effect:
    common = {"estimators": [("update_bn", None)], "sizes": sizes}
    wide: dict[str, Value] = {**IMAGES, "var_ratio": lambda row: 1 + 0.4 * sign(row)}
    return Effect({**common, "values": ratio(holds)}, {"values": ratio(fails)}, values=wide)


EFFECTS = {
    "too_small_when_tiny": effect(0.9, 1.1, 4),
    "right_when_large": effect(1.0, 0.9, 256, 1024),
    "correlation_predicts_it": effect(1.0, 0.8, 64, 256),
}


def test_the_prediction() -> None:
    """Of batches of 4 images with 16 alike positions, a quarter of the variance is missing but for n/(n-1)."""
    tables = plant([("update_bn", None)], sizes=(4,), values={**IMAGES, "mean_error": lambda row: 1.0})
    found = ratios(declared(EXPERIMENT, tables))["predicted"]
    assert len(found) and found.to_list() == pytest.approx([(1 - 1 / 4 + 1 / 9000) * 64 / 63] * len(found))


def test_the_prediction_for_batches_that_are_normalized_in_parts() -> None:
    """Of 4 images each, however many are trained on together."""
    tables = plant([("update_bn", None)], sizes=(4, 64), values=IMAGES, settings={"norm_batch_size": (4,)})
    found = ratios(declared(EXPERIMENT, tables))["predicted"]
    assert len(found) and found.nunique() == 1


def test_a_prediction_of_1_would_hold_as_well() -> None:
    """As the reason of the claim's margin says."""
    (claim,) = (claim for claim in EXPERIMENT.claims if claim.id == "correlation_predicts_it")
    found = score_at("var_ratio")(declared(EXPERIMENT, reference("image_correlation")))
    assert len(found) and set(verdicts(found, claim.rule)) == {"holds"}
