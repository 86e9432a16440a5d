"""What does a small last batch do to a network and to its running averages?

A DataLoader keeps the images that do not fill a batch (`drop_last=False`), and a running average gives such a batch as
much weight as a full one. Checkpoints are taken at the end of an epoch, right after it. The controls are networks
trained on full batches only. They train on up to 3% more images, in another order, and are tested on up to 3% more
(2,489 to 2,559). *Right after* is half-way through training; until then, networks with a step schedule are the same as
those at a constant rate, and no claim is about them. The rate is 0.4 in batches of 256, the largest of three that were
tried on one network, and 0.1 in batches of 64, not tuned: at smaller rates the harm may be smaller. Right after a last
batch of 1/32, exact accuracy is 14 to 27%, so that the points lost by averages say little there.

All claims except those called post hoc were written before their numbers were known. We planned ten seeds; computing
time allowed for eight in batches of 256 and six in batches of 64. We looked at the table once before, with four of
these seeds (three in one cell) in batches of 256, and no verdict is corrected for that. A first sweep in batches of 64,
at rate 0.4, was discarded after we had seen its verdicts: at a constant rate and with a step schedule, its networks of
full batches were only 5 to 55% right half-way. Its verdicts are in experiments/withdrawn.md.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import OtherThan, paired, rows, score, select
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below, within
from bnlab.harness.updates import count_training
from experiments.margins import A_POINT, AS_ACCURATE, COSTS_A_POINT, SIX_IMAGES

SETTINGS = ("batch_size", "optimizer.schedule", "data.images")
CELL = ("batch_size", "optimizer.schedule", "remainder", "when")
SAME = ("seed", "batch_size", "optimizer.schedule", "when")
FULL = "full"
SHARES = {256: {8: "1/32", 43: "1/6", 128: "1/2", 0: FULL}, 64: {2: "1/32", 11: "1/6", 32: "1/2", 0: FULL}}
"""By batch size: images that are left for the last batch → their share of a full one."""
SMALL = ("1/32", "1/6")
# Half-way: at the end of the second of four epochs of 36 batches, and of the first of two epochs of 141.
LAST_BATCH_AT = {256: 72, 64: 141}  # batch size → the update that the last batch makes
BEFORE = "before"
RIGHT_AFTER = "right after"
THIRTY_LATER = "30 updates later"
END = "at the end"
CONSTANT: dict[str, Any] = {"optimizer.schedule": "constant"}
ONE_CYCLE: dict[str, Any] = {"optimizer.schedule": "onecycle"}
EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
EMA_SLOW: dict[str, Any] = {"estimator": "ema", "momentum": 0.01}
WEIGHTED: dict[str, Any] = {"estimator": "ema_weighted", "momentum": 0.1}
LITTLE = below(0.3, "points", SIX_IMAGES)


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find test accuracies with the size of the last batch as a share of a full one, and when they were measured."""
    frame = rows(tables, "evaluations", by=SETTINGS)
    remainders = []
    for size, images in zip(frame["batch_size"], frame["data.images"], strict=True):
        # The size of the last batch is no setting. It follows from the number of images.
        left = count_training(images) % size
        remainders.append(SHARES[size][left])
    frame["remainder"] = remainders

    step = frame["step"]
    since = step - frame["batch_size"].map(LAST_BATCH_AT)
    times = since.map(_name_time)
    is_last = step == frame["steps"]
    frame["since"] = since
    # The last update is some updates after the last batch half-way, too, but is read as the end.
    frame["when"] = times.mask(is_last, END)
    # Rows are compared across the sizes of the last batch, which the panels of `rows` tell apart.
    return frame.assign(panel="")


def _name_time(updates: int) -> str:
    """Name a number of updates after the last batch."""
    if updates < 0:
        return BEFORE
    if updates == 0:
        return RIGHT_AFTER
    unit = "update" if updates == 1 else "updates"
    return f"{updates} {unit} later"


def compute_lost_in_weights(tables: Tables) -> pd.DataFrame:
    """Subtract the exact accuracy of networks of full batches: a share, negative where a small batch harms weights."""
    exact = select(select_accuracies(tables), estimator="exact")
    return paired(exact, "accuracy", FULL, along="remainder", matching=SAME)


