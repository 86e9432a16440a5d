"""Which images should statistics be of where training augments: as they are, or as training sees them?

Drawn characters are shifted by up to two pixels in training, and predicted as they are. Fifteen seeds from the start;
all claims were written before their first number.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above, below, within
from bnlab.harness.reporting.frames import (
    RATIO_OVER_LAYERS,
    gap_over_layers,
    name_panels,
    rows,
    score,
    select,
    share_name,
)
from bnlab.harness.reporting.plots import AGAINST_EXACT, GAP, Curves
from experiments.margins import AS_NEAR, EACH, SIX_IMAGES, find_gains_over_plain

_, EARLY, _, HALF, END = SHARES = (0.03, 0.1, 0.2, 0.55, 1.0)  # of the training
PLAIN = "to the images as they are"
AUGMENTED = "to the images as training sees them"
BETWEEN = "between the two"


def find_gaps(tables: Tables) -> pd.DataFrame:
    """Find gaps of PyTorch's running means to both populations, and those between the two."""
    running: dict[str, Any] = {"estimator": "ema", "momentum": 0.1}
    exact: dict[str, Any] = {"estimator": "exact", "statistics_split": "train"}
    lines = {
        PLAIN: rows(tables, "gaps", SHARES, **running),
        AUGMENTED: rows(tables, "augmented_gaps", SHARES, **running),
        BETWEEN: rows(tables, "augmented_gaps", SHARES, **exact),
    }

    named = [frame.assign(line=line) for line, frame in lines.items()]
    gaps = pd.concat(named, ignore_index=True)
    differing = ["estimator", "momentum", "statistics_split"]  # between lines
    return gaps.drop(columns=differing)


def find_curves(tables: Tables) -> pd.DataFrame:
    """Average these gaps over the layers, in a panel for each batch size."""
    averaged = gap_over_layers(find_gaps(tables), "mean_gap")
    return name_panels(averaged, "{layers}, batch size {batch_size}")


def find_lines(tables: Tables) -> pd.DataFrame:
    """Find the accuracies over training, minus those with exact statistics of the images as they are."""
    gains = find_gains_over_plain(tables, SHARES)
    return name_panels(gains, "batch size {batch_size}")


EXPERIMENT = Experiment(
    bears_on=("Q8", "Q11"),
    columns=("accuracy", "mean_gap"),
    figures={
        "gap": Figure(
            "Gaps of the mean over training, to the images as they are and as training sees them",
            "Of the EMA at momentum 0.1, and between exact statistics of the images as they are and as training sees "
            "them. {schedule}",
            score(find_curves, "mean_gap", ("panel", "line", "epoch"), geometric=True),
            Curves("epoch", "line", GAP),
            Finding("Running averages end nearer to the images as training sees them",
                    {"running_averages_are_of_augmented_images": ("at the end of training",)})),
        "accuracy": Figure(
            "Accuracy on images as they are, under running averages and statistics of augmented images",
            "Minus that of the same network under exact statistics of the images as they are. {schedule}",
            score(find_lines, "accuracy", ("panel", "line", "epoch"), scale=100),
            Curves("epoch", "line", AGAINST_EXACT),
            Finding("At the end statistics of either images predict as well",
                    {"either_predicts_as_well": ()})),
    },
    claims={
        "populations_differ": Claim(
            "At the end statistics of augmented images are farther than 0.03 σ from those of the images as they are, "
            "behind the first layer.",
            score(lambda tables: gap_over_layers(select(find_gaps(tables), line=BETWEEN), "mean_gap"), "mean_gap",
                  ("batch_size",), geometric=True, layers="behind the first layer", panel=share_name(END)),
            above(0.03, "σ", "as in `gap`: about a point, if all means of glyphs' networks are so far off")),
        "running_averages_are_of_augmented_images": Claim(
            "Half-way and at the end PyTorch's running means are nearer to statistics of augmented images than to "
            "those of the images as they are, behind the first layer.",
            score(find_gaps, "mean_gap", EACH, against=PLAIN, along="line", ratio=True, line=AUGMENTED,
                  panel=[share_name(HALF), share_name(END)], **RATIO_OVER_LAYERS),
            below(1.0, "times", AS_NEAR)),
        "lag_hides_it_early": Claim(
            "After a tenth of training the gap between the two populations is less than half that of PyTorch's running "
            "means, behind the first layer.",
            score(find_gaps, "mean_gap", ("batch_size",), against=AUGMENTED, along="line", ratio=True, line=BETWEEN,
                  panel=share_name(EARLY), **RATIO_OVER_LAYERS),
            below(0.5, "times", "what is less than half adds less than a quarter to the squared gap")),
        "either_predicts_as_well": Claim(
            "At the end statistics of augmented images predict the images as they are as well as their own do, to 0.3 "
            "points.",
            score(lambda tables: find_gains_over_plain(tables, END), "accuracy", ("batch_size",), scale=100,
                  estimator="exact"),
            within(-0.3, 0.3, "points gained", SIX_IMAGES)),
    },
)  # fmt: skip
