"""BN108: averages that lag behind weights which still move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs
from bnlab.layers import match_names
from bnlab.recording.trace import LayerTrace

_MOST_SPANS = 5  # memories of an average between two checkpoints, within which their difference shows the drift


class Lags(Rule):
    """Running statistics off by more than .1 σ, or .1 in log variance, and the mean by more than three times the noise
    of an average (median |T|).

    An average of momentum m is 1/m steps behind its weights. A trace, or an earlier checkpoint at most 5/m updates ago,
    shows how statistics drift. Where the gap is along the drift (cosine above .5) and at most twice what m predicts,
    the finding says that it is a lag; otherwise, or without a history, that it is a lag or worse.

    A false alarm where the images differ from those of training, as without its augmentation, or where the batches are
    larger, as their means scatter less: pass training_batches=. A lag in the middle of training is normal, and is
    forgotten as the learning rate falls. So without a measured cost this is a note.
    """

    code = "BN108"
    title = "lags behind the weights, or worse"
    meaning = "The averages are farther off than chance explains: they describe earlier weights, or others."
    remedy = "Recalibrate before evaluating; while training, a larger or self-tuned momentum lags less."
    severity = "note"
    asks = ("before", "training")
    needs = ("data",)
    unless = (
        *("BN001", "BN002", "BN003", "BN101", "BN104", "BN105", "BN106", "BN107"),
        *("BN202", "BN204", "BN206", "BN207", "BN208", "BN209", "BN302"),
    )

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if _is_behind(case, name)]
        if not layers:
            return None
        ratios = [case.noise_ratio(name) for name in layers]
        noise = f"gap {median(ratios):.2g} times the noise of an average"
        drift = _judge_drift(case, layers)
        return Signs(tuple(layers), f"{drift}; {noise}")


def _is_behind(case: Case, name: str) -> bool:
    return not case.is_frozen(name) and case.is_off(name) and case.noise_ratio(name) > 3


def _judge_drift(case: Case, layers: Sequence[str]) -> str:
    """Write whether the gap is what drift and momentum predict."""
    gaps = []
    lags = []
    for name in layers:
        lag = _predict_lag(case, name)
        if lag is not None:
            gap = case.buffers[name] - _read_exact(case, name)
            gaps.append(_scale(case, name, gap))
            lags.append(_scale(case, name, lag))
    if not gaps:
        return "lags, or worse: a trace, or a checkpoint of a few memories ago, would tell"

    all_gaps = torch.cat(gaps)
    all_lags = torch.cat(lags)
    cosine = float(torch.cosine_similarity(all_gaps, all_lags, dim=0))
    ratio = float(all_gaps.norm() / all_lags.norm())
    word = "a lag" if cosine > 0.5 and ratio < 2 else "lags, or worse"
    return f"{word}: cosine {cosine:.2f} with the drift, {ratio:.2g} times what it predicts"


def _predict_lag(case: Case, name: str) -> Tensor | None:
    """Predict from a layer's history how far its averages [2, C] are behind; None without one that tells."""
    if case.trace is not None:
        recorded = match_names([name], case.trace.layers)
        if name in recorded:
            return _predict_by_trace(case.trace.layers[recorded[name]], case.layers[name].momentum)
    return _predict_by_checkpoint(case, name)


def _predict_by_trace(entries: LayerTrace, momentum: float | None) -> Tensor | None:
    """Predict the lag [2, C] as the average at the end of a trace less the mean of its last batches."""
    if entries.end is None or not len(entries):
        return None
    few = 10 if not momentum else min(10, math.ceil(1 / (4 * momentum)))
    latest = entries.moments[-few:].double()
    return entries.end.cpu().double() - latest.mean(0)


def _predict_by_checkpoint(case: Case, name: str) -> Tensor | None:
    """Predict the lag [2, C] as 1/m times what the average has moved in an update; None from a checkpoint too far."""
    change = None if case.history is None else case.history.layers.get(name)
    momentum = case.layers[name].momentum
    if change is None or not change.updates or not momentum:
        return None
    spans = change.updates * momentum
    if not 0 < spans <= _MOST_SPANS:
        return None
    return (change.buffers.double() - case.buffers[name]) / spans


def _read_exact(case: Case, name: str) -> Tensor:
    assert case.evidence is not None
    moments = case.evidence.exact[name]
    return torch.stack((moments.mean, moments.var))


def _scale(case: Case, name: str, differences: Tensor) -> Tensor:
    """Divide differences [2, C] of means by σ and of variances by the variance, as one row [2C]."""
    assert case.evidence is not None
    var = case.evidence.exact[name].var + case.evidence.exact.eps[name]
    return torch.cat((differences[0] / var.sqrt(), differences[1] / var))
