"""What do exact statistics take, in passes over the data, time and memory? `benchmarks/scaling.py` measures it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below, within
from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis

WHOLE = 1.0  # of the memory that breadth first takes by itself
DEPTHS: dict[str, Any] = {"images": 256, "memory": WHOLE}
SIZES: dict[str, Any] = {"model.depth": 20, "memory": WHOLE}
SHARES: dict[str, Any] = {"model.depth": 20, "images": 1024}
NAMES = {"breadth": "breadth first", "layerwise": "layer by layer"}
READ = (
    "Of a ResNet with random weights and images, 32×32, in batches of 32, on two cores. Breadth first: all batches "
    "wait at one layer until it is measured; layer by layer: each layer needs the forward as far as it. "
)


def find_costs(tables: Tables) -> pd.DataFrame:
    """What each measurement took, against one plain forward of the same images.

    `times`: the time; `share`: the memory of activations; `of_layers`, `of_steps`: how often a batch's forward is
    begun, over the number of layers, and over one more; `shortage`: the memory that breadth first takes by itself, over
    the limit.
    """
    frame = tables["passes"].merge(tables["runs"], on="run")
    return frame.assign(
        panel="",
        times=frame["seconds"] / frame["forward_seconds"],
        share=frame["peak_bytes"] / frame["forward_bytes"],
        of_layers=frame["passes"] / frame["layers"],
        of_steps=frame["passes"] / (frame["layers"] + 1),
        measured=frame["strategy"].map(NAMES),
        shortage=(1 / frame["memory"]).round().astype(int),
    )


def score_growth(strategy: str) -> Score:
    """How many times the memory for 256 images that for 1,024 is."""
    return score(find_costs, "peak_bytes", ("strategy",), against=256, along="images", ratio=True, geometric=True,
                 strategy=strategy, images=1024, **SIZES)  # fmt: skip


EXPERIMENT = Experiment(
    name="passes",
    question="What do exact statistics of any model take, in passes over the data, time and memory?",
    answers=("Q12", "Q19"),
    source="It is infeasible, it is said: the activations of all layers and images are needed. `population_statistics` "
    "keeps those between two layers, or none. Bounds come from the number of forwards; times and passes were known "
    "from earlier benchmarks when the claims were written. Passes and memory are counts, not samples: weights do not "
    "change them, and their intervals say nothing on other networks.",
    columns={"passes": ("strategy", "images", "memory", "layers", "seconds", "forward_seconds", "passes", "peak_bytes",
                        "forward_bytes", "difference")},
    command="python -m benchmarks scaling",
    figures=(
        Figure("depth", "Time by depth", READ + "Seconds over those of one plain forward, 256 images.",
               score(find_costs, "times", ("panel", "measured", "layers"), geometric=True, **DEPTHS),
               Curves("layers", "measured", Axis("time / one forward", log=True))),
        Figure("memory", "Memory by the number of images",
               READ + "Bytes of activations and copies that are alive at once, over those of one plain forward in "
               "batches of 32.",
               score(find_costs, "share", ("panel", "measured", "images"), geometric=True, **SIZES),
               Curves("images", "measured", Axis("memory / one forward", log=True))),
        Figure("limit", "Passes under a limit of memory",
               READ + "How often a batch's forward is begun, where breadth first may use a part of the memory that it "
               "takes by itself; 1,024 images, ResNet-20.",
               score(find_costs, "passes", ("panel", "measured", "shortage"), strategy="breadth", **SHARES),
               Curves("shortage", "measured", Axis("forwards begun per batch"))),
    ),
    claims=(
        Claim("one_pass_is_enough", "Breadth first, the exact statistics of all layers take less time than two "
              "forwards.",
              score(find_costs, "times", ("model.depth",), geometric=True, strategy="breadth", **DEPTHS),
              below(2.0, "times", "a second pass over the data would take as long as the first"), answers=("Q12",)),
        Claim("images_cost_no_more", "From 256 images to four times as many, exact statistics breadth first take less "
              "time than two forwards.",
              score(find_costs, "times", ("images",), geometric=True, strategy="breadth", **SIZES),
              below(2.0, "times", "the same margin"), answers=("Q12",)),
        Claim("layer_by_layer_takes_many", "Layer by layer, a batch's forward is begun once for each layer, and once "
              "more.",
              score(find_costs, "of_steps", ("model.depth",), strategy="layerwise", **DEPTHS),
              within(0.95, 1.05, "× (layers + 1)", "the last one looks for further layers: this must hold"),
              answers=("Q12",)),
        Claim("memory_is_the_price", "Breadth first, exact statistics of four times the images need more than twice "
              "the memory.",
              score_growth("breadth"), above(2.0, "times", "the activations between two layers of all images are kept"),
              answers=("Q12",)),
        Claim("layer_by_layer_is_small", "Layer by layer, exact statistics of four times the images need no more "
              "memory, to a quarter.",
              score_growth("layerwise"), below(1.25, "times", "only one batch is alive at once"), answers=("Q12",)),
        Claim("less_memory_is_enough", "Breadth first with an eighth of the memory that it takes by itself, or less, a "
              "batch's forward is begun fewer times than there are layers.",
              score(find_costs, "of_layers", ("shortage",), strategy="breadth", shortage=(8, 12), **SHARES),
              below(1.0, "× layers", "as many as evaluating and setting one layer after the other takes"),
              answers=("Q12",)),
        Claim("both_agree", "Breadth first and layer by layer give the same statistics, but for float32's rounding.",
              score(find_costs, "difference", ("model.depth",), strategy="layerwise", **DEPTHS),
              below(1e-4, "σ", "a hundred times float32's rounding, through 55 layers"),
              answers=("Q19",)),
    ),
)  # fmt: skip
