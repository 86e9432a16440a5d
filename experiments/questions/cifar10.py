"""What carries over to real images and a residual network?

Most claims are what digits and glyphs said, written before the first number; those asked later say so. What is
committed is of a ResNet-20 on JPEG copies of CIFAR-10, which gets 78 to 83% right. Gaps are of means; before the end,
statistics and predictions are of 5,000 images.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

import bnlab.harness.reporting.frames as frames
import experiments.margins as margins
from bnlab.harness.reporting.experiment import (
    Claim,
    Experiment,
    Figure,
    Finding,
    Margin,
    Score,
    Tables,
    above,
    below,
    within,
)
from bnlab.harness.reporting.frames import (
    BEHIND,
    RATIO_OVER_LAYERS,
    OtherThan,
    find_largest_gap,
    gap_over_layers,
    name_panels,
    over_best,
    paired,
    rows,
    select,
    share_name,
)
from bnlab.harness.reporting.plots import GAP, LOST, TIMES_THE_BEST, Axis, Curves, Forest
from bnlab.harness.reporting.wording import estimator_label
from experiments.margins import (
    A_POINT,
    ALL_LAYERS,
    COST_OF_EMA,
    EACH,
    OVER_TIME,
    PYTORCH,
    find_gaps,
    find_largest,
    find_picks,
)

AUGMENTED = "augmented images"
START, EARLY, HALF, END = SHARES = (0.02, 0.1, 0.5, 1.0)  # of the training
SAME = within(-0.3, 0.3, "points", "30 of 10,000 test images: about the standard error of an accuracy of 85%")
COSTLY = above(1.0, "points", A_POINT)
SAMPLES = ("exact(images=1000)", "exact(images=5000)", "precise(images=1000)", "precise(images=10000)", "precise")
AS_THEY_ARE: dict[str, Any] = {"statistics_split": "train"}  # not augmented
TESTED: dict[str, Any] = {"at": END, "split": "test", **AS_THEY_ARE}
LOSS: dict[str, Any] = {**TESTED, "against": "exact", "scale": -100}
AVERAGED: dict[str, Any] = {**LOSS, "batch_size": 128, "averaging": ("swa", "ema")}

# Margins of how near running means are at the end: what is added to the claim, and why.
NEAR = (
    ("near", 0.1, "near it is not, see `tolerance`", "in all means of glyphs' networks it costs 4 to 9 points"),
    ("close", 0.03, "asked when seen", "as in `gap`: about a point, if all means of glyphs' networks are so far off"),
)


def score(source: str | Score, value: str, by: Sequence[str], **how: Any) -> Score:
    """Declare a score as `frames.score` does, of networks whose weights were not averaged."""
    compute = frames.score(source, value, by, **how)

    def compute_unaveraged(tables: Tables) -> pd.DataFrame:
        runs = select(tables["runs"], averaging="none")
        return compute({**tables, "runs": runs})

    return compute_unaveraged


def find_times(tables: Tables) -> pd.DataFrame:
    """Divide each gap by that of the best fixed momentum of the layer and step, which is known in hindsight."""
    gaps = rows(tables, "gaps", SHARES)
    return over_best(gaps, "mean_gap")


def find_against_augmented(tables: Tables) -> pd.DataFrame:
    """Test accuracy at the end under PyTorch's momentum minus that under exact statistics of augmented images."""
    wanted: dict[str, Any] = {"split": "test", "momentum": (0.1, None), "estimator": ("ema", "exact")}
    frame = rows(tables, "evaluations", END, **wanted)
    is_running = frame["estimator"] == "ema"
    is_augmented = frame["statistics_split"] == "train_augmented"
    chosen = frame[is_running | is_augmented]
    return paired(chosen, "accuracy")


def find_without_gain(tables: Tables) -> pd.DataFrame:
    """Find the networks that exact statistics of images as they are gain nothing for, at the end of training."""
    tested = rows(tables, "evaluations", END, split="test", estimator=("ema", "exact"), momentum=(0.1, None))
    both = paired(select(tested, statistics_split="train"), "accuracy")
    return both.assign(gains_nothing=both["accuracy"] >= 0)


