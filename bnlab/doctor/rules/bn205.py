"""BN205: padding is counted."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.rule import Rule, Signs

_VISIBLE = 0.1  # σ


class PaddingCounted(Rule):
    """The averages agree with statistics that count padded positions, and not with those of what `inputs=` gives.

    How much padding there is depends on the batch; so do statistics that count it.
    """

    code = "BN205"
    title = "padding is counted"
    meaning = "The averages describe padded positions too, whose share differs from batch to batch."
    remedy = "Normalize the positions that are not padding, in train mode too, and recalibrate."
    needs = ("data", "inputs")
    explains_bad = True

    def look(self, case: Case) -> Signs | None:
        layers = [name for name in case.seen if _follow_padding(case, name)]
        if not layers:
            return None
        worst = max(layers, key=case.find_gap)
        gap, _ = case.find_gap(worst)
        plain = case.data.plain
        plain_gap, _ = case.find_gap(worst, plain)
        told = f"means up to {gap:.2f} σ off, {plain_gap:.2f} σ where padding is counted"
        return Signs.of(layers, told)


def _follow_padding(case: Case, name: str) -> bool:
    exact = case.data.exact
    plain = case.data.plain
    if plain is None or name not in plain:
        return False

    moments = exact[name]
    var = moments.var + exact.eps[name]
    difference = plain[name].mean - moments.mean
    in_sigma = difference / var.sqrt()
    apart = in_sigma.square().mean().sqrt()
    if not float(apart) > _VISIBLE:
        return False

    gap, _ = case.find_gap(name)
    plain_gap, _ = case.find_gap(name, plain)
    return plain_gap < gap / 2
