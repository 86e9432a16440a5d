"""The gallery: each fault is found under its code, and new statistics repair what they can."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

import bnlab
from bnlab.doctor.catalogue import list_rules
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.gallery import FAULTS, UNSHOWN, Specimen, make_healthy
from bnlab.doctor.gallery.network import build_network, choose_images
from bnlab.doctor.gallery.patterns import CLASSES, draw_patterns
from bnlab.doctor.gallery.specimen import measure_accuracy
from bnlab.doctor.recalibration import Recalibration
from tests.helpers import unchanged

HALF_A_POINT = 0.005

pytestmark = pytest.mark.filterwarnings("ignore:.*are no batch norm of torch's:RuntimeWarning")  # as one specimen has


@cache
def make_specimen(name: str) -> Specimen:
    """Make a specimen, once for all tests; not to be changed."""
    healthy = make_healthy()
    with unchanged(healthy.model):
        return FAULTS[name].spoil(healthy)


@cache
def diagnose_specimen(name: str) -> Diagnosis:
    specimen = make_specimen(name)
    return bnlab.diagnose(specimen.model, specimen.batches, progress=False, **specimen.arguments)


def list_faults(*recalibrations: str) -> list[str]:
    """List the faults of which recalibration does one of these."""
    return [name for name, fault in FAULTS.items() if fault.recalibration in recalibrations]


def measure_recalibrated(name: str) -> float:
    """Give a copy of a specimen exact statistics of its images; its accuracy on them."""
    specimen = make_specimen(name)
    model = copy.deepcopy(specimen.model).eval()
    evidence = diagnose_specimen(name).case.evidence
    assert evidence is not None
    evidence.exact.write_to(model)
    return measure_accuracy(model, specimen.batches)


def recalibrate_copy(name: str) -> Recalibration:
    """Recalibrate a copy of a specimen on its images."""
    specimen = make_specimen(name)
    return bnlab.recalibrate(copy.deepcopy(specimen.model), specimen.batches, progress=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_above_a_note_beside_it(name: str) -> None:
    diagnosis = diagnose_specimen(name)

    severities = {finding.rule.code: finding.severity for finding in diagnosis.faults}
    assert FAULTS[name].code in severities
    above_notes = {code for code, severity in severities.items() if severity != "note"}
    assert above_notes <= {FAULTS[name].code}, str(diagnosis)


@pytest.mark.parametrize("name", list_faults("repairs", "hides"))
def test_exact_statistics_come_within_half_a_point_of_the_unspoiled_network(name: str) -> None:
    assert measure_recalibrated(name) >= make_specimen(name).unspoiled - HALF_A_POINT


@pytest.mark.parametrize("name", list_faults("falls short"))
def test_exact_statistics_fall_short_where_more_is_to_be_mended(name: str) -> None:
    assert measure_recalibrated(name) < make_specimen(name).unspoiled - HALF_A_POINT


@pytest.mark.parametrize("name", list_faults("hides", "not needed"))
def test_recalibration_refuses_to_hide_a_mistake_or_to_write_what_is_not_needed(name: str) -> None:
    recalibration = recalibrate_copy(name)

    assert not recalibration.written
    if FAULTS[name].recalibration == "hides":
        assert FAULTS[name].code in recalibration.reason


def test_the_healthy_network_prints_three_lines() -> None:
    healthy = make_healthy()

    diagnosis = bnlab.diagnose(healthy.model, healthy.batches, progress=False)

    assert diagnosis.verdict == "healthy"
    assert len(str(diagnosis).splitlines()) <= 3


def test_nothing_above_a_note_is_found_on_the_healthy_network_with_all_its_history() -> None:
    healthy = make_healthy()

    diagnosis = bnlab.diagnose(
        healthy.model,
        healthy.batches,
        training_batches=healthy.training_batches,
        before=healthy.before,
        trace=healthy.trace,
        progress=False,
    )

    assert diagnosis.is_healthy, str(diagnosis)
    assert healthy.accuracy > 0.85


def test_each_code_is_shown_or_says_why_not() -> None:
    shown = {fault.code for fault in FAULTS.values()}

    assert {rule.code for rule in list_rules()} == shown | set(UNSHOWN)
    assert not shown & set(UNSHOWN)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_says_what_was_done(name: str) -> None:
    fault = FAULTS[name]

    bnlab.doctor.explain(fault.code)  # raises where there is no such code
    assert fault.done.endswith(".") and "\n" not in fault.done


def test_patterns_are_the_same_for_the_same_seed() -> None:
    images, labels = draw_patterns(64, seed=3)
    again, same_labels = draw_patterns(64, seed=3)
    others, _ = draw_patterns(64, seed=4)

    assert images.shape == (64, 3, 12, 12)
    assert set(labels.tolist()) == set(range(CLASSES))
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    assert not torch.equal(images, others)


def test_building_a_network_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)

    torch.manual_seed(0)
    build_network(seed=5)

    assert torch.equal(torch.rand(1), expected)


def test_each_epoch_chooses_every_image_once_and_leaves_out_the_smaller_batch() -> None:
    batches = list(choose_images(10, steps=5, batch_size=4))

    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4]
    for first, second in (batches[:2], batches[2:4]):
        assert len({*first.tolist(), *second.tolist()}) == 8
