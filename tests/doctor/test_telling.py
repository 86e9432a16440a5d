"""What a diagnosis prints of planted findings and verdicts: where to look, and what to pass to learn more."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from bnlab import diagnose, population_statistics
from bnlab.doctor import Rule, Signs, list_rules
from bnlab.doctor.case import Case
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.findings import Finding, reconsider
from bnlab.doctor.rule import Severity
from bnlab.doctor.scores import Difference
from bnlab.doctor.verdict import Verdict, Word, tell_score
from tests.doctor.networks import build_cnn, get_norm, make_batches, make_healthy, train

GAIN = Difference(0.0, -0.004, 0.004, 1000)
BEFORE = "Averaged (EMA, SWA, federated), pruned or fine-tuned? Pass that network as before=."
TRAINING = "Prepared otherwise than in training? Pass training_batches= to compare."


@pytest.fixture(scope="module")
def case() -> Case:
    return diagnose(make_healthy(), make_batches(4), progress=False).case


class Planted(Rule):
    code = "OWN1"
    title = "planted"
    meaning = "It was planted."
    remedy = "None."

    def look(self, case: Case) -> Signs | None:
        return None


class Explains(Planted):
    code = "OWN2"
    title = "a cause"
    explains_bad = True


class InTrainMode(Planted):
    code = "OWN4"
    mends = "running"


class Limits(Planted):
    code = "OWN5"
    limits = True


class AsksTwice(Planted):
    code = "OWN3"
    asks: ClassVar[tuple[str, ...]] = ("before", "training")


def plant(*rules: Rule, severity: Severity = "note") -> list[Finding]:
    return [Finding(rule, Signs(("1",), "planted"), severity) for rule in rules]


def tell(case: Case, word: Word, found: list[Finding], is_bad: bool = False) -> list[str]:
    """Print a diagnosis, and return its lines without the one of the scores."""
    judged = reconsider(Verdict(word, "So it is.", GAIN, is_bad), found, case)
    lines = str(Diagnosis(case, judged, found, ())).splitlines()
    return [line for line in lines if not line.startswith("Accuracy: ")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_a_healthy_model_prints_three_lines_with_any_number_of_notes(count: int, case: Case) -> None:
    lines = tell(case, "healthy", plant(*[AsksTwice()] * count))

    assert len(lines) == 2
    assert lines[0] == "Healthy averages (3 batch norms). So it is."
    notes = {0: "", 1: " Notes: OWN3.", 2: " Notes: OWN3, OWN3.", 3: " Notes: 3.", 9: " Notes: 9."}
    assert lines[1] == f"Too low? Check labels, their order, preprocessing, weights; or pass expected=.{notes[count]}"


def test_a_healthy_model_that_reaches_what_is_expected_is_not_doubted(case: Case) -> None:
    lines = tell(replace(case, expected=0.5), "healthy", plant(Planted()))

    assert lines[1:] == ["Notes: OWN1 (see .findings, or --html)."]


def test_a_bad_model_names_the_notes_that_explain_it_and_no_others(case: Case) -> None:
    text = " ".join(tell(case, "not the averages", plant(Planted(), Explains()), is_bad=True))

    assert text == f"Not the averages (3 batch norms). So it is. Look at OWN2 (a cause). {TRAINING}"


def test_a_bad_model_names_what_was_not_looked_at(case: Case) -> None:
    text = " ".join(tell(case, "not the averages", plant(Planted(), Limits()), is_bad=True))

    assert "Notes: OWN5 (see .findings, or --html)." in text


def test_what_bnlab_does_not_cover_limits_any_verdict() -> None:
    assert [rule.code for rule in list_rules() if rule.limits] == ["BN901"]


def test_a_bad_model_that_nothing_explains_is_to_be_looked_at_elsewhere(case: Case) -> None:
    text = " ".join(tell(case, "not the averages", plant(AsksTwice()), is_bad=True))

    assert "So it is. Look elsewhere: labels, their order, preprocessing, loaded weights." in text
    assert "OWN3" not in text
    assert BEFORE not in text


@pytest.mark.parametrize(("word", "headline"), [("healthy", "Not the averages"), ("undecided", "Undecided")])
def test_the_mode_comes_before_what_is_said_of_the_averages(word: Word, headline: str, case: Case) -> None:
    found = [Finding(InTrainMode(), Signs(("1",), "planted"), "warning", cost=0.02)]

    told = " ".join(tell(case, word, found))

    assert told.startswith(f"{headline} (3 batch norms). 0 are in train mode, where accuracy is ")
    assert "Call model.eval(). So it is." in told


def test_the_mode_is_not_told_where_it_costs_nothing_or_the_averages_do(case: Case) -> None:
    free = [Finding(InTrainMode(), Signs(("1",), "planted"), "note", cost=0.0)]
    unknown = [Finding(InTrainMode(), Signs(("1",), "planted"), "warning")]
    costly = [Finding(InTrainMode(), Signs(("1",), "planted"), "error", cost=0.1)]

    assert "Call" not in " ".join([*tell(case, "healthy", free), *tell(case, "healthy", unknown)])
    assert "Call" not in " ".join(tell(case, "averages", costly))


def test_batches_of_other_populations_do_not_send_the_reader_elsewhere(case: Case) -> None:
    assert "Look" not in " ".join(tell(case, "not the averages", [], is_bad=False))


def test_notes_that_advise_new_statistics_are_not_named_where_these_do_not_help() -> None:
    explaining = {rule.code for rule in list_rules() if rule.explains_bad}

    assert {"BN002", "BN202", "BN204", "BN207"} <= explaining
    assert not {"BN101", "BN106", "BN107", "BN108", "BN201", "BN208"} & explaining


# What is asked for


def test_what_the_findings_ask_for_is_asked_once(case: Case) -> None:
    text = " ".join(tell(case, "averages", plant(AsksTwice(), AsksTwice(), severity="error")))

    assert text.endswith(f"None. {BEFORE} {TRAINING}")
    assert text.count("Pass") == 2


def test_what_a_printed_finding_says_to_check_is_not_asked_for_again(case: Case) -> None:
    signs = Signs(("1",), "planted", checks=("Pass before=?", "Or wait?"))
    asking = plant(AsksTwice(), severity="error")

    printed = tell(case, "averages", [Finding(Planted(), signs, "error"), *asking])
    noted = tell(case, "averages", [Finding(Planted(), signs, "note"), *asking])

    assert "  It was planted. The usual causes:\n  1. Pass before=?\n  2. Or wait?" in "\n".join(printed)
    assert BEFORE not in " ".join(printed)
    assert BEFORE in " ".join(noted)


def test_what_was_given_is_not_asked_for(case: Case) -> None:
    assert case.evidence is not None
    given = replace(case, training=case.evidence.exact)

    text = " ".join(tell(given, "averages", plant(AsksTwice(), severity="error")))

    assert BEFORE in text
    assert TRAINING not in text


def test_undecided_asks_first_what_is_expected_and_for_two_things_at_most(case: Case) -> None:
    text = " ".join(tell(case, "undecided", plant(AsksTwice())))

    notes = "Notes: OWN3 (see .findings, or --html)."
    assert text.endswith(f"{notes} Which score should it reach? expected= lets the doctor judge. {BEFORE}")


def test_averages_that_no_rule_explains_ask_for_both(case: Case) -> None:
    assert " ".join(tell(case, "averages", [])).endswith(f"So it is. {BEFORE} {TRAINING}")


@pytest.mark.parametrize(("unselected", "asked"), [(Planted(), []), (AsksTwice(), [BEFORE, TRAINING])])
def test_what_to_pass_follows_from_findings_that_are_not_shown_too(
    unselected: Rule, asked: list[str], case: Case
) -> None:
    diagnosis = Diagnosis(case, Verdict("averages", "So it is.", GAIN), [], (), unselected=plant(unselected))

    text = " ".join(str(diagnosis).split())

    assert [question for question in (BEFORE, TRAINING) if question in text] == asked
    assert "OWN" not in text


def test_findings_that_ask_for_nothing_end_the_text(case: Case) -> None:
    assert tell(case, "averages", plant(Planted(), severity="error"))[-1] == "  It was planted. None."


def test_without_data_batches_are_asked_for() -> None:
    assert str(diagnose(make_healthy())).endswith("\nPass batches with labels: they tell what it costs.")


def test_rules_ask_for_what_bears_on_their_cause() -> None:
    asks = {rule.code: rule.asks for rule in list_rules()}

    assert asks["BN108"][0] == "before"
    assert "training" in asks["BN209"]


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


def test_a_bad_model_whose_batch_norms_are_as_constructed_was_perhaps_not_loaded() -> None:
    diagnosis = diagnose(build_cnn(), make_batches(4), expected=1.0, progress=False)

    text = " ".join(str(diagnosis).split())
    assert diagnosis.verdict == "not the averages"
    advice = "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
    assert advice in text
    assert "BN002" not in text
    assert TRAINING not in text


def test_the_score_of_the_training_batches_stands_beside_the_others() -> None:
    model = make_healthy()

    diagnosis = diagnose(model, make_batches(4), training_batches=make_batches(4, seed=-1), progress=False)

    told = tell_score(diagnosis.case.training_score or 0.0, diagnosis.case.evidence.scores)  # type: ignore[union-attr, arg-type]
    assert f"On the training batches {told}." in str(diagnosis)
    assert "does not generalize" not in str(diagnosis)


def test_a_network_that_has_learnt_its_images_by_heart_does_not_generalize() -> None:
    few = make_batches(1, seed=-1)
    model = build_cnn()
    train(model, few * 200, lr=0.1)
    population_statistics(model, [images for images, _ in few], progress=False).write_to(model)

    diagnosis = diagnose(model, make_batches(8), training_batches=few, progress=False)

    assert diagnosis.case.training_score == 1.0
    printed = " ".join(str(diagnosis).split())
    assert "On the training batches 100.0%. The network does not generalize to these images" in printed


@pytest.mark.parametrize(("more", "is_told"), [(0.09, False), (0.11, True)])
def test_a_tenth_more_in_training_is_told(case: Case, more: float, is_told: bool) -> None:
    assert case.evidence is not None and case.evidence.scores is not None
    best = max(case.evidence.scores.mean(kind) for kind in case.evidence.scores.values)
    verdict = Verdict("healthy", "Nothing is gained.", GAIN)

    printed = str(Diagnosis(replace(case, training_score=best + more), verdict, [], []))

    assert ("does not generalize" in printed) == is_told


def test_a_metric_of_the_callers_is_not_asked_for_the_training_batches() -> None:
    model = make_healthy()
    batches = make_batches(4)

    def evaluate(network: nn.Module) -> torch.Tensor:
        return torch.cat([network(images).argmax(1) == labels for images, labels in batches])

    diagnosis = diagnose(model, batches, evaluate=evaluate, training_batches=make_batches(4, seed=-1), progress=False)

    assert diagnosis.case.training_score is None
    assert "On the training batches" not in str(diagnosis)
