"""Is it the batch size or the number of updates that decides what a running average costs?

At equal epochs a large batch makes few updates, so that an average over a fixed number of them reaches far back. Here
all batch sizes make 560, those of four epochs in batches of 64. Fifteen seeds from the start; all claims were written
before their first number.
"""

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, above, below, within
from bnlab.harness.reporting.frames import RATIO_OVER_LAYERS, score
from bnlab.harness.reporting.plots import GAP, LOST, Axis, Curves
from experiments.margins import A_POINT, ALL_LAYERS, AS_NEAR, COST_OF_EMA, EACH, PYTORCH, SIX_IMAGES, find_gaps

SHARES = EARLY, _, HALF, END = (0.1, 0.2, 0.55, 1.0)  # of the training
CALIBRATION = Axis("expected calibration error lost against exact statistics (points)")
LITTLE = within(-0.3, 0.3, "points", SIX_IMAGES)

EXPERIMENT = Experiment(
    bears_on=("Q2", "Q8", "Q14", "H2"),
    columns=("accuracy", "ece", "loss", "mean_gap"),
    figures={
        "gap": Figure(
            "The gap of the running mean against the momentum, at equal numbers of updates",
            f"Of the EMA, in standard deviations. {ALL_LAYERS} {{schedule}}",
            score(lambda tables: find_gaps(tables, SHARES, estimator="ema"), "mean_gap", (*EACH, "momentum"),
                  geometric=True),
            Curves("momentum", "batch_size", GAP, mark=PYTORCH),
            Finding("After as many updates running means end farther off in small batches",
                    {"small_batches_are_farther_at_the_end": ()})),
        "cost": Figure(
            "What running averages cost against the momentum, at equal numbers of updates",
            "Test accuracy of the same network under exact statistics minus that under the EMA. {schedule}",
            score("evaluations", "accuracy", (*EACH, "momentum"), at=SHARES, against="exact", scale=-100,
                  estimator="ema"),
            Curves("momentum", "batch_size", LOST, mark=PYTORCH),
            Finding("With 560 updates PyTorch's momentum costs nothing at the end in batches of 64 and 256",
                    {"harmless_late": ("batch size 64", "batch size 256")})),
        "calibration": Figure(
            "What running averages cost in calibration, at equal numbers of updates",
            "Expected calibration error (15 bins) under the EMA minus that under exact statistics of the same network. "
            "{schedule}",
            score("evaluations", "ece", (*EACH, "momentum"), at=SHARES, against="exact", scale=100, estimator="ema"),
            Curves("momentum", "batch_size", CALIBRATION, mark=PYTORCH)),
    },
    claims={
        "small_batches_are_farther_at_the_end": Claim(
            "At the end, at equal numbers of updates, the gap of PyTorch's running means behind the first layer is "
            "more than twice as large in batches of 4 as of 256.",
            score("gaps", "mean_gap", ("batch_size",), at=END, against=256, along="batch_size", matching=("seed",),
                  ratio=True, batch_size=4, estimator="ema", momentum=0.1, **RATIO_OVER_LAYERS),
            above(2.0, "times", "sampling noise alone would be eight times as large")),
        "lag_does_not_depend_on_the_batch": Claim(
            "After a tenth of training the gap behind the first layer is smaller in batches of 4 than of 256, though "
            "their noise is larger: smaller learning rates move the statistics less.",
            score("gaps", "mean_gap", ("batch_size",), at=EARLY, against=256, along="batch_size", matching=("seed",),
                  ratio=True, batch_size=4, estimator="ema", momentum=0.1, **RATIO_OVER_LAYERS),
            below(1.0, "times", AS_NEAR)),
        "harmless_late": Claim(
            "At the end PyTorch's momentum costs or gains less than 0.3 points at any batch size.",
            score("evaluations", "accuracy", ("batch_size",), at=END, **COST_OF_EMA), LITTLE),
        "costs_half_way": Claim(
            "Half-way, where the learning rate is high, PyTorch's momentum costs over a point in batches of 64 and "
            "256.",
            score("evaluations", "accuracy", ("batch_size",), at=HALF, batch_size=(64, 256), **COST_OF_EMA),
            above(1.0, "points", A_POINT)),
        "calibration_is_kept_late": Claim(
            "At the end the expected calibration error under PyTorch's momentum is that under exact statistics, to 0.3 "
            "points.",
            score("evaluations", "ece", ("batch_size",), at=END, **{**COST_OF_EMA, "scale": 100}),
            within(-0.3, 0.3, "points", "of the order of the error that 2,500 images leave")),
        "calibration_suffers_half_way": Claim(
            "Half-way the expected calibration error under PyTorch's momentum is over a point larger, in batches of 64 "
            "and 256.",
            score("evaluations", "ece", ("batch_size",), at=HALF, batch_size=(64, 256),
                  **{**COST_OF_EMA, "scale": 100}),
            above(1.0, "points", "as much as an accuracy that counts")),
        "loss_tells_more_than_accuracy": Claim(
            "Half-way the test loss under PyTorch's momentum is over a tenth larger than under exact statistics, in "
            "batches of 64 and 256.",
            score("evaluations", "loss", ("batch_size",), at=HALF, against="exact", ratio=True, geometric=True,
                  batch_size=(64, 256), estimator="ema", momentum=0.1),
            above(1.1, "times", "a loss that is a tenth larger is seen in any training curve")),
    },
)  # fmt: skip
