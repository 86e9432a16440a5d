"""How accurate is a network that sees images of a class together, under each estimator?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above
from bnlab.harness.reporting.frames import name_panels, paired, put_in_order, rows, score
from bnlab.harness.reporting.plots import GAP, Forest
from bnlab.harness.reporting.style import Axis, estimator_label

SHARES = (1.0,)  # of the training
BLOCKS = "blocks:16"
ORDERS = {"shuffled": "shuffled", BLOCKS: "blocks of 16 of a class", "sorted": "class after class"}
IN_ORDER = (BLOCKS, "sorted")
MUCH = "more than anyone would give away"


def name_orders(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each order, and the column `average`: the estimator in words."""
    ordered = put_in_order(frame, "order", ORDERS)
    named = ordered.assign(
        order_in_words=ordered["order"].replace(ORDERS),  # others keep their name
        average=[estimator_label(*row) for row in zip(ordered["estimator"], ordered["momentum"], strict=True)],
    )
    return name_panels(named, "{order_in_words}")


def find_accuracies(tables: Tables) -> pd.DataFrame:
    """Accuracies at the end of training by estimator, in panels by order."""
    return name_orders(rows(tables, "evaluations", SHARES, ("order",)))


def find_gaps(tables: Tables) -> pd.DataFrame:
    """The same of gaps."""
    return name_orders(rows(tables, "gaps", SHARES, ("order",)))


def find_losses(tables: Tables) -> pd.DataFrame:
    """Accuracy minus that of the network that saw shuffled images, from the same seed, under the same estimator."""
    frame = rows(tables, "evaluations", SHARES, ("order",))
    return paired(frame, "accuracy", "shuffled", along="order", matching=("seed",))


EXPERIMENT = Experiment(
    name="non_iid",
    question="How accurate is a network that sees images of a class together, under each estimator?",
    answers=("Q15", "F21"),
    source="Ioffe 2017 (batch renormalization) and Summers & Dinneen 2020 on batches that are not drawn independently. "
    "Exact statistics are of the whole training split in every order. Blocks of 16 were added when class after class "
    "had left nothing to compare: there no network had learned anything.",
    columns={"gaps": ("layer", "mean_gap"), "evaluations": ("accuracy",)},
    figures=(
        Figure("accuracy", "Accuracy where images of a class come together",
               "Test accuracy at the end of training, a panel for each order of the images in an epoch.",
               score(find_accuracies, "accuracy", ("panel", "average"), scale=100),
               Forest("average", Axis("test accuracy (%)", (0, 100)))),
        Figure("gap", "The gap where images of a class come together",
               "Distance of the estimated mean from the exact population mean, in standard deviations, geometric mean "
               "over layers, at the end of training.",
               score(find_gaps, "mean_gap", ("panel", "average"), average="layer", geometric=True,
                     estimator=("ema", "ema_debiased", "cumulative", "last_batch", "predictive")),
               Forest("average", GAP)),
    ),
    claims=(
        Claim("running_average_costs", "Where images of a class come together PyTorch's running average, which "
              "remembers the last ones, loses more than 5 points against exact statistics of the same network.",
              score("evaluations", "accuracy", ("order",), SHARES, against="exact", scale=-100, estimator="ema",
                    momentum=0.1, order=IN_ORDER),
              above(5.0, "points", MUCH)),
        Claim("nothing_rescues", "Under exact statistics networks that saw images of a class together lose more than 5 "
              "points against those that saw shuffled images: they were trained on batches of few classes.",
              score(find_losses, "accuracy", ("order",), scale=-100, estimator="exact", order=IN_ORDER),
              above(5.0, "points", MUCH)),
        Claim("long_memory_is_nearer", "Where images of a class come together the gap of PyTorch's momentum is larger "
              "than that of the average of all batches.",
              score("gaps", "mean_gap", ("order",), SHARES, against="cumulative", ratio=True, average="layer",
                    geometric=True, estimator="ema", momentum=0.1, order=IN_ORDER),
              above(1.0, "times", "at 1 both are as near")),
    ),
)  # fmt: skip
