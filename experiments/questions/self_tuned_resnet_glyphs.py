"""Is predictive momentum worth as much in a residual network on drawn characters?"""

from __future__ import annotations

from bnlab.harness.reporting.experiment import Experiment
from experiments.schedules import GAP_FIGURE, LOSS_FIGURE, make_claims

EXPERIMENT = Experiment(
    name="self_tuned_resnet_glyphs",
    question="Is predictive momentum worth as much in a residual network on drawn characters?",
    answers=("Q6", "Q10", "H12"),
    source="The claims of `self_tuned` in a network of 20 layers, on half as many images; the margin of accuracy is "
    "that of the same network on digits.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(GAP_FIGURE, LOSS_FIGURE),
    claims=make_claims(1.0, "the margin of the same network on digits", "in a residual network on drawn characters, "),
)