def find_distances(tables: Tables) -> pd.DataFrame:
    """Find gaps at the end: of running averages, of the images as they are, and of all as they are augmented."""
    estimators = ("ema", "exact", *SAMPLES)
    frame = rows(tables, "gaps", END, momentum=(0.1, None), depth=OtherThan(1), estimator=estimators)

    # Of all images only those that are augmented: exact statistics of the others are what gaps are measured from.
    is_augmented = frame["statistics_split"] == "train_augmented"
    is_exact = frame["estimator"] == "exact"
    chosen = frame[is_augmented == is_exact]

    lines = []
    for _, row in chosen.iterrows():
        if row["statistics_split"] == "train_augmented":
            lines.append(AUGMENTED)
        else:
            lines.append(estimator_label(row["estimator"], row["momentum"]))
    named = chosen.drop(columns=["estimator", "momentum"])
    return name_panels(named.assign(line=lines), "batch size {batch_size}")


def find_augmented_and_running(tables: Tables) -> pd.DataFrame:
    """Select the gaps of PyTorch's running averages and of statistics of augmented images."""
    distances = find_distances(tables)
    running = estimator_label("ema", 0.1)
    return select(distances, line=(AUGMENTED, running))


def find_sampling_errors(tables: Tables) -> pd.DataFrame:
    """The largest gap over layers of exact statistics of 1,000 and 5,000 images at the end."""
    gaps = rows(tables, "gaps", END, estimator=SAMPLES[:2], **AS_THEY_ARE)
    return find_largest_gap(gaps, "mean_gap", ("batch_size", "estimator"))


def find_gains(tables: Tables) -> pd.DataFrame:
    """Test accuracy minus that under PyTorch's momentum in the same network."""
    frame = rows(tables, "evaluations", SHARES, split="test", momentum=(0.1, None))
    return paired(frame, "accuracy", against="ema")


