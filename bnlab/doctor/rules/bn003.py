"""BN003: variances of 0, as some tools write them."""

from __future__ import annotations

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs


class Zeroed(Rule):
    """Running variance exactly 0 in more than 99% of a layer's channels.

    Tools that average anew start from 0 in the place of 1, and leave it there if they are given no batch.

    A false alarm where a layer is given nothing but constants: the variance of dead channels decays to 0. With data
    such a layer, whose exact variances are below 10 eps, is no finding.
    """

    code = "BN003"
    title = "zeroed"
    meaning = "The variances are 0, which no batch gives: some tool has reset the averages and not filled them."
    remedy = "Load the buffers as they were before that tool, or recalibrate."
    explains_bad = True

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: _is_zero(case, name) and not _is_dead(case, name))
        return Signs.of(layers, "variance 0 in more than 99% of the channels")


def _is_zero(case: Case, name: str) -> bool:
    _, var = case.buffers[name]
    return float((var == 0).double().mean()) > 0.99


def _is_dead(case: Case, name: str) -> bool:
    """Return whether the data shows that most channels hardly vary."""
    if case.evidence is None or name not in case.evidence.exact:
        return False
    exact = case.evidence.exact
    return float(torch.median(exact[name].var)) <= 10 * exact.eps[name]
