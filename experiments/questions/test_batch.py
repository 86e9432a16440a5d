"""How well do networks predict under statistics of what they predict: batches, single examples, a whole split?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, within
from bnlab.harness.reporting.frames import (
    find_parameter,
    interval,
    name_panels,
    paired,
    rows,
    score,
    select,
)
from bnlab.harness.reporting.plots import AGAINST_EXACT, EstimatorCurves, Forest
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT, SIX_IMAGES

SHARES = (1.0,)  # of the training
PRIOR = 16  # pseudo-samples
BY, EACH = ("panel", "estimator", "momentum"), ("batch_size",)
TRAINED = "At the end of training, a panel for each batch size of the training."
SPLITS = {"val": "validation images", "test": "test images"}
NOTHING = ("points gained", "no gain at all is the other answer")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy of all statistics minus that under exact ones of the training split, by network and predicted split.

    `estimator` is a rule's name alone; its parameters are the columns `images`, in a test batch, `prior`, its
    pseudo-samples, and `weight`.
    """
    gains = paired(rows(tables, "evaluations", SHARES, split=("test", "val")), "accuracy")
    return name_panels(gains, "batch size {batch_size} ({steps} steps)").assign(
        estimator=gains["estimator"].str.extract(r"^(\w+)", expand=False),
        images=find_parameter(gains, "n", "test_batch").fillna(find_parameter(gains, "batch")),  # of all other rules
        prior=find_parameter(gains, "n", "pseudo_samples"),
        weight=find_parameter(gains, "weight"),
    )


def find_mixed(tables: Tables) -> pd.DataFrame:
    """The gains in test accuracy with 2 and 8 test images, alone and mixed with `PRIOR` pseudo-samples."""
    rules = ("test_batch", "pseudo_samples")
    gains = select(find_gains(tables), estimator=rules, split="test", images=(2, 8), prior=(None, PRIOR))
    gains = gains.astype({"images": int})
    return gains.assign(panel=gains["images"])


def score_gain(scale: float = 100, **wanted: Any) -> Score:
    """Points of test accuracy that the wanted rows gain; with scale −100 those that they lose."""
    return score(find_gains, "accuracy", EACH, scale=scale, split="test", **wanted)


def score_splits(tables: Tables) -> pd.DataFrame:
    """Points that statistics of the validation split gain on its own images and on test images."""
    gains = select(find_gains(tables), statistics_split="val")
    return interval(gains.assign(predicted=gains["split"].map(SPLITS)), "accuracy", ("panel", "predicted"), scale=100)


EXPERIMENT = Experiment(
    name="test_batch",
    question="How well do networks predict under statistics of the images that they predict?",
    answers=("F9", "F14", "Q13"),
    source="Nado et al. 2020 and Schneider et al. 2020: statistics of the test batch, and mixed with pseudo-samples; "
    "Summers & Dinneen 2020: example weighing gains accuracy without any shift of the data.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("test_batch", "Statistics of the test batch, alone and mixed",
               "Difference in test accuracy to the same network under exact statistics of the training split, against "
               "the number of images in a test batch. Pseudo-samples: the exact statistics count as further "
               "images, 16 unless the sweep has others. "
               + TRAINED,
               score(find_gains, "accuracy", (*BY, "images"), scale=100, split="test",
                     estimator=("test_batch", "pseudo_samples")),
               EstimatorCurves(AGAINST_EXACT, zero="exact population", x="images")),
        Figure("example_weighing", "Each example's own moments in its statistics",
               "Difference in test accuracy to the same network under exact statistics of the training split. E[x] and "
               "E[x²] are (1 − weight) times those of the training split plus weight times the example's own. "
               + TRAINED,
               score(find_gains, "accuracy", (*BY, "weight"), scale=100, split="test", estimator="example_weighing"),
               EstimatorCurves(AGAINST_EXACT, zero="exact population", x="weight")),
        Figure("leak", "Statistics of the validation split",
               "Accuracy of the same network under exact statistics of the validation split minus that under those of "
               "the training split; what is gained on validation images alone is leaked. " + TRAINED,
               score_splits, Forest("predicted", Axis("accuracy gained (points)"), mark=(0, "statistics of training"))),
    ),
    claims=(
        Claim("tiny_test_batches_cost", "Statistics of two test images cost accuracy against exact ones of the "
              "training split.",
              score_gain(-100, estimator="test_batch", images=2),
              above(1.0, "points", A_POINT)),
        Claim("large_test_batches_cost_nothing", "Statistics of 512 test images cost less than 0.3 points of accuracy "
              "against exact ones of the training split.",
              score_gain(-100, estimator="test_batch", images=512), within(-0.3, 0.3, "points", SIX_IMAGES)),
        Claim("pseudo_samples_gain", "Mixed with 16 pseudo-samples, statistics of 2 and of 8 test images gain accuracy "
              "against those of the test images alone.",
              score(find_mixed, "accuracy", (*EACH, "images"), against="test_batch", scale=100),
              above(0.0, *NOTHING)),
        Claim("example_weighing_gains", "A tenth of each test image's own moments, mixed into exact statistics, gains "
              "accuracy.",
              score_gain(estimator="example_weighing", weight=0.1), above(0.0, *NOTHING)),
        Claim("validation_serves", "On test images, statistics of the validation split give the accuracy of exact ones "
              "of the training split, to 0.3 points.",
              score_gain(statistics_split="val"), within(-0.3, 0.3, "points gained", SIX_IMAGES)),
        Claim("validation_leaks_nothing", "Statistics of the validation split gain no more on validation images than "
              "on test images, to 0.3 points.",
              score(find_gains, "accuracy", EACH, against="test", along="split", scale=100, statistics_split="val"),
              within(-0.3, 0.3, "points more", "three of 1,000 validation images, which no choice rests on")),
    ),
)  # fmt: skip
