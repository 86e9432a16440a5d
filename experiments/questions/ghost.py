"""Into how large parts should a batch be divided, and with what should such a network predict?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import find_parameter, rows, score
from bnlab.harness.reporting.plots import EstimatorCurves
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT, AS_ACCURATE

SHARES = (1.0,)  # of the training
SIZE = "norm.batch_size"  # images that are normalized together
TINY, BEST, WHOLE = 2, 32, 256
AS_GOOD = ("points gained", AS_ACCURATE)
EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end of training; of test batches those with as many images as are normalized together."""
    frame = rows(tables, "evaluations", SHARES, (SIZE,))
    images = find_parameter(frame, "n", "test_batch")
    named = frame.assign(estimator=frame["estimator"].where(images.isna(), "test_batch"))
    return named[images.isna() | images.eq(frame[SIZE])]


def score_sizes(against: int, *sizes: int) -> Score:
    """Points that parts of these sizes, or else all others, gain under exact statistics."""
    chosen: dict[str, Any] = {SIZE: sizes} if sizes else {}
    return score(find_accuracies, "accuracy", (SIZE,), against=against, along=SIZE, matching=("seed",),
                 scale=100, estimator="exact", **chosen)  # fmt: skip


def score_statistics(against: str, *sizes: int, **wanted: Any) -> Score:
    """Points that one kind of statistics gains against another of the same network, in parts of these sizes."""
    chosen: dict[str, Any] = {SIZE: sizes, **wanted}
    return score(find_accuracies, "accuracy", (SIZE,), against=against, scale=100, **chosen)


EXPERIMENT = Experiment(
    name="ghost",
    question="Into how large parts should a batch be divided for normalization, and with what should it predict then?",
    answers=("F3", "F10", "H3", "H5", "H10"),
    source="Hoffer et al. 2017 (ghost batches) and cifar10-fast, where about 32 images were best; Wu & Johnson 2021 on "
    "batch, running and population statistics by normalization batch size. Running averages take in each part, so that "
    "in small parts they hold fewer images.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy by the number of images that are normalized together",
               "Test accuracy at the end of training in batches of {batch_size}, which are normalized in parts. Test "
               "batches have as many images as the parts.",
               score(find_accuracies, "accuracy", ("panel", "estimator", "momentum", SIZE), scale=100),
               EstimatorCurves(Axis("test accuracy (%)"), x=SIZE)),
    ),
    claims=(
        Claim("thirty_two_is_best", "Under exact statistics networks that were trained in smaller or larger parts are "
              "less accurate than those in parts of 32 images.",
              score_sizes(BEST), below(0.0, *AS_GOOD), answers=("F10", "H10")),
        Claim("tiny_parts_are_not_rescued", "Under exact statistics networks that were trained in parts of 2 images "
              "are more than a point worse than those of whole batches.",
              score_sizes(WHOLE, TINY), below(-1.0, "points gained", A_POINT), answers=("H5",)),
        Claim("running_averages_fail_when_tiny", "In parts of 2 images PyTorch's running average costs more than a "
              "point against exact statistics.",
              score_statistics("exact", TINY, **EMA), below(-1.0, "points gained", A_POINT), answers=("F3",)),
        Claim("running_averages_serve_when_large", "In parts of 32 images PyTorch's running average costs less than a "
              "point.",
              score_statistics("exact", BEST, **EMA), within(-1.0, 1.0, "points gained", A_POINT), answers=("F3",)),
        Claim("population_wins_when_large", "Networks that were trained in parts of 32 images or in whole batches are "
              "more accurate under exact statistics than under those of test batches of that size.",
              score_statistics("test_batch", BEST, WHOLE, estimator="exact"), above(0.0, *AS_GOOD),
              answers=("F3", "H3")),
        Claim("batches_win_when_tiny", "Networks that were trained in parts of 2 images are less accurate under exact "
              "statistics than under those of test batches of 2.",
              score_statistics("test_batch", TINY, estimator="exact"), below(0.0, *AS_GOOD), answers=("F3", "H3")),
    ),
)  # fmt: skip
