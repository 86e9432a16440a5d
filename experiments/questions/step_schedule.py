"""How long after the learning rate has dropped is `eval()` wrong, on the schedule that everybody knows?

The networks of `real`, a ResNet-20 on JPEG copies of CIFAR-10 in batches of 128, at a rate of 0.1 that is divided by
ten at 50% and at 75% of 5,616 updates. They are measured 10, 30 and 100 updates after each drop. All claims were
written before the first training. The three seeds are others than those of `real`: until the first drop these are three
more networks at a constant rate of 0.1, where it was known of four that running averages lose 6.6 points from a fifth
of the training on.

*Exact statistics* are of augmented training images: 5,000 before the end and all at the end. Before the end 5,000 test
images are predicted, and at the end all 10,000.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import paired, score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below
from experiments.margins import AS_ACCURATE, COSTS_A_POINT
from experiments.recipes import EXACT, LAST, RUNNING, SCHEDULE, TUNED, select_accuracies, select_lost

CELL = (SCHEDULE,)
BEFORE = (0.2, 0.35, 0.5)  # shares of the training, the last of them at the drop
FROM_A_HUNDRED_ON = (0.5178, 0.625, 0.75, 0.7678, 1.0)  # shares from 100 updates after the first drop on
DROPS = {1: 0.5, 2: 0.75}  # shares of the training
WATCHED = 100  # updates after a drop
PANELS = {1: "after the first drop", 2: "after the second drop"}
FIRST_DROP: dict[str, Any] = {"drop": 1}
HALF_A_POINT = (0.5, "points", "half of what networks of this size are chosen by")
HARMLESS = (0.3, "points", "30 of 10,000 test images, about the standard error at 90% accuracy")


def name_drops(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the rows at each drop and within a hundred updates after it.

    Returns:
        The rows with the columns `drop`, its number from 1, and `updates_after` it; 0 are the weights at the drop.
    """
    named = []
    for drop, share in DROPS.items():
        after = frame["step"] - (share * frame["steps"]).round().astype(int)
        is_watched = after.between(0, WATCHED)
        named.append(frame[is_watched].assign(drop=drop, updates_after=after[is_watched]))
    return pd.concat(named)


def compute_lost_after(tables: Tables) -> pd.DataFrame:
    """Subtract exact accuracies from those under running averages, at each drop and after it."""
    return name_drops(select_lost(tables, CELL))


def compute_more_than_half(tables: Tables) -> pd.DataFrame:
    """Subtract half of what is lost before the first drop from what is lost after it, in points."""
    before = select_lost(tables, CELL, BEFORE).groupby("run")["accuracy"].mean()
    lost = select(compute_lost_after(tables), **FIRST_DROP)
    return lost.assign(more=-100 * (lost["accuracy"] - lost["run"].map(before) / 2))


def subtract_running(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under running averages from those under other statistics, at each drop and after it."""
    return name_drops(paired(select_accuracies(tables, CELL), "accuracy", RUNNING, along="line"))


def select_after(tables: Tables) -> pd.DataFrame:
    """Find what is drawn: what each kind of statistics loses, in panels by drop."""
    lost = name_drops(select_lost(tables, CELL, line=(RUNNING, LAST, TUNED)))
    return lost.assign(panel=lost["drop"].map(PANELS))


QUESTION = Question(
    bears_on=("Q17", "Q20", "Q24", "H2"),
    columns=("accuracy",),
    command="""bnlab sweep experiment=step_schedule data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# an hour and a quarter of one core a network, a third of it measuring""",
    figures={
        "after": Figure(
            "Points of accuracy lost after each drop of the learning rate, on CIFAR-10",
            "Read a line from left to right: points of test accuracy that the same weights lose against exact "
            "statistics of augmented training images, at the drop and 10, 30 and 100 updates after it. The rate drops "
            "from 0.1 to 0.01, and from there to 0.001. A ResNet-20 on JPEG copies of CIFAR-10, in batches of 128; "
            "5,000 images are predicted.",
            score(select_after, "accuracy", ("panel", "line", "updates_after"), scale=-100),
            Curves("updates_after", "line", Axis("points of accuracy lost"), across=Axis("updates after the drop"))),
    },
    claims={
        "it_costs_before_the_first_drop": Claim(
            "Before the first drop running averages lose over a point, averaged over 20%, 35% and 50% of the training.",
            score(lambda tables: select_lost(tables, CELL, BEFORE), "accuracy", (), average="panel", scale=-100),
            COSTS_A_POINT, lines="each"),
        "still_wrong_after_ten_updates": Claim(
            "Ten updates after the first drop running averages still lose over a point.",
            score(compute_lost_after, "accuracy", ("drop", "updates_after"), scale=-100, updates_after=10,
                  **FIRST_DROP), COSTS_A_POINT, lines="each"),
        "half_is_gone_after_thirty_updates": Claim(
            "Thirty updates after the first drop running averages lose less than half of what they lost before it.",
            score(compute_more_than_half, "more", ("drop", "updates_after"), updates_after=30),
            below(0.0, "points more than half", "0.9 to the power of 30 is 4%: what was averaged before is forgotten"),
            lines="each"),
        "little_is_lost_after_a_hundred_updates": Claim(
            "A hundred updates after each of the drops running averages lose less than a point.",
            score(compute_lost_after, "accuracy", ("drop", "updates_after"), scale=-100, updates_after=100),
            below(1.0, "points", COSTS_A_POINT.reason), lines="each"),
        "little_is_lost_from_then_on": Claim(
            "From a hundred updates after the first drop on, running averages lose less than half a point, averaged "
            "over the measured steps that are not within 30 updates after a drop.",
            score(lambda tables: select_lost(tables, CELL, FROM_A_HUNDRED_ON), "accuracy", (), average="panel",
                  scale=-100), below(*HALF_A_POINT), lines="each"),
        "harmless_at_the_end": Claim(
            "At the end running averages lose less than 0.3 points (known of a cosine).",
            score(lambda tables: select_lost(tables, CELL, (1.0,)), "accuracy", (), scale=-100), below(*HARMLESS),
            lines="each"),
        "the_last_batch_gains_after_the_drop": Claim(
            "Ten updates after the first drop the last batch alone is more accurate than running averages.",
            score(subtract_running, "accuracy", ("drop", "updates_after"), scale=100, line=LAST, updates_after=10,
                  **FIRST_DROP), above(0.0, "points gained", AS_ACCURATE), lines="each"),
        "exact_statistics_gain_after_the_drop": Claim(
            "Ten updates after the second drop exact statistics are more accurate than running averages.",
            score(subtract_running, "accuracy", ("drop", "updates_after"), scale=100, line=EXACT, updates_after=10,
                  drop=2), above(0.0, "points gained", AS_ACCURATE), lines="each"),
    },
)  # fmt: skip
