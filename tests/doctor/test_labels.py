"""What users' loaders give, and models return: where the labels are, which output is scored, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab import diagnose
from bnlab.commands.demo.specimen import list_norms, measure_accuracy
from bnlab.commands.loading import name_options
from bnlab.doctor.evidence.labels import choose_part, find_labels
from tests.doctor import digits
from tests.doctor.digits import make_batches, make_few, make_healthy
from tests.helpers import unchanged

IMAGES = 100


def find_accuracy() -> float:
    return measure_accuracy(make_healthy(), make_batches(images=IMAGES))


def number(start: int, labels: Tensor) -> Tensor:
    return start + torch.arange(len(labels))


LAYOUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "names and labels": lambda images, labels: (images, {"name": ["x"] * len(labels)}, labels),
    "paths and labels": lambda images, labels: (images, ["x.png"] * len(labels), labels),
    "sizes and labels": lambda images, labels: (images, torch.tensor([8, 8, 3]), labels),
    "numbered": lambda images, labels: (number(7, labels), images, labels),
    "labels and weights": lambda images, labels: (images, labels, torch.ones(len(labels))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_found_where_shapes_and_types_leave_one_reading(layout: str) -> None:
    batches = [LAYOUTS[layout](images, labels) for images, labels in make_batches(images=IMAGES)]

    diagnosis = diagnose(make_healthy(), batches, progress=False)

    assert diagnosis.scores["running"] == pytest.approx(find_accuracy())


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_the_keys_of_a_dictionary_are_listed_and_looked_for(key: str) -> None:
    labels = torch.arange(4)

    assert find_labels({"image": torch.zeros(4, 2), key: labels}) is labels
    assert f"`{key}`" in str(diagnose.__doc__)
    assert find_labels({"image": torch.zeros(4, 2), "classes": labels}) is None


def test_labels_are_the_callers_to_name() -> None:
    batches = [{"pixels": images, "meta": {"class": labels}} for images, labels in make_batches(images=IMAGES)]
    arguments: dict[str, Any] = {
        "forward": lambda model, batch: model(batch["pixels"]),
        "labels": lambda batch: batch["meta"]["class"],
        "progress": False,
    }
    model = make_healthy()

    diagnosis = diagnose(model, batches, **arguments)
    recalibration = bnlab.recalibrate(model, batches, **arguments)

    assert diagnosis.scores["running"] == pytest.approx(find_accuracy())
    assert recalibration.before == pytest.approx(find_accuracy())


WRONG: list[tuple[Any, type[Exception], str]] = [
    (
        lambda batch: batch[1][:3],
        ValueError,
        "diagnose: labels= returned 3 labels for 50 outputs; return a label for each",
    ),
    (lambda batch: batch[1].tolist(), TypeError, "diagnose: labels= returned a list; return a tensor with a label for"),
    (lambda batch: batch[1][0], TypeError, "diagnose: labels= returned a number; return a tensor with a label for"),
    ("labels", TypeError, "diagnose: labels is a str; pass a function of a batch"),
]


@pytest.mark.parametrize(("labels", "kind", "message"), WRONG)
def test_labels_that_do_not_fit_are_refused_and_nothing_is_changed(
    labels: Any, kind: type[Exception], message: str
) -> None:
    model = make_healthy()

    with unchanged(model), pytest.raises(kind, match=message):
        diagnose(model, make_batches(images=IMAGES), labels=labels, progress=False)


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda labels: labels.numpy(), "ndarray"),
        (lambda labels: labels.tolist(), "list"),
        (lambda labels: tuple(labels.tolist()), "tuple"),
        (lambda labels: [f"class {label}" for label in labels], "list"),
    ],
)
def test_labels_that_are_no_tensor_are_refused_in_words(convert: Callable[[Tensor], Any], kind: str) -> None:
    batches = [(images, convert(labels)) for images, labels in make_batches(images=IMAGES)]

    diagnosis = diagnose(make_healthy(), batches, progress=False)
    recalibration = bnlab.recalibrate(make_healthy(), batches, progress=False)

    assert f"Labels were not read, as they are a {kind}: pass a tensor of class numbers." in diagnosis.notes
    assert f"as labels are a {kind} and no tensor" in recalibration.reason


def test_labels_of_one_column_are_one_for_each_image() -> None:
    batches = make_batches(images=IMAGES)
    columns = [(images, labels[:, None]) for images, labels in batches]

    found, expected = (diagnose(make_healthy(), data, progress=False) for data in (columns, batches))

    assert str(found) == str(expected)


# Which output is scored


class WithFeatures(nn.Module):
    """Returns features and logits."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.network = make_healthy()
        self.order = order

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network[:-1](images)
        outputs = (features, self.network[-1](features))
        return tuple(outputs[number] for number in self.order)