def compute_lost_by_averages(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under exact statistics of the same weights: a share, negative where statistics lose."""
    return paired(select_accuracies(tables), "accuracy")


def compute_lost_more(tables: Tables) -> pd.DataFrame:
    """Subtract what the same statistics lose in networks of full batches: negative where they lose more."""
    lost = compute_lost_by_averages(tables)
    return paired(lost, "accuracy", FULL, along="remainder", matching=SAME)


def subtract_plain_average(tables: Tables) -> pd.DataFrame:
    """Subtract the accuracy under the plain average from that under the one weighted by batch size."""
    frame = select_accuracies(tables)
    plain = select(frame, **EMA)
    weighted = select(frame, **WEIGHTED)
    both = pd.concat([plain, weighted])
    return paired(both, "accuracy", "ema", along="estimator")


SINCE = Axis("updates since the small batch", linear=1.0)
LOST_IN_WEIGHTS = Axis("accuracy lost against full batches (points)")

QUESTION = Question(
    bears_on=("Q16", "Q20", "Q24", "Q29"),
    sweeps=("last_batch", "last_batch_64"),
    columns=("accuracy",),
    figures={
        "weights": Figure(
            "What the update of a small last batch does to the weights",
            "What the last batch of an epoch, at 0, costs at a constant learning rate: test accuracy under exact "
            "statistics of networks trained on full batches only, minus that of networks with a smaller last batch. "
            "Each line is a size of that batch, as a share of a full one. The axis is stretched near 0.",
            score(compute_lost_in_weights, "accuracy", ("batch_size", "remainder", "since"), scale=-100,
                  when=OtherThan(END), **CONSTANT),
            Curves("since", "remainder", LOST_IN_WEIGHTS, across=SINCE),
            Headline("At a constant, high learning rate, one update from a last batch of a sixth or less damages the "
                     "weights",
                     {"weights_lose": ()}),
            panels="batch size {batch_size}"),
    },
    claims={
        "weights_lose": Claim(
            "At a constant rate the update of a last batch of at most 1/6 costs the weights over a point, right after "
            "it.",
            score(compute_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **CONSTANT), COSTS_A_POINT, lines="each"),
        "weights_lose_half_way": Claim(
            "Half-way along a one-cycle schedule, too, the update of a last batch of at most 1/6 costs the weights "
            "over a point, right after it.",
            score(compute_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **ONE_CYCLE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "averages_lose": Claim(
            "At a constant rate running averages lose over a point more right after a last batch of at most 1/6 than "
            "right after a full one.",
            score(compute_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **EMA, **CONSTANT), COSTS_A_POINT, lines="each"),
        "weights_keep_at_the_end": Claim(
            "At the end of a one-cycle schedule a last batch of at most 1/6 costs the weights less than 0.3 points.",
            score(compute_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=END,
                  **ONE_CYCLE), LITTLE, lines="each"),
        "averages_keep_at_the_end": Claim(
            "At the end of a one-cycle schedule running averages lose less than 0.3 points more after a last batch of "
            "at most 1/6 than after a full one.",
            score(compute_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=END,
                  **EMA, **ONE_CYCLE), LITTLE, lines="each"),
        "it_is_forgotten": Claim(
            "At a constant rate, 30 updates later, running averages lose as much as without the small batch, to "
            "within a point.",
            score(compute_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=THIRTY_LATER,
                  **EMA, **CONSTANT), within(-1.0, 1.0, "points", A_POINT), lines="each"),
        "slow_averages_lose_less": Claim(
            "At a constant rate, with momentum 0.01, running averages lose less than a point more right after a last "
            "batch of at most 1/6 than right after a full one.",
            score(compute_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **EMA_SLOW, **CONSTANT), below(1.0, "points", A_POINT), lines="each"),
        "half_a_batch_harms": Claim(
            "At a constant rate, the update of a last batch of half the full size costs the weights accuracy, too, "
            "right after it.",
            score(compute_lost_in_weights, "accuracy", CELL, scale=-100, remainder="1/2", when=RIGHT_AFTER,
                  **CONSTANT), above(0.0, "points", AS_ACCURATE),
            lines="each", post_hoc="asked"),
        "weights_lose_at_the_end": Claim(
            "At the end of a constant rate, right after the last small batch, a last batch of at most 1/6 costs the "
            "weights over a point.",
            score(compute_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=END,
                  **CONSTANT), COSTS_A_POINT,
            lines="each", post_hoc="asked"),
        "weighing_gains": Claim(
            "At a constant rate, right after a last batch of at most 1/6, an average that is weighted by batch size "
            "gains over a point against the plain one.",
            score(subtract_plain_average, "accuracy", CELL, scale=100, remainder=SMALL, when=RIGHT_AFTER,
                  **CONSTANT), above(1.0, "points gained", A_POINT), lines="each"),
    },
)  # fmt: skip
