"""What does batch renormalization gain where images of a class come together?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import name_panels, score
from bnlab.harness.reporting.plots import ACCURACY, Curves
from experiments.by_norm import BATCH, EXACT, RENORM, compare, find_accuracies
from experiments.margins import A_POINT

SHARES = (1.0,)  # of the training
BY = ("order",)
BLOCKS = "blocks:16"
ORDERS = {"shuffled": "images in random order", BLOCKS: "blocks of 16 of a class"}


def find_courses(tables: Tables) -> pd.DataFrame:
    """Accuracies over training, in panels by order."""
    frame = find_accuracies(tables, (), BY)
    words = {"words": frame["order"].replace(ORDERS), "line": frame["normalizer"]}
    return name_panels(frame.assign(**words), "{words}")


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end minus that of batch norm under its running averages, from the same seed."""
    return compare(tables, BATCH, SHARES, BY)


def find_exact_gains(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end minus that of renormalization under its running averages, from the same seed."""
    return compare(tables, RENORM, SHARES, BY)


EXPERIMENT = Experiment(
    name="renorm",
    question="What does batch renormalization gain where images of a class come together?",
    answers=("F13", "F21", "Q15"),
    source="Ioffe 2017: trained on batches that are not drawn independently, batch norm fell to 67.0% on ImageNet and "
    "renormalization kept 78.5% (quoted from memory). It trains with the running averages that it predicts "
    "with. Momentum 0.01 in both: averages of about 100 updates, a sixth of this training and less than a thousandth "
    "of the paper's.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("training", "Batch norm and renormalization, by the order of the images",
               "Test accuracy over training, under running averages where nothing else is said; a panel for each order "
               "of the images in an epoch.",
               score(find_courses, "accuracy", ("panel", "line", "epoch"), scale=100),
               Curves("epoch", "line", ACCURACY)),
    ),
    claims=(
        Claim("renorm_rescues_blocks", "In blocks of 16 images of a class, renormalization gains more than 5 points "
              "against batch norm, each under its running averages.",
              score(find_gains, "accuracy", ("order",), scale=100, normalizer=RENORM, order=BLOCKS),
              above(5.0, "points gained", "half of what its paper reports for batches of like images")),
        Claim("renorm_is_no_worse_shuffled", "In random order batch norm and renormalization are equally accurate, "
              "within a point.",
              score(find_gains, "accuracy", ("order",), scale=100, normalizer=RENORM, order="shuffled"),
              within(-1.0, 1.0, "points gained", A_POINT), answers=("F13",)),
        Claim("exact_adds_nothing", "Under exact statistics renormalization is as accurate as under the running "
              "averages that it trains with, within a point, in either order.",
              score(find_exact_gains, "accuracy", ("order",), scale=100, normalizer=RENORM + EXACT),
              within(-1.0, 1.0, "points gained", A_POINT)),
    ),
)  # fmt: skip
