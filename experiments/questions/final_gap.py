"""What is left of the gap at the end of training, from tiny to huge batches, and what does it cost?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, above, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import GAP, LOST, Curves
from experiments.margins import SIX_IMAGES

SHARES = (1.0,)  # of the training
EACH = ("panel", "batch_size")
MARGIN = ("points", SIX_IMAGES)


def score_loss(estimator: str, momentum: float | None, sizes: tuple[int, ...]) -> Score:
    """Points of accuracy that an estimator loses against exact statistics of the same network."""
    return score("evaluations", "accuracy", EACH, SHARES, against="exact", scale=-100,
                 estimator=estimator, momentum=momentum, batch_size=sizes)  # fmt: skip


EXPERIMENT = Experiment(
    name="final_gap",
    question="What is left of the gap at the end of training, from tiny to huge batches, and what does it cost?",
    answers=("F4", "Q8", "Q11", "Q16", "H2"),
    source="Wu & Johnson 2021, figure 4: near zero at an adequate batch, and the population wins at small ones.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("gap", "The gap that is left at the end of training",
               "Distance of the EMA's mean from the exact population mean, in standard deviations, geometric mean "
               "over layers. Networks with large batches have made few steps: an average that remembers many batches "
               "still lags. Small batches are noisy.",
               score("gaps", "mean_gap", (*EACH, "momentum"), SHARES, average="layer", geometric=True, estimator="ema"),
               Curves("batch_size", "momentum", GAP)),
        Figure("cost", "Accuracy lost at the end of training, by batch size",
               "Test accuracy of the same network under exact statistics minus that under the EMA; above 0 the EMA "
               "loses.",
               score("evaluations", "accuracy", (*EACH, "momentum"), SHARES, against="exact", scale=-100,
                     estimator="ema"),
               Curves("batch_size", "momentum", LOST)),
    ),
    claims=(
        Claim("nothing_at_adequate_batch", "At moderate batches PyTorch's momentum costs less than 0.3 points of "
              "accuracy.",
              score_loss("ema", 0.1, (16, 64, 256)), within(-0.3, 0.3, *MARGIN),
              answers=("Q8", "Q11", "Q16", "H2")),
        Claim("population_wins_when_tiny", "At a tiny batch PyTorch's momentum costs accuracy.",
              score_loss("ema", 0.1, (4,)), above(0.0, "points", "no cost at all is the other answer"),
              answers=("Q11",)),
        Claim("lag_costs_when_huge", "At a huge batch, with few steps, PyTorch's momentum costs accuracy.",
              score_loss("ema", 0.1, (1024,)), above(0.3, *MARGIN),
              answers=("Q8", "Q11", "Q16", "H2")),
        Claim("predictive_costs_nothing", "Predictive momentum costs less than 0.3 points of accuracy.",
              score_loss("predictive", None, (4, 16, 64, 256, 1024)), within(-0.3, 0.3, *MARGIN),
              answers=("Q11",)),
    ),
)  # fmt: skip
