"""What do running averages follow, how fast does that move, and what is their gap made of?

Older statistics are said to be less relevant, because the weights have moved since. The first layer is left out: its
input is standardized, so that its means are 0 under any weights, except for edges. Traces are of two channels of each
layer. The first two figures are of one small network on digits (`experiments/questions/drift/channel.py`), and no claim
is about it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bnlab.harness.reporting.frames import (
    DEEPER,
    RATIO_OVER_LAYERS,
    OtherThan,
    gap_over_layers,
    name_panels,
    paired,
    rows,
    score,
    select,
    share_name,
)
from bnlab.harness.reporting.plots import ACCURACY, Axis, Curves
from bnlab.harness.reporting.question import Claim, Figure, Headline, Question, Tables, above, below
from experiments.questions.drift.plots import StreamPlot, Zone
from experiments.recipes import EACH

CHANNEL = Path(__file__).with_name("channel.csv")  # written by `channel.py` beside it
# Shares of the training.
EARLY = 0.1
PEAK = 0.2  # the learning rate is highest there
MIDDLE = 0.55
END = 1.0


def compute_speeds(tables: Tables, at: Sequence[float] = (MIDDLE, END)) -> pd.DataFrame:
    """Find how far means move in a step, `speed`, and in ten over how far those of batches scatter, `stale`.

    Ten steps are the memory of momentum 0.1.
    """
    frame = rows(tables, "drift", at, depth=OtherThan(1), batch_size=(16, 64, 256))
    drift = frame["mean_drift"]
    noise = frame["mean_noise"]
    # Drift and noise are variances. Those of ten independent steps add up; roots are taken last.
    drift_in_ten = 10 * drift
    ratio = drift_in_ten / noise
    frame["speed"] = drift**0.5
    frame["stale"] = ratio**0.5
    return frame


def compute_terms(tables: Tables) -> pd.DataFrame:
    """Find the share of each term in the squared gap of the mean, of each layer but the first."""
    frame = rows(tables, "decomposition", (PEAK, END), statistic="mean", depth=OtherThan(1))
    layers = frame.groupby(["run", "step", "layer"])
    # The contributions of a layer's terms add up to its mean squared gap.
    squared_gap = layers["contribution"].transform("sum")
    frame["share"] = frame["contribution"] / squared_gap
    return name_panels(frame, "batch size {batch_size}, {panel}")


def compute_distances(tables: Tables) -> pd.DataFrame:
    """Find how far a single batch of 4 and the EMA are from the exact mean, in standard deviations, over layers."""
    frame = rows(tables, "traces", (EARLY, END), batch_size=4)
    keys = ["run", "step", "layer", "channel"]
    exact = select(frame, estimator="exact").set_index(keys)
    deviations = exact["var"] ** 0.5

    differences = paired(frame, "mean")
    distances = differences.join(deviations.rename("deviation"), on=keys)
    # In standard deviations of the channel under exact statistics, for all estimators alike.
    distances["distance"] = distances["mean"].abs() / distances["deviation"]
    return gap_over_layers(distances, "distance")


def read_channel(tables: Tables) -> pd.DataFrame:
    """Read the means of one channel of one network, a row for each update and line; `tables` are not read."""
    return read_lines({"batch": "single batch", "exact": "exact statistics", "running": "running average"})


def read_accuracies(tables: Tables) -> pd.DataFrame:
    """Read the test accuracies of the same network in percent; `tables` are not read."""
    frame = read_lines({"eval_accuracy": "ema", "exact_accuracy": "exact"})
    return frame.assign(mean=100 * frame["mean"], estimator=frame["line"]).drop(columns="line")


def read_lines(names: Mapping[str, str]) -> pd.DataFrame:
    """Read columns of the committed rows of one training, see `drift.channel`, as lines of one panel."""
    rows = pd.read_csv(CHANNEL)
    frames = []
    for column, name in names.items():
        frames.append(pd.DataFrame({"updates": rows["step"], "line": name, "mean": rows[column]}))
    # One training has no interval.
    return pd.concat(frames).assign(panel="", low=np.nan, high=np.nan, n=1, log=False)


QUESTION = Question(
    bears_on=("Q1", "Q12", "Q15", "F7", "F17"),
    sweeps=("drift", "drift_terms"),
    columns=("contribution", "mean_noise", "mean_drift", "mean", "var"),
    remarks=(
        "**Added seeds.** In `results/reference` seeds 5 to 14 were added after the verdicts of seeds 0 to 4 were "
        "known. Each of 9 conditions has the same verdict with all fifteen seeds as with the first five.",
    ),
    figures={
        "running_average": Figure(
            "A running average starts at 0, follows late, and keeps noise",
            "Compare the blue line with the dashed one: one channel of one network, measured while it learned 1,000 "
            "digits in batches of 32. Dots: the mean of each batch. Blue: PyTorch's running average of them, new = "
            "0.9 · old + 0.1 · batch. Dashed: the exact mean over all 1,000 images after each update. Shaded: the "
            "distance between the two. The learning rate is constant for 90 updates, then falls to 0. We chose this "
            "channel out of 32 because it shows all three phases.",
            read_channel,
            StreamPlot("updates", "line", "single batch", "exact statistics", "running average",
                   (Axis("updates"), Axis("mean of a channel")),
                   (Zone(0, 25, "START\nfrom 0"), Zone(25, 100, "LAG\nit follows late"),
                    Zone(100, 151, "NOISE\nbatches differ"))),
            networks="digits; a small CNN"),
        "one_network": Figure(
            "Accuracy of the network of which one channel is shown",
            "Compare the lines: test accuracy of the network of the figure above on 797 digits, after each update, "
            "under its running averages of momentum 0.1 and under exact statistics. There is no interval, because "
            "this is a single training run.",
            read_accuracies,
            Curves("updates", "estimator", ACCURACY, across=Axis("updates")),
            networks="digits; a small CNN"),
        "speeds": Figure(
            "How far means move in an update",
            "How far a channel's mean moves in one update, in its standard deviations; geometric mean over the deeper "
            "layers. {schedule}",
            score(lambda tables: compute_speeds(tables, ()).assign(panel="").round({"epoch": 1}), "speed",
                  ("panel", "batch_size", "epoch"), **RATIO_OVER_LAYERS),
            Curves("epoch", "batch_size", Axis("move of a mean in an update (σ)", log=True), across=Axis("epoch")),
            Headline("Means move over four times as fast in mid-training as in the last tenth",
                    {"follows_the_learning_rate": ()})),
    },
    claims={
        "batches_scatter": Claim(
            "In batches of 4, in the deeper layers, the mean of a single batch is farther from the population mean "
            "than the running average.",
            score(compute_distances, "distance", EACH, against="ema", ratio=True, geometric=True,
                  estimator="last_batch",
                  layers=DEEPER), above(1.0, "times", "1 means that averaging gains nothing"),
            lines="each", post_hoc="layers after the first only"),
        "follows_the_learning_rate": Claim(
            "In the last tenth of training population means move at less than a quarter of their speed in the middle.",
            score(compute_speeds, "speed", ("batch_size",), against=share_name(END), along="panel", ratio=True,
                  panel=share_name(MIDDLE), **RATIO_OVER_LAYERS),
            above(4.0, "times", "the learning rate is 9 times lower; other changes may take up half "
                                "of that"), lines="each"),
        "memory_holds_late": Claim(
            "In the last tenth of training population means move less in ten steps than means of batches scatter.",
            score(compute_speeds, "stale", ("batch_size",), panel=share_name(END), **RATIO_OVER_LAYERS),
            below(1.0, "times", "PyTorch's momentum remembers ten steps; 1 means that their age matters as much as "
                                "noise"),
            lines="each"),
        "lag_early": Claim(
            "When the learning rate is highest, most of the squared gap of the mean is due to lag at a large batch.",
            score(compute_terms, "share", ("panel",), average="layer", term="lag", batch_size=256,
                  panel=f"batch size 256, {share_name(PEAK)}"), above(0.5, "share", "more than half is most"),
                  lines="each"),
    },
)  # fmt: skip
