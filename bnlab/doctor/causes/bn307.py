"""BN307: another eps than in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from torch import nn

from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import EPS_SHOWS
from bnlab.doctor.undo import Apply, Layers, Undo

_USUAL = (1e-3, 1e-5)  # of TensorFlow and Keras, and of torch


class OtherEps(Cause):
    """Batch norms with another eps than in training, which a checkpoint of torch does not store.

    TensorFlow's and Keras's is 0.001, torch's 0.00001. It matters where a channel's variance is not much larger, and
    changes it by more than 5% there. It is undone by an eps of 0.001, of 0.00001, or that of the module `before=`.
    """

    code = "BN307"
    title = "another eps than in training"
    meaning = "Channels with a small variance are divided by a different number than in training."
    remedy = "Pass the eps of training to the batch norms, such as eps=1e-3 for networks of Keras; do not recalibrate."
    kind = "network"
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        others: dict[str, Mapping[str, float]] = {f"{eps:g}": dict.fromkeys(case.layers, eps) for eps in _USUAL}
        if case.eps_before:
            others["before="] = case.eps_before
        for words, values in others.items():
            # Each undo costs a pass over the images. An eps that changes nothing visibly is not worth one.
            changed = {name: eps for name, eps in values.items() if name in case.fold and _shows(case, name, eps)}
            if changed:
                yield Undo(f"an eps of {words}", tuple(changed), 0, _write_eps(case.layers, changed), name=words)


def _write_eps(layers: Layers, values: Mapping[str, float]) -> Apply:
    """Undo by another eps of layers; the old ones come back when the stack closes."""

    def apply(model: nn.Module, stack: ExitStack) -> None:
        for name, eps in values.items():
            layer = layers[name]
            stack.callback(setattr, layer, "eps", layer.eps)
            layer.eps = eps

    return apply


def _shows(case: Case, name: str, eps: float) -> bool:
    """Return whether another eps changes the variance of a channel visibly."""
    _, var = case.buffers[name]
    ratio = (var + eps) / (var + case.layers[name].eps)
    return bool((ratio.log().abs() > EPS_SHOWS).any())
