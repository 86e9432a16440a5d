"""What a job asks for, by which it is known that it is done: settings, and the user's code, which is not imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.done import digest_asked
from bnlab.harness.user_code import digest_path

JOB = Config(estimator=["ema", "u_asked.Mine(k=3)"], measurements=["gaps", "u_asked.Rows"])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the user's module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "u_asked", raising=False)
    path = tmp_path / "u_asked.py"
    path.write_text("GAIN = 0.5", encoding="utf-8")
    return path


@pytest.mark.parametrize("job", [Config(estimator="u_asked.Mine(k=3)"), Config(measurements="u_asked.Rows")])
def test_other_code_of_the_user_is_asked_for_again(job: Config, file: Path) -> None:
    asked = digest_asked(job)
    file.write_text("GAIN = 0.5  # half", encoding="utf-8")
    assert digest_asked(job) == asked

    file.write_text("GAIN = 1.0", encoding="utf-8")
    assert digest_asked(job) != asked
    assert "u_asked" not in sys.modules


def test_the_job_that_has_imported_it_asks_for_the_same(file: Path) -> None:
    before = digest_asked(JOB)
    importlib.import_module("u_asked")
    assert digest_asked(JOB) == before


@pytest.mark.parametrize("path", ["ema", "bnlab.estimators.EMA", "experiments.questions.tolerance.measurement.Doses"])
def test_of_bnlabs_own_code_the_version_counts(path: str) -> None:
    assert digest_path(path) == ""
