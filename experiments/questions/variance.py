"""How do m/(m−1), pooling and the weights of batches change the variance, and when does it matter?

Ioffe & Szegedy 2015, algorithm 2: the mean of unbiased batch variances, m/(m−1), which is right for m independent
values; but the pixels of an image resemble each other.
"""

import pandas as pd

from bnlab.harness.reporting.frames import RATIO_OVER_LAYERS, OtherThan, paired, put_in_order, rows, score
from bnlab.harness.reporting.plots import Axis, Curves, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, Tables, above, below, within
from experiments.margins import AS_NEAR, GAINS, HARMLESS
from experiments.recipes import EACH, score_cost

CORRECTION = "m/(m−1) alone: with over without"

NAMES = {
    "ema": "running average",
    "ema_biased": "running average, without m/(m−1)",
}
# Both are measured on frozen weights, from the same batches, so that only the way of averaging differs.
FROZEN = {"update_bn": "batches averaged (update_bn)", "precise": "precise BN (batches pooled)"}


def compute_ratios(tables: Tables) -> pd.DataFrame:
    """Find variances over exact ones at the end of training; `rule` says how they were averaged."""
    frame = rows(tables, "gaps", 1.0, estimator=list(NAMES))
    frame["rule"] = frame["estimator"].map(NAMES)
    return put_in_order(frame, "estimator", NAMES)


def compute_shortfall(tables: Tables) -> pd.DataFrame:
    """Find the share of the exact variance that batches' averaged variances lack, on frozen weights."""
    frame = rows(tables, "gaps", 1.0, estimator="update_bn")
    return frame.assign(shortfall=1 - frame["var_ratio"])


def score_correction() -> Score:
    """Score the running variance with the correction over that without it."""
    return score(
        "gaps", "var_ratio", EACH, at=1.0, against="ema_biased", ratio=True, estimator="ema", **RATIO_OVER_LAYERS
    )


def compute_additions(tables: Tables) -> pd.DataFrame:
    """Find the share that the correction adds to the running variance of each layer, at the end of training."""
    frame = rows(tables, "gaps", 1.0, estimator=list(NAMES))
    corrected = paired(frame, "var_ratio", "ema_biased", ratio=True)
    return corrected.assign(addition=corrected["var_ratio"] - 1)


def score_ratios() -> Score:
    """Score the ratios in one panel, in the order of their names, below what the correction changes."""
    compute = score(compute_ratios, "var_ratio", (*EACH, "rule"), **RATIO_OVER_LAYERS)
    compute_correction = score_correction()

    def compute_in_order(tables: Tables) -> pd.DataFrame:
        correction = compute_correction(tables).assign(rule=CORRECTION)
        ratios = put_in_order(compute(tables), "rule", NAMES.values())
        return pd.concat([correction, ratios], ignore_index=True)

    return compute_in_order


QUESTION = Question(
    bears_on=("Q7", "Q16", "H2", "H6", "F19"),
    columns=("accuracy", "var_gap", "var_ratio"),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. Each of 20 conditions has the same verdict with all fifteen seeds as with the first five. One claim "
        "that never had five seeds alone is not counted.",
    ),
    figures={
        "ratio": Figure(
        "What the correction changes in variances, and how near they are to the exact ones",
        "Top row: running variance with the correction, divided by that without it; other rows: running variance "
        "divided by the exact one; geometric means over the deeper layers. m is the number of values that a batch has "
        "in a channel, images times pixels. Momentum 0.1.",
        score_ratios(),
        Forest("rule", Axis("ratio of variances"), mark=(1.0, "equal"), series="batch_size"),
        Headline("The correction m/(m−1) adds less than 1% to running variances",
                {"correction_adds_little": ()})),
        "averaged": Figure(
            "The average of batches' variances, and the variance of pooled batches",
            "Share of the exact variance (100%), with frozen weights, over all batches of an epoch: the average of "
            "the batches' variances (each with m/(m−1)), and the variance of the pooled batches.",
            score("gaps", "var_ratio", ("estimator", "batch_size"), at=1.0, scale=100, estimator=[*FROZEN],
                  depth=1),
            Curves("batch_size", "estimator", Axis("variance / exact one, first layer (%)")),
            Headline("The average of batches' variances is too small, by over 1% in batches of 2 and 4",
                    {"averaged_variances_are_too_small": ()}),
            panels="", names={"estimator": FROZEN}),
    },
    claims={
        "averaged_variances_are_too_small": Claim(
            "On frozen weights, in the first layer, the average of the batches' variances is smaller than the exact "
            "variance, by over 1% in batches of 2 and 4.",
            score(compute_shortfall, "shortfall", ("batch_size",), depth=1, batch_size=(2, 4)),
            above(0.01, "share", "a figure shows 1%; for pooled batches it is 0"),
            lines="each", post_hoc="asked"),
        "correction_is_small": Claim(
            "The correction m/(m−1) changes the running variance by less than 2%, in the deeper layers.",
            score_correction(), within(1.0 / 1.02, 1.02, "times", "2% is little against a loss of up to 1/B"),
            lines="each", post_hoc="layers after the first only"),
        "correction_adds_little": Claim(
            "It adds less than 1% to the running variance, on average over the deeper layers.",
            score(compute_additions, "addition", EACH, average="layer", depth=OtherThan(1)),
            below(0.01, "share", "half of the 2% that we called little before"),
            lines="each", post_hoc="asked"),
        "correction_costs_nothing": Claim(
            "Accuracy under running averages is the same with and without the correction m/(m−1), to within 0.3 "
            "points.",
            score("evaluations", "accuracy", EACH, at=1.0, against="ema_biased", scale=100, estimator="ema"), HARMLESS,
            lines="each"),
        "tiny_batches_cost": Claim(
            "At the end of training PyTorch's momentum costs less than 0.3 points at batches of 2 and 4.",
            score_cost(1.0, batch_size=(2, 4)), HARMLESS,
            lines="each", post_hoc="asked"),
        "pooled_is_nearer_when_frozen": Claim(
            "On frozen weights, at tiny batch sizes, pooled variances are nearer to the exact ones in the deeper "
            "layers.",
            score("gaps", "var_gap", (*EACH, "depth"), at=1.0, against="update_bn", ratio=True, geometric=True,
                  estimator="precise", batch_size=(2, 4), depth=OtherThan(1)),
            below(1.0, "times", f"{AS_NEAR}; in the first layer pooling is exact"), lines="each"),
        "pooling_gains": Claim(
            "On frozen weights, at tiny batch sizes, pooling batches gains accuracy against averaging their "
            "variances.",
            score("evaluations", "accuracy", EACH, at=1.0, against="update_bn", scale=100, estimator="precise",
                  batch_size=(2, 4)), GAINS, lines="each"),
    },
)  # fmt: skip
