"""A metric under running averages and under exact statistics: the difference, its interval, and both in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bnlab.common.scores import compare_scores, describe_number, read_values
from bnlab.model.layers import join_names

_ADVICE = "return a number, a dictionary of numbers, or a score for each image"


@dataclass(frozen=True)
class Comparison:
    """One metric under both kinds of statistics.

    Attributes:
        metric: its name; "score" where it has none.
        values: float64 by kind, "running" and, where there are exact statistics, "exact": one value [1], or one for
            each image [images].
        is_lower_better: whether it is a loss.
        has_images: whether there is a value for each image.
    """

    metric: str
    values: Mapping[str, Tensor]
    is_lower_better: bool
    has_images: bool

    def mean(self, kind: str) -> float:
        """Average over the images; NaN where there is none of this kind."""
        return float(self.values[kind].mean()) if kind in self.values else math.nan

    @property
    def lost(self) -> float:
        """How much worse running averages are than exact statistics, in the metric's unit."""
        exact = self.mean("exact")
        running = self.mean("running")
        return running - exact if self.is_lower_better else exact - running

    @property
    def are_equal(self) -> bool:
        """Whether there are values of both kinds, the same to the last bit."""
        exact = self.values.get("exact")
        return exact is not None and torch.equal(exact, self.values["running"])

    def describe(self) -> str:
        """Write both values, and by how much `eval()` understates, or overstates, the exact one."""
        running = f"{self._describe_mean('running')} under running averages"
        if "exact" not in self.values:
            return running
        return f"{running}, {self._describe_mean('exact')} under exact statistics: {self._describe_difference()}"

    @property
    def _are_shares(self) -> bool:
        """Whether values are shown in percent: all lie between 0 and 1, and it is no loss."""
        are_within = all(bool(((values >= 0) & (values <= 1)).all()) for values in self.values.values())
        return are_within and not self.is_lower_better

    def _describe_mean(self, kind: str) -> str:
        mean = self.mean(kind)
        return f"{100 * mean:.1f}%" if self._are_shares else f"{mean:.4g}"

    def _describe_difference(self) -> str:
        difference = self.mean("exact") - self.mean("running")
        if not math.isfinite(difference):
            return "no difference can be taken, as a value is not finite"
        size = self._write(abs(difference))
        unit = " points" if self._are_shares else ""

        interval = ""
        if self.has_images:
            estimate = compare_scores(self.values["exact"], self.values["running"], self._are_shares)
            # The interval is of exact minus running. If the sign is turned, its ends change places.
            if difference >= 0:
                low, high = estimate.low, estimate.high
            else:
                low, high = -estimate.high, -estimate.low
            interval = f" [{self._write(low)}, {self._write(high)}]"
        # A difference that is shown as 0 is called none, even if its value is not quite 0. Large numbers are
        # written with commas, which `float` does not read.
        if float(size.replace(",", "")) == 0:
            return f"no difference{interval}"

        verb = "understates" if difference > 0 else "overstates"
        described = f"eval() {verb} it by {size}{unit}{interval}"
        return described if self.lost > 0 else f"{described}; running averages do better than exact statistics"

    def _write(self, difference: float) -> str:
        """Write a difference: points with one decimal, or three significant digits."""
        return f"{100 * difference:z.1f}" if self._are_shares else describe_number(difference)


Metrics = Mapping[str, tuple[Tensor, bool]]
"""By the metric's name its values, float64 [1] or [images], and whether there is one for each image."""


def compare_metrics(running: Metrics, exact: Metrics | None, lower: bool | Collection[str]) -> list[Comparison]:
    """Compare what an evaluation has returned under both kinds of statistics.

    Args:
        running, exact: what was read; None where there were no exact statistics.
        lower: whether lower is better; or the names of the metrics of which it is.

    Raises:
        ValueError: they are of other metrics or images, or `lower` names others.
    """
    by_kind = {"running": running}
    if exact is not None:
        by_kind["exact"] = exact

    names = list(by_kind["running"])
    for metrics in by_kind.values():
        if metrics.keys() != by_kind["running"].keys():
            raise ValueError(
                f"watch: evaluate returned {join_names(metrics)} the first time and {join_names(names)} the second; "
                "return the same metrics each time"
            )
    if not isinstance(lower, bool):
        unknown = [metric for metric in lower if metric not in names]
        if unknown:
            raise ValueError(f"watch: lower has {join_names(unknown)}; evaluate returned {join_names(names)}")

    comparisons = []
    for metric, (_, has_images) in by_kind["running"].items():
        values = {kind: metrics[metric][0] for kind, metrics in by_kind.items()}
        lengths = {len(each) for each in values.values()}
        if len(lengths) > 1:
            # The evaluation under exact statistics is the first one; see `Watch.compare`.
            first = len(values["exact"])
            second = len(values["running"])
            raise ValueError(
                f"watch: evaluate returned {first:,} scores the first time and {second:,} the second; score the same "
                "images each time"
            )
        is_lower_better = lower if isinstance(lower, bool) else metric in lower
        comparisons.append(Comparison(metric, values, is_lower_better, has_images))
    return comparisons


def read_metrics(returned: Any) -> Metrics:
    """Read what an evaluation has returned, into values of our own.

    Raises:
        TypeError, ValueError: it is neither a number, nor numbers by name, nor a score for each image.
    """
    if isinstance(returned, Mapping):
        if not returned:
            raise ValueError(f"watch: evaluate returned no metric; {_ADVICE}")
        return {str(name): (_read_number(value, str(name)), False) for name, value in returned.items()}
    if _is_number(returned):
        return {"score": (_read_number(returned, "score"), False)}
    if returned is None:
        raise TypeError(f"watch: evaluate returned None; {_ADVICE}")
    if isinstance(returned, tuple):  # a loss and an accuracy, rather than the scores of two images
        raise TypeError(f"watch: evaluate returned a tuple of {len(returned)}; {_ADVICE}")
    values = read_values(returned, "watch", must_be_finite=False, advice=_ADVICE)
    return {"score": (values.clone(), True)}  # the caller may fill the same array again


def _is_number(value: Any) -> bool:
    # Tensors and arrays with one value are numbers, too.
    return isinstance(value, Real) or (hasattr(value, "shape") and math.prod(value.shape) == 1)


def _read_number(value: Any, name: str) -> Tensor:
    if not _is_number(value):
        raise TypeError(f"watch: evaluate returned a {type(value).__name__} as {name!r}; {_ADVICE}")
    number = float(value) if isinstance(value, Real) else torch.as_tensor(value).item()
    return torch.tensor([number], dtype=torch.float64, device="cpu")
