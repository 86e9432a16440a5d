"""BN108: averages that describe other images, or other weights, such as those before the last steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.doctor.case import Case
from bnlab.doctor.chance import compare_with_chance, is_beyond_chance
from bnlab.doctor.rule import Rule, Signs
from bnlab.layers import match_names
from bnlab.recording.trace import LayerTrace

_MOST_SPANS = 5  # memories of an average between two checkpoints, within which their difference shows the drift
_FEW = 10  # batches at most, whose mean stands for the statistics of the latest weights
_PREPARED = "Normalize, scale or colour order not as in training? Pass training_batches=."
_PASSED = "Other images passed in train(): of another task, or two domains in turn? Recalibrate on these."
_CHANGED = "Weights averaged, pruned, fine-tuned, loaded, still in training? Pass earlier ones as before=."
_IN_TRAINING = "Weights still in training? Recalibrate before you evaluate."
_LAGS = "Recalibrate before you evaluate; a larger or self-tuned momentum lags less."


class OtherWeights(Rule):
    """Running statistics off by more than .1 σ, or .1 in log variance, and the mean by more than three times what
    chance explains: the noise of an average of so many batches (median |T|).

    An average of momentum m is 1/m steps behind its weights. A trace, or an earlier checkpoint at most 5/m updates ago,
    shows how statistics drift. Where the gap is along the drift (cosine above .5) and at most twice what m predicts,
    the finding calls it a lag: a larger or self-tuned momentum lags less. Fewer than three batches do not tell chance;
    then the gap has to be .3 and to cost something.

    Images that differ from those of training, as without its augmentation or its Normalize, look the same; and so do
    averages of other images, which have passed in train mode since: of another task, or of another domain in turn with
    these, as in domain adaptation and in GANs. Only a lag is known to come from the weights. Otherwise the finding
    lists what usually does it, also weights that were averaged, pruned, cut out of a larger network, fine-tuned or
    loaded from elsewhere. With training_batches=, averages that fit these are no finding.

    A layer whose weight is frozen while others are trained is named only if exact statistics score better: otherwise
    the others have learnt with its averages as constants. BN104 takes it if all weights before it are frozen too.

    A false alarm where the batches are larger than in training, as their means scatter less: pass training_batches=. A
    lag in the middle of training is normal, and is forgotten as the learning rate falls. So without a measured cost
    this is a note.
    """

    code = "BN108"
    title = "averages of other images or weights"
    meaning = "The averages describe other images than these, or other weights."
    remedy = (
        "Check how these images are prepared, which others passed in train(), and whether weights were changed; then "
        "recalibrate."
    )
    severity = "note"
    asks = ("before", "training")
    needs = ("data",)
    unless = (
        *("BN001", "BN002", "BN003", "BN101", "BN104", "BN105", "BN106", "BN107", "BN109"),
        *("BN202", "BN204", "BN205", "BN206", "BN207", "BN208", "BN209", "BN210", "BN213", "BN214", "BN215"),
        "BN302",
    )

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if _is_behind(case, name)]
        if not layers:
            return None
        drift = _compare_with_drift(case, layers)
        parts = [compare_with_chance(case, layers)]
        if drift is not None:
            parts.insert(0, drift.tell())
        is_lag = drift is not None and drift.is_lag
        checks = (_LAGS,) if is_lag else _list_checks(case)
        return Signs(tuple(layers), "; ".join(parts), checks=checks)


def _list_checks(case: Case) -> tuple[str, ...]:
    """List what usually does it, the most frequent first, as far as what was given leaves it open."""
    changed = _CHANGED if case.history is None else _IN_TRAINING
    return (_PASSED, changed) if case.training is not None else (_PREPARED, _PASSED, changed)


@dataclass(frozen=True)
class _Drift:
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


def _is_behind(case: Case, name: str) -> bool:
    """Return whether a layer is off by more than chance; of frozen ones, with which others have learnt, if it costs."""
    return is_beyond_chance(case, name) and (case.is_costly or not case.is_frozen(name))


def _compare_with_drift(case: Case, layers: Sequence[str]) -> _Drift | None:
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
    return _Drift(float(cosine), float(all_gaps.norm() / all_lags.norm()))


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
