"""How accurate is a network that sees images of a class together, under each estimator, and with renormalization?

Ioffe 2017: on batches that are not drawn independently batch norm fell to 67.0% on ImageNet, and renormalization, which
trains with its running averages, kept 78.5% (quoted from memory). Blocks of 16 were added when class after class had
left nothing to compare: there no network had learned anything.
"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above
from bnlab.harness.reporting.frames import name_panels, put_in_order, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Forest
from bnlab.harness.reporting.style import estimator_label

SHUFFLED, *IN_ORDER = ORDERS = ("shuffled", "blocks:16", "sorted")
MUCH = (5.0, "points", "more than anyone would give away")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end of training in panels by order; `average` is the estimator in words, and the norm."""
    frame = rows(tables, "evaluations", 1.0, ("order", "norm"))
    words = [estimator_label(*row) for row in zip(frame["estimator"], frame["momentum"], strict=True)]
    renorm = frame["norm"].map({"batch": "", "renorm": "renormalization, "})
    named = frame.assign(average=renorm + words).sort_values("norm", kind="stable")
    return name_panels(put_in_order(named, "order", ORDERS), "{order}")


EXPERIMENT = Experiment(
    answers=("Q15", "F13", "F21"),
    figures={
        "accuracy": Figure(
            "Accuracy where images of a class come together",
            "Test accuracy at the end of training, with batch norm where nothing else is said; images come shuffled, "
            "in blocks of 16 of a class, or class after class (sorted).",
            score(find_accuracies, "accuracy", ("panel", "average"), scale=100), Forest("average", ACCURACY)),
    },
    claims={
        "running_average_costs": Claim(
            "Where images of a class come together PyTorch's running average, which remembers the last ones, loses "
            "more than 5 points against exact statistics of the same network.",
            score("evaluations", "accuracy", ("order",), at=1.0, against="exact", scale=-100, norm="batch",
                  estimator="ema", momentum=0.1, order=IN_ORDER), above(*MUCH), answers=("Q15", "F21")),
        "nothing_rescues": Claim(
            "Under exact statistics networks that saw images of a class together lose more than 5 points against those "
            "that saw shuffled images: they were trained on batches of few classes.",
            score("evaluations", "accuracy", ("order",), at=1.0, against=SHUFFLED, along="order", matching=("seed",),
                  scale=-100, norm="batch", estimator="exact", order=IN_ORDER), above(*MUCH), answers=("Q15", "F21")),
        "renorm_rescues_blocks": Claim(
            "In blocks of 16 images of a class renormalization gains more than 5 points against batch norm.",
            score("evaluations", "accuracy", ("order", "norm"), at=1.0, against="batch", along="norm", scale=100,
                  matching=("seed", "order"), estimator="ema", momentum=0.01, order="blocks:16"),
            above(5.0, "points gained", "half of what its paper reports for batches of like images")),
    },
)  # fmt: skip
