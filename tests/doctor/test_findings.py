"""How severe a finding is, by what it costs and by what its rule says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.doctor import Rule, Signs
from bnlab.doctor.case import Case
from bnlab.doctor.findings import Finding, reconsider
from bnlab.doctor.rule import Severity
from bnlab.doctor.scores import Difference
from bnlab.doctor.verdict import Verdict, Word
from tests.doctor.networks import Batch, list_images, make_batches, make_healthy, reset


class Marked(Rule):
    """Finds something in the layers that it is told."""

    code = "OWN1"
    title = "marked"
    meaning = "It is marked."
    remedy = "None."
    needs = ("data",)

    def __init__(self, *layers: str, at_least: Severity = "note") -> None:
        self.layers = layers
        self.at_least = at_least

    def look(self, case: Case) -> Signs | None:
        return Signs.of(self.layers, "marked", self.at_least)


class MarkedNote(Marked):
    severity = "note"
    follows_cost = False


class MarkedMix(Marked):
    mends = "batch"


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return make_batches(16)


def grade(rule: Rule, batches: list[Batch], *, spoiled: bool, labels: bool = True) -> Finding:
    model = reset(make_healthy()) if spoiled else make_healthy()
    data = batches if labels else list_images(batches)
    diagnosis = diagnose(model, data, rules=[rule], progress=False)
    return next(finding for finding in diagnosis.faults if finding.rule is rule)


def test_a_cost_that_was_measured_decides(batches: list[Batch]) -> None:
    """Resetting all three layers costs more than five points, and a healthy one nothing."""
    assert grade(Marked("1", "5", "9"), batches, spoiled=True).severity == "error"
    assert grade(Marked("1", "5", "9"), batches, spoiled=False).severity == "note"
    assert grade(Marked("1", "5", "9"), batches, spoiled=True, labels=False).severity == "warning"


def test_signs_say_how_severe_they_are_at_least(batches: list[Batch]) -> None:
    assert grade(Marked("1", at_least="warning"), batches, spoiled=False).severity == "warning"


def test_a_rule_may_not_follow_its_cost(batches: list[Batch]) -> None:
    assert grade(MarkedNote("1", "5", "9"), batches, spoiled=True).severity == "note"


def test_all_of_the_gain_is_the_cost_of_most_layers(batches: list[Batch]) -> None:
    finding = grade(Marked("5", "9"), batches, spoiled=True)
    scores = diagnose(reset(make_healthy()), batches, progress=False).scores

    assert finding.cost == pytest.approx(scores["exact"] - scores["running"])


@pytest.mark.parametrize("layer", ["1", "5", "9"])
def test_one_layer_costs_what_it_does_alone_and_no_more_than_all(layer: str, batches: list[Batch]) -> None:
    model = reset(make_healthy())
    scores = diagnose(model, batches, progress=False).scores

    diagnosis = diagnose(model, batches, rules=[Marked(layer)], progress=False)

    alone = diagnosis.table.set_index("layer")["cost"][layer]
    finding = diagnosis.findings.set_index("code").loc["OWN1"]
    assert finding["cost"] == pytest.approx(max(0, min(alone, scores["exact"] - scores["running"])))


@pytest.mark.parametrize(
    ("layers", "spoiled", "severity"),
    [
        (("5",), True, "warning"),
        (("5", "9"), True, "warning"),
        (("1", "5", "9"), True, "error"),
        (("5",), False, "note"),
    ],
)
def test_a_metric_of_the_whole_model_tells_what_all_layers_cost(
    layers: tuple[str, ...], spoiled: bool, severity: Severity, batches: list[Batch]
) -> None:
    """What some of them cost is not known, unless all together cost nothing; a warning is what the rule says then."""

    def evaluate(model: nn.Module) -> Tensor:
        return torch.cat([model(images).argmax(1) == labels for images, labels in batches])

    model = reset(make_healthy()) if spoiled else make_healthy()
    rule = Marked(*layers)
    diagnosis = diagnose(model, list_images(batches), evaluate=evaluate, rules=[rule], progress=False)

    finding = next(finding for finding in diagnosis.faults if finding.rule is rule)
    total = diagnosis.scores["exact"] - diagnosis.scores["running"]
    expected = {"warning": math.nan, "error": total, "note": 0.0}
    assert finding.cost == pytest.approx(expected[severity], nan_ok=True)
    assert finding.severity == severity


def test_what_batch_statistics_mend_costs_what_they_gain(batches: list[Batch]) -> None:
    finding = grade(MarkedMix("5"), batches, spoiled=True)
    scores = diagnose(reset(make_healthy()), batches, progress=False).scores

    assert finding.cost == pytest.approx(scores["batch"] - scores["running"])


class GivesWay(Marked):
    code = "OWN0"
    unless = ("OWN1",)


class GivesWayToBoth(Marked):
    code = "OWN-1"
    unless = ("OWN0", "OWN1")

    def look(self, case: Case) -> Signs | None:
        return Signs.of(case.layers, "all that is left")


def test_rules_look_behind_those_that_they_give_way_to(batches: list[Batch]) -> None:
    """Whatever order they are given in; of layers 1, 5 and 9 the others name 1 and 9."""
    rules = [GivesWayToBoth(), GivesWay("9"), Marked("1")]

    diagnosis = diagnose(make_healthy(), batches, rules=rules, progress=False)

    layers = {finding.rule.code: finding.signs.layers for finding in diagnosis.faults}
    assert layers["OWN-1"] == ("5",)


class TakesTheRest(Marked):
    code = "OWN0"
    unless = ("OWN1",)

    def look(self, case: Case) -> Signs | None:
        return Signs.of(case.layers, "all that is left")


class TakesTheRestOfMixes(TakesTheRest):
    mends = "batch"


@pytest.mark.parametrize(
    ("rule", "spoiled", "layers", "severity"),
    [
        (TakesTheRest(), True, ("1", "5", "9"), "error"),
        (TakesTheRest(), False, ("9",), "note"),
        (TakesTheRestOfMixes(), True, ("9",), "error"),  # what batch statistics gain is a cost of another kind
    ],
)
def test_a_note_explains_nothing_that_costs_something(
    rule: Rule, spoiled: bool, layers: tuple[str, ...], severity: Severity, batches: list[Batch]
) -> None:
    """All layers together cost more than five points, or nothing; the note names two of them."""
    model = reset(make_healthy()) if spoiled else make_healthy()

    diagnosis = diagnose(model, batches, rules=[rule, MarkedNote("1", "5")], progress=False)

    finding = next(finding for finding in diagnosis.faults if finding.rule is rule)
    assert finding.signs.layers == layers
    assert finding.severity == severity


def test_of_equals_the_one_that_explains_better_comes_first(batches: list[Batch]) -> None:
    """Whatever their codes are: OWN-1 gives way to both others, and OWN0 to OWN1."""
    rules = [GivesWayToBoth(), GivesWay("9"), Marked("1")]

    diagnosis = diagnose(make_healthy(), batches, rules=rules, progress=False)

    codes = [finding.rule.code for finding in diagnosis.faults if finding.rule in rules]
    assert codes == ["OWN1", "OWN0", "OWN-1"]


def test_the_more_severe_comes_first_even_if_another_explains_better(batches: list[Batch]) -> None:
    rules = [GivesWay("5", at_least="error"), Marked("1", at_least="warning")]

    diagnosis = diagnose(make_healthy(), batches, rules=rules, progress=False)

    assert [finding.rule.code for finding in diagnosis.faults][:2] == ["OWN0", "OWN1"]


class MarkedHidden(Marked):
    hides = True


@pytest.mark.parametrize(
    ("word", "severity", "expected"),
    [
        ("healthy", "warning", "not the averages"),
        ("averages", "warning", "averages"),
        ("undecided", "error", "undecided"),
        ("healthy", "note", "healthy"),
    ],
)
def test_a_model_with_a_mistake_that_new_statistics_would_hide_is_not_healthy(
    word: Word, severity: Severity, expected: Word
) -> None:
    verdict = Verdict(word, "So it is.", Difference(0.0, -0.001, 0.001, 1000))
    finding = Finding(MarkedHidden("1"), Signs(("1",), "marked"), severity)

    judged = reconsider(verdict, [finding], diagnose(make_healthy()).case)

    assert judged.word == expected
    assert ("OWN1" in judged.sentence) == (severity != "note")
    assert reconsider(verdict, [], diagnose(make_healthy()).case) is verdict
