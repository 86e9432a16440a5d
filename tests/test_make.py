"""The commands of the Makefile: each has all that it needs, and one recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from docs import release

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
TARGETS = ["demo", "test", "test-all", "test-slurm", "test-versions", "results", "docs", "release", "bench", "lock"]


def call_make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call make where no locale is set, as in many containers."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env["LC_ALL"] = "C"
    return subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("target", TARGETS)
def test_each_command_knows_what_to_run(target: str) -> None:
    done = call_make(ROOT, "--dry-run", target)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_packages_that_cannot_be_installed_leave_tests_out(tmp_path: Path) -> None:
    """Here pip always fails, and Python does nothing."""
    clone = make_clone(tmp_path / "clone")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    (clone / ".venv" / "installed-dev").touch()

    done = call_make(clone, "test-all", "PIP=false", "PY=echo")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "left out, because .[zoo] cannot be installed: tests of architectures of timm" in lines
    assert len([line for line in lines if line.startswith("left out")]) == 4
    assert "-m pytest -q -n 2 -m slow or not slow" in lines


def test_a_demo_installs_what_it_runs_and_the_tests_add_the_rest(tmp_path: Path) -> None:
    """Here pip prints what it is to install, and Python does nothing; each is installed once."""
    clone = make_clone(tmp_path / "clone")
    (clone / ".venv").mkdir()

    def list_installed(target: str) -> list[str]:
        done = call_make(clone, target, "PIP=echo pip", "PY=echo", "PYTHON=true")
        assert done.returncode == 0, done.stderr
        return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("pip install")]

    assert list_installed("demo") == ["."]
    assert list_installed("test") == [".[dev]"]
    assert list_installed("demo") == list_installed("test") == []


def make_clone(folder: Path) -> Path:
    """Make the part of a clone that an installation reads."""
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def install(clone: Path) -> Path:
    """Make an environment in a clone, and write down there what `pip install -e .` does; its folder."""
    environment = clone / ".venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    installed = packages / "bnlab-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: bnlab\nVersion: 0.1.0\n", encoding="utf-8")
    origin = {"dir_info": {"editable": True}, "url": clone.as_uri()}
    (installed / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
    (environment / "installed").touch()
    return environment


@pytest.mark.parametrize("kind", ["link", "copy", "copy that is to be renewed"])
def test_the_environment_of_another_clone_is_refused(tmp_path: Path, kind: str) -> None:
    other = make_clone(tmp_path / "ein ölfass + y's")
    clone = make_clone(tmp_path / "ein ölfass + x's")
    environment = install(other)
    if kind == "link":
        (clone / ".venv").symlink_to(environment)
    else:
        shutil.copytree(environment, clone / ".venv", symlinks=True)
    if kind == "copy that is to be renewed":
        (clone / ".venv" / "installed").unlink()

    done = call_make(clone, ".venv/installed", "PIP=touch called; true")

    assert done.returncode == 2
    assert f".venv is the environment of the clone in {other}: remove it here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "called").exists()


def test_a_clone_keeps_and_renews_its_own_environment(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "ein ölfass + x's")
    environment = install(clone)

    call_make(clone, ".venv/installed", "PIP=touch called; true")
    assert not (clone / "called").exists()
    (environment / "installed").unlink()
    assert call_make(clone, ".venv/installed", "PIP=touch called; true").returncode == 0
    assert (clone / "called").exists()


def test_a_lock_has_the_versions_that_pip_would_install(tmp_path: Path) -> None:
    """Of each package but bnlab itself, without the build for this machine."""
    clone = make_clone(tmp_path / "ein ölfass + x's")
    install(clone)
    versions = {"torch": "2.13.0+cpu", "Sphinx": "9.0.4", "bnlab": "0.1.0", "certifi": "2026.10.19.post1"}
    packages = [{"metadata": {"name": name, "version": version}} for name, version in versions.items()]
    (clone / "build").mkdir()
    (clone / "build" / "lock.json").write_text(json.dumps({"install": packages}), encoding="utf-8")

    done = call_make(clone, "lock", "PIP=true")

    assert done.returncode == 0, done.stderr
    lines = (clone / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins == ["certifi==2026.10.19.post1", "Sphinx==9.0.4", "torch==2.13.0"]


def test_a_lock_that_pip_cannot_resolve_changes_nothing(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    install(clone)

    done = call_make(clone, "lock", "PIP=false")

    assert done.returncode == 2
    assert (clone / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()


def test_a_release_needs_the_address_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main([]) == 2
    assert release.main(["build/release"]) == 2
    assert "BASE=https://" in capsys.readouterr().err
