"""Faults of the gallery, planted in committed networks and in freshly trained ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import count, islice

from benchmarks.doctor_benchmark.problem import Given, Problem
from benchmarks.doctor_benchmark.reports import HEALTHY
from benchmarks.doctor_networks import Trained, TrainingSettings, train_network
from benchmarks.doctor_networks import make_healthy as make_healthy_from
from benchmarks.gallery import FAULTS, Fault, Healthy, Specimen, make_healthy
from bnlab.commands.demo.specimen import measure_accuracy
from bnlab.doctor import CAUSES
from tests.doctor import digits

FROZEN, FRESH = "faults planted in committed networks", "faults planted in fresh networks"

_IMAGES = 1024
_FIRST_SEED = 2000
_SMALL = ("patterns", "cnn", "resnet")  # of which a network trains within half a minute
_WORTH = 0.03  # lost on the images of the problem; what costs less is left out unless it should cost nothing
_REMEDIES = {cause.code: cause.remedy for cause in CAUSES}

Wants = Callable[[str, str], bool]
"""Called with a part and a name; returns whether such a problem is to be made."""


def list_frozen(wants: Wants) -> Iterator[Problem]:
    """List faults of committed networks: all in the gallery's, and those that any network can have in the digits'."""
    yield from _plant(FROZEN, "gallery", make_healthy(), wants, is_gallery=True)
    for seed in range(4):
        yield from _plant(FROZEN, f"digits {seed}", _load_digits(seed), wants, is_gallery=False)


def list_fresh(networks: int, wants: Wants) -> Iterator[Problem]:
    """List faults of so many networks that are trained for it, unless they are near chance."""
    for trained in islice(_train(), networks):
        name = f"{trained.training.architecture} {trained.training.seed}"
        yield from _plant(FRESH, name, make_healthy_from(trained, trained.batches), wants, is_gallery=False)


def _train() -> Iterator[Trained]:
    for seed in count(_FIRST_SEED):
        training = TrainingSettings.choose(seed)
        if training.architecture in _SMALL:
            trained = train_network(training)
            if not trained.is_near_chance:
                yield trained


def _load_digits(seed: int) -> Healthy:
    """Load a network of the doctor's tests with its data."""
    images, labels, _, _ = digits.load_images()
    batches = digits.make_batches()
    model = digits.make_healthy(seed)
    return Healthy(model, images, labels, batches, measure_accuracy(model, batches))


def _plant(part: str, network: str, healthy: Healthy, wants: Wants, is_gallery: bool) -> Iterator[Problem]:
    """Plant each fault at its middle strength; the network without any comes first."""
    few = healthy.batches[: _IMAGES // len(healthy.batches[0][1])]
    if wants(HEALTHY, network):
        yield Problem(HEALTHY, network, network, lambda: Given(healthy.copy_model(), few), ("healthy",), ())
    for fault in FAULTS.values():
        is_possible = is_gallery or fault.is_portable
        if not is_possible or not wants(part, _name(fault, network)):
            continue
        strength = fault.strengths[1] if fault.strengths else None
        specimen = fault.spoil(healthy, strength)
        if _costs_enough(fault, specimen):
            yield _make_problem(part, network, fault, specimen)


def _costs_enough(fault: Fault, specimen: Specimen) -> bool:
    # On a copy: one of the faults leaves a model in train mode, whose averages move when it is scored.
    lost = specimen.unspoiled - measure_accuracy(copy.deepcopy(specimen.model), specimen.batches)
    return "healthy" in fault.verdicts or lost >= _WORTH


def _make_problem(part: str, network: str, fault: Fault, specimen: Specimen) -> Problem:
    batches = specimen.batches[: _IMAGES // len(specimen.batches[0][1])]
    # Made already, because what the fault costs had to be measured.
    given = Given(specimen.model, batches, specimen.arguments)
    # What costs nothing calls for nothing, and has no code.
    codes = (fault.code,) if fault.code else ()
    remedy = _REMEDIES[fault.code] if fault.code else ""
    return Problem(part, _name(fault, network), network, lambda: given, tuple(fault.verdicts), codes, remedy)


def _name(fault: Fault, network: str) -> str:
    return f"{fault.name} in {network}"
