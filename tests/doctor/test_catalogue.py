"""All rules: their codes, words and explanations."""

from __future__ import annotations

import inspect

import pytest

from bnlab.doctor import explain, list_rules
from bnlab.doctor.rule import ASKS, NEEDS, SEVERITIES, Rule

RULES = list_rules()


def name_rule(rule: Rule) -> str:
    return rule.code


def test_codes_are_unique() -> None:
    codes = [rule.code for rule in RULES]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("rule", RULES, ids=name_rule)
def test_a_rule_is_in_the_file_of_its_code(rule: Rule) -> None:
    module = inspect.getmodule(type(rule))

    assert module is not None
    assert module.__name__.rpartition(".")[2] == rule.code.lower()
    assert inspect.getdoc(module).startswith(f"{rule.code}: ")  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", RULES, ids=name_rule)
def test_meaning_and_remedy_are_one_short_sentence_each(rule: Rule) -> None:
    for sentence in (rule.meaning, rule.remedy):
        assert sentence.endswith(".")
        assert ". " not in sentence
        assert len(sentence.split()) <= 25


@pytest.mark.parametrize("rule", RULES, ids=name_rule)
def test_a_rule_names_what_diagnose_knows(rule: Rule) -> None:
    codes = {other.code for other in RULES}

    assert rule.severity in SEVERITIES
    assert set(rule.needs) <= set(NEEDS)
    assert set(rule.asks) <= set(ASKS) <= set(NEEDS)
    assert set(rule.unless) <= codes - {rule.code}


@pytest.mark.parametrize("rule", RULES, ids=name_rule)
def test_an_explanation_has_the_evidence_and_when_it_is_a_false_alarm(rule: Rule) -> None:
    explained = explain(rule.code.lower())

    paragraphs = (type(rule).__doc__ or "").strip().split("\n\n")
    assert len(paragraphs) >= 2  # the evidence first; what is no fault, or a false alarm, later
    assert explained.startswith(f"{rule.code}: {rule.title}\n")
    for text in (rule.meaning, rule.remedy, paragraphs[-1].splitlines()[-1].strip()):
        assert text in explained


def test_a_code_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="explain: 'BN999' is no code; there are BN001, BN002"):
        explain("BN999")
