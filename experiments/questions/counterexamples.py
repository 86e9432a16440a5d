"""Which streams of batches can be constructed in which running averages are bad, and how bad?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import DEFAULT_MOMENTUM, interval, name_panels, rows, score, select
from bnlab.harness.reporting.plots import EstimatorCurves, Forest
from bnlab.harness.reporting.style import Axis, estimator_label

SHARES = (1.0,)  # of the training
CASES = {
    "shuffled": "in random order",
    "sorted": "sorted",
    "jump_1": "jump, 1 batch since",
    "jump_10": "jump, 10 batches since",
    "rare": "rare batch",
    "single": "one image alone",
}
AVERAGES = ("ema", "cumulative", "cumulative_weighted", "window(k=20,pooled=False)", "kalman(per=layer)", "predictive",
            "last_batch")  # fmt: skip
HUGE = 100.0  # standard deviations
FAR = ("jump_1", "jump_10", "rare", "single")
EMA: dict[str, Any] = {"estimator": "ema", "momentum": DEFAULT_MOMENTUM}
STREAM = "The last 200 batches of each training (all, where there are fewer) in random order"
TRUTH = "distance of the average's mean from the true one, in standard deviations, root mean square over channels"


def find_errors(tables: Tables) -> pd.DataFrame:
    """Errors of all averages, a panel for each batch size and case."""
    frame = rows(tables, "counterexamples", SHARES)
    return name_panels(frame.assign(described=frame["case"].map(CASES)), "{described}, batch size {batch_size}")


def score_orders(tables: Tables) -> pd.DataFrame:
    """Error of every average of the same batches in two orders."""
    frame = select(find_errors(tables), case=("shuffled", "sorted"), size=1.0)
    labels = [estimator_label(*pair) for pair in frame[["estimator", "momentum"]].itertuples(index=False)]
    return interval(frame.assign(average=labels), "error", ("panel", "average"))


def score_both(tables: Tables) -> pd.DataFrame:
    """The larger error of the two cases with the same batches, of the average for which it is smallest."""
    frame = select(find_errors(tables), case=("jump_1", "rare"), size=HUGE, estimator=AVERAGES)
    keys = ["batch_size", "seed"]
    worst = frame.groupby([*keys, "estimator", "momentum"], dropna=False)["error"].max()
    return interval(worst.groupby(keys).min().reset_index(), "error", ("batch_size",))


def score_huge(case: str, estimator: str) -> Score:
    """The error of an estimator at 100 standard deviations."""
    return score(find_errors, "error", ("batch_size",), case=case, estimator=estimator, size=HUGE)


def score_sorted(estimator: str, case: str) -> Score:
    """How many times the error of the EMA in sorted batches is another average's, in sorted ones or in random order."""

    def find_two(tables: Tables) -> pd.DataFrame:
        errors = select(find_errors(tables), size=1.0)
        two = select(errors, case="sorted", **EMA), select(errors, case=case, estimator=estimator)
        return pd.concat(two).assign(panel="")

    return score(find_two, "error", ("batch_size",), against=estimator, ratio=True, geometric=True)


EXPERIMENT = Experiment(
    name="counterexamples",
    question="Which streams of batches can be constructed in which running averages are bad, and how bad?",
    answers=("Q9", "Q15"),
    source="Examples can be constructed in which the approximation is bad; the thread gives none.",
    columns={"counterexamples": ("case", "size", "error")},
    figures=(
        Figure("sizes", "Batches that are far from all others",
               f"{STREAM}; across: how many standard deviations are added to the last ones. Up: {TRUTH}. After a jump "
               "the weights have changed, and the new level is true. A rare batch belongs to the data, and the mean of "
               "all batches is true; as one image alone, it has the weight of one image. Values below the panel are 0 "
               "but for rounding.",
               score(find_errors, "error", ("panel", "estimator", "momentum", "size"), geometric=True, case=FAR),
               EstimatorCurves(Axis("error (σ)", (1e-3, 200), log=True), x="size")),
        Figure("orders", "The same batches in random order and sorted",
               f"{STREAM}, or sorted in each channel from the lowest mean to the highest: {TRUTH}, the mean of all "
               "batches, which is the same in both orders.",
               score_orders, Forest("average", Axis("error (σ)", (-0.01, 0.25)))),
    ),
    claims=(
        Claim("error_is_unbounded", "The error of PyTorch's running average grows in proportion to the size of a jump "
              "or outlier.",
              score(find_errors, "error", ("batch_size", "case"), against=1.0, along="size", ratio=True, geometric=True,
                    case=FAR, size=HUGE, **EMA),
              within(80, 125, "times", "100 standard deviations against one: 100 times if in proportion, and the noise "
                     "of the other batches makes the smaller error a little larger"),
              answers=("Q15",)),
        Claim("forecast_recovers", "Ten batches after a jump by 100 standard deviations predictive momentum has "
              "followed it.",
              score_huge("jump_10", "predictive"),
              below(1.0, "σ", "a hundredth of the jump, of which any fixed momentum below 0.37 leaves more"),
              answers=("Q15",)),
        Claim("kalman_comes_too_late", "Ten batches after a jump by 100 standard deviations Kalman's filter, "
              "which is fitted periodically, has not followed it.",
              score_huge("jump_10", "kalman(per=layer)"), above(50.0, "σ", "half of the jump"),
              answers=("Q15",)),
        Claim("no_average_knows", "Every running average is far off in one of two cases that show it the same batches: "
              "a jump one batch ago, and a rare batch.",
              score_both,
              above(49.0, "σ", "the true means are 99.5 standard deviations apart, so that the larger error of any "
                    "rule is at least half of it: this must hold"),
              answers=("Q15",)),
        Claim("images_count_alike", "An average of batch means that is weighted by counts is the mean of all images, "
              "also after a batch of one image.",
              score_huge("single", "cumulative_weighted"),
              below(0.01, "σ", "it is the definition of the true mean: this must hold"),
              answers=("Q9", "Q15")),
        Claim("order_undoes_averaging", "In sorted batches PyTorch's running average is farther from the true mean "
              "than a single batch in random order.",
              score_sorted("last_batch", "shuffled"), above(1.0, "times", "at 1 averaging has gained nothing"),
              answers=("Q15",)),
        Claim("forecast_takes_order_for_drift", "In sorted batches PyTorch's running average is nearer to the true "
              "mean than predictive momentum, which takes the order for a drift.",
              score_sorted("predictive", "sorted"), below(1.0, "times", "at 1 both are as near"),
              answers=("Q15",)),
    ),
)  # fmt: skip
