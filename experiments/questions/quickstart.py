"""What do running averages cost, early and late in training?

PyTorch's momentum of 0.1 is used for any number of steps.
"""

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, above, within
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import ACCURACY, GAP, Curves
from experiments.margins import A_POINT, AS_NEAR, COST_OF_EMA, EACH, OVER_LAYERS, OVER_TIME, PYTORCH

SHARES = EARLY, LATE = (0.1, 1.0)  # of the training
COST = ("Q2", "Q11", "H2")  # the numbers that claims on accuracy bear on

EXPERIMENT = Experiment(
    answers=("Q2", "Q11", "H2", "H14"),
    figures={
        "gap": Figure(
            "How far the running mean is from the population mean",
            "Root mean square over channels, in standard deviations, geometric mean over layers. Small momenta average "
            "many batches: little noise, but they lag behind the weights and long keep their start of 0. {schedule}",
            score("gaps", "mean_gap", (*EACH, "momentum"), at=SHARES, estimator="ema", **OVER_LAYERS),
            Curves("momentum", "batch_size", GAP, mark=PYTORCH)),
        "estimators": Figure(
            "Other averages of the same batches",
            "Geometric mean over layers but the first, where precise BN is exact; it alone is measured again, on the "
            "training set. Kalman and predictive momentum choose theirs; that of the EMAs is PyTorch's. {schedule}",
            score("gaps", "mean_gap", OVER_TIME, depth=OtherThan(1), estimator=OtherThan("exact"), momentum=(0.1, None),
                  **OVER_LAYERS),
            Curves("epoch", "estimator", GAP)),
        "accuracy": Figure(
            "What the gap costs: test accuracy of the same networks",
            "Under running averages with each momentum; the distance to the dashed line of its colour is the cost.",
            score("evaluations", "accuracy", (*EACH, "momentum"), at=SHARES, scale=100, estimator=("ema", "exact")),
            Curves("momentum", "batch_size", ACCURACY, level="exact statistics", mark=PYTORCH)),
    },
    claims={
        "default_costs_early": Claim(
            "After a tenth of training, PyTorch's momentum costs accuracy.",
            score("evaluations", "accuracy", EACH, at=EARLY, **COST_OF_EMA), above(1.0, "points", A_POINT), COST),
        "default_is_harmless_late": Claim(
            "At the end of training PyTorch's momentum costs less than a point of accuracy.",
            score("evaluations", "accuracy", EACH, at=LATE, **COST_OF_EMA), within(-1.0, 1.0, "points", A_POINT), COST),
        "predictive_is_nearer": Claim(
            "On average over layers and all measured steps, PyTorch's gap is larger than that of predictive momentum.",
            score("gaps", "mean_gap", ("batch_size",), against="predictive", ratio=True, average=("step", "layer"),
                  geometric=True, estimator="ema", momentum=0.1), above(1.0, "times", AS_NEAR), ("H14",)),
    },
)  # fmt: skip
