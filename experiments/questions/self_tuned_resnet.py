"""Is predictive momentum worth as much in a residual network, on real digits?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Experiment
from experiments.schedules import GAP_FIGURE, LOSS_FIGURE, make_claims

EXPERIMENT = Experiment(
    name="self_tuned_resnet",
    question="Is predictive momentum worth as much in a residual network, on real digits?",
    answers=("Q6", "Q10", "H12"),
    source="The claims of `self_tuned`, in a network of 20 layers and on other images; the margin of accuracy is "
    "wider, because there are 359 test images only.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(GAP_FIGURE, LOSS_FIGURE),
    claims=make_claims(1.0, "4 of 359 test images", "in a residual network, "),
)
