"""How many images do exact statistics need, and do their standard errors say so?"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, within
from bnlab.harness.reporting.frames import OtherThan, find_parameter, interval, overlay, paired, rows, score
from bnlab.harness.reporting.plots import GAP, Curves
from bnlab.harness.reporting.style import Axis

SHARES = (0.1, 1.0)  # of the training
EACH = ("panel", "batch_size", "images")
LOST = Axis("accuracy lost against all images (points)")
MARGIN = ("points", "2 or 6 of the 2,000 test images: networks are rarely told apart by less")


class RootMeanSquares(Curves):
    """Curves of the roots of squares' means."""

    reading: ClassVar[str] = "Lines: root mean squares over seeds, bands: 95% intervals."


def add_images(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of exact statistics of samples, with how many images they have."""
    images = find_parameter(frame, "images", "exact")
    return frame.assign(images=images)[images.notna()].astype({"images": int})


def errors(tables: Tables) -> pd.DataFrame:
    """The gap of each sample's mean, and the error that is predicted for it, by layer."""
    samples = add_images(rows(tables, "gaps", SHARES, estimator=OtherThan("exact")))
    whole = rows(tables, "precision", SHARES)[["run", "step", "panel", "layer", "images", "mean_error"]]
    both = samples.merge(whole, on=["run", "step", "panel", "layer"], suffixes=("", "_all"))
    n, predicted, measured = both["images"], both["mean_error"], both["mean_gap"]
    predicted = predicted * np.sqrt((1 / n - 1 / both["images_all"]).clip(lower=0))
    times = measured / predicted
    return both.assign(predicted=predicted, times=times, squared_times=times**2)


def score_gap(tables: Tables) -> pd.DataFrame:
    """Measured gap and predicted error (dashed), root mean squares over layers and seeds."""
    frame = errors(tables).assign(measured=lambda f: f["mean_gap"] ** 2, dashed=lambda f: f["predicted"] ** 2)
    squares = {kind: interval(frame, kind, EACH, average="layer") for kind in ("measured", "dashed")}
    for square in squares.values():
        square[["mean", "low", "high"]] = square[["mean", "low", "high"]].clip(lower=0) ** 0.5
    return overlay(**squares)


def losses(tables: Tables) -> pd.DataFrame:
    """Accuracy that each sample gains against all images."""
    return add_images(paired(rows(tables, "evaluations", SHARES), "accuracy"))


def score_loss(**images: Any) -> Score:
    """Points of accuracy that so many images lose against all; any number without an argument."""
    return score(losses, "accuracy", EACH, scale=-100, **images)


EXPERIMENT = Experiment(
    name="sample_budget",
    question="How many images do exact statistics need, and do their standard errors say so?",
    answers=("F2", "Q8", "Q14", "H4"),
    source="Wu & Johnson 2021: 1,000 to 10,000 images are enough for population statistics. After a tenth of training "
    "at batch 256 fewer than one test image in ten is right under exact statistics, one in 36 by chance: little can be "
    "lost yet.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",),
             "precision": ("layer", "images", "mean_error")},
    figures=(
        Figure("gap", "Error of statistics from a sample of the training images",
               "Distance of the mean of n training images from that of all, in standard deviations; each network has "
               "its own sample. Dashed: standard error of n images out of all, from how much single images differ, "
               "with the layers before taken as exact. Both are root mean squares over layers, which the layer with "
               "the largest error rules; the claim on this error takes the geometric mean of all layers' ratios.",
               score_gap, RootMeanSquares("images", "batch_size", GAP, dashed="predicted")),
        Figure("cost", "Accuracy lost with statistics of a sample of the training images",
               "Test accuracy of the same network under the statistics of all training images minus that under those "
               "of n of them; above 0 the sample loses.",
               score_loss(), Curves("images", "batch_size", LOST)),
    ),
    claims=(
        Claim("hundreds_nearly_suffice", "Exact statistics of 512 training images give the accuracy of those of all, "
              "to 0.3 points.",
              score_loss(images=512), within(-0.3, 0.3, *MARGIN),
              answers=("Q14", "H4")),
        Claim("thousands_suffice", "Exact statistics of 2,048 training images give the accuracy of those of all, to "
              "0.1 points.",
              score_loss(images=2048), within(-0.1, 0.1, *MARGIN),
              answers=("Q14", "H4")),
        Claim("a_batch_is_too_few", "Exact statistics of 32 training images cost accuracy against those of all.",
              score_loss(images=32), above(0.3, *MARGIN),
              answers=("Q14", "H4")),
        Claim("errors_are_predicted", "The error of the mean of n images is the predicted standard error to a factor "
              "of 1.25, as a geometric mean over layers.",
              score(errors, "times", EACH, average="layer", geometric=True),
              within(0.8, 1.25, "times", "a quarter more error needs half as many images again"),
              answers=("Q8",)),
        Claim("squares_are_predicted", "Exploratory: the mean squared error of the mean of n images is the predicted "
              "one in each layer, to a factor of 1.25 squared.",
              score(errors, "squared_times", ("panel", "layer"), average=("batch_size", "images")),
              within(0.64, 1.5625, "times", "the margin of the claim before, squared; this form was chosen "
                     "after trials in which that claim had failed"),
              answers=("Q8",)),
    ),
)  # fmt: skip
