"""What do running averages cost at each learning rate, and which rate would one pick under them?

`ground` tunes the rate under exact statistics, with which it then compares running averages. That hides that what they
lose depends above all on the rate. Here are the seeds that `ground` tests, in batches of 64, at three rates, all on one
CPU, over 2,250 updates. All claims except those marked as post hoc were written before their numbers were known. From
three other seeds we knew that running averages lose 0.57 points at 0.025, 1.97 at 0.1 and 13.6 at 0.4, at the end of a
constant rate, on validation images; so the claims on a constant rate say what a repetition would have to show. Seven
seeds were planned, 103 to 109. Time ran out after four; the last three were added after the verdicts of the first four
were known.

Claims that say *on average* are about each network's average over the five measured steps from 560 updates on. What
picks cost is given seed by seed: if both kinds of statistics pick the same rate, it is exactly 0, and such numbers have
no honest interval. Until 30 November 2026, when all numbers were known, this page had means with intervals.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import score, select
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, Tables, above, below
from experiments.margins import COSTS_A_POINT, SIX_IMAGES
from experiments.recipes import (
    RATE,
    RATES,
    RUNNING,
    SCHEDULE,
    VALIDATED,
    compute_growth,
    pick,
    select_accuracies,
    select_complete,
    subtract_exact,
)

CELL = (SCHEDULE, RATE)
AT_CONSTANT_RATE: dict[str, Any] = {SCHEDULE: "constant"}
AT_LARGE_CONSTANT_RATES: dict[str, Any] = {**AT_CONSTANT_RATE, RATE: (0.1, 0.4)}
LATE = (0.25, 0.5, 0.75, 0.9, 1.0)  # from 560 updates on, all that are measured
ON_ONE_CYCLE: dict[str, Any] = {SCHEDULE: "onecycle"}
MOST = "more than half is most; seven seeds that agree decide it"


def compute_lost(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract the test accuracy under exact statistics from that under running averages, at the end by default."""
    return select(subtract_exact(select_accuracies(tables, CELL, shares or (1.0,))), line=RUNNING)


def compute_lost_with_rate(tables: Tables, *shares: float) -> pd.DataFrame:
    """Find how much more is lost than at a quarter of the learning rate, at the end by default."""
    return compute_growth(compute_lost(tables, *shares), CELL)


def pick_rates(tables: Tables) -> pd.DataFrame:
    """Pick the learning rate of each seed and schedule at the end, see `pick`."""
    group = ("seed", SCHEDULE)
    at_end = select_accuracies(tables, CELL, (1.0,), ("val", "test"))
    return pick(select_complete(tables, at_end, group), group)


QUESTION = Question(
    bears_on=("Q17", "Q24", "Q27", "H2"),
    columns=("accuracy",),
    figures={
        "rates_running": Figure(
            "Which rate one picks, under running averages and under exact statistics",
            "Look for the highest point of each line: validation accuracy after 2,250 updates in batches of 64, by "
            "learning rate.",
            score(lambda tables: select_accuracies(tables, CELL, (1.0,), "val"), "accuracy", (SCHEDULE, "line", RATE),
                  scale=100),
            Curves(RATE, "line", VALIDATED, across=RATES),
            panels="{optimizer.schedule}",
            names={SCHEDULE: {"constant": "constant rate", "onecycle": "one-cycle"}}),
    },
    claims={
        "it_grows_with_the_rate": Claim(
            "At the end of a constant rate four times the rate loses over a point more (known of other seeds).",
            score(compute_lost_with_rate, "accuracy", ("rates",), scale=-100, **AT_CONSTANT_RATE), COSTS_A_POINT,
            lines="each"),
        "it_grows_with_the_rate_on_average": Claim(
            "On average over the measured steps from 560 updates on, it does so, too.",
            score(lambda tables: compute_lost_with_rate(tables, *LATE), "accuracy", ("rates",), average="panel",
                  scale=-100, **AT_CONSTANT_RATE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "a_constant_rate_costs": Claim(
            "At the end of a constant rate of 0.1 and of 0.4 running averages lose over a point (known of other "
            "seeds).",
            score(compute_lost, "accuracy", (RATE,), scale=-100, **AT_LARGE_CONSTANT_RATES),
            COSTS_A_POINT, lines="each"),
        "a_constant_rate_costs_on_average": Claim(
            "On average over the measured steps from 560 updates on, running averages lose over a point at each "
            "constant rate.",
            score(lambda tables: compute_lost(tables, *LATE), "accuracy", (RATE,), average="panel", scale=-100,
                  **AT_CONSTANT_RATE), COSTS_A_POINT, lines="each", post_hoc="asked"),
        "harmless_at_the_end": Claim(
            "At the end of a one-cycle schedule they lose less than 0.3 points, at each rate.",
            score(compute_lost, "accuracy", (RATE,), scale=-100, **ON_ONE_CYCLE),
            below(0.3, "points", SIX_IMAGES), lines="each"),
        "another_rate_is_picked": Claim(
            "At a constant rate, validation under running averages picks another rate than validation under exact "
            "statistics, in most seeds (known of the mean of other seeds).",
            score(pick_rates, "differs", (SCHEDULE,), **AT_CONSTANT_RATE), above(0.5, "of the seeds", MOST),
            lines="each"),
        "that_rate_costs_little": Claim(
            "At a constant rate that pick costs less than a point of exact test accuracy.",
            score(pick_rates, "cost", (SCHEDULE, "seed"), scale=100, **AT_CONSTANT_RATE),
            below(1.0, "points", "networks of this size are chosen by differences of about a point"), lines="each"),
        "one_cycle_picks_as_well": Claim(
            "At the end of a one-cycle schedule the rate that running averages pick costs less than 0.3 points.",
            score(pick_rates, "cost", (SCHEDULE, "seed"), scale=100, **ON_ONE_CYCLE),
            below(0.3, "points", SIX_IMAGES), lines="each"),
    },
)  # fmt: skip
