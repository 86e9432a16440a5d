"""Into how large parts should a batch be divided for normalization, and with what should it predict then?

Hoffer et al. 2017 (ghost batches); Wu & Johnson 2021; in cifar10-fast parts of about 32 images were best.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import find_parameter, rows, score
from bnlab.harness.reporting.plots import Axis, Curves
from experiments.margins import A_POINT, AS_ACCURATE

SIZE = "norm.batch_size"  # images that are normalized together
PARTS = {"along": SIZE, "matching": ("seed",), "estimator": "exact"}  # compared with other parts, from the same seed
EMA = {"against": "exact", "estimator": "ema", "momentum": 0.1}
LESS, AS_GOOD = ("points gained", A_POINT), ("points gained", AS_ACCURATE)


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end of training; of test batches those with as many images as are normalized together."""
    frame = rows(tables, "evaluations", 1.0, (SIZE,))
    images = find_parameter(frame, "n", "test_batch")
    is_test_batch = images.notna()
    has_size = images == frame[SIZE]

    frame["estimator"] = frame["estimator"].mask(is_test_batch, "test_batch")
    return frame[~is_test_batch | has_size]


def score_gain(*sizes: int, **compared: Any) -> Score:
    """Score the points that are gained in parts of these sizes, against other parts or other statistics."""
    wanted = {**compared, SIZE: sizes}
    return score(find_accuracies, "accuracy", (SIZE,), scale=100, **wanted)


EXPERIMENT = Experiment(
    bears_on=("F3", "F10", "H3", "H5", "H10"),
    columns=("accuracy",),
    figures={"accuracy": Figure(
        "Accuracy by the number of images that are normalized together",
        "Test accuracy after training in batches of {batch_size}; test batches have as many images as the parts.",
        score(find_accuracies, "accuracy", ("panel", "estimator", "momentum", SIZE), scale=100),
        Curves(SIZE, "estimator", Axis("test accuracy (%)")),
        Finding("Training in parts of 2 images costs accuracy, under exact statistics too",
                {"tiny_parts_are_not_rescued": ()}))},
    claims={
        "thirty_two_is_best": Claim(
            "Under exact statistics networks trained in smaller or larger parts are less accurate than in parts of 32.",
            score_gain(2, 8, 256, against=32, **PARTS), below(0.0, *AS_GOOD), ("F10", "H10")),
        "tiny_parts_are_not_rescued": Claim(
            "Under exact statistics, training in parts of 2 images is more than a point worse than in whole batches.",
            score_gain(2, against=256, **PARTS), below(-1.0, *LESS), ("H5",)),
        "running_averages_fail_when_tiny": Claim("In parts of 2 PyTorch's running average costs more than a point.",
                                                 score_gain(2, **EMA), below(-1.0, *LESS), ("F3",)),
        "running_averages_serve_when_large": Claim("In parts of 32 PyTorch's running average costs less than a point.",
                                                   score_gain(32, **EMA), within(-1.0, 1.0, *LESS), ("F3",)),
        "population_wins_when_large": Claim(
            "Trained in parts of 32 or whole batches, networks are better under exact than test batches' statistics.",
            score_gain(32, 256, against="test_batch", estimator="exact"), above(0.0, *AS_GOOD), ("F3", "H3")),
        "batches_win_when_tiny": Claim(
            "Trained in parts of 2 images, networks are worse under exact statistics than those of test batches of 2.",
            score_gain(2, against="test_batch", estimator="exact"), below(0.0, *AS_GOOD), ("F3", "H3")),
    },
)  # fmt: skip
