"""What is left of the gap during and at the end of training, from tiny to huge batches, and what does it cost?

Wu & Johnson 2021, figure 1: accuracy under an EMA is pessimistic early in training and at a very large batch size;
where it is near chance, we claim nothing. Figure 4: at the end, with an adequate batch size, the cost is near zero.
RegularizedBN (arXiv 2210.05153): how far the statistics of inference are from those of single training batches, by step
and layer. Progress bars show a moving average of the mini-batches' accuracy.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import (
    RATIO_OVER_LAYERS,
    rows,
    score,
    select,
    share_name,
)
from bnlab.harness.reporting.measured import pair_gaps_with_losses
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves, Dots, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below, within
from experiments.margins import A_POINT, AS_ACCURATE, COSTS_A_POINT, GAINS, HARDLY_SEEN, HARMLESS, SIX_IMAGES
from experiments.recipes import EACH, OVER_TIME, score_cost, select_largest

EARLY, MIDDLE, LATE = 0.1, 0.55, 1.0  # of the training
# Networks that all estimators predict with, PyTorch's momentum alone.
ALL_ESTIMATORS: dict[str, Any] = {"batch_size": (64, 1024), "momentum": (0.1, None), "split": "test"}
LARGEST = (*EACH, "largest")
# What is averaged, its gap, the unit, and what an error of 0.1 in all layers costs by `tolerance`.
KINDS = (("mean", "mean_gap", "σ", "4 to 9 points"), ("variance", "var_gap", "in logarithm", "0.7 to 3 points"))
PANELS = {"mean (σ)": "mean_gap", "variance (log of the ratio)": "var_gap"}
A_QUARTER = (
    "Spearman's correlation: at 0.5 the ranks share a quarter of their variance; chosen when we knew the correlation "
    "over all networks, but not those of single seeds, of variances, or within a batch size"
)


def select_training(tables: Tables) -> pd.DataFrame:
    """Find accuracies on training images; those that a progress bar would show are one more estimator."""
    measured = rows(tables, "evaluations", (EARLY, LATE), split="train", estimator=("ema", "exact"))
    exact = select(measured, estimator="exact")
    # A row for each place where networks were measured, to which the other accuracies are joined.
    places = exact.drop(columns="accuracy")
    shown = places.assign(estimator="mini-batches")

    averages = average_batches(tables)
    averaged = shown.join(averages, on=["run", "step"])
    return pd.concat([measured, averaged])


def average_batches(tables: Tables) -> pd.Series:
    """Average accuracies over the batches with the latest 2,000 images, each before its update, by run and step."""
    log = rows(tables, "log")
    log = log.set_index(["run", "step"])
    # A window is one of neighbouring rows, so that the updates of a network have to follow each other.
    log = log.sort_index()

    averages = []
    # How many batches have 2,000 images depends on their size.
    for _, batches in log.groupby("batch_size"):
        size = batches["batch_size"].iloc[0]
        latest = round(2000 / size)
        by_run = batches.groupby("run")["accuracy"]
        # Until 2,000 images have been seen, the average is of those that were.
        windows = by_run.rolling(latest, min_periods=1)
        # `rolling` puts the run before an index that has it already.
        averages.append(windows.mean().droplevel(0))
    return pd.concat(averages)


def find_costs(tables: Tables) -> pd.DataFrame:
    """Find the largest gap of each network and step over its layers, and what PyTorch's running averages cost there.

    Returns:
        The rows of `pair_gaps_with_losses`, in a panel for means and one for variances; `mean` is the points lost.
    """
    of_pytorch = {**tables, "gaps": select(tables["gaps"], estimator="ema", momentum=0.1)}
    panels = []
    for name, gap in PANELS.items():
        pairs = pair_gaps_with_losses(of_pytorch, gap)
        panels.append(pairs.assign(panel=name, mean=100 * pairs["lost"]))
    return pd.concat(panels, ignore_index=True)


def correlate_ranks(tables: Tables, within: Sequence[str]) -> pd.DataFrame:
    """Correlate the ranks of gaps and losses within groups of networks and steps.

    Args:
        tables: the tables of the experiment.
        within: the columns by which rows are grouped.

    Returns:
        The rows of `find_costs` with their share in the correlation, `correlation`: the product of both
        ranks, each standardized within the group. Over a group its mean is Spearman's correlation.
    """
    pairs = find_costs(tables)
    keys = ["panel", *within]
    values = ["gap", "mean"]
    ranks = pairs.assign(**pairs.groupby(keys)[values].rank())
    groups = ranks.groupby(keys)[values]
    standardized = (ranks[values] - groups.transform("mean")) / groups.transform("std", ddof=0)
    return pairs.assign(correlation=standardized["gap"] * standardized["mean"])


def score_both_gaps(tables: Tables) -> pd.DataFrame:
    """Score the gaps of means and variances at the end, in a panel each; names say how many updates were made."""
    wanted: dict[str, Any] = {"at": 1.0, "estimator": "ema", "momentum": 0.1, "geometric": True}
    panels = []
    for name, gap in PANELS.items():
        panel = score("gaps", gap, ("batch_size", "step", "depth"), **wanted)(tables)
        panels.append(panel.assign(panel=name))
    both = pd.concat(panels).sort_values("batch_size", kind="stable")
    size = both["batch_size"].map("{} images, ".format)
    return both.assign(name=size + both["step"].map("{:,} updates".format))


QUESTION = Question(
    bears_on=("Q6", "Q9", "Q15", "Q17", "Q19", "Q20", "Q24", "H2", "H11", "F1", "F4", "F11"),
    sweeps=("gap", "accuracy", "accuracy_batches"),
    columns=("accuracy", "mean_gap", "var_gap", "tid_mean"),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. All fifteen decide 14 of 37 conditions that the first five left undecided; the added seeds alone "
        "decide 13 of these in the same way, and leave 1 undecided. No verdict of the first five became undecided or "
        "was reversed. Two claims that never had five seeds alone are not counted.",
    ),
    figures={
        "cost": Figure(
            "What the gap of running averages costs",
            "What a gap costs: a dot is a network at a measured step at which exact statistics are right on more than "
            "half of the test images; batch sizes at which none gets so far have no dots. The gap is between "
            "PyTorch's running averages (momentum 0.1) and exact statistics of the same weights, in the layer where "
            "it is largest, mostly the last. In each colour, dots of later steps lie to the lower left. The vertical "
            "axis is linear up to 0.3 points, and logarithmic beyond.",
            find_costs,
            Dots("gap", "batch_size", Axis("gap in the worst layer", log=True),
                 Axis("accuracy lost (points)", linear=0.3)),
            Headline("The further running averages are off, the more accuracy they cost",
                    {"larger_gaps_cost_more": ()})),
        "layers": Figure(
            "The gap of each layer at the end of training, by batch size",
            "Distance of running means and variances from exact ones in each layer; momentum 0.1. Every network sees "
            "the same number of images, so that large batches make few updates. The first layer's input is "
            "standardized beforehand, so its means stay near 0, and it has noise but hardly any lag.",
            score_both_gaps, Forest("name", Axis("gap", log=True), series="depth"),
            Headline("At the end running means are within 0.03 σ of exact ones at batch sizes 16 to 256, and variances "
                     "within 10% at all five",
                    {"means_are_close_late": ("batch size 16", "batch size 64", "batch size 256"),
                     "variances_are_near_late": ()})),
        "accuracy": Figure(
            "Test accuracy of the same weights under different statistics",
            "Compare with exact statistics, which show what the weights can do.",
            score("evaluations", "accuracy", OVER_TIME, scale=100, estimator=("ema", "exact", "cumulative"),
                  **ALL_ESTIMATORS),
            Curves("epoch", "estimator", ACCURACY),
            Headline("The plain average of all batches loses accuracy until the end of training, at batch size 64",
                    {"cumulative_costs": ()})),
    },
    claims={
        "population_wins_when_tiny": Claim(
            "At the end of training, at a tiny batch size, PyTorch's momentum costs accuracy.",
            score_cost(1.0, batch_size=4), above(0.0, "points", AS_ACCURATE),
            lines="each", post_hoc="dropped, and restored"),
        "nothing_at_adequate_batch": Claim(
            "At the end of training, at moderate batch sizes, PyTorch's momentum costs less than 0.3 points of "
            "accuracy.",
            score_cost(1.0, batch_size=(4, 16, 64, 256)), HARMLESS,
            lines="each", post_hoc="batches of 4 were added"),
        **{f"{kind}s_are_near_late": Claim(
            f"At the end of training PyTorch's running {kind}s are nearer to exact ones than 0.1 {unit}, in the layer "
            "where they are farthest (near it is not, see `tolerance`).",
            score(partial(select_largest, at=1.0, value=gap, by=EACH), gap, LARGEST, geometric=True),
            below(0.1, unit, f"in all {kind}s at once such an error costs {cost}"),
            lines="each", post_hoc="asked")
            for kind, gap, unit, cost in KINDS},
        "means_are_close_late": Claim(
            "At the end of training PyTorch's running means are nearer to exact ones than 0.03 σ, in the layer where "
            "they are farthest.",
            score(partial(select_largest, at=1.0, value="mean_gap", by=EACH), "mean_gap", LARGEST, geometric=True),
            below(0.03, "σ", "an error of 0.05 in all means costs 0.9 to 2.4 points, and its square counts"),
            lines="each", post_hoc="asked"),
        "costs_early": Claim(
            "After a fifth of training, PyTorch's momentum costs over a point, at tiny and moderate batch sizes, too.",
            score_cost(0.2, batch_size=(4, 16, 64)), COSTS_A_POINT,
            lines="each", post_hoc="asked"),
        "lag_costs_when_huge": Claim(
            "At a huge batch size, with few steps, PyTorch's momentum costs accuracy.",
            score_cost(1.0, batch_size=1024), above(0.3, "points", SIX_IMAGES), lines="each"),
        "large_momentum_mends_it": Claim(
            "At a huge batch size, with few steps, a momentum of 0.9 costs less than 0.3 points.",
            score_cost(1.0, batch_size=1024, momentum=0.9), HARMLESS,
            lines="each", post_hoc="asked"),
        "ema_adds_early": Claim(
            "Early in training, at a huge batch size, the running mean is much further from the means of single "
            "batches than the exact mean is.",
            score("gaps", "tid_mean", EACH, at=0.1, against="exact", ratio=True, estimator="ema", momentum=0.1,
                  batch_size=1024, **RATIO_OVER_LAYERS), above(1.25, "times", HARDLY_SEEN),
            lines="each", post_hoc="layers after the first only"),
        "ema_is_pessimistic_early": Claim(
            "Early in training, at a huge batch size, PyTorch's running average costs accuracy.",
            score_cost(EARLY, batch_size=1024), COSTS_A_POINT,
            lines="each", post_hoc="dropped, and restored"),
        "last_batch_beats_ema_early": Claim(
            "Early in training, at a huge batch size, the last batch's moments alone gain accuracy against the "
            "running averages.",
            score_cost(EARLY, batch_size=1024, against="last_batch"), GAINS,
            lines="each", post_hoc="dropped, and restored"),
        "ema_is_pessimistic": Claim(
            "In the middle of training, PyTorch's running average costs accuracy.",
            score_cost(MIDDLE, batch_size=(64, 1024)), COSTS_A_POINT,
            lines="each", post_hoc="asked"),
        "cumulative_costs": Claim(
            "At a moderate batch size, the average of all batches costs accuracy.",
            score("evaluations", "accuracy", EACH, at=(EARLY, MIDDLE, LATE), against="exact", scale=-100,
                  estimator="cumulative", batch_size=64, split="test"), COSTS_A_POINT, lines="each"),
        "lags_early": Claim(
            "Early in training, the moving average of the mini-batches' accuracy is below the network's accuracy on "
            "training images.",
            score(select_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(EARLY)), below(-1.0, "points", A_POINT), lines="each"),
        "agrees_late": Claim(
            "At the end of training, the moving average of the mini-batches' accuracy equals the network's, to within "
            "a point.",
            score(select_training, "accuracy", EACH, against="exact", scale=100, estimator="mini-batches",
                  panel=share_name(LATE)), within(-1.0, 1.0, "points", "chance alone makes half a "
                                                                       "point"), lines="each"),
        "larger_gaps_cost_more": Claim(
            "Over batch sizes and steps, the larger the gap in the layer where it is largest, the more accuracy is "
            "lost (where exact statistics are right on more than half of the test images).",
            score(partial(correlate_ranks, within=("seed",)), "correlation", ("panel", "largest"),
                  average=("batch_size", "step")), above(0.5, "rank correlation", A_QUARTER),
            lines="each", post_hoc="asked"),
        "gaps_tell_less_between_seeds": Claim(
            "Between networks of the same batch size and step, which differ only in their seed, the gap says less "
            "about what is lost (on average over batch sizes and steps).",
            score(partial(correlate_ranks, within=("batch_size", "step")), "correlation", ("panel", "largest"),
                  average=("batch_size", "step")), below(0.5, "rank correlation", A_QUARTER),
            lines="each", post_hoc="asked"),
    },
)  # fmt: skip
