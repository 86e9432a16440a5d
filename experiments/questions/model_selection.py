"""Does early stopping pick another checkpoint under running averages than under exact statistics?

Validation during training uses running averages; at a constant learning rate the last checkpoint need not be the best.
"""

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, above, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Curves
from experiments.margins import A_POINT, OVER_TIME, find_picks

RULES = {"ema": "the EMA", "predictive": "predictive momentum"}
MOST = "more than half are most; of two batch sizes, six networks each that agree are the fewest that decide it"
MARGIN = "12 or 13 of 2,500 test images: the standard error where accuracy is near 95%; comparisons are paired"


EXPERIMENT = Experiment(
    bears_on=("Q14", "Q17"),
    columns=("accuracy",),
    figures={"validation": Figure(
        "What early stopping sees",
        "Compare the curves at one epoch: the same weights under different statistics; of each network the highest "
        "checkpoint is picked. At 3 and 4 epochs the newest batch is the last of an epoch, which has 40 images at "
        "batch size 256: there the curves dip. {schedule}",
        score("evaluations", "accuracy", OVER_TIME, scale=100, split="val"),
        Curves("epoch", "estimator", Axis("validation accuracy (%)", (0, 102))),
        Finding("Early stopping sees less than the network can do, under running averages", {"ema_shows_less": ()}))},
    claims={
        "last_is_not_best": Claim(
            "At a constant learning rate the last checkpoint has a lower test accuracy than exact statistics' pick.",
            score(find_picks, "cost", ("batch_size",), scale=100, estimator="last"),
            above(0.0, "points lost", "at 0 there is nothing to select"), ("Q17",)),
        "ema_shows_less": Claim(
            "Over training the EMA shows a lower validation accuracy than exact statistics.",
            score("evaluations", "accuracy", ("batch_size",), against="exact", average="step", scale=-100, split="val",
                  estimator="ema"), above(0.5, "points", "the margin of what is picked by it")),
        "predictive_helps_at_the_end": Claim(
            "At the last checkpoint, at a constant learning rate, predictive momentum is over a point more accurate on "
            "test images than PyTorch's (asked when seen).",
            score("evaluations", "accuracy", ("batch_size",), at=1.0, against="ema", scale=100, split="test",
                  estimator="predictive"), above(1.0, "points gained", A_POINT), ("Q17",)),
        **{f"{rule}_costs_at_the_end": Claim(
            f"At the last checkpoint, at a constant learning rate, {words} costs over a point (asked when seen).",
            score("evaluations", "accuracy", ("batch_size",), at=1.0, against="exact", scale=-100, split="test",
                  estimator=rule), above(1.0, "points", A_POINT), ("Q17",)) for rule, words in RULES.items()},
        **{f"{rule}_picks_as_well": Claim(
            f"The pick under {words} has the test accuracy of that under exact statistics, to half a point.",
            score(find_picks, "cost", ("batch_size",), scale=100, estimator=rule), within(-0.5, 0.5, "points", MARGIN))
            for rule, words in RULES.items()},
        **{f"{rule}_picks_the_same": Claim(
            f"In most networks {words} picks the checkpoint that exact statistics pick.",
            score(find_picks, "same", ("batch_size",), estimator=rule), above(0.5, "of the networks", MOST), ("Q17",))
            for rule, words in RULES.items()},
    },
)  # fmt: skip
