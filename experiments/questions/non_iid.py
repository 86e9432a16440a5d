"""How accurate is a network that sees images of a class together, under each estimator, and with renormalization?

Ioffe 2017: on such batches batch norm fell to 67.0% on ImageNet, and renormalization, which trains with its running
averages, kept 78.5% (quoted from memory). Blocks of 16 were added when no network had learned from class after class.
"""

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Finding, Tables, above
from bnlab.harness.reporting.frames import interval, put_in_order, rows, score
from bnlab.harness.reporting.plots import ACCURACY, Forest
from bnlab.harness.reporting.style import estimator_label
from experiments.margins import COST_OF_EMA

SHUFFLED, *IN_ORDER = ORDERS = ("shuffled", "blocks:16", "sorted")
NORMS = {"batch": "batch norm", "renorm": "batch renorm"}
WORDS = {"shuffled": "shuffled", "blocks:16": "blocks of 16", "sorted": "sorted"}
MUCH = (5.0, "points", "more than anyone would give away")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Find accuracies at the end of training, in panels by norm; `rule` is the estimator, `line` the order in words."""
    frame = rows(tables, "evaluations", 1.0, ("order", "norm"))
    estimators = frame.pop("estimator")
    momenta = frame.pop("momentum")
    pairs = zip(estimators, momenta, strict=True)
    frame["rule"] = [estimator_label(estimator, momentum) for estimator, momentum in pairs]
    frame["line"] = frame["order"].map(WORDS)
    frame["panel"] = frame["norm"].map(NORMS)
    return frame


def score_accuracies(tables: Tables) -> pd.DataFrame:
    """Average them over seeds, batch norm and shuffled images first."""
    accuracies = find_accuracies(tables)
    means = interval(accuracies, "accuracy", ("panel", "rule", "line"), scale=100)
    ordered = put_in_order(means, "line", WORDS.values())
    return put_in_order(ordered, "panel", ["batch norm"])


EXPERIMENT = Experiment(
    bears_on=("Q15", "F13", "F21"),
    sweeps=("non_iid", "non_iid_renorm"),
    columns=("accuracy",),
    figures={"accuracy": Figure(
        "Accuracy where images of a class come together",
        "Images come shuffled, in blocks of 16 of a class, or class after class (sorted).",
        score_accuracies, Forest("rule", ACCURACY, series="line"),
        Finding("Networks that see images of a class together lose much, under exact statistics too",
                {"nothing_rescues": ()}))},
    claims={
        "running_average_costs": Claim(
            "Where images of a class come together PyTorch's average, which remembers the last ones, costs much.",
            score("evaluations", "accuracy", ("order",), at=1.0, norm="batch", order=IN_ORDER, **COST_OF_EMA),
            above(*MUCH), ("Q15", "F21")),
        "long_average_costs": Claim(
            "In blocks of 16 images of a class a momentum of 0.01 costs much (asked when seen).",
            score("evaluations", "accuracy", ("order",), at=1.0, norm="batch", order="blocks:16",
                  **{**COST_OF_EMA, "momentum": 0.01}), above(*MUCH), ("Q15",)),
        "nothing_rescues": Claim(
            "Networks that saw images of a class together lose much against shuffled ones, under exact statistics too.",
            score("evaluations", "accuracy", ("order",), at=1.0, against=SHUFFLED, along="order", matching=("seed",),
                  scale=-100, norm="batch", estimator="exact", order=IN_ORDER), above(*MUCH), ("Q15", "F21")),
        "renorm_rescues_blocks": Claim(
            "In blocks of 16 images of a class renormalization gains more than 5 points against batch norm.",
            score("evaluations", "accuracy", ("order", "norm"), at=1.0, against="batch", along="norm", scale=100,
                  matching=("seed", "order"), estimator="ema", momentum=0.01, order="blocks:16"),
            above(5.0, "points gained", "half of what its paper reports for batches of like images")),
    },
)  # fmt: skip