@pytest.mark.parametrize(("order", "number"), [((0, 1), 1), ((1, 0), 0), ((1, 1), 0)])
def test_the_output_that_names_classes_is_scored_and_named(order: tuple[int, ...], number: int) -> None:
    diagnosis = diagnose(WithFeatures(order).eval(), make_batches(images=IMAGES), progress=False)

    assert diagnosis.scores["running"] == pytest.approx(find_accuracy())
    assert (f"output[{number}] was scored, as it names classes." in " ".join(str(diagnosis).split())) == (number > 0)


# Which labels are compared


@pytest.mark.parametrize(
    ("order", "is_noted"),
    [
        (("labels",), False),
        (("labels", "domains"), False),
        (("labels", "weights"), False),
        (("labels", "index"), False),
        (("domains", "labels"), True),
        (("lengths", "labels"), True),
        (("weights", "labels"), True),
        (("domains", "index", "labels"), True),
    ],
)
def test_of_several_parts_that_is_the_labels_which_outputs_predict(order: tuple[str, ...], is_noted: bool) -> None:
    batches = []
    for place, (images, labels) in enumerate(make_batches(images=IMAGES)):
        number = torch.arange(len(labels))
        parts = {
            "labels": labels,
            "domains": number % digits.CLASSES,
            "lengths": 20 + number % 7,
            "weights": torch.ones(len(labels)),
            "index": place * len(labels) + number,
        }
        batches.append((images, *(parts[name] for name in order)))

    diagnosis = diagnose(make_healthy(), batches, progress=False)
    recalibration = bnlab.recalibrate(make_healthy(), batches, progress=False)

    assert diagnosis.scores["running"] == recalibration.before == pytest.approx(find_accuracy())
    assert any("Labels were taken from batch[" in note for note in diagnosis.notes) == is_noted


