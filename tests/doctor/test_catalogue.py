"""All causes: their codes, words and explanations."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from bnlab.doctor import explain, list_causes
from bnlab.doctor.cause import NEEDS, SEVERITIES, Cause
from bnlab.doctor.codes import ALIASES
from bnlab.doctor.undo import Kind

CAUSES = {cause.code: cause for cause in list_causes()}


@pytest.mark.parametrize("code", CAUSES)
def test_a_cause_is_in_the_file_of_its_code_and_names_what_diagnose_knows(code: str) -> None:
    cause = CAUSES[code]
    module = inspect.getmodule(type(cause))

    assert module is not None
    assert module.__name__.rpartition(".")[2] == code.lower()
    assert inspect.getdoc(module).startswith(f"{code}: ")  # type: ignore[union-attr]
    assert cause.severity in SEVERITIES
    assert cause.kind in get_args(Kind)
    assert {*cause.needs} <= {*NEEDS}


def test_codes_are_unique() -> None:
    assert len(CAUSES) == len(list_causes())


@pytest.mark.parametrize("cause", CAUSES.values(), ids=[*CAUSES])
def test_an_explanation_has_all_parts_and_says_when_it_is_a_false_alarm(cause: Cause) -> None:
    explained = explain(cause.code.lower())

    paragraphs = (type(cause).__doc__ or "").strip().split("\n\n")
    assert len(paragraphs) >= 2  # the evidence first; what is no fault, or a false alarm, later
    assert explained.startswith(f"{cause.code}: {cause.title}\n")
    assert paragraphs[-1].splitlines()[-1].strip() in explained
    for text in (cause.meaning, cause.remedy):
        assert text in explained
        assert text.endswith(".")


def test_a_code_that_does_not_exist_is_refused_with_those_that_do() -> None:
    codes = ", ".join(CAUSES)
    with pytest.raises(ValueError, match=f"explain: 'BN999' is no code; there are {codes}"):
        explain("BN999")


@pytest.mark.parametrize("code", ALIASES)
def test_a_code_of_earlier_versions_is_explained_by_what_it_is_part_of(code: str) -> None:
    now = ALIASES[code]

    assert code not in CAUSES
    assert explain(code) == f"{code} is part of {now}.\n\n{explain(now)}"
