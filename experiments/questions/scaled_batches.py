"""What do running averages cost in small and in large batches, at learning rates in proportion to the batch size?

The networks of `real`, a ResNet-20 on JPEG copies of CIFAR-10, in batches of 32 at a rate of 0.025 and in batches of
512 at 0.4: as many epochs, in which the larger batches make a sixteenth of the updates at 16 times the rate (Goyal et
al. 2017, arXiv 1706.02677). At one rate for both, the batch size would be mixed with the rate per image. Three seeds
that `real` did not train. All claims were written before the first training. It was known that running averages lose
6.6 points in batches of 128 at a constant rate of 0.1, from a fifth of the training on; and half-way through a
one-cycle schedule, at rates by the square root of the size, 4.1 in batches of 32 and 7.7 in batches of 1,024.

*Exact statistics* are of augmented training images: 5,000 before the end and all at the end. Before the end 5,000 test
images are predicted, and at the end all 10,000.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import paired, score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below
from experiments.margins import AS_ACCURATE, COSTS_A_POINT
from experiments.recipes import CONSTANT, COSINE, LAST, RUNNING, SCHEDULE, select_accuracies, select_lost

CELL = ("batch_size", SCHEDULE)
TENTHS = tuple(tenth / 10 for tenth in range(1, 11))  # of the training, at which it is measured
LATE = TENTHS[1:]  # after the first epochs
FIRST_THIRD, LAST_THIRD = TENTHS[:3], TENTHS[6:]
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
ON_COSINE: dict[str, Any] = {SCHEDULE: COSINE}
PANELS = {CONSTANT: "constant rate", COSINE: "cosine"}
HALF_A_POINT = below(0.5, "points", "half of what networks of this size are chosen by")
HARMLESS = below(0.3, "points", "30 of 10,000 test images, about the standard error at 90% accuracy")


def compute_lost(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from that under running averages."""
    return select_lost(tables, CELL, shares)


def compute_lost_with_size(tables: Tables) -> pd.DataFrame:
    """Find how much more is lost in batches of 512 than in batches of 32, from a fifth of the training on."""
    # After equal shares of the training both have made different numbers of updates, but pairs would have to agree.
    lost = compute_lost(tables, *LATE).drop(columns="step")
    return paired(lost, "accuracy", 32, along="batch_size", matching=("seed", SCHEDULE))


def subtract_running(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under running averages from those under all other statistics."""
    return paired(select_accuracies(tables, CELL, shares), "accuracy", RUNNING, along="line")


def select_drawn(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: what running averages lose over the training, in panels by schedule."""
    lost = select_lost(tables, CELL)
    done = 100 * lost["step"] / lost["steps"]
    return lost.assign(panel=lost[SCHEDULE].map(PANELS), done=done.round())


QUESTION = Question(
    bears_on=("Q13", "Q17", "Q20", "H2"),
    columns=("accuracy",),
    command="""bnlab sweep experiment=scaled_batches data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# an hour and a quarter of one core a network, a third of it measuring""",
    figures={
        "lost": Figure(
            "Points of accuracy lost under running averages, by batch size, on CIFAR-10",
            "Compare the lines: points of test accuracy that the same weights lose under running averages of momentum "
            "0.1 against exact statistics of augmented training images, at rates in proportion to the batch size: "
            "0.025 in batches of 32 and 0.4 in batches of 512. A ResNet-20 on JPEG copies of CIFAR-10, 16 epochs.",
            score(select_drawn, "accuracy", ("panel", "batch_size", "done"), scale=-100),
            Curves("done", "batch_size", Axis("points of accuracy lost"),
                   across=Axis("share of the training (%)"))),
    },
    claims={
        "a_constant_rate_costs": Claim(
            "At a constant rate running averages lose over a point at each of the two batch sizes, averaged from a "
            "fifth of the training on.",
            score(lambda tables: compute_lost(tables, *LATE), "accuracy", ("batch_size",), average="panel", scale=-100,
                  **AT_CONSTANT_RATE), COSTS_A_POINT, lines="each"),
        "larger_batches_lose_more": Claim(
            "On each of the two schedules batches of 512 lose more than batches of 32, at equal shares of equal "
            "epochs, averaged from a fifth of the training on.",
            score(compute_lost_with_size, "accuracy", (SCHEDULE,), average="panel", scale=-100),
            above(0.0, "points more", "at 0 the batch size does not matter"), lines="each"),
        "the_first_third_of_a_cosine_costs": Claim(
            "Over the first third of a cosine running averages lose over a point on average, at each of the two batch "
            "sizes.",
            score(lambda tables: compute_lost(tables, *FIRST_THIRD), "accuracy", ("batch_size",), average="panel",
                  scale=-100, **ON_COSINE), COSTS_A_POINT, lines="each"),
        "the_last_third_of_a_cosine_costs_little": Claim(
            "Over the last third of a cosine running averages lose less than half a point on average, at each of the "
            "two batch sizes.",
            score(lambda tables: compute_lost(tables, *LAST_THIRD), "accuracy", ("batch_size",), average="panel",
                  scale=-100, **ON_COSINE), HALF_A_POINT, lines="each"),
        "harmless_at_the_end": Claim(
            "At the end of a cosine running averages lose less than 0.3 points, at each of the two batch sizes (known "
            "of one-cycle schedules, at other rates).",
            score(lambda tables: compute_lost(tables, 1.0), "accuracy", ("batch_size",), scale=-100,
                  **ON_COSINE), HARMLESS, lines="each"),
        "the_last_batch_gains_on_the_way": Claim(
            "At a constant rate the last batch alone is more accurate than running averages at each of the two batch "
            "sizes, averaged from a fifth of the training on.",
            score(lambda tables: subtract_running(tables, *LATE), "accuracy", ("batch_size",), average="panel",
                  scale=100, line=LAST, **AT_CONSTANT_RATE), above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "a_small_last_batch_is_noisy_at_the_end": Claim(
            "At the end of a cosine the last batch alone loses over a point against running averages in batches of 32.",
            score(lambda tables: subtract_running(tables, 1.0), "accuracy", ("batch_size",), scale=-100, line=LAST,
                  batch_size=32, **ON_COSINE), COSTS_A_POINT, lines="each"),
    },
)  # fmt: skip
