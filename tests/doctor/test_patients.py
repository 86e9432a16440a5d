"""What the doctor says of networks with one fault, of healthy ones, and of either under any loader."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab import diagnose
from bnlab.commands.demo.specimen import make_healthy as make_gallery_healthy
from bnlab.commands.demo.specimen import measure_accuracy
from bnlab.commands.demo.store import History
from bnlab.doctor.report.diagnosis import Diagnosis
from tests.doctor import digits
from tests.doctor.digits import LOADERS, NETWORKS, Batches
from tests.doctor.patients import CHANGES, PATIENTS, Given, cast_to_half
from tests.helpers import unchanged

SURELY = 0.03  # lost, on 1,000 images

UNMENDED: dict[tuple[Any, ...], str] = {
    ("constant rate, few steps", 0.3, "sorted by class"): (
        "the undo of the largest likelihood, .24 [.15, .33], gains 5 images of 1,000, where more than 5 decide"
    ),
}
"""Rows of which the doctor does not yet say what is right, and why."""


def mark(rows: Iterable[tuple[Any, ...]], quick: Container[tuple[Any, ...]]) -> list[Any]:
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


def examine(given: Given, load: Callable[[Batches], Iterable[Any]] = list) -> Diagnosis:
    """Diagnose a patient, which comes back as it was."""
    with unchanged(given.model):
        return diagnose(given.model, load(given.batches), progress=False, **given.arguments)


def read(diagnosis: Diagnosis) -> str:
    """Print a diagnosis in one line."""
    return " ".join(str(diagnosis).split())


# One fault


HEADLINES = {
    "averages": "The averages are at fault (3 batch norms)",
    "averages or images": "The averages are at fault, or the images (3 batch norms)",
    "images": "The images are at fault, not the averages (3 batch norms)",
    "network": "The network is at fault, not the averages (3 batch norms)",
    "mode": "The mode is at fault, not the averages (3 batch norms)",
    "batches": "The batches are at fault: no single set of averages helps (3 batch norms)",
    "undecided": "Undecided (3 batch norms)",
}
TABLE = [(name, strength) for name, patient in PATIENTS.items() for strength in patient.strengths]
MIDDLE = {name: patient.strengths[len(patient.strengths) // 2] for name, patient in PATIENTS.items()}


@pytest.mark.parametrize(("name", "strength"), mark(TABLE, MIDDLE.items()))
def test_a_fault_gets_its_verdict_and_its_code(name: str, strength: float) -> None:
    patient = PATIENTS[name]

    diagnosis = examine(patient.make(strength))

    assert diagnosis.verdict in patient.verdicts, str(diagnosis)
    codes = [finding.cause.code for finding in diagnosis.faults]
    assert codes[0] in patient.codes, str(diagnosis)
    assert len(codes) == len(set(codes))
    assert read(diagnosis).startswith(HEADLINES[diagnosis.verdict])
    assert patient.says in read(diagnosis)


ABOUT_BATCHES = ("windows of one recording", "a forward of each batch's statistics", "evaluated in train mode")
LOADED = [(name, MIDDLE[name], loader) for name in PATIENTS if name not in ABOUT_BATCHES for loader in LOADERS]
SORTED_LAG = ("constant rate, few steps", 0.1, "sorted by class")
FEW_LOADED = [
    SORTED_LAG,
    ("means of one layer broken", 3.0, "all in one"),
    ("constant rate, few steps", 0.3, "a last one of one image"),
    ("means of one layer broken", 3.0, "a generator"),
    *(
        ("first layer's averages of other images", 3.0, loader)
        for loader in ("sorted by class", "all in one", "a last one of one image", "a generator")
    ),
]
"""Each loader with either kind of verdict."""


@pytest.mark.parametrize(("name", "strength", "loader"), mark([*LOADED, SORTED_LAG], FEW_LOADED))
def test_a_fault_keeps_its_verdict_and_its_code_under_any_loader(name: str, strength: float, loader: str) -> None:
    patient = PATIENTS[name]

    diagnosis = examine(patient.make(strength), LOADERS[loader])

    assert diagnosis.verdict in patient.verdicts, str(diagnosis)
    assert diagnosis.faults[0].cause.code in patient.codes, str(diagnosis)


def test_recalibrate_says_that_a_type_does_not_hold_a_variance() -> None:
    given = cast_to_half(1.0)

    with unchanged(given.model), pytest.raises(ValueError, match=r"layer '4'.* beyond torch\.float16"):
        bnlab.recalibrate(given.model, given.batches, progress=False)


def test_a_copy_in_float32_is_called_as_the_model_is() -> None:
    """Batches (index, images, labels) are called with the images there, too."""
    given = cast_to_half(1.0)
    numbers = torch.arange(sum(len(labels) for _, labels in given.batches)).split(len(given.batches[0][1]))
    batches = [(number, *batch) for number, batch in zip(numbers, given.batches, strict=True)]

    diagnosis = bnlab.diagnose(given.model, batches, progress=False)

    assert diagnosis.faults[0].cause.code == "BN001"


# Other images


IMAGES = [(kind, change) for kind in ("digits", "gallery") for change in CHANGES]
FEW_IMAGES = [
    ("digits", "times 4"),
    ("gallery", "times 0.25"),
    ("gallery", "plus 0.25"),
    ("digits", "negative"),
    ("digits", "each colour shifted"),
]
IN_EACH_SEED = [f"times {factor}" for factor in (0.25, 0.5, 2, 4, 8)] + [
    *(change for change in CHANGES if change.startswith("plus")),
    "negative",
    "channels reversed",
]


def change_images(batches: Batches, change: str) -> Batches:
    return [(CHANGES[change](images), labels) for images, labels in batches]


@cache
def examine_changed(seed: int, change: str) -> Diagnosis:
    """Diagnose a healthy network of digits on changed images, once for all tests."""
    return examine(Given(digits.make_healthy(seed), digits.make_batches(CHANGES[change])))


def require_images(model: nn.Module, batches: Batches, change: str, diagnosis: Diagnosis) -> None:
    """Require that changed images are named wherever they cost more than three points, and else nothing wrong.

    Where exact statistics bring back all that was lost, averages of other images explain as much, and nobody knows
    without the training batches which of the two are others; where they leave more than a tenth, images are at fault.
    """
    healthy = measure_accuracy(model, batches)
    lost = healthy - measure_accuracy(model, change_images(batches, change))
    if lost > SURELY:
        left = healthy - diagnosis.scores["exact"]
        words = {"averages or images"} if left <= 0 else {"images", "averages or images"}
        assert diagnosis.verdict in words, f"{lost:.3f} lost, {left:.3f} left\n{diagnosis}"
        assert diagnosis.faults[0].cause.code == "BN209", str(diagnosis)
    else:
        words = {"images", "averages or images", "healthy", "undecided"}
        assert diagnosis.verdict in words, f"{lost:.3f} lost\n{diagnosis}"


@pytest.mark.parametrize(("kind", "change"), mark(IMAGES, FEW_IMAGES))
def test_other_images_are_named_wherever_they_cost_more_than_three_points(kind: str, change: str) -> None:
    if kind == "digits":
        require_images(digits.make_healthy(), digits.make_batches(), change, examine_changed(0, change))
    else:
        healthy = make_gallery_healthy()
        model, batches = healthy.copy_model(), healthy.batches[:8]
        diagnosis = examine(Given(model, change_images(batches, change)))
        require_images(model, batches, change, diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_other_images_are_named_in_other_networks(seed: int) -> None:
    for change in IN_EACH_SEED:
        require_images(digits.make_healthy(seed), digits.make_batches(), change, examine_changed(seed, change))


@pytest.mark.parametrize(
    ("change", "scale", "shifts"),
    [
        ("times 4", 4.0, [0.0]),
        pytest.param("times 0.25", 0.25, [0.0], marks=pytest.mark.slow),
        ("negative", -1.0, [0.0]),
        ("each colour shifted", 1.0, [0.5, -0.5, 1.0]),
    ],
)
def test_the_scale_and_the_shift_of_images_are_told(change: str, scale: float, shifts: list[float]) -> None:
    """Also behind padding, as these networks have it: the zeros around images do not change with them."""
    diagnosis = examine_changed(0, change)

    assert read_numbers(diagnosis) == pytest.approx([scale, *shifts], rel=0.02, abs=0.02)
    assert "do not recalibrate before" in read(diagnosis)


def test_the_scale_and_the_shift_of_what_is_no_image_are_told() -> None:
    model, _ = load_perceptron()

    diagnosis = examine(Given(model, digits.make_batches(lambda images: 3 * images.flatten(1) + 0.7)))

    assert read_numbers(diagnosis) == pytest.approx([3.0, 0.7], rel=0.05)


def build_perceptron() -> nn.Sequential:
    """Build one of two batch norms, for rows of 192 numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(192, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Linear(16, digits.CLASSES),
    )


