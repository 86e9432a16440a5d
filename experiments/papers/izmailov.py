"""Are averages of the weights along a training more accurate, and do they need statistics of their own?"""

from typing import Any

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.question import Figure, Question, cite
from experiments.questions import cifar10, weight_averaging

PAPER = read_paper(__file__)

GAIN_PLOT = Forest("averaging", Axis("points gained by averaging"))
GAIN_CAPTION = (
    "Ours: test accuracy of averaged weights minus that of the weights that the same training ended with, both under "
    "exact statistics. Theirs: a training of the same budget with averaging minus one without; averaged weights have "
    "statistics of one more pass, where a network has batch norm."
)
AVERAGED_BY = {"swa": "averaged by SWA", "ema": "averaged by EMA"}
GAINED: dict[str, Any] = {
    "at": 1.0,
    "scale": 100,
    "against": "none",
    "along": "averaging",
    "matching": ("seed",),
    "estimator": "exact",
}


QUESTION = Question(
    paper=PAPER,
    figures={
        "accuracy": Figure(
            "What averaging weights gains, at a constant learning rate",
            GAIN_CAPTION,
            score("evaluations", "accuracy", ("panel", "averaging"), **GAINED),
            GAIN_PLOT,
            names={"averaging": AVERAGED_BY},
            printed=PAPER.pick("c100_pre110_gain", "c100_pre164_gain", "c100_wrn_gain", "c100_vgg_gain"),
            reads="weight_averaging"),
        "cifar10": Figure(
            "What averaging weights gains on CIFAR-10, at a learning rate that falls to 0",
            GAIN_CAPTION,
            score("evaluations", "accuracy", ("panel", "averaging"), split="test", statistics_split="train",
                  batch_size=128, **GAINED),
            GAIN_PLOT,
            names={"averaging": AVERAGED_BY},
            printed=PAPER.pick("c10_pre110_gain", "c10_pre164_gain", "c10_wrn_gain", "c10_vgg_gain"),
            reads="cifar10"),
    },
    claims={
        "gains": cite(weight_averaging, "averaging_gains", "tables"),
        "gains_on_cifar10": cite(cifar10, "averaging_gains", "tables, but at a rate that falls to 0"),
        "stale_costs": cite(weight_averaging, "stale_statistics_cost", "the further pass"),
        "buffers_are_enough": cite(weight_averaging, "averaged_buffers_are_enough", "not in what was read"),
    })  # fmt: skip
