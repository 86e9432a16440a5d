"""BN205: train mode counts what eval mode does not, padding or dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case, read_moments
from bnlab.doctor.undo import EXACT


class CountedInTraining(Cause):
    """Averages that agree with statistics as train mode takes them, and not with what eval mode gives.

    Dropout in front of a layer raises the variance in train mode, which is what the running variance follows. Padding,
    whose share differs from batch to batch, counts unless the layer masks it: averages then agree with statistics that
    count padded positions, and not with those of what `inputs=` gives.

    It is detected by which statistics explain the averages better. Without `inputs=` padding is not looked for.
    """

    code = "BN205"
    title = "padding or dropout is counted"
    meaning = "The averages describe what the layers receive in train mode, with dropout or padding, not in eval mode."
    remedy = (
        "Put dropout after the last batch norm, and normalize only what is not padding, in train mode too; or "
        "recalibrate "
        "after training."
    )
    undone_by = (EXACT,)
    needs = ("data",)

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        return read_moments(case.plain) if _is_padded(case) else _predict_dropout(case)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        plain = case.plain
        # Without `inputs=`, padding explains 0 of the gap, and that is more than dropout explains where its
        # prediction is worse than none.
        if plain is not None and _is_padded(case):
            first = case.first
            without = case.measure_distance(first, case.exact)
            counted = case.measure_distance(first, plain)
            off = f"first layer {describe_number(without, 2)} σ off without padding"
            return f"{off}, {describe_number(counted, 2)} σ where padding is counted"
        dropped = case.dropped
        after_dropout = [name for name in layers if name in dropped]
        if not after_dropout:
            return ""
        worst = max(after_dropout, key=lambda name: abs(float(dropped[name].log().median())))
        with_dropout = float(dropped[worst].median())
        running = float(case.log_ratios(worst).exp().median())
        return f"variance with dropout {with_dropout:.2f} times that without, running {running:.2f} times"


def _is_padded(case: Case) -> bool:
    """Return whether statistics that count padding explain the averages better than those with dropout."""
    padded = case.explain(read_moments(case.plain), case.seen)
    return padded > case.explain(_predict_dropout(case), case.seen)


def _predict_dropout(case: Case) -> dict[str, Tensor]:
    """Predict averages of layers after dropout, whose variances are those of train mode."""
    dropped = case.dropped
    exact = case.read_exact(name for name in dropped if name in case.exact)
    return {name: torch.stack((mean, var * dropped[name])) for name, (mean, var) in exact.items()}