def test_no_part_is_taken_for_labels_that_outputs_do_not_predict() -> None:
    """Of ages, which a network gives one number for, and sexes: neither are its labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).train()
    inputs, ages, sexes = torch.randn(96, 4), torch.rand(96), torch.randint(0, 2, (96,))
    model(inputs)
    batches = list(zip(inputs.split(16), ages.split(16), sexes.split(16), strict=True))

    diagnosis = diagnose(model.eval(), batches, progress=False)

    assert not any("Labels were taken from" in note for note in diagnosis.notes)
    assert any("pass evaluate=" in note for note in diagnosis.notes), diagnosis.notes


@pytest.mark.parametrize("kind", ["complex", "sparse", "of the whole batch"])
def test_parts_that_are_no_labels_do_no_harm(kind: str) -> None:
    batches = []
    for images, labels in make_batches(images=IMAGES):
        parts = {
            "complex": torch.zeros(len(labels), 8, dtype=torch.complex64),
            "sparse": torch.eye(len(labels)).long().to_sparse(),
            "of the whole batch": torch.tensor([3, 1]),
        }
        batches.append((images, labels, parts[kind]))

    diagnosis = diagnose(make_healthy(), batches, progress=False)

    assert diagnosis.scores["running"] == pytest.approx(find_accuracy())


def test_batches_of_another_layout_have_their_labels_where_they_usually_are() -> None:
    """As training batches that have no weights."""
    pairs = make_batches(images=IMAGES)
    weighed = [(images, torch.ones(len(labels)), labels) for images, labels in pairs]

    diagnosis = diagnose(make_healthy(), weighed, training_batches=pairs, progress=False)

    assert diagnosis.scores["running"] == pytest.approx(find_accuracy())
    assert diagnosis.case.training_score == pytest.approx(find_accuracy())


LABELS = torch.tensor([0, 1, 2, 2])
RIGHT = torch.eye(3)[LABELS]


@pytest.mark.parametrize(
    ("output", "labels", "number"),
    [
        (RIGHT, LABELS, 0),
        ((RIGHT, RIGHT.flip(0)[:, :2]), LABELS, 0),  # too few classes
        ((torch.zeros(4, 8), RIGHT), LABELS, 1),
        ((RIGHT.repeat(1, 2), torch.zeros(4, 3)), LABELS, 0),  # narrower, and worse
        ((torch.zeros(4, 1), torch.zeros(4, 8)), LABELS % 2, 0),  # one column tells two classes
        ((torch.eye(8)[[1, 1, 1, 1]], torch.tensor([[-1.0], [1.0], [1.0], [1.0]])), LABELS.clamp(max=1), 1),
        ((torch.zeros(4, 5, 3), RIGHT), LABELS, 1),
        ((torch.zeros(4, 8), RIGHT), LABELS.float(), 0),
        ((), LABELS, 0),
    ],
)
def test_which_output_names_classes(output: Any, labels: Tensor, number: int) -> None:
    assert choose_part(output, labels) == number


# What is said


def test_an_error_of_the_model_says_how_it_was_called() -> None:
    model = nn.Sequential(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)).eval()

    with pytest.raises(RuntimeError) as caught:
        diagnose(model, make_batches(images=IMAGES), progress=False)
    assert caught.value.__notes__ == ["the model was called with batch[0], a tensor [50, 3, 8, 8] of float32"]

    with pytest.raises(RuntimeError) as caught:
        diagnose(model, make_batches(images=IMAGES), forward=lambda model, batch: model(batch[0]), progress=False)
    assert caught.value.__notes__ == ["forward= was called with the model and a tuple"]


def test_hints_of_the_command_line_can_be_typed_there() -> None:
    said = (
        "Pass that network as before=. BN209 (x); bnlab.doctor.explain('BN209') says what to do. training_batches= "
        "shows it, and force=True writes anyway (see .findings, or --html)."
    )

    assert name_options(said) == (
        "Pass that network as --before. BN209 (x); bnlab explain BN209 says what to do. --training shows it, and "
        "--force writes anyway (see --json, or --html)."
    )


def test_only_what_training_batches_show_is_refused() -> None:
    """Exact statistics bring back as much as the order of channels: without these batches either may be at fault."""
    batches = make_batches(lambda images: images.flip(1), images=200)
    training_batches = digits.draw_batches(8, seed=-1)

    uncertain = bnlab.recalibrate(make_healthy(), batches, progress=False)
    certain = bnlab.recalibrate(make_healthy(), batches, training_batches=training_batches, progress=False)

    assert uncertain.written and "as they would without BN209" in uncertain.reason
    assert "training_batches= tells whether images or averages are at fault" in uncertain.reason
    assert not certain.written and "it would hide a mistake: BN209" in certain.reason
    assert "force=True writes anyway" in certain.reason
    assert "training_batches=" not in certain.reason  # these have not convinced it


def test_without_labels_only_a_mistake_that_training_batches_show_is_refused() -> None:
    batches = [images for images, _ in make_batches(images=200)]
    scaled = [4 * images for images in batches]
    training_batches = [images for images, _ in digits.draw_batches(8, seed=-1)]

    written = bnlab.recalibrate(make_healthy(), batches, progress=False)
    uncertain = bnlab.recalibrate(make_healthy(), scaled, progress=False)
    certain = bnlab.recalibrate(make_healthy(), scaled, training_batches=training_batches, progress=False)

    assert bnlab.diagnose(make_healthy(), batches, progress=False).verdict == "healthy"
    assert written.written and written.reason.startswith("not judged, as the batches have no labels")
    assert uncertain.written and "training_batches= tells whether images or averages" in uncertain.reason
    assert not certain.written and "it would hide a mistake: BN209" in certain.reason


# Conclusions that scores do not allow


def test_below_chance_before_and_after_is_undecided() -> None:
    """The labels are others: what brings the likelihood up leaves the score below always naming one class."""
    model = make_healthy()
    with torch.no_grad():
        for norm in list_norms(model):
            norm.get_buffer("running_mean").add_(1)
    batches = [(images, (labels + 1) % digits.CLASSES) for images, labels in make_few()]
    batches = [(images, labels.where(torch.arange(len(labels)) % 10 != 0, 3)) for images, labels in batches]

    diagnosis = diagnose(model, batches, progress=False)

    assert max(diagnosis.scores.values()) < 0.2, str(diagnosis)
    assert diagnosis.verdict in ("undecided", "network"), str(diagnosis)
    assert "Are these labels, in this order, those that it was trained on?" in " ".join(str(diagnosis).split())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_an_untrained_network_whose_exact_statistics_lose_is_not_healthy(seed: int) -> None:
    diagnosis = diagnose(digits.build(seed).eval(), make_few(), progress=False)

    assert diagnosis.verdict == "network", str(diagnosis)
    assert "was the checkpoint loaded?" in " ".join(str(diagnosis).split())


def test_a_reversed_momentum_is_named_in_all_layers_that_have_it() -> None:
    model = make_healthy()
    for norm in list_norms(model):
        norm.momentum = 0.9
    model.train()
    with torch.no_grad():
        for images, _ in digits.make_training_batches(8)[:3]:
            model(images)

    diagnosis = diagnose(model.eval(), make_few(), progress=False)

    (finding,) = [finding for finding in diagnosis.faults if finding.cause.code == "BN102"]
    assert finding.layers == digits.NORMS


def test_numpy_images_are_the_forwards_affair() -> None:
    batches = [(images.numpy(), labels) for images, labels in make_batches(images=IMAGES)]

    with pytest.raises(TypeError) as caught:
        diagnose(make_healthy(), batches, progress=False)
    assert "the model was called with batch[0], a ndarray; pass tensors" in caught.value.__notes__

    def run(model: nn.Module, batch: Any) -> Any:
        return model(torch.from_numpy(np.asarray(batch[0])))

    assert diagnose(make_healthy(), batches, forward=run, progress=False).scores["running"] > 0.8
