"""The benchmarks themselves, without measuring anything."""

from __future__ import annotations

import pytest

from benchmarks.timing import HEADING, Result
from bnlab.harness.artifacts.data.own_data import OwnData


def test_the_data_of_the_timed_training_can_be_read() -> None:
    data = OwnData(name="benchmarks.training.make_images", shift=4, flip=True)

    assert data.count_used() == 6000


@pytest.mark.parametrize(("limit", "expected"), [(None, ""), (1.0, "1 ✗"), (2.0, "2")])
def test_a_row_has_its_ratio_and_marks_what_is_above_the_limit(limit: float | None, expected: str) -> None:
    result = Result("training", "bnlab", 3.0, "plain loop", 2.0, limit, "n = 1")

    row = result.write_row()

    assert row == f"| training | bnlab | 3 | plain loop | 2 | 1.500 | {expected} | n = 1 |"
    assert row.count("|") == HEADING.splitlines()[0].count("|")
