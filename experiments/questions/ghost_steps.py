"""Are statistics of test batches better than exact ones once a network that normalizes two images has made more steps?

Wu & Johnson 2021: networks that normalize two images together in training predict better under statistics of two
images than under those of the population. In `ghost` the opposite holds, after 144 updates that have hardly taught them
anything. Batches of 32 make eight times as many. All claims were written before their first number.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, below
from bnlab.harness.reporting.frames import name_panels, paired, put_in_order, rows, score
from bnlab.harness.reporting.plots import Axis, Forest
from experiments.margins import A_POINT, AS_ACCURATE

MANY, FEW = 32, 256  # images in a batch: with many updates, with few
TEST_BATCH = "test_batch(n=2)"
EACH = ("batch_size",)
NAMES = {"exact": "exact statistics", "ema": "running averages", TEST_BATCH: "test batches of two"}


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end by what is predicted with, in panels by batch size."""
    frame = rows(tables, "evaluations", 1.0, ("batch_size",), estimator=tuple(NAMES))
    frame["line"] = frame["estimator"].map(NAMES)
    differing = ["estimator", "momentum", "statistics_split"]  # between lines
    named = name_panels(frame, "batches of {batch_size}")
    return put_in_order(named.drop(columns=differing), "line", NAMES.values())


def find_gains(tables: Tables) -> pd.DataFrame:
    """Find what exact statistics gain against those of test batches of two, at the end."""
    frame = rows(tables, "evaluations", 1.0)
    return paired(frame, "accuracy", TEST_BATCH)


EXPERIMENT = Experiment(
    bears_on=("F3", "H3"),
    columns=("accuracy",),
    figures={"accuracy": Figure(
        "Accuracy after training in parts of two images, by the size of the batch",
        "Test accuracy after four epochs: batches of 32 make eight times as many updates as those of 256.",
        score(find_accuracies, "accuracy", ("panel", "line"), scale=100),
        Forest("line", Axis("test accuracy (%)")),
        Finding("With eight times as many updates exact statistics are less far ahead of test batches of two images",
                {"the_lead_shrinks": ()}))},
    claims={
        "batches_win_after_many_updates": Claim(
            "Trained in batches of 32 that are normalized in parts of 2, networks are less accurate under exact "
            "statistics than under those of test batches of 2.",
            score(find_gains, "accuracy", EACH, scale=100, estimator="exact", batch_size=MANY),
            below(0.0, "points gained", AS_ACCURATE)),
        "the_lead_shrinks": Claim(
            "What exact statistics gain against test batches of 2 is more than a point less in batches of 32 than of "
            "256.",
            score(find_gains, "accuracy", EACH, against=FEW, along="batch_size", matching=("seed",), scale=100,
                  estimator="exact", batch_size=MANY), below(-1.0, "points gained", A_POINT)),
        "running_averages_fail": Claim(
            "In batches of 32 that are normalized in parts of 2 PyTorch's running average costs more than a point "
            "against exact statistics.",
            score("evaluations", "accuracy", EACH, at=1.0, against="exact", scale=100, estimator="ema", momentum=0.1,
                  batch_size=MANY), below(-1.0, "points gained", A_POINT), ("F3",)),
    },
)  # fmt: skip
