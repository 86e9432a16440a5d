"""What does a small last batch do to a network and to its running averages?

A DataLoader keeps the images that do not fill a batch (`drop_last=False`), and a running average takes such a batch as
seriously as a full one. Checkpoints are taken at the end of an epoch, right after it. Full batches alone are the
control. All claims were written before their first number.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below, within
from bnlab.harness.reporting.frames import name_panels, paired, rows, score, select
from bnlab.harness.reporting.plots import LOST, Axis, Curves
from experiments.margins import A_POINT, SIX_IMAGES

SETTINGS = ("batch_size", "optimizer.schedule", "data.images")
CELL = ("batch_size", "optimizer.schedule", "remainder", "when")
SAME = ("seed", "batch_size", "optimizer.schedule", "when")
REMAINDERS = {8: "1/32", 43: "1/6", 128: "1/2", 2: "1/32", 11: "1/6", 32: "1/2"}  # images → share of a batch
FULL = "full"
SMALL = ("1/32", "1/6")
STEP_OF_IT = {256: 72, 64: 141}  # the update that the last batch makes
BEFORE, RIGHT_AFTER, THIRTY_LATER, END = "before", "right after", "30 updates later", "at the end"
CONSTANT, ONE_CYCLE = "constant", "onecycle"
EMA: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
EMA_SLOW: dict[str, Any] = {"estimator": "ema", "momentum": 0.01}
WEIGHTED: dict[str, Any] = {"estimator": "ema_weighted", "momentum": 0.1}
LITTLE = below(0.3, "points", SIX_IMAGES)


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find test accuracies with the size of the last batch as a share of a full one, and when they were measured."""
    frame = rows(tables, "evaluations", by=SETTINGS)
    trained = frame["data.images"] - frame["data.images"] // 10
    left = trained % frame["batch_size"]
    since = frame["step"] - frame["batch_size"].map(STEP_OF_IT)
    is_last = frame["step"] == frame["steps"]
    when = since.map(_name_time).mask(is_last, END)
    remainder = left.map(REMAINDERS).fillna(FULL)
    # Rows are compared across the sizes of the last batch, which the panels of `rows` tell apart.
    return frame.assign(remainder=remainder, since=since, when=when, panel="")


def _name_time(updates: int) -> str:
    """Name a number of updates after the last batch."""
    if updates < 0:
        return BEFORE
    if updates == 0:
        return RIGHT_AFTER
    return f"{updates} updates later"


def find_lost_in_weights(tables: Tables) -> pd.DataFrame:
    """Find points lost under exact statistics, against networks of full batches: what the update itself has done."""
    exact = select(find_accuracies(tables), estimator="exact")
    return paired(exact, "accuracy", FULL, along="remainder", matching=SAME)


def find_lost_by_averages(tables: Tables) -> pd.DataFrame:
    """Find points lost against exact statistics of the same weights."""
    return paired(find_accuracies(tables), "accuracy")


def find_lost_more(tables: Tables) -> pd.DataFrame:
    """Find how many points more averages lose than those of networks of full batches do."""
    lost = find_lost_by_averages(tables)
    return paired(lost, "accuracy", FULL, along="remainder", matching=SAME)


def find_weighing_loss(tables: Tables) -> pd.DataFrame:
    """Find points lost by an average that is weighted by batch size, against the average that is not."""
    frame = find_accuracies(tables)
    plain = select(frame, **EMA)
    weighted = select(frame, **WEIGHTED)
    both = pd.concat([plain, weighted])
    return paired(both, "accuracy", "ema", along="estimator")


def in_panels(frame: pd.DataFrame) -> pd.DataFrame:
    """Name panels by schedule and batch size, and leave out the end, which is no number of updates later."""
    during = frame[frame["when"] != END]
    return name_panels(during, "{optimizer.schedule}, batch size {batch_size}")


SINCE = Axis("updates since the small batch", linear=1.0)
LOST_IN_WEIGHTS = Axis("accuracy lost against full batches (points)")

EXPERIMENT = Experiment(
    bears_on=("Q9", "Q11", "Q14"),
    sweeps=("last_batch", "last_batch_64"),
    columns=("accuracy",),
    figures={
        "averages": Figure(
            "What running averages lose around a small last batch",
            "Test accuracy of the same network under exact statistics minus that under the running average of momentum "
            "0.1. Lines: the size of the last batch of the epoch, as a share of a full one.",
            score(lambda tables: in_panels(find_lost_by_averages(tables)), "accuracy", ("panel", "remainder", "since"),
                  scale=-100, **EMA),
            Curves("since", "remainder", LOST, across=SINCE),
            Finding("A small last batch wrecks running averages for ten updates",
                    {"averages_lose": (CONSTANT,)})),
        "weights": Figure(
            "What the update of a small last batch does to the weights",
            "Test accuracy under exact statistics of networks trained in full batches alone, minus that of networks "
            "with a smaller last batch of the epoch; lines are its size, as a share of a full one.",
            score(lambda tables: in_panels(find_lost_in_weights(tables)), "accuracy", ("panel", "remainder", "since"),
                  scale=-100),
            Curves("since", "remainder", LOST_IN_WEIGHTS, across=SINCE)),
    },
    claims={
        "weights_lose": Claim(
            "At a constant rate the update of a last batch of at most 1/6 costs the weights over a point, right after "
            "it.",
            score(find_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  schedule=CONSTANT), above(1.0, "points", A_POINT), ("Q11",)),
        "averages_lose": Claim(
            "At a constant rate running averages lose over a point more right after a last batch of at most 1/6 than "
            "right after a full one.",
            score(find_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **EMA, schedule=CONSTANT), above(1.0, "points", A_POINT)),
        "weights_keep_at_the_end": Claim(
            "At the end of a one-cycle schedule a last batch of at most 1/6 costs the weights less than 0.3 points.",
            score(find_lost_in_weights, "accuracy", CELL, scale=-100, remainder=SMALL, when=END,
                  schedule=ONE_CYCLE), LITTLE, ("Q11",)),
        "averages_keep_at_the_end": Claim(
            "At the end of a one-cycle schedule running averages lose less than 0.3 points more after a last batch of "
            "at most 1/6 than after a full one.",
            score(find_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=END,
                  **EMA, schedule=ONE_CYCLE), LITTLE),
        "it_is_forgotten": Claim(
            "At a constant rate, 30 updates later, running averages lose as much as without the small batch, to a "
            "point.",
            score(find_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=THIRTY_LATER,
                  **EMA, schedule=CONSTANT), within(-1.0, 1.0, "points", A_POINT)),
        "slow_averages_lose_less": Claim(
            "At a constant rate, with momentum 0.01, running averages lose less than a point more right after a last "
            "batch of at most 1/6 than right after a full one.",
            score(find_lost_more, "accuracy", CELL, scale=-100, remainder=SMALL, when=RIGHT_AFTER,
                  **EMA_SLOW, schedule=CONSTANT), below(1.0, "points", A_POINT)),
        "weighing_gains": Claim(
            "At a constant rate, right after a last batch of at most 1/6, an average that is weighted by batch size "
            "gains over a point against the plain one.",
            score(find_weighing_loss, "accuracy", CELL, scale=100, remainder=SMALL, when=RIGHT_AFTER,
                  schedule=CONSTANT), above(1.0, "points gained", A_POINT), ("Q9",)),
    },
)  # fmt: skip
