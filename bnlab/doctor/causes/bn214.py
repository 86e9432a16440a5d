"""BN214: one of the two averages never updated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.patient import Patient
from bnlab.doctor.undoing import Undo, write_averages

_NEARLY_ALL = 0.99  # of a layer's channels


class HalfUpdated(Cause):
    """Running variance 1 in more than 99% of a layer's channels while its means have moved from 0, or means 0 while
    variances have moved from 1.

    It is undone by exact values of the one alone that is where it started.
    """

    code = "BN214"
    title = "one of the averages never updated"
    meaning = "One of running_mean and running_var is where it starts, as where a tool copied the other alone."
    remedy = "Copy or load both; bnlab.recalibrate mends what there is."
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        layers = case.select(lambda name: bool(_find_start(case, name))) if case.evidence is None else []
        return Signs.of(layers, self.describe(case, layers))

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        return f"{_find_start(case, layers[0])} in all channels, and the other has moved" if layers else ""

    def propose(self, patient: Patient) -> Iterator[Undo]:
        case = patient.case
        averages = {}
        for name in patient.exact:
            start = _find_start(case, name) if case.is_off_surely(name) else ""
            if start:
                mean, var = case.buffers[name]
                exact_mean, exact_var = patient.read_exact(name)
                both = (mean, exact_var) if start == "variance 1" else (exact_mean, var)
                averages[name] = torch.stack(both)
        if averages:
            told = self.describe(case, list(averages))
            degrees = sum(values.shape[1] for values in averages.values())
            apply = write_averages(case.layers, averages)
            yield Undo(told, tuple(averages), degrees, apply, explains=patient.explain(averages))


def _find_start(case: Case, name: str) -> str:
    """Find which half of a layer's averages alone is where it starts; empty if neither or both are."""
    mean, var = case.buffers[name]
    is_mean_left = float((mean == 0).double().mean()) > _NEARLY_ALL
    is_var_left = float((var == 1).double().mean()) > _NEARLY_ALL
    if is_mean_left == is_var_left:
        return ""
    return "variance 1" if is_var_left else "mean 0"
