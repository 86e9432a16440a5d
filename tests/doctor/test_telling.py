"""What a diagnosis prints: the verdict first, what to pass to learn more, and no more than is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnlab import diagnose, population_statistics
from bnlab.doctor import Undo
from bnlab.doctor.case import Case
from bnlab.doctor.cause import Severity
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.experiment import Trial
from bnlab.doctor.findings import Finding
from bnlab.doctor.scores import Difference
from bnlab.doctor.undoing import EXACT
from bnlab.doctor.verdict import Verdict, Word, tell_score
from tests.doctor.causes import Planted
from tests.doctor.networks import build_cnn, get_norm, make_batches, make_healthy, train

GAIN = Difference(0.0, -0.004, 0.004, 1000)
BEFORE = "Averaged (EMA, SWA, federated), pruned or fine-tuned? Pass that network as before=."
TRAINING = "Prepared otherwise than in training? Pass training_batches= to compare."


@pytest.fixture(scope="module")
def case() -> Case:
    return diagnose(make_healthy(), make_batches(4), progress=False).case


def plant(count: int, severity: Severity = "note") -> list[Finding]:
    return [Finding(Planted(), ("1",), "planted", severity)] * count


def tell(case: Case, word: Word, findings: Sequence[Finding] = (), shared: str | None = None) -> list[str]:
    """Print a diagnosis, and return its lines without that of the scores.

    Args:
        case: what was measured.
        word: the verdict.
        findings: of the diagnosis.
        shared: which shared undo the verdict follows from; None if from none at all.
    """
    undo = Undo("undone", ("1",), 0, lambda model, stack: None, shared or "")
    chosen = [] if shared is None else [Trial(Planted(), undo, torch.zeros(2, 4))]
    lines = str(Diagnosis(case, Verdict(word, "So it is.", GAIN, chosen=chosen), None, findings, ())).splitlines()
    return [line for line in lines if not line.startswith("Accuracy: ")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_a_healthy_model_prints_three_lines_with_any_number_of_notes(count: int, case: Case) -> None:
    lines = tell(case, "healthy", plant(count))

    notes = {0: "", 1: " Notes: OWN1.", 2: " Notes: OWN1, OWN1.", 3: " Notes: 3.", 9: " Notes: 9."}
    assert lines == [
        "Healthy averages (3 batch norms). So it is.",
        f"Too low? Check labels, their order, preprocessing, weights; or pass expected=.{notes[count]}",
    ]


def test_a_healthy_model_that_reaches_what_is_expected_is_not_doubted(case: Case) -> None:
    lines = tell(replace(case, expected=0.5), "healthy", plant(1))

    assert lines[1:] == ["Notes: OWN1 (see .findings, or --html)."]


@pytest.mark.parametrize(
    ("word", "headline"),
    [
        ("averages", "The averages are at fault"),
        ("averages or images", "The averages are at fault, or the images"),
        ("images", "The images are at fault, not the averages"),
        ("network", "The network is at fault, not the averages"),
        ("mode", "The mode is at fault, not the averages"),
        ("batches", "The batches are at fault: no single set of averages helps"),
        ("undecided", "Undecided"),
    ],
)
def test_the_headline_says_where_the_fault_is_and_its_finding_follows(word: Word, headline: str, case: Case) -> None:
    lines = tell(case, word, plant(1, "error"), EXACT)

    text = "\n".join(lines)
    assert lines[0].startswith(f"{headline} (3 batch norms). So it is.")
    assert "\nOWN1 error: planted, in 1\n  planted\n  It was planted. Take it out." in text


@pytest.mark.parametrize(
    ("word", "asked"),
    [
        ("averages", [BEFORE, TRAINING]),
        ("averages or images", [TRAINING, BEFORE]),
        ("images", [TRAINING]),
        ("network", [TRAINING]),
        ("mode", []),
        ("batches", []),
        ("undecided", ["Which score should it reach? expected= lets the doctor judge."]),
    ],
)
def test_what_would_tell_most_is_asked_for(word: Word, asked: list[str], case: Case) -> None:
    assert " ".join(tell(case, word, [], EXACT)[1:]) == " ".join(asked)


def test_what_was_given_is_not_asked_for(case: Case) -> None:
    assert case.evidence is not None
    given = replace(case, training=case.evidence.exact)

    assert " ".join(tell(given, "averages", [], EXACT)[1:]) == BEFORE


def test_a_cause_that_explains_it_by_itself_asks_for_nothing(case: Case) -> None:
    assert tell(case, "images", [], "")[1:] == []


def test_without_data_batches_are_asked_for() -> None:
    assert str(diagnose(make_healthy())).endswith("\nPass batches with labels: they tell what it costs.")


def test_the_first_layer_that_does_not_fit_is_told_with_what_lies_between() -> None:
    model = make_healthy()
    get_norm(model, "5").reset_running_stats()

    text = " ".join(str(diagnose(model, make_batches(16), progress=False)).split())

    assert "Averages fit up to 1, and not from 5 on; between them: 2, 3, 4." in text


# As constructed


def is_as_constructed(model: nn.Module) -> bool:
    return diagnose(model).case.is_as_constructed


def test_a_new_network_is_as_constructed() -> None:
    model = build_cnn()
    assert is_as_constructed(model)

    with torch.no_grad():
        get_norm(model, "9").weight.zero_()  # as at the end of a residual branch
    assert is_as_constructed(model)


@pytest.mark.parametrize("tensor", ["weight", "bias", "running_mean", "num_batches_tracked"])
def test_a_layer_that_has_learnt_anything_is_not_as_constructed(tensor: str) -> None:
    model = build_cnn()
    with torch.no_grad():
        getattr(get_norm(model, "5"), tensor).add_(2)

    assert not is_as_constructed(model)


@pytest.mark.parametrize("training", [False, True])
def test_a_bad_model_whose_batch_norms_are_as_constructed_was_perhaps_not_loaded(training: bool) -> None:
    diagnosis = diagnose(build_cnn().train(training), make_batches(4), expected=1.0, progress=False)

    text = " ".join(str(diagnosis).split())
    assert diagnosis.verdict == "network"
    advice = "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
    assert advice in text
    assert "BN002 " not in text.partition("Notes:")[0]


def test_the_score_of_the_training_batches_stands_beside_the_others() -> None:
    model = make_healthy()

    diagnosis = diagnose(model, make_batches(4), training_batches=make_batches(4, seed=-1), progress=False)

    told = tell_score(diagnosis.case.training_score or 0.0, diagnosis.case.evidence.scores)  # type: ignore[union-attr, arg-type]
    assert f"On the training batches {told}, as the model is." in str(diagnosis)
    assert "does not generalize" not in str(diagnosis)


def test_a_network_that_has_learnt_its_images_by_heart_does_not_generalize() -> None:
    few = make_batches(1, seed=-1)
    model = build_cnn()
    train(model, few * 200, lr=0.1)
    population_statistics(model, [images for images, _ in few], progress=False).write_to(model)

    diagnosis = diagnose(model, make_batches(8), training_batches=few, progress=False)

    assert diagnosis.case.training_score == 1.0
    printed = " ".join(str(diagnosis).split())
    assert "On the training batches 100.0%, as the model is. The network does not generalize to these" in printed


@pytest.mark.parametrize(("more", "is_told"), [(0.09, False), (0.11, True)])
def test_a_tenth_more_in_training_is_told(case: Case, more: float, is_told: bool) -> None:
    assert case.evidence is not None and case.evidence.scores is not None
    best = max(case.evidence.scores.mean(kind) for kind in case.evidence.scores.values)
    verdict = Verdict("healthy", "Nothing is gained.", GAIN)

    printed = str(Diagnosis(replace(case, training_score=best + more), verdict, None, [], []))

    assert ("does not generalize" in printed) == is_told


def test_a_metric_of_the_callers_is_not_asked_for_the_training_batches() -> None:
    model = make_healthy()
    batches = make_batches(4)

    def evaluate(network: nn.Module) -> torch.Tensor:
        return torch.cat([network(images).argmax(1) == labels for images, labels in batches])

    diagnosis = diagnose(model, batches, evaluate=evaluate, training_batches=make_batches(4, seed=-1), progress=False)

    assert diagnosis.case.training_score is None
    assert "On the training batches" not in str(diagnosis)
