"""What is said about the package outside its code agrees with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import bnlab
from docs import release
from docs.release import make_links_absolute
from tests.elsewhere.__main__ import VARIANTS

ROOT = Path(__file__).parents[1]


def test_the_package_its_metadata_and_its_citation_have_one_version() -> None:
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(metadata)["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    assert project["version"] == bnlab.__version__
    assert citation["version"] == bnlab.__version__
    assert citation["license"] == project["license"]


def test_each_package_that_is_asked_for_has_its_version() -> None:
    """From whatever registry: the file names none, and no build for one machine."""
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(metadata)["project"]
    extras = project["optional-dependencies"]
    asked = [re.split("[>=]", line)[0] for lines in (project["dependencies"], *extras.values()) for line in lines]

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==[\w.]+", line) for line in lines if not line.startswith("#")]

    assert None not in pins
    names = {pin[1].lower().replace("_", "-") for pin in pins if pin is not None}
    assert {name.lower() for name in asked} <= names
    assert f".[{','.join(extras)}]" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_hooks_before_a_commit_run_what_the_tests_run_first() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8")
    tools = []
    for hook in local["hooks"]:
        command, _, _ = hook["entry"].partition(" --")
        tools.append(command.removeprefix(".venv/bin/python "))

    assert tools == ["-m ruff check", "-m ruff format", "-m mypy"]
    for tool in tools:
        assert f"$(PY) {tool}" in recipes


def test_a_wheel_has_what_sweeps_and_reports_read(tmp_path: Path) -> None:
    for name in ("bnlab", "experiments", "conf", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        packed = {*wheel.namelist()}

    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"bnlab/{path.relative_to(ROOT)}" in packed
    written = [path for ending in ("md", "yaml", "py", "csv") for path in ROOT.glob(f"experiments/**/*.{ending}")]
    for path in [*written, *ROOT.glob("bnlab/**/*.py"), *ROOT.glob("bnlab/**/*.json")]:
        assert str(path.relative_to(ROOT)) in packed


def test_links_of_the_packed_readme_lead_to_the_repository() -> None:
    """A package index shows it by itself, where links between files lead nowhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    packed = make_links_absolute(text, "https://example.org/bnlab")

    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub("```.*?```", "", packed, flags=re.DOTALL))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    for kind, path in re.findall(r"https://example\.org/bnlab/(raw|blob)/HEAD/([^)#\s]+)", packed):
        assert (ROOT / path).exists()
        assert (kind == "raw") == path.endswith((".png", ".svg")), path


def test_a_release_needs_the_address_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main([]) == 2
    assert release.main(["build/release"]) == 2
    assert "make release BASE=https://" in capsys.readouterr().err


def test_what_others_run_are_commands_of_the_makefile() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = [run.split()[1] for run in runs if run.startswith("make ")]
    assert sorted(targets) == ["test", "test-elsewhere"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    (variant,) = re.findall(r"VARIANT=(\w+)", " ".join(runs))
    assert variant in VARIANTS
    oldest, newest = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert (oldest, newest) == ("3.11", "3.13")
