"""How well do statistics of the test batch predict images that are not like those of training?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import (
    find_parameter,
    interval,
    name_panels,
    paired,
    put_in_order,
    rows,
    score,
    select,
)
from bnlab.harness.reporting.plots import ACCURACY, EstimatorCurves, Forest
from bnlab.harness.reporting.style import Axis
from experiments.margins import A_POINT, SIX_IMAGES

KINDS, FONTS = ("contrast", "noise", "blur", "translation", "occlusion"), "fonts:stix_cm"
CORRUPTIONS = tuple(f"{kind}:{strength}" for kind in KINDS for strength in (1, 2, 3))
SHIFTS = ("none", FONTS, *CORRUPTIONS)
STRONG = tuple(f"{kind}:3" for kind in KINDS)
SHARES = (1.0,)  # of the training
FEW, MANY, PRIOR = 4, 256, 16

GAINS = above(0.0, "points", "no gain at all is the other answer")


def find_predictions(tables: Tables) -> pd.DataFrame:
    """Rows of all shifts, in order, with the columns `images`, in a test batch, and `prior`, its pseudo-samples."""
    frame = put_in_order(rows(tables, "evaluations", SHARES, by=(), shift=SHIFTS), "shift", SHIFTS)
    images = find_parameter(frame, "n", "test_batch").fillna(find_parameter(frame, "batch", "pseudo_samples"))
    prior = find_parameter(frame, "n", "pseudo_samples").fillna(0).astype(int)
    return frame.assign(images=images, prior=prior)


def score_accuracy(tables: Tables) -> pd.DataFrame:
    """Accuracy in percent by size of the test batch; under exact statistics it is the same at all sizes."""
    frame = find_predictions(tables)
    rules = frame[frame["images"].notna()].sort_values("prior", kind="stable")
    names = {prior: f"pseudo_samples(n={prior})" if prior else "test_batch" for prior in rules["prior"].unique()}
    sizes, exact = rules[["images"]].drop_duplicates(), select(frame, estimator="exact").drop(columns="images")
    drawn = pd.concat([rules.assign(estimator=rules["prior"].map(names)), exact.merge(sizes, how="cross")])
    return interval(name_panels(drawn, "{shift}"), "accuracy", ("panel", "estimator", "momentum", "images"), scale=100)


def find_gains(tables: Tables) -> pd.DataFrame:
    """Accuracy under statistics of the test batch minus that under exact ones of the training split, same images."""
    gains = paired(find_predictions(tables), "accuracy").dropna(subset="images")
    return name_panels(gains, "{images:.0f} test images, {prior} pseudo-samples")


def find_strengths(tables: Tables) -> pd.DataFrame:
    """What many test images gain, with a panel for each kind of corruption, and the column `strength`."""
    gains = select(find_gains(tables), images=MANY, prior=0, shift=CORRUPTIONS)
    parts = gains.pop("shift").str.extract("(.*):(.*)")
    return gains.assign(panel=parts[0], strength=parts[1])


def score_gain(shift: str | tuple[str, ...], images: int = MANY, prior: int = 0) -> Score:
    """Points that so many test images, mixed with so many pseudo-samples, gain under these shifts."""
    return score(find_gains, "accuracy", ("shift",), scale=100, shift=shift, images=images, prior=prior)


EXPERIMENT = Experiment(
    name="shift",
    question="How well do statistics of the test batch predict images that are not like those of training?",
    answers=("F14", "Q13"),
    source="Nado et al. 2020 and Schneider et al. 2020: under corruptions statistics of the test batch predict better "
    "than those of training, under natural shifts hardly; mixed with pseudo-samples even those of few images do. "
    "All networks are trained on glyphs of the DejaVu fonts.",
    columns={"evaluations": ("accuracy",)},
    figures=(
        Figure("shift", "Statistics of the test batch under shifts of the test images",
               "Test accuracy against the number of images in a test batch, a panel for each shift. The "
               "strength of a corruption is 1, weak, to 3, strong. "
               "Pseudo-samples: exact statistics of the training split count as n further images.",
               score_accuracy, EstimatorCurves(ACCURACY, x="images")),
        Figure("gain", "What statistics of the test batch gain under shifts",
               "Difference in test accuracy to the same network under exact statistics of the training split; right of "
               "0 is a gain. The strength of a corruption is 1, weak, to 3, strong.",
               score(find_gains, "accuracy", ("panel", "shift"), scale=100, images=(FEW, MANY), prior=(0, PRIOR)),
               Forest("shift", Axis("accuracy gained (points)"), mark=(0, "exact population"))),
    ),
    claims=(
        Claim("shifts_cost", "Under exact statistics of the training split, strong corruptions and other fonts cost "
              "accuracy.",
              score(find_predictions, "accuracy", ("shift",), against="none", along="shift", scale=-100,
                    estimator="exact", shift=(FONTS, *STRONG)), above(1.0, "points", A_POINT)),
        Claim("many_images_gain", "Under strong corruptions statistics of 256 test images gain accuracy against exact "
              "ones of the training split.", score_gain(STRONG), GAINS),
        Claim("stronger_gains_more", "Statistics of 256 test images gain more under a strong corruption, of strength "
              "3, than under a weak one of the same kind, of strength 1.",
              score(find_strengths, "accuracy", ("panel",), against="1", along="strength", scale=100,
                    strength="3"), GAINS),
        Claim("fonts_gain_little", "Under other fonts, a natural shift, statistics of 256 test images gain less than a "
              "point.", score_gain(FONTS), below(1.0, "points gained", A_POINT)),
        Claim("unshifted_loses_nothing", "Without a shift statistics of 256 test images give the accuracy of exact "
              "ones, to 0.3 points.", score_gain("none"),
              within(-0.3, 0.3, "points gained", SIX_IMAGES)),
        Claim("few_and_pseudo_gain", "Under strong corruptions 4 test images, mixed with 16 pseudo-samples, gain "
              "accuracy against exact statistics.", score_gain(STRONG, FEW, PRIOR), GAINS),
    ),
)  # fmt: skip
