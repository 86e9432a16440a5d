"""A lag: how far averages are behind weights that move, as a trace or an earlier checkpoint predicts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.layers import match_names
from bnlab.recording.trace import LayerTrace

_MOST_SPANS = 5  # memories of an average between two checkpoints, within which their difference shows the drift
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
        return self.cosine > 0.5 and self.ratio < 2

    def tell(self) -> str:
        word = "a lag" if self.is_lag else "more than a lag"
        return f"{word}: cosine {self.cosine:.2f} with the drift, {self.ratio:.2g} times what it predicts"


def compare_with_drift(case: Case, layers: Sequence[str]) -> Drift | None:
    """Compare the gap with what drift and momentum predict; None where no history tells."""
    gaps = []
    lags = []
    for name in layers:
        lag = _predict_lag(case, name)
        if lag is not None:
            gap = case.buffers[name] - _read_exact(case, name)
            gaps.append(_scale(case, name, gap))
            lags.append(_scale(case, name, lag))
    if not gaps:
        return None

    all_gaps = torch.cat(gaps)
    all_lags = torch.cat(lags)
    cosine = torch.cosine_similarity(all_gaps, all_lags, dim=0)
    return Drift(float(cosine), float(all_gaps.norm() / all_lags.norm()))


def _predict_lag(case: Case, name: str) -> Tensor | None:
    """Predict from a layer's history how far its averages [2, C] are behind; None without one that tells."""
    momentum = case.layers[name].momentum
    if case.trace is not None:
        traces = case.trace.layers
        recorded = match_names([name], traces)
        if name in recorded:
            entries = traces[recorded[name]]
            return _predict_by_trace(entries, momentum)

    change = None if case.history is None else case.history.layers.get(name)
    if change is None or not change.updates or not momentum:
        return None
    spans = change.updates * momentum
    return _predict_by_checkpoint(change.buffers, case.buffers[name], spans)


def _predict_by_trace(entries: LayerTrace, momentum: float | None) -> Tensor | None:
    """Predict the lag [2, C] as the average at the end of a trace less the mean of its last batches."""
    if entries.end is None or not len(entries):
        return None

    few = _FEW
    if momentum:
        quarter = 1 / (4 * momentum)  # of the batches that the average remembers: of nearly the same weights
        few = min(few, math.ceil(quarter))
    latest = entries.moments[-few:]
    average = entries.end.cpu()
    return average.double() - latest.double().mean(0)


def _predict_by_checkpoint(before: Tensor, now: Tensor, spans: float) -> Tensor | None:
    """Predict the lag [2, C] as 1/m times what the average has moved in an update; None from a checkpoint too far.

    Args:
        before, now: running mean and variance [2, C], then and now.
        spans: updates since then, times m.
    """
    if not 0 < spans <= _MOST_SPANS:
        return None
    return (before.double() - now) / spans


def _read_exact(case: Case, name: str) -> Tensor:
    moments = case.data.exact[name]
    return torch.stack((moments.mean, moments.var))


def _scale(case: Case, name: str, differences: Tensor) -> Tensor:
    """Divide differences [2, C] of means by σ and of variances by the variance, as one row [2C]."""
    exact = case.data.exact
    var = exact[name].var + exact.eps[name]
    of_means = differences[0] / var.sqrt()
    of_variances = differences[1] / var
    return torch.cat((of_means, of_variances))
