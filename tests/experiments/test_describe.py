"""What is described of the tables is what the code says."""

from __future__ import annotations

from experiments.describe import README, describe_tables


def test_the_page_on_tables_is_the_one_that_the_code_gives() -> None:
    assert README.read_text(encoding="utf-8") == describe_tables(), "run: python -m experiments.describe"
