"""What the doctor says of networks with one fault, at several strengths, and of healthy ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import pytest
from torch import nn

from bnlab import diagnose, record
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.gallery import make_healthy as make_gallery_healthy
from tests.doctor import digits, points
from tests.doctor.digits import Batches
from tests.doctor.patients import CHANGES, PATIENTS, Given, break_one_layer, measure_accuracy
from tests.helpers import unchanged

SURELY = 0.03  # lost, on 1,000 images

UNMENDED: dict[tuple[Any, Any], str] = {}
"""Rows of which the doctor does not yet say what is right, and why."""


def mark(rows: Iterable[tuple[Any, Any]], quick: Container[tuple[Any, Any]]) -> list[Any]:
    """Make rows of parameters: those that are known to fail are marked, and those that are not quick as slow."""
    parameters = []
    for row in rows:
        marks = []
        if row in UNMENDED:
            marks.append(pytest.mark.xfail(strict=True, reason=UNMENDED[row]))
        if row not in quick:
            marks.append(pytest.mark.slow)
        parameters.append(pytest.param(*row, marks=marks))
    return parameters


def examine(given: Given) -> Diagnosis:
    """Diagnose a patient, which comes back as it was."""
    with unchanged(given.model):
        return diagnose(given.model, given.batches, progress=False, **given.arguments)


TABLE = [(name, strength) for name, patient in PATIENTS.items() for strength in patient.strengths]
OF_MIDDLE_STRENGTH = [(name, patient.strengths[len(patient.strengths) // 2]) for name, patient in PATIENTS.items()]
IMAGES = [(kind, change) for kind in ("digits", "gallery") for change in CHANGES]
FEW_CHANGES = ("times 0.25", "times 1.3", "times 8", "plus -0.5", "plus 0.25", "channels reversed")


@pytest.mark.parametrize(("name", "strength"), mark(TABLE, OF_MIDDLE_STRENGTH))
def test_a_fault_gets_its_verdict_and_its_code(name: str, strength: float) -> None:
    patient = PATIENTS[name]

    diagnosis = examine(patient.make(strength))

    assert diagnosis.verdict in patient.verdicts, str(diagnosis)
    assert diagnosis.faults[0].cause.code in patient.codes, str(diagnosis)


def test_the_layer_that_is_broken_is_named() -> None:
    diagnosis = examine(break_one_layer(3.0))

    assert diagnosis.faults[0].layers == ("4",)
    assert diagnosis.trials["chosen"].tolist().count(True) == 1


# Other images


def make_known(kind: str) -> tuple[nn.Module, Batches]:
    """Make a healthy network of a kind, and 1,000 images or so."""
    if kind == "digits":
        return digits.make_healthy(), digits.make_batches()
    healthy = make_gallery_healthy()
    return healthy.copy_model(), healthy.batches[:16]


@pytest.mark.parametrize(
    ("kind", "change"), mark(IMAGES, [(kind, change) for kind, change in IMAGES if change in FEW_CHANGES])
)
def test_other_images_are_named_wherever_they_cost_more_than_three_points(kind: str, change: str) -> None:
    model, batches = make_known(kind)
    changed = [(CHANGES[change](images), labels) for images, labels in batches]

    diagnosis = examine(Given(model, changed))

    lost = measure_accuracy(model, batches) - measure_accuracy(model, changed)
    if lost > SURELY:
        assert diagnosis.verdict == "images", f"{lost:.3f} lost\n{diagnosis}"
        assert diagnosis.faults[0].cause.code == "BN209", str(diagnosis)
    else:
        words = ("images", "averages or images", "healthy", "undecided")
        assert diagnosis.verdict in words, f"{lost:.3f} lost\n{diagnosis}"


@pytest.mark.parametrize(("change", "scale"), [("times 4", 4.0), ("times 0.25", 0.25), ("negative", -1.0)])
def test_the_scale_of_images_is_told(change: str, scale: float) -> None:
    diagnosis = examine(Given(digits.make_healthy(), digits.make_batches(CHANGES[change])))

    told = re.match(r"the images are (-?[\d.]+)·x", diagnosis.faults[0].evidence)
    assert told is not None
    assert float(told[1]) == pytest.approx(scale, rel=0.02)
    assert "do not recalibrate before" in " ".join(str(diagnosis).split())


# Healthy networks


def make_healthy_digits() -> Given:
    model = digits.build(3)
    before: dict[str, Any] = {}
    with record(model) as trace:
        digits.fit(model, after=lambda: before.update(digits.copy_state(model)))
    arguments = {"before": before, "trace": trace, "training_batches": digits.make_training_batches()[:-1]}
    return Given(model, digits.make_batches(), arguments)


def make_healthy_gallery() -> Given:
    healthy = make_gallery_healthy()
    arguments = {"before": healthy.before, "trace": healthy.trace, "training_batches": healthy.training_batches}
    return Given(healthy.model, healthy.batches, arguments)


def make_healthy_points() -> Given:
    """A perceptron."""
    model = points.make_net()
    before: dict[str, Any] = {}
    batches = points.make_batches(200)
    with record(model) as trace:
        points.train(model, batches[:150])
        before.update(digits.copy_state(model))
        points.train(model, batches[150:], lr=0.01)
    return Given(
        model.eval(), points.make_batches(32, seed=1), {"before": before, "trace": trace, "training_batches": batches}
    )


HEALTHY: Mapping[str, Callable[[], Given]] = {
    "digits": make_healthy_digits,
    "gallery": make_healthy_gallery,
    "points": make_healthy_points,
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_network_with_all_its_history_shows_nothing_above_a_note(kind: str) -> None:
    given = HEALTHY[kind]()

    without = diagnose(given.model)
    images = diagnose(given.model, [images for images, _ in given.batches], progress=False)
    full = examine(given)

    for diagnosis in (without, images, full):
        assert diagnosis.is_healthy, str(diagnosis)
    assert full.verdict == "healthy"
    assert len(str(full).splitlines()) <= 4, str(full)
