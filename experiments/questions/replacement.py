"""Does it matter to predictive momentum that an epoch's images are drawn without replacement?"""

from __future__ import annotations

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Tables, above, within
from bnlab.harness.reporting.frames import name_panels, over_best, paired, rows, score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis

BY = ("batch_size", "order")
ORDERS = {"shuffled": "without replacement", "replacement": "with replacement"}


def find_times(tables: Tables) -> pd.DataFrame:
    """How many times the gap of the best fixed momentum of the layer and step, known in hindsight."""
    return over_best(rows(tables, "gaps", by=BY, estimator=("ema", "predictive")), "mean_gap")


def compare_orders(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """The value without replacement over that with it, of the same layer at the same step."""
    frame = frame.drop(columns="panel")  # which the orders differ in, too
    return paired(frame, value, "replacement", along="order", matching=("seed", "batch_size"), ratio=True)


def find_far(tables: Tables) -> pd.DataFrame:
    """The distance from the best momentum in hindsight without replacement over that with it."""
    times = find_times(tables)
    return compare_orders(times[times["estimator"] == "predictive"], "mean_gap")


def find_chosen(tables: Tables) -> pd.DataFrame:
    """The momentum that is chosen for the mean without replacement over that with it."""
    return compare_orders(rows(tables, "choices", by=BY, statistic="mean"), "chosen")


def draw_orders(tables: Tables) -> pd.DataFrame:
    """The chosen momentum in panels by batch size."""
    chosen = rows(tables, "choices", by=BY, statistic="mean")
    return name_panels(chosen.assign(drawn=chosen["order"].map(ORDERS)), "batch size {batch_size}")


EXPERIMENT = Experiment(
    name="replacement",
    question="Does it matter to predictive momentum that an epoch's images are drawn without replacement?",
    answers=("Q6", "Q10"),
    source="Batches without replacement make up for one another, so that slow averages look better than they are by a "
    "share of the noise: about twice their weight on the epoch, over its images.",
    columns={"gaps": ("layer", "mean_gap"), "choices": ("layer", "statistic", "chosen")},
    figures=(
        Figure("momentum", "The momentum that is chosen for the mean",
               "Chosen momentum, geometric mean over layers, of networks whose epochs show every image once (without "
               "replacement) and of others whose images are drawn again for each place.",
               score(draw_orders, "chosen", ("panel", "drawn", "epoch"), average="layer", geometric=True),
               Curves("epoch", "drawn", Axis("momentum", log=True))),
    ),
    claims=(
        Claim("as_near_the_best", "Without replacement predictive momentum is as near the best fixed momentum as with "
              "it, to a tenth.",
              score(find_far, "mean_gap", ("batch_size",), average=("layer", "epoch"), geometric=True),
              within(0.9, 1.1, "times", "networks of two seeds differ by as much")),
        Claim("chooses_no_slower", "Without replacement it chooses momenta that are smaller by less than a fifth.",
              score(find_chosen, "chosen", ("batch_size",), average=("layer", "epoch"), geometric=True),
              above(0.8, "times", "a momentum a fifth off costs next to nothing, since gaps are flat there")),
    ),
)  # fmt: skip