EXPERIMENT = Experiment(
    bears_on=("Q2", "Q6", "Q8", "Q9", "Q10", "Q11", "Q12", "Q14", "Q17", "H1", "H2", "H4", "H8", "H9", "H12"),
    sweeps=("cifar10", "cifar10_large"),
    columns=("accuracy", "mean_gap"),
    command="""bnlab sweep experiment=cifar10 data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# an hour and a half on two cores of an AMD EPYC, 64 minutes of it training; 25 to 92 MB on disk a network
# then the other sweeps of conf/experiment/cifar10.yaml, with the same words on data""",
    figures={
        "gap": Figure(
            "The gap of the running mean against the momentum, on CIFAR-10",
            f"Read up from a momentum how far off the running average is, in standard "
            f"deviations. {ALL_LAYERS} {{schedule}}",
            score(lambda tables: find_gaps(tables, SHARES[1:], estimator="ema"), "mean_gap", (*EACH, "momentum"),
                  geometric=True),
            Curves("momentum", "batch_size", GAP, mark=PYTORCH),
            Finding("Before the end of training a small momentum has a far larger gap, on CIFAR-10",
                    {"gap_is_u_shaped": ("after 10% of training, momentum 0.003",
                                         "after 50% of training, momentum 0.003")})),
        "cost": Figure(
            "What running averages cost, by momentum, on CIFAR-10",
            "Read up from a momentum: test accuracy of the same network under exact statistics minus that under the "
            "running average; above 0 it loses. Momenta below 0.03, which lose up to 59 points before the end and at "
            "batch 1024, are not drawn.",
            score("evaluations", "accuracy", (*EACH, "momentum"), at=SHARES[1:], against="exact", scale=-100,
                  estimator="ema", momentum=(0.03, 0.1, 0.3, 1.0), split="test", **AS_THEY_ARE),
            Curves("momentum", "batch_size", LOST, mark=PYTORCH),
            Finding("After a tenth of training PyTorch's momentum costs accuracy, on CIFAR-10",
                    {"lag_costs_early": ()})),
        "training": Figure(
            "What running averages cost over training, on CIFAR-10",
            "Read up from an epoch: test accuracy of the same network under exact statistics minus that under "
            "PyTorch's momentum, as it is and without its start at 0 and 1, and under self-tuned momentum. {schedule}",
            score("evaluations", "accuracy", OVER_TIME, against="exact", scale=-100, split="test",
                  estimator=("ema", "ema_debiased", "predictive"), momentum=(0.1, None), **AS_THEY_ARE),
            Curves("epoch", "estimator", LOST),
            Finding("After a tenth of training running averages cost accuracy, also without their start, on CIFAR-10",
                    {"lag_costs_early": ()})),
        "predictive": Figure(
            "The gap of self-tuned momentum over training, against that of the best fixed momentum, on CIFAR-10",
            "Compare with 1: gap of the mean over the smallest of six fixed momenta in that layer at that step, known "
            "in hindsight only; geometric mean over the layers behind the first.",
            score(lambda tables: over_best(rows(tables, "gaps"), "mean_gap"), "mean_gap", OVER_TIME,
                  estimator=("ema", "predictive"), momentum=(0.01, 0.1, None), **RATIO_OVER_LAYERS),
            Curves("epoch", "estimator", TIMES_THE_BEST),
            Finding("Over training self-tuned momentum is about as near as the best fixed one, on CIFAR-10",
                    {"predictive_is_near_the_best": ()})),
        "samples": Figure(
            "Gaps at the end of training, on CIFAR-10",
            "Compare the points of a line: gap of the mean, from exact statistics of all images as they are, root "
            "mean square over the layers behind the first (in the first, precise ones are exact). Precise ones are "
            "pooled over batches of the training size, which normalize themselves.",
            score(lambda tables: gap_over_layers(find_distances(tables), "mean_gap").assign(panel=""), "mean_gap",
                  ("panel", "line", "batch_size"), geometric=True, layers=BEHIND),
            Forest("line", Axis("gap of the mean (σ)", log=True), series="batch_size"),
            Finding("At the end running means are as far from exact ones as means of augmented images, on CIFAR-10",
                    {"augmentation_is_left": ()})),
    },
    claims={
        **{f"means_are_{name}_late": Claim(
            f"At the end of training PyTorch's running means are nearer to exact ones than {margin} σ, in the layer "
            f"where they are farthest ({note}).",
            score(partial(find_largest, at=END, value="mean_gap", by=EACH, **AS_THEY_ARE), "mean_gap",
                  (*EACH, "largest"), geometric=True),
            below(margin, "σ", reason), ("Q8",)) for name, margin, note, reason in NEAR},
        "harmless_late": Claim(
            "At the end of training PyTorch's momentum costs or gains less than 0.3 points.",
            score("evaluations", "accuracy", EACH, at=END, split="test", **COST_OF_EMA), SAME,
            ("Q2", "Q8", "Q11", "Q14", "H2")),
        "exact_gain_in_few": Claim(
            "At the end exact statistics of the images as they are gain nothing over PyTorch's running averages in "
            "most networks (asked when seen).",
            score(find_without_gain, "gains_nothing", ("batch_size",)),
            above(0.5, "of the networks", "more than half are most"), ("Q2", "Q11")),
        "costs_half_way": Claim(
            "Half-way, where the learning rate is high, PyTorch's momentum costs over a point.",
            score("evaluations", "accuracy", EACH, at=HALF, split="test", **COST_OF_EMA), COSTLY, ("Q2", "Q11", "H2")),
        "start_costs_first": Claim(
            "After a fiftieth of training, at batch 1024, the start at 0 and 1 alone costs over a point.",
            score(find_gains, "accuracy", EACH, scale=100, estimator="ema_debiased", panel=share_name(START),
                  batch_size=1024), COSTLY, ("Q2", "H8")),
        "lag_costs_early": Claim(
            "After a tenth of training PyTorch's momentum costs over a point without its start, by lag and noise.",
            score("evaluations", "accuracy", EACH, at=EARLY, split="test",
                  **{**COST_OF_EMA, "estimator": "ema_debiased"}), COSTLY, ("Q2", "H2")),
        "gap_is_u_shaped": Claim(
            "Momenta of 0.003 and of 1 have a larger gap behind the first layer than the best between them (at the "
            "end: asked later; narrowed to the layers behind the first after its numbers were known).",
            score(find_times, "mean_gap", (*EACH, "momentum"), estimator="ema", momentum=(0.003, 1.0),
                  panel=[*map(share_name, SHARES[1:])], **RATIO_OVER_LAYERS),
            above(1.25, "times", margins.FLAT), ("Q6", "Q10", "H1")),
        "predictive_is_near_the_best": Claim(
            "Over training, behind the first layer, the gap of predictive momentum is about that of the best fixed one "
            "of each layer and step (narrowed to the layers behind the first after its numbers were known).",
            score(find_times, "mean_gap", ("batch_size",), average=("layer", "panel"), geometric=True,
                  depth=OtherThan(1), estimator="predictive"), below(1.25, "times", margins.FLAT), ("Q10", "H12")),
        "predictive_is_late_at_the_end": Claim(
            "At the end of the schedule predictive momentum is late: its gap behind the first layer is over a quarter "
            "larger than that (narrowed to the layers behind the first after its numbers were known).",
            score(find_times, "mean_gap", EACH, estimator="predictive", panel=share_name(END), **RATIO_OVER_LAYERS),
            above(1.25, "times", margins.FLAT), ("Q6", "Q10")),
        "predictive_is_never_worse": Claim(
            "Predictive momentum never loses a point or more against PyTorch's.",
            score(find_gains, "accuracy", EACH, scale=100, estimator="predictive"),
            Margin(-1.0, math.inf, "points", A_POINT, together=True), ("Q10",)),
        "thousand_images_suffice": Claim(
            "At the end exact statistics of 1,000 images lose or gain less than 0.3 points against those of all.",
            score("evaluations", "accuracy", EACH, estimator="exact(images=1000)", **LOSS), SAME, ("Q14", "H4")),
        "samples_are_near": Claim(
            "At the end means of 1,000 and 5,000 images err by under 0.01 σ, in the layer where they err most (asked "
            "when seen).",
            score(find_sampling_errors, "mean_gap", ("batch_size", "estimator", "largest"), geometric=True),
            below(0.01, "σ", "a tenth of `means_are_near_late`"), ("Q12", "Q14")),
        "precise_is_as_accurate": Claim(
            "At the end precise statistics of 10,000 images are as accurate as exact ones of all, to 0.3 points.",
            score("evaluations", "accuracy", EACH, estimator="precise(images=10000)", **LOSS), SAME, ("Q9", "H4")),
        "precise_stays_off": Claim(
            "Behind the first layer precise statistics of all images are farther off than exact ones of 5,000 are.",
            score("gaps", "mean_gap", EACH, at=END, against="exact(images=5000)", ratio=True, estimator="precise",
                  **AS_THEY_ARE, **RATIO_OVER_LAYERS), above(1.0, "times", margins.AS_NEAR), ("Q9",)),
        "augmentation_is_left": Claim(
            "At the end, behind the first layer, PyTorch's running means are as far from exact ones as exact ones of "
            "augmented images are "
            "(asked when it was seen).",
            score(find_augmented_and_running, "mean_gap", ("batch_size",), against=AUGMENTED, along="line", ratio=True,
                  **RATIO_OVER_LAYERS),
            within(1 / 1.25, 1.25, "times", margins.HARDLY_SEEN), ("Q8",)),
        "as_accurate_as_augmented": Claim(
            "At the end PyTorch's running averages are as accurate as exact statistics of augmented images, which "
            "training sees, to 0.3 points (asked when it was seen).",
            score(find_against_augmented, "accuracy", EACH, scale=100), SAME, ("Q8", "Q11")),
        "augmented_images_gain": Claim(
            "At the end exact statistics of augmented images are more accurate than those of the images as they are "
            "(asked when it was seen; dropped once, and restored).",
            score(lambda tables: paired(rows(tables, "evaluations", END, split="test", estimator="exact"), "accuracy"),
                  "accuracy", EACH, scale=100), above(0.0, "points gained", margins.AS_ACCURATE), ("Q11",)),
        "averaged_weights_lose": Claim(
            "At the end averaged weights lose over a point under the trained network's running averages.",
            frames.score("evaluations", "accuracy", ("averaging",), estimator="stale", **AVERAGED), COSTLY,
            ("Q11", "H9")),
        "averaged_buffers_are_enough": Claim(
            "At the end averaged weights are as accurate under averaged buffers as under exact statistics.",
            frames.score("evaluations", "accuracy", ("averaging",), estimator="averaged", **AVERAGED), SAME,
            ("Q11", "H9")),
        "averaging_gains": Claim(
            "At the end, under exact statistics, averaged weights are more accurate than those training ended with.",
            frames.score("evaluations", "accuracy", ("averaging",), against="none", along="averaging",
                         matching=("seed",), scale=100, estimator="exact", batch_size=128, **TESTED),
            above(0.0, "points gained", "at 0 averaging gains nothing"), ("Q11", "H9")),
        "same_checkpoint": Claim(
            "Under PyTorch's momentum validation picks the checkpoint that it picks under exact statistics (the last "
            "of four, in all; asked when it was seen).",
            score(find_picks, "same", ("batch_size",), estimator="ema"),
            above(0.5, "of the networks", "more than half are most"), ("Q17",)),
    },
)  # fmt: skip
