"""How each kind of statistics looks in figures, by its name in `estimator=`: its words, its colour and its line.

They stand here and not in the classes, because these take torch, which takes a report a second to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Colour = Literal["blue", "sky", "pink", "orange", "green", "red", "purple", "black"]
Line = Literal["solid", "dashed", "dotted", "mixed"]


@dataclass(frozen=True)
class Look:
    """Look of a statistic in figures.

    Attributes:
        words: what legends call it.
        colour: its colour, where possible that of its family of estimators.
        line: the style of its curves.
        unsaid: parameters that legends leave out, as they are written: `pooled=False`.
    """

    words: str
    colour: Colour
    line: Line = "solid"
    unsaid: tuple[str, ...] = ()


LOOKS = {
    "ema": Look("running average", "blue"),
    "ema_biased": Look("running average, variances not corrected", "blue", "dashed"),
    "ema_debiased": Look("running average, start divided out", "sky", "dashed"),
    "ema_pooled": Look("running average, batches pooled", "blue", "dotted"),
    "ema_weighted": Look("running average, weighted by batch size", "red", "dashed"),
    "cumulative": Look("average of all batches", "pink"),
    "cumulative_weighted": Look("average of all images", "pink", "dotted"),
    "window": Look("mean of the last batches", "orange", "dashed", unsaid=("pooled=False",)),
    "last_batch": Look("last batch", "orange"),
    "last_full_batch": Look("last full batch", "orange", "mixed"),
    "predictive": Look("self-tuned momentum", "purple"),
    "kalman": Look("Kalman filter", "red", unsaid=("per=layer",)),
    "exact": Look("exact statistics", "black", "dashed"),
    "precise": Look("precise BN", "green"),
    "update_bn": Look("batches averaged (update_bn)", "green", "dashed"),
    "swa": Look("batches averaged by size (SWA)", "green", "dotted"),
    "stale": Look("running average of the trained network", "sky"),
    "averaged": Look("averaged buffers", "orange", "dotted"),
    "test_batch": Look("test batch", "sky", "dotted"),
    "pseudo_samples": Look("test batch and pseudo-samples", "purple", "dotted"),
    "example_weighing": Look("example weighing", "purple", "mixed"),
    "none": Look("without batch norm", "black"),
}
