"""How long may an exponential average of the weights reach back, and what has to be done with batch norm's statistics
for it?"""

from typing import Any

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import Axis, Forest
from bnlab.harness.reporting.printed import make_printed_figure
from bnlab.harness.reporting.question import Claim, Question, above, below, show, within
from experiments.margins import A_POINT, AS_ACCURATE, SIX_IMAGES
from experiments.questions import averaging_windows

OF_ONE_CYCLE: dict[str, Any] = {"optimizer.schedule": "onecycle"}
AT_A_CONSTANT_RATE: dict[str, Any] = {"optimizer.schedule": "constant"}
PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "windows": show(
            averaging_windows, "windows", PAPER.pick("decay_968", "decay_984", "decay_992", "decay_996", "decay_998")),
        "printed": make_printed_figure(
            "Theirs: gained over the trained network by averaging weights, with statistics averaged and recomputed", "",
            Forest("panel", Axis("points gained over the trained network"), series="series"),
            PAPER.pick(
                "c100_rn18_kept_gain", "c100_rn18_again_gain", "c100_wrn_kept_gain", "c100_wrn_again_gain",
                "c10_rn18_kept_gain", "c10_rn18_again_gain", "tiny_kept_gain", "tiny_again_gain", "noisy_kept_gain",
                "noisy_again_gain"),
            reads="averaging_windows"),
    },
    claims={
        "long_windows_need_new_ones": Claim(
            "At 55% of one-cycle training an average over 10% of the updates loses over a point under averaged "
            "buffers.",
            score(
                "averaged_weights", "accuracy_lost", ("batch_size",), at=0.55, scale=100, statistics="averaged",
                window=0.102, **OF_ONE_CYCLE),
            above(1.0, "points lost", A_POINT), lines="each", reads="averaging_windows"),
        "short_windows_do_not": Claim(
            "There an average over 0.64% of the updates loses less than 0.3 points.",
            score(
                "averaged_weights", "accuracy_lost", ("batch_size",), at=0.55, scale=100, statistics="averaged",
                window=0.0064, **OF_ONE_CYCLE),
            within(-0.3, 0.3, "points lost", SIX_IMAGES), lines="each", reads="averaging_windows"),
        "longer_is_better_once_recomputed": Claim(
            "At a constant rate, at the end, with recomputed statistics, a window of 10% is more accurate than one "
            "of 0.64%.",
            score(
                "averaged_weights", "accuracy", ("batch_size",), at=1.0, against=0.0064, along="window",
                matching=("run", "statistics"), scale=100, window=0.102, statistics="recomputed",
                **AT_A_CONSTANT_RATE),
            above(0.0, "points gained", AS_ACCURATE), lines="each", reads="averaging_windows"),
        "recomputing_never_costs": Claim(
            "Nowhere do recomputed statistics cost as much as 0.3 points against averaged buffers.",
            score(
                "averaged_weights", "accuracy_lost", ("panel", "batch_size", "optimizer.schedule", "window"),
                at=(0.35, 0.55, 0.75, 0.9, 1.0), scale=100, statistics="averaged", window=OtherThan(0.0)),
            above(-0.3, "points", SIX_IMAGES), lines="each", reads="averaging_windows"),
        "averaged_buffers_prefer_shorter_windows": Claim(
            "At 55% of one-cycle training the best window under averaged buffers is shorter than under recomputed "
            "ones.",
            score(
                averaging_windows.find_best_window, "window", ("batch_size",), against="recomputed", along="statistics",
                ratio=True, geometric=True, statistics="averaged", panel="55% of training",
                **OF_ONE_CYCLE),
            below(1.0, "times", "at 1 both prefer the same window"), lines="each", reads="averaging_windows"),
        "nothing_to_average_at_rate_zero": Claim(
            "At the end of one-cycle training, where the rate is 0, a window of 0.64% changes accuracy by less than "
            "0.3 points.",
            score(
                "averaged_weights", "accuracy", ("batch_size",), at=1.0, against=0.0, along="window",
                matching=("run", "statistics"), scale=100, window=0.0064, statistics="recomputed",
                **OF_ONE_CYCLE),
            within(-0.3, 0.3, "points", SIX_IMAGES), lines="each", reads="averaging_windows"),
    })  # fmt: skip
