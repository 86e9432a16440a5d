"""Is the running variance too small at small batches, because the positions of an image resemble each other?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, below, within
from bnlab.harness.reporting.frames import interval, overlay, rows, score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from bnlab.theory import running_variance_bias

SHARES = (1.0,)  # of the training
EACH = ("panel", "batch_size", "layer")
RATIO = Axis("mean running variance / population variance")
FIT = (
    "times",
    "3% of a variance move a normalized value by 1.5%, less than a single batch's noise; a prediction of 1 "
    "everywhere would hold as well",
)


def ratios(tables: Tables) -> pd.DataFrame:
    """Of each layer the measured and the predicted ratio; the correlation is in the errors of single images' means."""
    measured = rows(tables, "gaps", SHARES, estimator="update_bn")
    images = rows(tables, "precision", SHARES)[["run", "step", "layer", "images", "values", "mean_error"]]
    both = measured.merge(images, on=["run", "step", "layer"])
    # Of an epoch's batches, which share out all images, the means vary less than with replacement.
    size = both["norm_batch_size"]  # of the parts of a batch, where it is normalized in parts
    spread = both["mean_error"] ** 2 * (1 / size - 1 / both["images"])
    count = size * both["values"] / both["images"]
    predicted = 1 + running_variance_bias(1 / spread.to_numpy(float), count.to_numpy(float))
    return both.assign(predicted=predicted, factor=both["var_ratio"] / predicted)


def score_ratio(tables: Tables) -> pd.DataFrame:
    """Measured and predicted (dashed) ratio of the variances."""
    frame = ratios(tables)
    return overlay(measured=interval(frame, "var_ratio", EACH), dashed=interval(frame, "predicted", EACH))


def score_at(value: str, **sizes: Any) -> Score:
    """A column of `ratios` at some batch sizes; all without arguments."""
    return score(ratios, value, EACH, **sizes)


EXPERIMENT = Experiment(
    name="image_correlation",
    question="Is the running variance too small at small batches, because the positions of an image resemble each "
    "other?",
    answers=("F19", "Q3"),
    source="The factor n/(n-1) of the batch variance is right for independent values, which pixels are not.",
    columns={"gaps": ("layer", "var_ratio"), "precision": ("layer", "images", "values", "mean_error")},
    figures=(
        Figure("ratio", "The running variance against that of the population",
               "Mean over an epoch's batches of the unbiased batch variance, at the weights of the end of training, "
               "over the exact population variance, averaged over channels; below 1 it is too small. Dashed: "
               "1 - 1/n_eff, times n/(n-1), where n_eff is the number of independent values that determine a batch's "
               "mean as well as its n values do, from how much single images' means differ.",
               score_ratio,
               Curves("batch_size", "layer", RATIO, dashed="predicted")),
    ),
    claims=(
        Claim("too_small_when_tiny", "In batches of 4 the running variance is too small in every layer.",
              score_at("var_ratio", batch_size=4), below(1.0, "times", "at 1 the unbiased batch variance is right")),
        Claim("right_when_large", "In batches of 256 and more the running variance is right in every layer.",
              score_at("var_ratio", batch_size=(256, 1024)),
              within(0.99, 1.01, "times", "1% of a variance changes nothing")),
        Claim("correlation_predicts_it", "How much single images differ predicts the ratio of running to exact "
              "variance within 3%.",
              score_at("factor"), within(0.97, 1.03, *FIT)),
    ),
)  # fmt: skip
