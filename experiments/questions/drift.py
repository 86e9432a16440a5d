"""How fast do population statistics drift, layer by layer, over training?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, below
from bnlab.harness.reporting.frames import OtherThan, Rows, average, rows, score, share_name
from bnlab.harness.reporting.plots import Curves
from bnlab.harness.reporting.style import Axis
from bnlab.theory import NO_NOISE

SHARES = (0.2, 0.35, 0.55, 0.9, 1.0)  # of the training; the learning rate is highest at the first
PEAK, AFTER_PEAK, MIDDLE, _, END = map(share_name, SHARES)
MEMORY = 10  # steps: the mean age of what an EMA of momentum 0.1 holds
LATER: dict[str, Any] = {"depth": OtherThan(1)}  # standardized images have mean 0 under any weights, but for edges
AGAINST_END: dict[str, Any] = {"against": END, "along": "panel", "ratio": True}
LINE, NETWORK = ("panel", "epoch", "depth"), ("run", "batch_size", "seed")
CHANNELS = "Root mean square over channels."


def speeds(tables: Tables, shares: tuple[float, ...] = (), **layers: Any) -> pd.DataFrame:
    """Standard deviations of the mean's and the log variance's change in a step, and of ten steps over the noise.

    That ratio is left out where no noise shows: what the fit says then is the end of its grid.
    """
    frame = rows(tables, "drift", shares, **layers)
    roots = {name: frame[f"{name}_drift"] ** 0.5 for name in ("mean", "var")}
    ratio = frame["mean_drift"] / frame["mean_noise"]
    shown = ratio.where(ratio < 0.9 * NO_NOISE)  # its grid has steps of 9%
    return frame.assign(**roots, stale=(MEMORY * shown) ** 0.5)


def moves(tables: Tables, shares: tuple[float, ...] = ()) -> pd.DataFrame:
    """How far exact means have moved since the measured step before, an epoch, in the layer's standard deviations."""
    exact = rows(tables, "traces", shares, estimator="exact", **LATER).sort_values(["batch_size", "step"])
    before = exact.groupby(["run", "statistics_split", "layer", "channel"])[["epoch", "mean"]].shift()
    speed = (exact["mean"] - before["mean"]) / (exact["epoch"] - before["epoch"])
    squares = exact.assign(move=speed**2 / exact["var"])
    kept = (*NETWORK, "statistics_split", "panel", "step", "epoch", "layer", "depth")
    each = average(squares.dropna(subset="move"), "move", kept)
    return each.assign(move=each["move"] ** 0.5)


def score_speed(statistic: str, **layers: Any) -> Score:
    """The speed of one statistic by layer over training, a panel for each batch size."""
    return score(speeds, statistic, LINE, geometric=True, **layers)


def find_later(tables: Tables) -> pd.DataFrame:
    """The speeds at the shares of all layers but the first."""
    return speeds(tables, SHARES, **LATER)


def score_layers(find: Rows, value: str, **options: Any) -> Score:
    """A value by batch size: geometric mean over layers, then over seeds."""
    return score(find, value, ("batch_size",), average="layer", geometric=True, **options)


EXPERIMENT = Experiment(
    name="drift",
    question="How fast do population statistics drift, layer by layer, over training?",
    answers=("Q7",),
    source="Said of running averages: older statistics are less relevant, because the weights have moved since. That "
    "claims on means leave the first layer out was decided after a trial run of two seeds, where it was found that "
    "there is nothing to measure; bounds and directions are those from before.",
    columns={"drift": ("layer", "depth", "mean_noise", "mean_drift", "var_drift"),
             "traces": ("layer", "depth", "channel", "mean", "var")},
    figures=(
        Figure("mean", "How far the mean moves in a step",
               "Standard deviation of the change of the population mean in a step, in those of the layer's input: "
               "what in the batch means of the latest tenth of the steps is no noise, without any exact statistic. The "
               "first layer is left out: it sees standardized images, whose mean of 0 no weights can move, but for the "
               "edges. " + CHANNELS,
               score_speed("mean", **LATER), Curves("epoch", "depth", Axis("movement in a step (σ)", log=True))),
        Figure("variance", "How far the variance moves in a step",
               "Standard deviation of the change of the logarithm of the population variance in a step, found in batch "
               "variances in the same way: 0.01 is a change by 1%. " + CHANNELS,
               score_speed("var"), Curves("epoch", "depth", Axis("movement in a step (log variance)", log=True))),
        Figure("epoch", "How far the mean moves in an epoch",
               "Distance between the exact means of two measured steps, over the epochs between them, drawn at the "
               "later one; two channels of each layer but the first. Many small steps to and fro move it less than as "
               "many in one direction. " + CHANNELS,
               score(moves, "move", LINE, geometric=True),
               Curves("epoch", "depth", Axis("movement in an epoch (σ)", log=True))),
    ),
    claims=(
        Claim("follows_the_learning_rate", "In the last tenth of training population means move at less than a quarter "
              "of their speed in the middle of training.",
              score_layers(find_later, "mean", panel=MIDDLE, **AGAINST_END),
              above(4.0, "times", "the learning rate is 8 times lower on average; half of it is left to what else "
                    "changes")),
        Claim("exact_means_agree", "In the last tenth of training exact means, of two channels of each layer but the "
              "first, move at less than a seventh of their speed after the peak of the learning rate.",
              score_layers(lambda tables: moves(tables, SHARES), "move", panel=AFTER_PEAK, **AGAINST_END),
              above(7.0, "times", "the learning rate is 14 times lower on average; half of it is left to what else "
                    "changes")),
        Claim("deeper_is_faster", "In the middle of training the population means of the third layer move faster than "
              "those of the second.",
              score_layers(find_later, "mean", panel=MIDDLE, against=2, along="depth", ratio=True),
              above(1.0, "times", "at 1 both move alike")),
        Claim("memory_is_stale_early", "When the learning rate is highest, population means at a large batch move "
              "more in ten steps, the memory of PyTorch's momentum, than the means of single batches scatter; layers "
              "where no noise shows are left out.",
              score_layers(find_later, "stale", panel=PEAK, batch_size=256),
              above(1.0, "times", "at 1 a batch ten steps old is as far off as it is noisy")),
        Claim("memory_holds_late", "In the last tenth of training population means move less in ten steps, the memory "
              "of PyTorch's momentum, than the means of single batches scatter.",
              score_layers(find_later, "stale", panel=END, batch_size=(16, 64, 256)),
              below(1.0, "times", "the same margin")),
    ),
)  # fmt: skip
