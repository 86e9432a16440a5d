"""What is said about the package outside its code agrees with it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import bnlab

ROOT = Path(__file__).parents[1]


def test_the_package_its_metadata_and_its_citation_have_one_version() -> None:
    metadata = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(metadata)["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert project["version"] == bnlab.__version__
    assert citation["version"] == bnlab.__version__
    assert citation["license"] == project["license"]


def test_hooks_before_a_commit_run_what_the_tests_run_first() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipes = (ROOT / "Makefile").read_text()
    tools = []
    for hook in local["hooks"]:
        command, _, _ = hook["entry"].partition(" --")
        tools.append(command.removeprefix(".venv/bin/python "))

    assert tools == ["-m ruff check", "-m ruff format", "-m mypy"]
    for tool in tools:
        assert f"$(PY) {tool}" in recipes
