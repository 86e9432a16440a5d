"""BN203: tiny batches."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.chance import FEW_VALUES
from bnlab.doctor.rule import Rule, Signs

_BATCHES = 50  # fewer say nothing about the noise of averages
_LEAST = 0.4  # median |T|: averages of larger batches have less
_MOST = 2.0  # median |T|: above it there is more than noise


class TinyBatches(Rule):
    """At most 50 values in each channel of a batch: train mode divides by variances that are low and noisy.

    Without training_batches= these batches have to be as small as those of training. That the averages are as noisy as
    such batches make them is taken for it: averages of larger batches would be closer.
    """

    code = "BN203"
    title = "tiny batches"
    meaning = "So few values make a batch's variance low, by (n−1)/n, and noisy; train and eval mode differ by that."
    remedy = "Use larger or synchronized batches, or another norm."
    severity = "note"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        counts = {}
        for name in case.seen:
            count = _count_values(case, name)
            if 1 < count <= FEW_VALUES and _is_as_noisy(case, name):
                counts[name] = count
        if not counts:
            return None
        fewest = min(counts.values())
        ratio = max(case.noise_ratio(name) for name in counts)
        told = f"{fewest} values in a batch: n/(n−1) is {fewest / (fewest - 1):.2f}; median |T| up to {ratio:.1f}"
        return Signs.of(counts, told)


def _count_values(case: Case, name: str) -> int:
    """Count the values in each channel of a batch; 0 where nothing is known."""
    view = case.find_view(name)
    return 0 if view is None else view.values


def _is_as_noisy(case: Case, name: str) -> bool:
    """Return whether the averages are as noisy as those of such batches; training batches need no such evidence."""
    ratio = case.noise_ratio(name)
    if case.training is not None:
        return ratio <= _MOST
    return case.data.view.batches >= _BATCHES and _LEAST <= ratio <= _MOST
