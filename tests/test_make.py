"""The commands of the Makefile: each has all that it needs, and one recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
TARGETS = ["demo", "test", "test-all", "test-slurm", "test-versions", "results", "docs", "bench"]


def call_make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("target", TARGETS)
def test_each_command_knows_what_to_run(target: str) -> None:
    done = call_make(ROOT, "--dry-run", target)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_packages_that_cannot_be_installed_leave_tests_out(tmp_path: Path) -> None:
    """Here pip always fails, and Python does nothing."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()

    done = call_make(tmp_path, "test-all", "PIP=false", "PY=echo")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "left out, because .[zoo] cannot be installed: tests of architectures of timm" in lines
    assert len([line for line in lines if line.startswith("left out")]) == 4
    assert "-m pytest -q -n 2 -m slow or not slow" in lines
