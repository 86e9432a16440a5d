"""Into parts of what size should a batch be divided for normalization, and which statistics should the network then
predict with?

Hoffer et al. 2017 (ghost batches); in cifar10-fast, parts of about 32 images were best. Wu & Johnson 2021: networks
that normalize two images together in training predict better under statistics of two images than under those of the
population. After 144 updates of 256 images we find the opposite, but by then the networks have hardly learned anything.
Batches of 32 make eight times as many updates. Claims on them were written before their numbers were known, and have
fifteen seeds; those on batches of 256 have five. The former are not blind to parts of 2 in batches of 256, where 5 of
15 networks are the same.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import find_parameter, paired, rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, Tables, above, below, within
from experiments.devices import ON_BOTH
from experiments.margins import A_POINT, AS_ACCURATE

SIZE = "norm.batch_size"  # images that are normalized together
FIVE: dict[str, Any] = {"batch_size": 256, "seed": (0, 1, 2, 3, 4)}  # networks of which all sizes of parts are measured
TWO: dict[str, Any] = {SIZE: 2}  # networks of which batches of 32 and of 256 are measured
MANY_UPDATES, FEW_UPDATES = 32, 256  # images in a batch
TEST_BATCH = "test_batch(n=2)"
PARTS: dict[str, Any] = {
    "along": SIZE,
    "matching": ("seed",),
    "estimator": "exact",
}  # compared with other parts, from the same seed
EMA: dict[str, Any] = {"against": "exact", "estimator": "ema", "momentum": 0.1}
BY_A_POINT = ("points gained", A_POINT)
AS_GOOD = ("points gained", AS_ACCURATE)


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end of training; of test batches those with as many images as are normalized together."""
    frame = rows(tables, "evaluations", 1.0, (SIZE,), **FIVE)
    images = find_parameter(frame, "n", "test_batch")
    is_test_batch = images.notna()
    has_size = images == frame[SIZE]

    estimators = frame["estimator"]
    # One name for all sizes of test batches, so that they make one line.
    frame["estimator"] = estimators.mask(is_test_batch, "test_batch")
    return frame[~is_test_batch | has_size]


def score_gain(*sizes: int, **compared: Any) -> Score:
    """Score the points that are gained in parts of these sizes, against other parts or other statistics."""
    wanted = {**compared, SIZE: sizes}
    return score(select_accuracies, "accuracy", (SIZE,), scale=100, **wanted)


def compute_leads(tables: Tables) -> pd.DataFrame:
    """Find what exact statistics gain against those of test batches of two, after training in parts of 2."""
    frame = rows(tables, "evaluations", 1.0, estimator=("exact", TEST_BATCH), **TWO)
    return paired(frame, "accuracy", TEST_BATCH)


QUESTION = Question(
    bears_on=("H3", "H5", "H10", "F3", "F10"),
    sweeps=("ghost", "ghost_steps"),
    columns=("accuracy",),
    remarks=(ON_BOTH,),
    figures={
        "accuracy": Figure(
            "Accuracy by the number of images that are normalized together",
            "Test accuracy by the size of the parts, after training in batches of 256; test batches have as many "
            "images as the parts.",
            score(select_accuracies, "accuracy", ("panel", "estimator", "momentum", SIZE), scale=100,
                  momentum=(0.1, None)),
            Curves(SIZE, "estimator", Axis("test accuracy (%)")),
            Headline("Training in parts of 2 images costs accuracy, even under exact statistics",
                    {"tiny_parts_are_not_rescued": ()})),
    },
    claims={
        "thirty_two_is_best": Claim(
            "Under exact statistics, networks trained in smaller or larger parts are less accurate than those trained "
            "in parts of 32.",
            score_gain(2, 8, 256, against=32, **PARTS), below(0.0, *AS_GOOD), lines="each"),
        "tiny_parts_are_not_rescued": Claim(
            "Under exact statistics, training in parts of 2 images is more than a point worse than in whole batches.",
            score_gain(2, against=256, **PARTS), below(-1.0, *BY_A_POINT), lines="each"),
        "running_averages_fail_when_tiny": Claim(
            "In parts of 2 PyTorch's running average costs more than a point.",
            score_gain(2, **EMA), below(-1.0, *BY_A_POINT), lines="each"),
        "running_averages_serve_when_large": Claim(
            "In parts of 32 PyTorch's running average costs less than a point.",
            score_gain(32, **EMA), within(-1.0, 1.0, *BY_A_POINT), lines="each"),
        "population_wins_when_large": Claim(
            "Networks trained in parts of 32 or in whole batches are better under exact statistics than under those "
            "of test batches.",
            score_gain(32, 256, against="test_batch", estimator="exact"), above(0.0, *AS_GOOD), lines="each"),
        "batches_win_when_tiny": Claim(
            "Networks trained in parts of 2 images are worse under exact statistics than under those of test batches "
            "of 2.",
            score_gain(2, against="test_batch", estimator="exact"), below(0.0, *AS_GOOD), lines="each"),
        "batches_win_after_many_updates": Claim(
            "Networks trained in batches of 32 that are normalized in parts of 2 are less accurate under exact "
            "statistics than under those of test batches of 2.",
            score(compute_leads, "accuracy", ("batch_size",), scale=100, estimator="exact", batch_size=MANY_UPDATES),
            below(0.0, *AS_GOOD), lines="each"),
        "the_lead_shrinks": Claim(
            "Exact statistics gain over a point less against test batches of 2 after training in batches of 32 than "
            "after batches of 256.",
            score(compute_leads, "accuracy", ("batch_size",), against=FEW_UPDATES, along="batch_size",
                  matching=("seed",),
                  scale=100, estimator="exact", batch_size=MANY_UPDATES), below(-1.0, *BY_A_POINT), lines="each"),
        "running_averages_fail": Claim(
            "After training in batches of 32 that are normalized in parts of 2, PyTorch's running average costs more "
            "than a point against exact statistics.",
            score("evaluations", "accuracy", ("batch_size",), at=1.0, scale=100, batch_size=MANY_UPDATES, **EMA, **TWO),
            below(-1.0, *BY_A_POINT), lines="each"),
    },
)  # fmt: skip