def load_perceptron() -> tuple[nn.Sequential, History]:
    """Load it as trained on the digits' numbers, and what is known of its training."""
    model = build_perceptron()
    history = digits.fit_and_record("perceptron", model, nn.Flatten())
    return model, history


def read_numbers(diagnosis: Diagnosis) -> list[float]:
    """Read the scale and the shifts that a finding tells."""
    reported = diagnosis.faults[0].evidence.partition("where x are")[0]
    return [float(number) for number in re.findall(r"[-+]?[\d.]+", reported)]


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Standardizes(nn.Module):
    """Divides each batch by its own standard deviation, which is 0 where it is constant."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std()


@pytest.mark.parametrize("first", [Squares, Standardizes])
def test_what_does_not_answer_affinely_is_not_rescaled(first: type[nn.Module]) -> None:
    model = nn.Sequential(first(), *digits.make_healthy()).eval()

    diagnosis = examine(Given(model, digits.make_batches(CHANGES["times 4"], images=200)))

    assert "BN209" not in diagnosis.trials["code"].tolist()
    assert "does not follow a change of the images" in read(diagnosis)


# Healthy networks


def give_history(model: nn.Module, history: History, change: Callable[[Tensor], Tensor] = torch.clone) -> Given:
    """Give the doctor a network with all of its history; it was trained on changed images."""
    training = [(change(images), labels) for images, labels in digits.make_training_batches()[:-1]]
    arguments = {"before": history.before, "trace": history.trace, "training_batches": training}
    return Given(model, digits.make_hundreds(change), arguments)


def make_healthy_specimen() -> Given:
    healthy = make_gallery_healthy()
    return Given(healthy.copy_model(), healthy.batches[:16], {"training_batches": healthy.training_batches})


HEALTHY: Mapping[str, Callable[[], Given]] = {
    "digits": cache(lambda: give_history(*digits.load_with_history())),
    "gallery": cache(make_healthy_specimen),
    "perceptron": cache(lambda: give_history(*load_perceptron(), nn.Flatten())),
}
"""Makes each once for all tests, not to be changed."""


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_network_with_all_its_history_shows_nothing_above_a_note(kind: str) -> None:
    given = HEALTHY[kind]()

    without = diagnose(given.model)
    images = diagnose(given.model, [images for images, _ in given.batches], progress=False)
    full = examine(given)

    for diagnosis in (without, images, full):
        assert diagnosis.is_healthy, str(diagnosis)
    assert full.verdict == "healthy" and full.scores["running"] > 0.85


HEALTHY_LOADED = [(kind, loader) for kind in HEALTHY for loader in LOADERS]
ONE_EACH = ("perceptron", "one image each")
FEW_HEALTHY = [
    ("digits", "sorted by class"),
    ONE_EACH,
    ("gallery", "all in one"),
    ("digits", "a last one of one image"),
    ("gallery", "a generator"),
]


@pytest.mark.parametrize(("kind", "loader"), mark(HEALTHY_LOADED, FEW_HEALTHY))
def test_a_healthy_network_is_healthy_under_any_loader(kind: str, loader: str) -> None:
    given = HEALTHY[kind]()
    batches = list(LOADERS[loader](given.batches[: 3 if (kind, loader) == ONE_EACH else None]))  # of 100 images

    with_labels = diagnose(given.model, iter(batches), progress=False)
    without = diagnose(given.model, (images for images, _ in batches), progress=False)

    for diagnosis in (with_labels, without):
        assert diagnosis.is_healthy, str(diagnosis)
    assert with_labels.verdict == "healthy"


def test_a_network_that_was_tuned_with_its_averages_as_constants_is_healthy() -> None:
    """All weights were trained on negatives while batch norm stayed in eval mode, with averages of other images."""
    negative = CHANGES["negative"]
    model = digits.make_healthy(2)
    train = partial(digits.fit, model, steps=192, rate=0.02, change=negative, keep_mode=True)
    NETWORKS.recall("averages as constants", model, train)
    training = [(negative(images), labels) for images, labels in digits.make_training_batches()[:-1]]
    batches = digits.make_hundreds(negative)[:5]

    diagnosis = examine(Given(model, batches, {"training_batches": training}))

    assert diagnosis.scores["exact"] < diagnosis.scores["running"] - 0.05, str(diagnosis)
    assert diagnosis.verdict == "healthy" and diagnosis.is_healthy, str(diagnosis)
    assert "trained with its averages as constants, so do not recalibrate" in read(diagnosis)
    assert f"On the training batches {measure_accuracy(model, training):.1%}, as the model is" in read(diagnosis)
    assert not bnlab.recalibrate(model, batches, progress=False).written
