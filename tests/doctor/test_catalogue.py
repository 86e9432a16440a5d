"""All causes: their codes, words and explanations."""

from __future__ import annotations

import inspect
import re

import pytest

from bnlab.doctor import explain, list_causes
from bnlab.doctor.cause import NEEDS, SEVERITIES, Cause

CAUSES = list_causes()


def name_cause(cause: Cause) -> str:
    return cause.code


def test_codes_are_unique() -> None:
    codes = [cause.code for cause in CAUSES]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("cause", CAUSES, ids=name_cause)
def test_a_cause_is_in_the_file_of_its_code(cause: Cause) -> None:
    module = inspect.getmodule(type(cause))

    assert module is not None
    assert module.__name__.rpartition(".")[2] == cause.code.lower()
    assert inspect.getdoc(module).startswith(f"{cause.code}: ")  # type: ignore[union-attr]


@pytest.mark.parametrize("cause", CAUSES, ids=name_cause)
def test_meaning_and_remedy_are_short_and_plain(cause: Cause) -> None:
    for text in (cause.meaning, cause.remedy):
        assert text.endswith(".")
        assert len(text.split()) <= 40
        for part in re.split(r"[.;:?] ", text):
            assert len(part.split()) <= 25, part


@pytest.mark.parametrize("cause", CAUSES, ids=name_cause)
def test_a_cause_names_what_diagnose_knows(cause: Cause) -> None:
    assert cause.severity in SEVERITIES
    assert set(cause.needs) <= set(NEEDS)


@pytest.mark.parametrize("cause", CAUSES, ids=name_cause)
def test_an_explanation_has_the_evidence_and_when_it_is_a_false_alarm(cause: Cause) -> None:
    explained = explain(cause.code.lower())

    paragraphs = (type(cause).__doc__ or "").strip().split("\n\n")
    assert len(paragraphs) >= 2  # the evidence first; what is no fault, or a false alarm, later
    assert explained.startswith(f"{cause.code}: {cause.title}\n")
    for text in (cause.meaning, cause.remedy, paragraphs[-1].splitlines()[-1].strip()):
        assert text in explained


def test_a_code_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="explain: 'BN999' is no code; there are BN001, BN002"):
        explain("BN999")


def test_a_code_of_earlier_versions_is_explained_by_what_it_is_part_of() -> None:
    assert explain("BN213") == f"BN213 is part of BN209.\n\n{explain('BN209')}"
