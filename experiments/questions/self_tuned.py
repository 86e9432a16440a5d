"""What is predictive momentum worth, under several schedules of the learning rate?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above
from bnlab.harness.reporting.frames import best_on_average, paired, rows, score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from bnlab.harness.schedule import lr_factor
from experiments.schedules import (
    BY,
    EACH,
    GAP_FIGURE,
    LOSS_FIGURE,
    SHARES,
    make_claims,
    name_trainings,
)

NOISE = "about the standard error of an accuracy near 97% on 2,000 images"


def find_gains_in_hindsight(tables: Tables) -> pd.DataFrame:
    """Accuracy of the forecasts' choice minus that under the fixed momentum that is best over the whole training."""
    fixed, own = (rows(tables, "evaluations", SHARES, BY, estimator=name) for name in ("ema", "predictive"))
    both = pd.concat([best_on_average(fixed, "accuracy", BY), own])
    return paired(both, "accuracy", against="ema")


def score_choices(statistic: str) -> Score:
    """The chosen momentum by layer, and the learning rate as a share of its peak."""

    def find(tables: Tables) -> pd.DataFrame:
        chosen = name_trainings(rows(tables, "choices", by=BY, statistic=statistic))
        chosen = chosen.assign(line="layer " + chosen["depth"].astype(str), value=chosen["chosen"])
        rates = chosen.drop_duplicates(["run", "step"])
        factors = [lr_factor(*row) for row in zip(rates["schedule"], rates["step"], rates["steps"], strict=True)]
        rates = rates.assign(line="learning rate / its peak", value=factors)
        return pd.concat([chosen, rates[rates["value"] > 0]])

    return score(find, "value", ("panel", "line", "epoch"), geometric=True)


CHOICES = Curves("epoch", "line", Axis("momentum", (8e-4, 1.3), log=True))
READ = (
    "The momentum that has forecast the latest batches best, by layer, counted from the input: near 1 the average "
    "forgets at once, at 0.01 it is of about 100 batches. Beside it the learning rate, as a share of its peak."
)

EXPERIMENT = Experiment(
    name="self_tuned",
    question="What is predictive momentum worth, under several schedules of the learning rate?",
    answers=("Q6", "Q10", "H12"),
    source="bnlab.nn.SelfTuned holds these averages while a model is trained; here they are replayed from a trace. The "
    "networks of the one-cycle schedule are those of `predictive`, whose numbers were known before these claims.",
    columns={
        "gaps": ("layer", "depth", "mean_gap"),
        "evaluations": ("accuracy",),
        "choices": ("layer", "depth", "statistic", "chosen"),
    },
    figures=(
        LOSS_FIGURE,
        GAP_FIGURE,
        Figure("means", "What momentum is chosen for the mean", READ, score_choices("mean"), CHOICES),
        Figure("variances", "What momentum is chosen for the variance", READ, score_choices("var"), CHOICES),
    ),
    claims=(
        *make_claims(0.3, NOISE),
        Claim("as_good_as_in_hindsight", "Predictive momentum loses less than 0.3 points against the "
              "fixed one that is best over the whole training, known in hindsight.",
              score(find_gains_in_hindsight, "accuracy", EACH, scale=100), above(-0.3, "points", NOISE),
              answers=("Q10", "H12")),
    ),
)  # fmt: skip
