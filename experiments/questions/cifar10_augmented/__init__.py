"""What do running averages estimate if training augments its images, and which statistics predict best?

The first networks on CIFAR-10 were compared with statistics of plain images, which running averages do not estimate,
because training shifts and mirrors the images. Here are five further seeds. All claims are about these alone, and were
written before their numbers were known unless they are called post hoc.
"""

from functools import partial
from typing import Any

import pandas as pd

import experiments.margins as margins
from bnlab.harness.reporting.frames import (
    RATIO_OVER_LAYERS,
    OtherThan,
    paired,
    rows,
    score,
    share_name,
)
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below, within
from experiments.recipes import EACH, divide_by_best_momentum

START = 0.02
EARLY = 0.1
HALF = 0.5
END = 1.0
SHARES = (START, EARLY, HALF, END)  # of the training
PLAIN = "to the images as they are"
AUGMENTED = "to the images as training sees them"
REFERENCES = {PLAIN: "gaps", AUGMENTED: "augmented_gaps"}  # by the name of a line, its table
LINES = {"ema": "running averages", "exact": "exact statistics of augmented images"}
BATCHES = {size: f"batches of {size}" for size in (32, 128, 1024)}
SAME = within(-0.3, 0.3, "points", "30 of 10,000 test images, about the standard error at 85% accuracy")


def compute_gaps(tables: Tables) -> pd.DataFrame:
    """Find the gaps of PyTorch's running means to both references, at the end."""
    frames = []
    for line, table in REFERENCES.items():
        gaps = rows(tables, table, END, estimator="ema", momentum=0.1)
        named = gaps.assign(line=line)
        frames.append(named)
    return pd.concat(frames, ignore_index=True)


def compute_against_augmented(tables: Tables, *shares: float) -> pd.DataFrame:
    """Subtract from the test accuracy under PyTorch's momentum that under exact statistics of augmented images."""
    tested = rows(tables, "evaluations", shares, split="test", momentum=(0.1, None), estimator=("ema", "exact"))
    # Of several exact statistics `paired` takes those of plain images as the reference, and leaves them out: the only
    # ones left are those of augmented images.
    return paired(paired(tested, "accuracy"), "accuracy")


# Against exact statistics of plain images: of several `paired` takes those of the split `train` as the reference.
OVER_PLAIN: dict[str, Any] = {"at": END, "against": "exact", "scale": 100, "split": "test"}
RATIOS = partial(divide_by_best_momentum, at=SHARES, table="augmented_gaps")

QUESTION = Question(
    bears_on=("Q10", "Q13", "Q15", "Q20", "H1", "H12"),
    columns=("accuracy", "mean_gap"),
    command="""bnlab sweep experiment=cifar10_augmented data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# three to four hours on two cores of an AMD EPYC; seven minutes on an NVIDIA H200, where these rows were made, with
# hydra/launcher=joblib hydra.launcher.n_jobs=15, and once more with 5, as the device's memory was full""",
    figures={
        "accuracy": Figure(
            "Accuracy gained by statistics of augmented images, at the end of training, on CIFAR-10",
            "Points of accuracy gained against exact statistics of plain training images (0), by the same networks. "
            "Exact statistics of augmented images are of all training images, each shifted and mirrored as in "
            "training.",
            score("evaluations", "accuracy", ("batch_size", "estimator"), estimator=[*LINES], momentum=(0.1, None),
                  **OVER_PLAIN),
            Forest("batch_size", Axis("test accuracy gained (points)"), mark=(0.0, "plain images"), series="estimator"),
            Headline("Networks are more accurate under statistics of augmented images than under those of plain ones, "
                     "at batch sizes 32 and 1024", {"augmented_images_gain": ("batch size 32", "batch size 1024")}),
            panels="", names={"estimator": LINES, "batch_size": BATCHES}),
    },
    claims={
        "u_comes_back": Claim(
            "At the end, against statistics of augmented images, momenta of 0.003 and of 1 have a larger gap in the "
            "deeper layers than the best momentum between them.",
            score(RATIOS, "mean_gap", ("batch_size", "momentum"), estimator="ema", momentum=(0.003, 1.0),
                  panel=share_name(END), **RATIO_OVER_LAYERS), above(1.25, "times", margins.FLAT), lines="each"),
        "nearer_to_augmented": Claim(
            "At the end, PyTorch's running means are nearer to statistics of augmented images than to those of plain "
            "images: at most half as far, in the deeper layers.",
            score(compute_gaps, "mean_gap", ("batch_size",), against=PLAIN, along="line", ratio=True,
                  **RATIO_OVER_LAYERS),
            below(0.5, "times", "any figure shows a gap that is halved"), lines="each"),
        "predictive_is_late_at_the_end": Claim(
            "At the end of the schedule, self-tuned momentum is late: its gap to statistics of augmented images in "
            "the deeper layers is over a quarter larger than that of the best fixed momentum.",
            score(RATIOS, "mean_gap", ("batch_size",), estimator="predictive", panel=share_name(END),
                  **RATIO_OVER_LAYERS), above(1.25, "times", margins.FLAT), lines="each"),
        "predictive_is_near_the_best": Claim(
            "Over training, in the deeper layers, the gap of self-tuned momentum to statistics of augmented images is "
            "about that of the best fixed momentum for each layer and step.",
            score(RATIOS, "mean_gap", ("batch_size",), average=("layer", "panel"), geometric=True,
                  depth=OtherThan(1), estimator="predictive"), below(1.25, "times", margins.FLAT), lines="each"),
        "predictive_is_near_before_the_end": Claim(
            "Before the end of training, that gap is about that of the best fixed momentum.",
            score(partial(RATIOS, at=SHARES[:-1]), "mean_gap",
                  ("batch_size",), average=("layer", "panel"), geometric=True, depth=OtherThan(1),
                  estimator="predictive"), below(1.25, "times", margins.FLAT),
            lines="each", post_hoc="asked"),
        "augmented_images_gain": Claim(
            "At the end, exact statistics of augmented images are more accurate than those of plain images.",
            score("evaluations", "accuracy", EACH, estimator="exact", **OVER_PLAIN),
            above(0.0, "points gained", margins.AS_ACCURATE), lines="each"),
        "as_accurate_as_augmented": Claim(
            "At the end, PyTorch's running averages are as accurate as exact statistics of augmented images, to "
            "within 0.3 points.",
            score(lambda tables: compute_against_augmented(tables, END), "accuracy", EACH, scale=100), SAME,
            lines="each"),
        "costs_on_the_way": Claim(
            "After a tenth of training and half-way, where the learning rate is high, PyTorch's momentum costs over a "
            "point against exact statistics of augmented images.",
            score(lambda tables: compute_against_augmented(tables, EARLY, HALF), "accuracy", EACH, scale=-100),
            margins.COSTS_A_POINT, lines="each", post_hoc="asked"),
    },
)  # fmt: skip
