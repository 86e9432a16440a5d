"""What is said about the package outside its code agrees with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import bnlab
from tests.elsewhere.__main__ import VARIANTS

ROOT = Path(__file__).parents[2]


def read_project() -> dict[str, Any]:
    """Read what pyproject.toml says of the project."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def find_other_versions() -> Iterator[str]:
    """Find versions and licences that differ between the package, its metadata and its citation."""
    project = read_project()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {project["version"], citation["version"], bnlab.__version__}
    if len(versions) > 1 or citation["license"] != project["license"]:
        yield f"pyproject.toml, CITATION.cff and bnlab.__version__ differ: {sorted(versions)}"


def find_packages_without_a_version() -> Iterator[str]:
    """Find requirements that constraints.txt lacks, and lines of it that name a registry or a build."""
    project = read_project()
    extras = project["optional-dependencies"]
    asked = [re.split("[>=]", line)[0] for lines in (project["dependencies"], *extras.values()) for line in lines]

    pinned = set()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin = re.fullmatch(r"([\w.-]+)==[\w.]+", line)
        if pin:
            pinned.add(pin[1].lower().replace("_", "-"))
        elif not line.startswith("#"):
            yield f"constraints.txt: {line}"
    for package in sorted({name.lower() for name in asked} - pinned):
        yield f"constraints.txt has no {package}; run: make lock"
    if f".[{','.join(extras)}]" not in (ROOT / "Makefile").read_text(encoding="utf-8"):
        yield "make lock does not ask for the optional packages that pyproject.toml lists"


def find_commands_that_the_makefile_lacks() -> Iterator[str]:
    """Find what hooks and the public workflow run, and the Makefile does not."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in local["hooks"]:
        command, _, _ = hook["entry"].partition(" --")
        if f"$(PY) {command.removeprefix('.venv/bin/python ')}" not in makefile:
            yield f".pre-commit-config.yaml runs {command}, which make test does not"

    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for command in (step["run"] for step in steps if "run" in step):
        name, target, *words = command.split()
        if name == "make" and not re.search(rf"^{target}:", makefile, re.MULTILINE):
            yield f"the workflow runs {command}, which the Makefile lacks"
        for word in words:
            key, _, value = word.partition("=")
            if key == "VARIANT" and value not in VARIANTS:
                yield f"the workflow runs {command}; there are {', '.join(VARIANTS)}"
    oldest, *_ = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    if not read_project()["requires-python"].endswith(oldest):
        yield f"the workflow begins with Python {oldest}, the project with {read_project()['requires-python']}"


def find_files_that_a_wheel_lacks() -> Iterator[str]:
    """Find files that sweeps and reports read, and a wheel does not have."""
    with TemporaryDirectory() as folder:
        for name in ("bnlab", "experiments", "conf", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
        words = [sys.executable, "-c", build]
        done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8", check=True)
        with zipfile.ZipFile(Path(folder, done.stdout.splitlines()[-1])) as wheel:
            packed = {*wheel.namelist()}

    read = [path for ending in ("md", "yaml", "py", "csv") for path in ROOT.glob(f"experiments/**/*.{ending}")]
    read += [path for ending in ("py", "json", "npz", "md") for path in ROOT.glob(f"bnlab/**/*.{ending}")]
    needed = {str(path.relative_to(ROOT)) for path in read}
    needed |= {f"bnlab/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    for path in sorted(needed - packed):
        yield f"a wheel lacks {path}; setup.py says what is packed"
