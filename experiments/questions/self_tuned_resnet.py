"""Is predictive momentum worth as much in a residual network, on real digits?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Claim, Experiment, above, below
from bnlab.harness.reporting.frames import score, share_name
from experiments.margins import FLAT
from experiments.schedules import (
    EACH,
    EARLY,
    GAP_FIGURE,
    LATE,
    LOSS_FIGURE,
    MANY,
    find_gains,
    score_times,
)

EXPERIMENT = Experiment(
    name="self_tuned_resnet",
    question="Is predictive momentum worth as much in a residual network, on real digits?",
    answers=("Q6", "Q10", "H12"),
    source="The claims of `self_tuned`, in a network of 20 layers and on other images; the margin of accuracy is "
    "wider, because there are 359 test images only.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        GAP_FIGURE,
        LOSS_FIGURE,
    ),
    claims=(
        Claim("never_worse", "In a residual network predictive momentum is never less accurate than PyTorch's by a "
              "point.",
              score(find_gains, "accuracy", EACH, scale=100),
              above(-1.0, "points", "4 of 359 test images"), answers=("H12",)),
        Claim("better_early", "In a residual network, early at a large batch, predictive momentum is more accurate "
              "than PyTorch's by more than 5 points.",
              score(find_gains, "accuracy", EACH, scale=100, panel=share_name(EARLY), batch_size=MANY),
              above(5.0, "points", "what nobody would give away"), answers=("Q6",)),
        Claim("near_the_best", "In a residual network the gap of predictive momentum is about that of the best fixed "
              "momentum of each layer and step, known in hindsight.",
              score_times(),
              below(1.25, "times", FLAT),
              answers=("Q10", "H12")),
        Claim("late_where_the_rate_ends", "In a residual network too, predictive momentum is late at the end of a "
              "one-cycle schedule: its gap is more than a quarter larger than that of the best fixed one.",
              score_times(LATE, **{"optimizer.schedule": "onecycle"}), above(1.25, "times", "the same margin"),
              answers=("Q6", "Q10")),
    ),
)  # fmt: skip
