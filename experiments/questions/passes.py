"""How many passes over the data, how much time and how much memory do exact statistics take?

Exact statistics are said to be infeasible, because all activations are needed. `population_statistics` keeps those
between two layers (breadth first) or none (layer by layer). Times and passes were known before the claims. Passes and
memory are counts.
"""

from typing import Any

import pandas as pd

from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below

DEPTHS: dict[str, Any] = {"images": 256, "memory": 1.0}  # of the memory that breadth first takes by itself
SIZES: dict[str, Any] = {"model.depth": 20, "memory": 1.0}
GROWTH: dict[str, Any] = {"along": "images", "against": 256, "images": 1024, "ratio": True, "geometric": True, **SIZES}
STRATEGIES = {"breadth": "breadth first", "layerwise": "layer by layer"}
TWO = below(2.0, "times", "a second pass over the data would take as long as the first")


def compute_costs(tables: Tables) -> pd.DataFrame:
    """Find three ratios of each measurement.

    `times`: time over one forward's; `of_layers`: forwards over layers; `shortage`: memory needed over allowed.
    """
    frame = tables["passes"].merge(tables["runs"], on="run")
    frame["panel"] = ""
    frame["times"] = frame["seconds"] / frame["forward_seconds"]
    frame["of_layers"] = frame["passes"] / frame["layers"]

    shortage = 1 / frame["memory"]
    frame["line"] = frame["strategy"].replace(STRATEGIES)
    # The inverse of a share such as 1/12 is a whole number up to rounding only.
    frame["shortage"] = shortage.round().astype(int)
    return frame


QUESTION = Question(
    bears_on=("Q30", "Q31"),
    command="python -m benchmarks scaling",
    figures={"depth": Figure(
        "Time of exact statistics over that of one forward, by depth",
        "Time relative to one plain forward pass over the same 256 random images, 32×32, on two cores (with 512 "
        "images or more, the ratio is lower). Breadth first takes memory for the activations between two layers; "
        "layer by layer takes a pass for each layer, and no such memory.",
        score(compute_costs, "times", ("panel", "line", "layers"), geometric=True, **DEPTHS),
        Curves("layers", "line", Axis("time / that of one forward", (0.9, 60), log=True),
               across=Axis("layers with batch norm", ticks="values")),
        Headline("Exact statistics of all layers take about two forward passes, however deep the network is",
                {"two_passes_are_enough": ()}))},
    claims={
        "one_pass_is_enough": Claim(
            "Breadth first, the exact statistics of all layers take less time than two forward passes.",
            score(compute_costs, "times", ("model.depth",), geometric=True, strategy="breadth", **DEPTHS), TWO,
            lines="each"),
        "two_passes_are_enough": Claim(
            "They take less time than two and a half forward passes, however deep the network is.",
            score(compute_costs, "times", ("model.depth",), geometric=True, strategy="breadth", **DEPTHS),
            below(2.5, "times", "anything less rounds to two"),
            lines="each", post_hoc="asked when two forwards had failed"),
        "images_cost_no_more": Claim(
            "From 256 images to four times as many, exact statistics breadth first take less time than two forward "
            "passes.",
            score(compute_costs, "times", ("images",), geometric=True, strategy="breadth", **SIZES), TWO, lines="each"),
        "memory_is_the_price": Claim(
            "Breadth first, exact statistics of four times the images need more than twice the memory.",
            score(compute_costs, "peak_bytes", ("strategy",), strategy="breadth", **GROWTH),
            above(2.0, "times", "the activations between two layers of all images are kept"), lines="each"),
        "layer_by_layer_is_small": Claim(
            "Layer by layer, exact statistics of four times the images need no more memory, to within a quarter.",
            score(compute_costs, "peak_bytes", ("strategy",), strategy="layerwise", **GROWTH),
            below(1.25, "times", "only one batch is alive at once"), lines="each"),
        "less_memory_is_enough": Claim(
            "With an eighth of its memory or less, breadth first starts fewer forward passes per batch than there are "
            "layers.",
            score(compute_costs, "of_layers", ("shortage",), shortage=(8, 12)),
            below(1.0, "× layers", "as many as evaluating and setting one layer after the other takes"), lines="each"),
        "both_agree": Claim(
            "Breadth first and layer by layer give the same statistics, except for float32's rounding.",
            score(compute_costs, "difference", ("model.depth",), strategy="layerwise", **DEPTHS),
            below(1e-4, "σ", "a hundred times float32's rounding, through 55 layers"), lines="each"),
    },
)  # fmt: skip
