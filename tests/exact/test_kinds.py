"""What population_statistics answers to kinds of models is what kinds.md says."""

from __future__ import annotations

import re

import pytest

from tests.exact.kinds import KINDS, Answer, answer, read_page

ANSWERS = read_page()


def strip_numbers(found: Answer) -> tuple[str, str]:
    """Put a sign in the place of each number: other processors round otherwise. A longer one cuts off other letters."""
    return re.sub(r"[\d.]*\d", "#", found.today), re.sub(r"[\d.]*\d", "#", found.message)[:120]


def test_the_page_has_each_kind() -> None:
    assert list(ANSWERS) == list(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_page_has_what_is_answered(name: str) -> None:
    """After a change that is meant, python -m tests.exact.kinds writes the page."""
    assert strip_numbers(answer(name)) == strip_numbers(ANSWERS[name])
