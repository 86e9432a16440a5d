"""Does normalization in parts of a large batch (ghost batches) narrow the gap to small batches?"""

from typing import Any

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, within
from experiments.margins import A_POINT
from experiments.questions import ghost

IN_PARTS_OF_32: dict[str, Any] = {"norm.batch_size": 32}
PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "parts": Figure(
            "Accuracy by the number of images that are normalized together",
            "Ours are batches of 256 that are normalized in parts; test batches have as many images as the parts. "
            "Theirs are parts of batches of 2,048 or 4,096: at 256 ours is the whole batch, and theirs a part of one.",
            score(
                ghost.select_accuracies, "accuracy", ("panel", "estimator", "momentum", "norm.batch_size"), scale=100,
                momentum=(0.1, None)),
            Curves("norm.batch_size", "estimator", Axis("test accuracy (%)")),
            printed=PAPER.pick("parts_of_resnet44", "parts_of_mnist"), reads="ghost"),
    },
    claims={
        "parts_are_as_good_as_the_whole": Claim(
            "Under exact statistics training in parts of 32 is within a point of that in whole batches of 256.",
            score(
                ghost.select_accuracies, "accuracy", ("norm.batch_size",), scale=100, against=256,
                along="norm.batch_size", matching=("seed",), estimator="exact", **IN_PARTS_OF_32),
            within(-1.0, 1.0, "points gained", A_POINT), lines="each", post_hoc="asked", reads="ghost",
            about="tables, of which only the direction is in the abstract"),
    })  # fmt: skip
