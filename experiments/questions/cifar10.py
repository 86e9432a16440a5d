"""What carries over to real images and a residual network?

Most claims repeat what digits and rendered characters had shown, and were written before any number was known; the
others are called post hoc. The committed results are of a ResNet-20 on JPEG copies of CIFAR-10, which gets 78 to 83%
right. Gaps are of means; before the end, statistics and predictions are of 5,000 images. On this page only, exact
statistics are of plain images, though training shifts and mirrors them: `cifar10_augmented` has both.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

import bnlab.harness.reporting.frames as frames
import experiments.margins as margins
from bnlab.harness.reporting.frames import RATIO_OVER_LAYERS, OtherThan, select, share_name
from bnlab.harness.reporting.plots import LOST, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Score, Tables, above, below, within
from experiments.margins import COSTS_A_POINT
from experiments.recipes import COST_OF_EMA, EACH, OVER_TIME, divide_by_best_momentum, select_largest

START = 0.02
EARLY = 0.1
HALF = 0.5
END = 1.0
SHARES = (START, EARLY, HALF, END)  # of the training
SAME = within(-0.3, 0.3, "points", "30 of 10,000 test images, about the standard error at 85% accuracy")
AS_THEY_ARE: dict[str, Any] = {"statistics_split": "train"}  # not augmented
TESTED: dict[str, Any] = {"at": END, "split": "test", **AS_THEY_ARE}
LOSS: dict[str, Any] = {**TESTED, "against": "exact", "scale": -100}
RATIOS = partial(divide_by_best_momentum, at=SHARES)
AVERAGED: dict[str, Any] = {**LOSS, "batch_size": 128, "averaging": ("swa", "ema")}


def score(source: str | Score, value: str, by: Sequence[str], **how: Any) -> Score:
    """Declare a score as `frames.score` does, of networks whose weights were not averaged."""
    compute = frames.score(source, value, by, **how)

    def compute_unaveraged(tables: Tables) -> pd.DataFrame:
        runs = select(tables["runs"], averaging="none")
        # `rows` joins all tables with `runs`, so that rows of the other networks are left out as well.
        return compute({**tables, "runs": runs})

    return compute_unaveraged


QUESTION = Question(
    bears_on=("Q10", "Q13", "Q15", "Q16", "Q17", "Q20", "Q24", "Q27", "Q31", "H1", "H2", "H4", "H8", "H9", "H12"),
    columns=("accuracy", "mean_gap"),
    command="""bnlab sweep experiment=cifar10 data.download=true
# image files in train/<class>/ and test/<class>/ below FOLDER instead: data.copies=true data.root=FOLDER
# an hour and a half on two cores of an AMD EPYC, 64 minutes of it training; 25 to 92 MB on disk a network
# then the other sweeps of conf/experiment/cifar10.yaml, with the same words on data""",
    figures={
        "training": Figure(
            "What running averages cost over training, on CIFAR-10",
            "Points lost at each epoch: test accuracy of the same network under exact statistics minus that under "
            "PyTorch's momentum, as it is and without its start at 0 and 1, and under self-tuned momentum. {schedule}",
            score("evaluations", "accuracy", OVER_TIME, against="exact", scale=-100, split="test",
                  estimator=("ema", "ema_debiased", "predictive"), momentum=(0.1, None), **AS_THEY_ARE),
            Curves("epoch", "estimator", LOST),
            Headline("After a tenth of training, running averages cost accuracy on CIFAR-10, even without their start",
                    {"lag_costs_early": ()})),
    },
    claims={
        "means_are_near_late": Claim(
            "At the end of training PyTorch's running means are nearer to exact ones than 0.1 σ, in the layer where "
            "they are farthest (near it is not, see `tolerance`).",
            score(partial(select_largest, at=END, value="mean_gap", by=EACH, **AS_THEY_ARE), "mean_gap",
                  (*EACH, "largest"), geometric=True),
            below(0.1, "σ", "in networks for rendered characters, such an error in all means costs 4 "
                            "to 9 points"), lines="each"),
        "harmless_late": Claim(
            "At the end of training PyTorch's momentum costs or gains less than 0.3 points.",
            score("evaluations", "accuracy", EACH, at=END, split="test", **COST_OF_EMA), SAME, lines="each"),
        "costs_half_way": Claim(
            "Half-way, where the learning rate is high, PyTorch's momentum costs over a point.",
            score("evaluations", "accuracy", EACH, at=HALF, split="test", **COST_OF_EMA), COSTS_A_POINT, lines="each"),
        "start_costs_first": Claim(
            "After a fiftieth of training, at batch 1024, the start at 0 and 1 alone costs over a point.",
            score("evaluations", "accuracy", EACH, at=START, against="ema", matching=("run", "momentum"), scale=100,
                  split="test", estimator="ema_debiased", momentum=0.1, batch_size=1024), COSTS_A_POINT, lines="each"),
        "lag_costs_early": Claim(
            "After a tenth of training PyTorch's momentum costs over a point without its start, by lag and noise.",
            score("evaluations", "accuracy", EACH, at=EARLY, split="test",
                  **{**COST_OF_EMA, "estimator": "ema_debiased"}), COSTS_A_POINT, lines="each"),
        "gap_is_u_shaped": Claim(
            "Momenta of 0.003 and of 1 have a larger gap in the deeper layers than the best between them.",
            score(RATIOS, "mean_gap", (*EACH, "momentum"), estimator="ema", momentum=(0.003, 1.0),
                  panel=[*map(share_name, SHARES[1:])], **RATIO_OVER_LAYERS), above(1.25, "times", margins.FLAT),
            lines="each", post_hoc="layers after the first only; the end was added"),
        "predictive_is_near_the_best": Claim(
            "Over training, in the deeper layers, the gap of self-tuned momentum is about that of the best fixed "
            "one of each layer and step.",
            score(RATIOS, "mean_gap", ("batch_size",), average=("layer", "panel"), geometric=True,
                  depth=OtherThan(1), estimator="predictive"), below(1.25, "times", margins.FLAT),
            lines="each", post_hoc="layers after the first only"),
        "thousand_images_suffice": Claim(
            "At the end, exact statistics of 1,000 images differ by less than 0.3 points from those of all images.",
            score("evaluations", "accuracy", EACH, estimator="exact(images=1000)", **LOSS), SAME, lines="each"),
        "precise_is_as_accurate": Claim(
            "At the end, precise statistics of 10,000 images are as accurate as exact statistics of all, to within "
            "0.3 points.",
            score("evaluations", "accuracy", EACH, estimator="precise(images=10000)", **LOSS), SAME, lines="each"),
        "averaged_weights_lose": Claim(
            "At the end, averaged weights lose over a point under the trained network's running averages.",
            frames.score("evaluations", "accuracy", ("averaging",), estimator="stale", **AVERAGED), COSTS_A_POINT,
            lines="each"),
        "averaging_gains": Claim(
            "At the end, under exact statistics, averaged weights are more accurate than those training ended with.",
            frames.score("evaluations", "accuracy", ("averaging",), against="none", along="averaging",
                         matching=("seed",), scale=100, estimator="exact", batch_size=128, **TESTED),
            above(0.0, "points gained", "0 means that averaging gains nothing"), lines="each"),
    },
)  # fmt: skip
