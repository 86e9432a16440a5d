"""How far verdicts are from their lines: no verdict that a test asks for hangs on a processor's last bits.

`pytest tests/doctor/test_lines.py -m "slow or not slow" -rP` prints a line for each network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from benchmarks.gallery import FAULTS, make_healthy
from bnlab import diagnose
from bnlab.doctor.report.diagnosis import Diagnosis
from tests.doctor.digits import LOADERS
from tests.doctor.patients import PATIENTS, Given
from tests.doctor.test_patients import HEALTHY
from tests.elsewhere.nudge import nudge

SEEDS = (1, 2)
QUICK = ("healthy gallery, all in one", "healthy digits, a last one of one image", "pruned weights 0.8")
_IMAGES = 1024


def list_networks() -> Iterator[tuple[str, tuple[str, ...], Callable[[], Given]]]:
    """List the gallery's specimens, the patients, and healthy networks: name, right verdicts, what to ask."""
    for name, fault in FAULTS.items():
        for strength in fault.strengths or (None,):
            yield f"{name} {strength or ''}", tuple(fault.verdicts), partial(make_specimen, fault, strength)
    for name, patient in PATIENTS.items():
        for strength in patient.strengths:
            yield f"{name} {strength:g}", patient.verdicts, partial(patient.make, strength)
    for name, make in HEALTHY.items():
        for loader in LOADERS:
            if loader != "one image each":
                yield f"healthy {name}, {loader}", ("healthy",), partial(load_healthy, make, loader)


def make_specimen(fault: Any, strength: float | None) -> Given:
    specimen = fault.spoil(make_healthy(), strength)
    batches = specimen.batches[: _IMAGES // len(specimen.batches[0][1])]
    return Given(specimen.model, batches, specimen.arguments)


def load_healthy(make: Callable[[], Given], loader: str) -> Given:
    given = make()
    return Given(given.model, list(LOADERS[loader](given.batches)))


def examine(given: Given, seed: int | None = None) -> Diagnosis:
    """Diagnose a network, its weights nudged or not, and those of the checkpoint that it is compared with."""
    model, arguments = copy.deepcopy((given.model, {**given.arguments}))
    before = arguments.get("before", {})
    earlier = before if isinstance(before, Mapping) else before.state_dict()
    if seed is not None:
        for weights in (*model.parameters(), *earlier.values()):
            weights.data.copy_(nudge(weights.data, seed))
    return diagnose(model, given.batches, progress=False, **arguments)


NETWORKS = [
    pytest.param(verdicts, make, id=name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, verdicts, make in list_networks()
]


@pytest.mark.parametrize(("verdicts", "make"), NETWORKS)
def test_verdicts_are_ten_times_as_far_from_their_lines_as_other_bits_move_them(
    verdicts: tuple[str, ...], make: Callable[[], Given]
) -> None:
    given = make()
    diagnosis = examine(given)
    assert diagnosis.judged is not None
    edges = diagnosis.judged.edges
    moved = dict.fromkeys(edges, 0.0)
    for seed in SEEDS:
        other = examine(given, seed)
        assert other.judged is not None and other.verdict == diagnosis.verdict
        values = {(edge.what, edge.beyond): edge.value for edge in other.judged.edges}
        for edge in edges:
            if edge.beyond not in verdicts and math.isfinite(edge.value):
                change = values.get((edge.what, edge.beyond), math.inf) - edge.value
                moved[edge] = max(moved[edge], abs(change))

    print(f"{diagnosis.verdict}; {diagnosis.judged.nearest or 'no line'}")
    for edge in edges:
        assert abs(edge.value - edge.line) >= 10 * moved[edge], f"{edge}, moved by {moved[edge]:.2g}"
