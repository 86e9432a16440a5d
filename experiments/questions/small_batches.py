"""Which statistics should a network predict with after training in batches of 2 to 16 images?

Singh & Shrivastava 2019 (EvalNorm) and Summers & Dinneen 2020 let each example take part in its statistics, as it does
in training. Wu & Johnson 2021 freeze batch norm for the last epochs. There were fifteen seeds from the start, and all
claims were written before their numbers were known. They are not blind to running averages and exact statistics,
because 75 of the 135 networks repeat settings and seeds of `variance` and `settings`.
"""

from typing import Any

import pandas as pd

from bnlab.common.names import StatisticName
from bnlab.harness.reporting.frames import rows, score, select
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, Tables, above
from experiments.devices import ON_BOTH
from experiments.margins import A_POINT, GAINS
from experiments.recipes import name_lines

NAMES = {
    "ema": "running averages",
    "exact": "exact statistics",
    "eval_norm": "EvalNorm",
    "example_weighing": "example weighing (0.1)",
}
RUNNING = NAMES["ema"]
EXACT = NAMES["exact"]
EVAL_NORM = NAMES["eval_norm"]
WEIGHING = NAMES["example_weighing"]
FROZEN = "frozen with running averages"


def select_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end; the line is what is predicted with, `freeze_with` says if batch norm was frozen."""
    frame = rows(tables, "evaluations", 1.0, ("batch_size", "freeze_with"))
    # Without parameters, in which EvalNorm differs from batch size to batch size.
    frame["kind"] = frame["estimator"].map(lambda name: StatisticName.parse(name).base)
    return name_lines(frame, "kind", NAMES)


def compute_repairs(tables: Tables) -> pd.DataFrame:
    """Find accuracies of networks that were frozen with running averages, and under EvalNorm of those never frozen.

    The line is the repair.
    """
    accuracies = select_accuracies(tables)
    frozen = select(accuracies, freeze_with="ema", line=RUNNING).assign(line=FROZEN)
    corrected = select(accuracies, freeze_with="none", line=EVAL_NORM)
    both = pd.concat([frozen, corrected], ignore_index=True)
    return both.drop(columns=["freeze_with", "freeze_at"], errors="ignore")


def score_gain(line: str, against: str, **wanted: Any) -> Score:
    """Score the points that one kind of statistics gains over another, on networks that were never frozen."""
    return score(
        select_accuracies,
        "accuracy",
        ("batch_size",),
        scale=100,
        against=against,
        along="line",
        freeze_with="none",
        line=line,
        **wanted,
    )


QUESTION = Question(
    bears_on=("Q20", "Q34", "H3", "H7", "F3", "F8", "F9", "F11"),
    columns=("accuracy", "tid_mean", "tid_std"),
    remarks=(ON_BOTH,),
    figures={
        "accuracy": Figure(
            "Accuracy gained over running averages, by what is predicted with",
            "Points gained against running averages (0), by networks that were never frozen. EvalNorm gives each "
            "example the weight that it has in a batch of the training size.",
            score(select_accuracies, "accuracy", ("batch_size", "line"), scale=100, against=RUNNING, along="line",
                  freeze_with="none"),
            Forest("line", Axis("points gained"), mark=(0.0, "as under running averages")),
            Headline("EvalNorm is more accurate than running averages, above all after batches of 2",
                    {"eval_norm_beats_running_averages": ()}),
            panels="batch size {batch_size}"),
    },
    claims={
        "eval_norm_beats_running_averages": Claim(
            "EvalNorm is more accurate than PyTorch's running averages.",
            score_gain(EVAL_NORM, RUNNING), GAINS, lines="each"),
        "eval_norm_beats_exact_statistics": Claim(
            "EvalNorm is more accurate than exact statistics.",
            score_gain(EVAL_NORM, EXACT), GAINS, lines="each"),
        "example_weighing_gains": Claim(
            "Exact statistics in which the example itself has a weight of a tenth are more accurate than exact "
            "statistics alone.",
            score_gain(WEIGHING, EXACT), GAINS, lines="each"),
        "exact_statistics_gain_in_batches_of_two": Claim(
            "In batches of 2 exact statistics are over a point more accurate than running averages.",
            score_gain(EXACT, RUNNING, batch_size=2), above(1.0, "points gained", A_POINT), lines="each"),
        "freezing_helps": Claim(
            "In batches of 2 and 4 networks that were frozen for the last fifth are more accurate, each under its own "
            "statistics.",
            score(select_accuracies, "accuracy", ("batch_size", "freeze_with"), scale=100, against="none",
                  along="freeze_with", matching=("seed", "batch_size", "line"), line=RUNNING, batch_size=(2, 4)),
            GAINS, lines="each"),
        "freezing_beats_eval_norm": Claim(
            "Networks that were frozen for the last fifth, under their running averages, are more accurate than "
            "networks that were never frozen under EvalNorm.",
            score(compute_repairs, "accuracy", ("batch_size",), scale=100, against=EVAL_NORM, along="line",
                  matching=("seed", "batch_size"), line=FROZEN), GAINS,
            lines="each", post_hoc="asked"),
        "discrepancy_is_noise_of_batches": Claim(
            "In every layer, exact means are over twice as far from the means of single batches of 2 as from those of "
            "16.",
            score("gaps", "tid_mean", ("depth",), at=1.0, against=16, along="batch_size", matching=("seed",),
                  ratio=True, geometric=True, batch_size=2, estimator="exact", freeze_with="none"),
            above(2.0, "times", "with noise that falls with the root of the batch size, it is 2.8"), lines="each"),
    },
)  # fmt: skip
