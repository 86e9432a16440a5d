"""Where does the gap of the running average come from: start, noise, lag, or how batches are averaged?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, Score, Tables, above, within
from bnlab.harness.reporting.frames import OtherThan, name_panels, put_in_order, rows, score, share_name
from bnlab.harness.reporting.plots import Stacked
from bnlab.harness.reporting.style import Axis

SHARES = EARLY, LATE = (0.2, 1.0)  # of the training
TERMS = ("start", "lag", "noise", "weighting", "upstream", "data")
PANEL = "batch size {batch_size}, {when}"
KEY = ["run", "step", "layer", "statistic"]
READ = (
    "Six signed terms add up to the distance from the exact statistic, in each channel; drawn is the average over "
    "channels of a term times that distance, as a share of the squared distance: they add up to 1. Below 0 a term "
    "makes the distance smaller. Start: what is left of 0 and 1; noise: of single batches; lag: older weights; data: "
    "augmentation and the like; weighting: unbiased variances of batches that weigh alike, whatever their size; "
    "upstream: layers before that normalize with their batch."
)
MOST = ("share", "more than half is most")


def shares(tables: Tables) -> pd.DataFrame:
    """Of each layer and statistic, the share of each term in the squared gap."""
    frame = rows(tables, "decomposition", SHARES, estimator="ema")
    return frame.assign(share=frame["contribution"] / frame.groupby(KEY)["contribution"].transform("sum"))


def score_terms(statistic: str) -> Score:
    """The shares by layer, a panel for each batch size and share of the training."""

    def find(tables: Tables) -> pd.DataFrame:
        frame = put_in_order(shares(tables), "term", TERMS)
        frame = frame.sort_values(["step", "depth"], kind="stable")
        return name_panels(frame.assign(when=frame["panel"].str.removesuffix(" of training")), PANEL)

    return score(find, "share", ("panel", "depth", "term"), statistic=statistic)


def score_share(term: str, share: float | None = None, *sizes: int) -> Score:
    """The share of one term in the squared gap of the mean, over layers but the first; without `share` everywhere."""
    where: dict[str, Any] = {} if share is None else {"panel": share_name(share), "batch_size": sizes}
    return score(shares, "share", ("panel", "batch_size"), average="layer", statistic="mean", term=term,
                 depth=OtherThan(1), **where)  # fmt: skip


EXPERIMENT = Experiment(
    name="decomposition",
    question="Where does the gap of the running average come from: start, noise, lag, or how batches are averaged?",
    answers=("F17", "Q7", "Q8"),
    source="A running average is of batches, which are few and noisy, and of weights that have moved since. That "
    "claims leave the first layer out was decided after a trial run of two seeds: of standardized images its mean is 0 "
    "under any weights, but for edges, and can neither lag nor depend on layers before.",
    columns={"decomposition": ("layer", "depth", "statistic", "term", "contribution")},
    figures=(
        Figure("mean", "What the gap of the running mean is made of, by layer", READ,
               score_terms("mean"), Stacked("depth", Axis("share of the squared gap"), total="all of it", bars=True)),
        Figure("variance", "What the gap of the running variance is made of, by layer", READ,
               score_terms("var"), Stacked("depth", Axis("share of the squared gap"), total="all of it", bars=True)),
    ),
    claims=(
        Claim("lag_early", "When the learning rate is highest, most of the squared gap of the mean is lag at a large "
              "batch.",
              score_share("lag", EARLY, 256), above(0.5, *MOST)),
        Claim("noise_late", "At the end of training most of the squared gap of the mean is noise at a small batch.",
              score_share("noise", LATE, 16), above(0.5, *MOST)),
        Claim("upstream_is_small", "Layers before that normalize with their batch make at most a tenth of the squared "
              "gap of the mean.",
              score_share("upstream"), within(-0.1, 0.1, "share", "a tenth of the squared gap is 5% of the gap")),
    ),
)  # fmt: skip
