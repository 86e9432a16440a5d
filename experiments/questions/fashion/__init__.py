"""Do running averages cost as much on the original images of Fashion-MNIST as on copies of CIFAR-10?

A ResNet-20 in batches of 128 for 16 epochs, with the optimizer of `real`, shifts and flips, at a rate of 0.1: constant,
along a cosine, and divided by ten at 50% and at 75% of 6,736 updates. All claims were written before the first
training. Larger networks are published with 94.9% (ResNet-18), 95.4% (DenseNet-BC of 768,000 parameters; this ResNet-20
has 270,000) and 95.9% (WRN-28-10) of the test images right, in the list of
[the data set](https://github.com/zalandoresearch/fashion-mnist#benchmark).

*Exact statistics* are of augmented training images: 5,000 before the end and all at the end. Before the end 5,000 test
images are predicted, and at the end all 10,000.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import paired, score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below
from experiments.margins import AS_ACCURATE, COSTS_A_POINT
from experiments.recipes import (
    CONSTANT,
    COSINE,
    EXACT,
    LAST,
    RUNNING,
    SCHEDULE,
    STEP,
    score_each_seed,
    select_accuracies,
    select_lost,
)

CELL = (SCHEDULE,)
# Shares of the training, without those right after a drop.
LATE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0)
FIRST_THIRD, LAST_THIRD = (0.1, 0.2, 0.3), (0.7, 0.75, 0.9, 1.0)
AFTER_THE_DROP = (0.6, 0.7, 0.75, 0.9, 1.0)
LINES = {CONSTANT: "constant rate", COSINE: "cosine", STEP: "÷10 at 50% and 75%"}
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: CONSTANT}
ON_COSINE: dict[str, Any] = {SCHEDULE: COSINE}
ON_STEPS: dict[str, Any] = {SCHEDULE: STEP}
FALLING: dict[str, Any] = {SCHEDULE: (COSINE, STEP)}
HALF_A_POINT = below(0.5, "points", "half of what networks of this size are chosen by")


def compute_lost(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from that under running averages."""
    return select_lost(tables, CELL, shares)


def subtract_running(tables: Tables) -> pd.DataFrame:
    """Subtract the test accuracy under running averages from the others, from a fifth of the training on."""
    return paired(select_accuracies(tables, CELL, LATE), "accuracy", RUNNING, along="line")


def select_drawn(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: what running averages lose over the training, a line for each schedule."""
    lost = select_lost(tables, CELL)
    done = 100 * lost["step"] / lost["steps"]
    return lost.assign(panel="", line=lost[SCHEDULE].map(LINES), done=done.round(1))


QUESTION = Question(
    bears_on=("Q17", "Q20", "Q24", "H2"),
    columns=("accuracy",),
    remarks=("Trained with the code of commit 39583aa3, after the claims had been committed.",),
    command="""apt-get install dataset-fashion-mnist
bnlab sweep experiment=fashion data.root=/usr/share/datasets/fashion-mnist
# by torchvision instead: from torchvision.datasets import FashionMNIST; FashionMNIST("data", download=True)
# in Python, then data.root=data/FashionMNIST/raw
# an hour and a quarter of one core a network, a third of it measuring""",
    figures={
        "lost": Figure(
            "Points of accuracy lost under running averages, on Fashion-MNIST",
            "Compare the lines: points of test accuracy that the same weights of a ResNet-20 lose under running "
            "averages of momentum 0.1 against exact statistics of augmented training images. Batches of 128, rate 0.1, "
            "16 epochs; two steps are 20 updates after the drops at 50% and at 75%.",
            score_each_seed(select_drawn, "accuracy", ("panel", "line", "done"), scale=-100),
            Curves("done", "line", Axis("points of accuracy lost"), across=Axis("share of the training (%)")),
            networks="Fashion-MNIST; ResNet-20"),
    },
    claims={
        "a_constant_rate_costs": Claim(
            "At a constant rate running averages lose over a point, averaged from a fifth of the training on.",
            score(lambda tables: compute_lost(tables, *LATE), "accuracy", (SCHEDULE,), average="panel", scale=-100,
                  **AT_CONSTANT_RATE), COSTS_A_POINT, lines="each"),
        "the_first_third_of_a_cosine_costs": Claim(
            "Over the first third of a cosine running averages lose over a point on average.",
            score(lambda tables: compute_lost(tables, *FIRST_THIRD), "accuracy", (SCHEDULE,), average="panel",
                  scale=-100, **ON_COSINE), COSTS_A_POINT, lines="each"),
        "the_last_third_of_a_cosine_costs_little": Claim(
            "Over the last third of a cosine running averages lose less than half a point on average.",
            score(lambda tables: compute_lost(tables, *LAST_THIRD), "accuracy", (SCHEDULE,), average="panel",
                  scale=-100, **ON_COSINE), HALF_A_POINT, lines="each"),
        "little_is_lost_after_the_drop": Claim(
            "After the first drop of the step schedule, from 60% of the training on, running averages lose less than "
            "half a point on average.",
            score(lambda tables: compute_lost(tables, *AFTER_THE_DROP), "accuracy", (SCHEDULE,), average="panel",
                  scale=-100, **ON_STEPS), HALF_A_POINT, lines="each"),
        "harmless_at_the_end": Claim(
            "At the end running averages lose less than 0.3 points, on each of the two schedules that fall.",
            score(lambda tables: compute_lost(tables, 1.0), "accuracy", (SCHEDULE,), scale=-100, **FALLING),
            below(0.3, "points", "30 of 10,000 test images: above the standard error of an accuracy of 94%"),
            lines="each"),
        "the_last_batch_gains_on_the_way": Claim(
            "At a constant rate the last batch alone is more accurate than running averages, averaged from a fifth of "
            "the training on.",
            score(subtract_running, "accuracy", (SCHEDULE,), average="panel", scale=100, line=LAST, **AT_CONSTANT_RATE),
            above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "as_accurate_as_is_published": Claim(
            "At the end over 93% of the test images are right under exact statistics, on each of the two schedules "
            "that fall.",
            score(lambda tables: select(select_accuracies(tables, CELL, (1.0,)), line=EXACT), "accuracy", (SCHEDULE,),
                  scale=100, **FALLING),
            above(93.0, "% of the images", "two points below the ResNet-18 that is published, for 16 epochs"),
            lines="each"),
    },
)  # fmt: skip
