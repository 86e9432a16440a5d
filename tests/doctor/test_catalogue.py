"""All causes: their codes, words and explanations."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from bnlab.doctor import explain, list_causes
from bnlab.doctor.cause import NEEDS, SEVERITIES
from bnlab.doctor.codes import ALIASES
from bnlab.doctor.undo import Kind


def list_codes() -> list[str]:
    return [cause.code for cause in list_causes()]


def test_causes_are_in_the_files_of_their_codes_and_name_what_diagnose_knows() -> None:
    for cause in list_causes():
        module = inspect.getmodule(type(cause))

        assert module is not None
        assert module.__name__.rpartition(".")[2] == cause.code.lower()
        assert inspect.getdoc(module).startswith(f"{cause.code}: ")  # type: ignore[union-attr]
        assert cause.severity in SEVERITIES, cause.code
        assert cause.kind in get_args(Kind), cause.code
        assert {*cause.needs} <= {*NEEDS}, cause.code


def test_codes_are_unique() -> None:
    codes = list_codes()

    assert len({*codes}) == len(codes)


def test_explanations_have_all_parts_and_say_when_a_cause_is_a_false_alarm() -> None:
    for cause in list_causes():
        explained = explain(cause.code.lower())

        paragraphs = (type(cause).__doc__ or "").strip().split("\n\n")
        assert len(paragraphs) >= 2, cause.code  # the evidence first; what is no fault, or a false alarm, later
        assert explained.startswith(f"{cause.code}: {cause.title}\n")
        assert paragraphs[-1].splitlines()[-1].strip() in explained
        for text in (cause.meaning, cause.remedy):
            assert text in explained
            assert text.endswith(".")


def test_a_code_that_does_not_exist_is_refused_with_those_that_do() -> None:
    codes = ", ".join(list_codes())
    with pytest.raises(ValueError, match=f"explain: 'BN999' is no code; there are {codes}"):
        explain("BN999")


@pytest.mark.parametrize("code", ALIASES)
def test_a_code_of_earlier_versions_is_explained_by_what_it_is_part_of(code: str) -> None:
    now = ALIASES[code]

    assert code not in list_codes()
    assert explain(code) == f"{code} is part of {now}.\n\n{explain(now)}"
