"""The page on how much the code does: what is counted, and what a rise needs."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest

from docs import size


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(size, "ROOT", tmp_path)
    monkeypatch.setattr(size, "PAGE", tmp_path / "size.md")
    (tmp_path / "bnlab" / "exact").mkdir(parents=True)
    (tmp_path / "bnlab" / "exact" / "walk.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "gap.yaml").write_text("name: gap\nepochs: 4\n", encoding="utf-8")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["size", *words])
    return size.main()


def test_a_page_has_the_sizes_that_were_measured(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch) == 0

    measured = size.measure_rooms(project)
    assert measured == {"bnlab/exact": size.Size(1, 4, 0), "conf": size.Size(1, 0, 2)}
    assert size.read_sizes(size.PAGE.read_text(encoding="utf-8")) == measured
    assert call(monkeypatch, "--check") == 0


def test_a_rise_needs_a_reason_and_a_fall_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch)
    code = project / "bnlab" / "exact" / "walk.py"

    code.write_text("x = 1\ny = 2\n", encoding="utf-8")
    assert call(monkeypatch, "--check") == 1
    before = size.PAGE.read_bytes()
    assert call(monkeypatch) == 1
    assert size.PAGE.read_bytes() == before
    assert call(monkeypatch, "--reason", "#7: a second number") == 0
    assert "- #7: a second number (`bnlab/exact`: 4 to 7 nodes)" in size.PAGE.read_text(encoding="utf-8")

    code.write_text("x = 1\n", encoding="utf-8")
    assert call(monkeypatch, "--check") == 1
    assert call(monkeypatch) == call(monkeypatch, "--check") == 0
    assert "#7: a second number" in size.PAGE.read_text(encoding="utf-8"), "a reason stays"


def test_its_examples() -> None:
    assert doctest.testmod(size).failed == 0
