"""A lag: how far averages are behind weights that move, as a trace or an earlier checkpoint predicts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import LAG_COSINE, LAG_RATIO, LAG_SPANS
from bnlab.model.layers import get_momentum, match_names

_FEW = 10  # batches at most, whose mean stands for the statistics of the latest weights


@dataclass(frozen=True)
class Drift:
    """The gap of layers compared with the lag that drift and momentum predict.

    Attributes:
        cosine: between the two.
        ratio: of their lengths.
    """

    cosine: float
    ratio: float

    @property
    def is_lag(self) -> bool:
        return self.cosine > LAG_COSINE and self.ratio < LAG_RATIO

    def describe(self) -> str:
        word = "a lag" if self.is_lag else "more than a lag"
        if not self.is_lag and self.ratio < LAG_RATIO:  # no larger than a lag, but in another direction
            word = "no lag"
        return f"{word}: cosine {self.cosine:.2f} with the drift, {self.ratio:.2g} times what it predicts"


def compare_with_drift(case: Case, layers: Sequence[str]) -> Drift | None:
    """Compare the gap with what drift and momentum predict; None where no history tells."""
    lags = {name: _predict_lag(case, name) for name in layers}
    known = {name: lag for name, lag in lags.items() if lag is not None}
    if not known:
        return None
    exact = case.read_exact(known)
    gaps = []
    predicted = []
    for name, lag in known.items():
        gaps.append(_scale(case, name, case.buffers[name] - exact[name]))
        predicted.append(_scale(case, name, lag))
    all_gaps = torch.cat(gaps)
    all_lags = torch.cat(predicted)
    cosine = torch.cosine_similarity(all_gaps, all_lags, dim=0)
    return Drift(float(cosine), float(all_gaps.norm() / all_lags.norm()))


def _predict_lag(case: Case, name: str) -> Tensor | None:
    """Predict from a layer's history how far its averages [2, C] are behind; None without one that tells."""
    momentum = get_momentum(case.layers[name])
    if case.trace is not None:
        traces = case.trace.layers
        recorded = match_names([name], traces)
        if recorded:
            entries = traces[recorded[name]]
            if entries.end is None or not len(entries):
                return None
            count = _FEW
            if momentum:  # a quarter of the batches that the average remembers are of nearly the same weights
                count = min(count, math.ceil(1 / (4 * momentum)))
            latest = entries.moments[-count:].cpu().double()
            return entries.end.cpu().double() - latest.mean(0)

    change = None if case.history is None else case.history.layers.get(name)
    if change is None:
        return None
    spans = (change.updates or 0) * (momentum or 0)
    if not 0 < spans <= LAG_SPANS:
        return None
    # An update moves the average by m times its lag, in the direction that makes it smaller. So over t
    # updates it has moved by about t·m times the lag, where t·m is `spans`.
    return (change.buffers.double() - case.buffers[name]) / spans


def _scale(case: Case, name: str, differences: Tensor) -> Tensor:
    """Divide differences [2, C] of means by σ and of variances by the variance, as one row [2C]."""
    exact = case.exact
    var = exact[name].var + exact.eps[name]
    # Relative, and not a log ratio as elsewhere: a lag is a difference, whose variance may be negative.
    return torch.cat((differences[0] / var.sqrt(), differences[1] / var))
