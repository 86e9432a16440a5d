"""The gallery: each fault is found under its code, and new statistics repair what they can."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

import bnlab
from benchmarks.gallery import FAULTS, Specimen, make_healthy
from bnlab.commands.demo.specimen import Batches, measure_accuracy
from bnlab.doctor.catalogue import list_causes
from tests.helpers import unchanged

GAINS = {"repairs": (-0.005, 1), "hides": (-0.01, 1), "falls short": (-1, -0.005)}
"""Accuracy under exact statistics less that of the unspoiled network, from and to, by what recalibration does."""

SURELY = 0.03  # lost, on 1,000 images
MILD = (
    "average of weights without buffers",
    "dropout before batch norm",
    "noisy images",
    "operations counted in train mode",
    "padding counted",
    "tiny batches",
)
"""Faults that not every 512 images show."""

pytestmark = pytest.mark.filterwarnings("ignore:.*are no batch norm of torch's:RuntimeWarning")  # as one specimen has


def list_specimens() -> list[Any]:
    """List names and strengths of all specimens; None where a fault has one strength alone."""
    rows = []
    for name, fault in FAULTS.items():
        for strength in fault.strengths or (None,):
            is_weak_or_strong = strength != get_middle(name)
            rows.append(pytest.param(name, strength, marks=[pytest.mark.slow] if is_weak_or_strong else []))
    return rows


def get_middle(name: str) -> float | None:
    """Return the strength at which other tests look at a fault."""
    strengths = FAULTS[name].strengths
    return strengths[1] if strengths else None


@cache
def make_specimen(name: str, strength: float | None) -> Specimen:
    """Make a specimen, once for all tests; not to be changed."""
    healthy = make_healthy()
    spoil = FAULTS[name].spoil
    with unchanged(healthy.model):
        return spoil(healthy) if strength is None else spoil(healthy, strength)


def list_faults(*recalibrations: str) -> list[Any]:
    """List the faults of which recalibration does one of these; slow are those that share that and their verdict."""
    rows = []
    seen: set[tuple[str, str]] = set()
    for name, fault in FAULTS.items():
        if fault.recalibration in recalibrations:
            kind = (fault.recalibration, fault.verdicts[0])
            rows.append(pytest.param(name, marks=[pytest.mark.slow] if kind in seen else []))
            seen.add(kind)
    return rows


def choose_batches(name: str, strength: float | None) -> Batches:
    """Choose 1,024 images of a specimen, or 512, which show a fault of the middle strength unless it is mild."""
    batches = make_specimen(name, strength).batches
    images = 512 if strength == get_middle(name) and name not in MILD else 1024
    return batches[: images // len(batches[0][1])]


@pytest.mark.parametrize(("name", "strength"), list_specimens())
def test_a_fault_is_found_and_nothing_above_a_note_beside_it(name: str, strength: float | None) -> None:
    specimen = make_specimen(name, strength)

    diagnosis = bnlab.diagnose(specimen.model, choose_batches(name, strength), progress=False, **specimen.arguments)

    code = FAULTS[name].code
    severities = {finding.cause.code: finding.severity for finding in diagnosis.faults}
    above_notes = {found for found, severity in severities.items() if severity != "note"}
    assert above_notes <= {code}, str(diagnosis)

    verdicts = FAULTS[name].verdicts
    lost = specimen.unspoiled - diagnosis.scores["running"]
    if strength is not None and lost < SURELY:
        assert diagnosis.verdict in (*verdicts, "healthy", "undecided"), str(diagnosis)
    else:
        assert code in severities, str(diagnosis)
        assert diagnosis.verdict in verdicts, str(diagnosis)


@pytest.mark.parametrize("name", list_faults(*GAINS))
def test_exact_statistics_repair_hide_or_fall_short_as_the_fault_says(name: str) -> None:
    specimen = make_specimen(name, get_middle(name))
    model = copy.deepcopy(specimen.model).eval()

    inputs = specimen.arguments.get("inputs")
    bnlab.population_statistics(model, specimen.batches, inputs=inputs, progress=False).write_to(model)

    low, high = GAINS[FAULTS[name].recalibration]
    assert low <= measure_accuracy(model, specimen.batches) - specimen.unspoiled < high


@pytest.mark.parametrize("name", list_faults("hides", "not needed"))
def test_recalibration_refuses_to_hide_a_mistake_or_to_write_what_is_not_needed(name: str) -> None:
    specimen = make_specimen(name, get_middle(name))

    # Without training batches nobody knows whether images or averages are others.
    recalibration = bnlab.recalibrate(
        copy.deepcopy(specimen.model),
        choose_batches(name, get_middle(name)),
        training_batches=make_healthy().training_batches,
        progress=False,
    )

    assert not recalibration.written
    if FAULTS[name].recalibration == "hides":
        assert FAULTS[name].code in recalibration.reason


def test_each_code_is_shown_but_that_which_takes_several_processes() -> None:
    shown = {fault.code for fault in FAULTS.values()}

    assert {cause.code for cause in list_causes()} - shown == {"BN401"}
    assert all(fault.done.endswith(".") and "\n" not in fault.done for fault in FAULTS.values())


def test_reversed_channels_are_named_although_averages_remember_few_images() -> None:
    """Their noise stays in the first layer's gap, whichever way round the channels are."""
    specimen = make_specimen("few images remembered", get_middle("few images remembered"))
    batches = [(images.flip(1), labels) for images, labels in specimen.batches[:8]]

    diagnosis = bnlab.diagnose(specimen.model, batches, progress=False)

    assert (diagnosis.verdict, [finding.cause.code for finding in diagnosis.faults]) == ("images", ["BN209"])
    assert "the channels are reversed" in str(diagnosis)
