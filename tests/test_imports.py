"""What may import what."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

import bnlab

PACKAGE = Path(bnlab.__file__).parent
# Imports go to a lower number only.
FLOORS = (
    "arguments batches borrow files layers moments theory",
    "memory storage estimators",
    "statistics nn",
    "gaps inference recording exact",
    "decomposition cli",
)  # ground floor first
LEVEL = {name: number for number, floor in enumerate(FLOORS) for name in floor.split()} | {"__init__": len(FLOORS)}
# Inside of a folder a module imports those before it only.
ARTIFACTS = (
    "vision",
    "glyphs",
    "published",
    "image_folder",
    "data",
    "shifts",
    "norms",
    "models",
    "training",
    "settings",
    "folders",
    "runs",
    "freezing",
    "averaging",
    "states",
    "announcing",
    "reproducing",
    "producing",
    "__init__",
)
NN = ("averages", "self_tuned", "readers", "__init__")
RECORDING = ("trace", "block", "frozen", "__init__")
FRAMES = ("selection", "coverage", "panels", "networks", "comparisons", "averages", "scores", "__init__")
EXACT = ("ranks", "breadth", "measurement", "standard_errors", "population", "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names of all that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize(
    "path",
    sorted([*PACKAGE.glob("*.py"), *(path for name in LEVEL for path in PACKAGE.glob(f"{name}/*.py"))]),
    ids=lambda path: "/".join(path.parts[-2:]),
)
def test_imports_go_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in LEVEL, f"give {own} a number here and in the design"
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in {"hydra", "omegaconf", "experiments", "matplotlib", "torchvision"}, name
        if package == "bnlab" and rest:
            module = rest.split(".")[0]
            assert module != "harness", "the library does not know the harness"
            assert own == module or LEVEL[own] > LEVEL.get(module, -1), f"{own} imports {module}"


FOLDERS = {
    "nn": NN,
    "recording": RECORDING,
    "exact": EXACT,
    "harness.artifacts": ARTIFACTS,
    "harness.reporting.frames": FRAMES,
}


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, names in FOLDERS.items() for name in names])
def test_the_order_inside_of_a_folder(folder: str, name: str) -> None:
    place, order = PACKAGE.joinpath(*folder.split(".")), FOLDERS[folder]
    assert {path.stem for path in place.glob("*.py")} == set(order)
    used = {module for module in order if f"bnlab.{folder}.{module}" in imports(place / f"{name}.py")}
    assert used <= set(order[: order.index(name)])


# Of bnlab/harness/: data flows from one to the next, so that each imports those before it only.
HARNESS = (
    ("errors", "schema", "schedule"),  # what all of them share: no torch
    ("artifacts",),  # data and networks, with the settings that name them
    ("measurements",),  # what needs a network
    ("reporting",),  # what needs tables only: no torch
    ("config",),  # checks of what artifacts and measurements are told to make
    ("jobs",),
    ("planning",),
)


@pytest.mark.parametrize("path", sorted((PACKAGE / "harness").rglob("*.py")), ids=lambda p: "/".join(p.parts[-2:]))
def test_data_flows_one_way_through_the_harness(path: Path) -> None:
    place = {name: number for number, names in enumerate(HARNESS) for name in names}
    own = path.relative_to(PACKAGE / "harness").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in place, f"say where {own} stands"
    for name in imports(path):
        used = (*name.split("."), "")[2] if name.startswith("bnlab.harness.") else own
        assert used == own or place.get(used, -1) < place[own], f"{own} imports {used}"


def test_hydra_is_seen_by_the_commands_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {"hydra", "omegaconf"} & {name.partition(".")[0] for name in imports(path)}, path


# What reports are made of: no torch, no Hydra, nothing that trains or measures.
REPORTING = {
    *("pandas", "numpy", "scipy", "matplotlib", "pyarrow", "filelock", "jinja2", "markupsafe"),
    *("bnlab.files", "bnlab.harness.errors", "bnlab.harness.schema", "bnlab.harness.schedule"),
    "bnlab.harness.reporting",
}
SHARED = tuple(
    f"experiments.{name}" for name in ("catalogue", "margins", "schedules", "by_norm")
)  # by several questions


@pytest.mark.parametrize("path", sorted((PACKAGE / "harness" / "reporting").rglob("*.py")), ids=lambda path: path.stem)
def test_reporting_sees_tables_only(path: Path) -> None:
    for name in imports(path):
        known = any(f"{name}.".startswith(f"{package}.") for package in REPORTING)
        assert known or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "experiments/questions").glob("*.py")), ids=lambda p: p.stem)
def test_questions_see_reporting_and_theory(path: Path) -> None:
    for name in imports(path):
        known = any(f"{name}.".startswith(f"{package}.") for package in (*REPORTING, "bnlab.theory", *SHARED))
        assert known or name == "bnlab" or name.partition(".")[0] in sys.stdlib_module_names, name


def test_the_library_uses_one_private_name_of_torch() -> None:
    """`_BatchNorm`, which all of torch's batch norms are."""
    private = re.compile(r"torch\.(_\w+|[a-z_.]+\._\w+)|from torch[a-z_.]*\._|from torch[a-z_.]* import .*\b_[A-Za-z]")
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines() if private.search(line)]
    used = [line for line in lines if not line.lstrip().startswith(("#", '"'))]
    assert len(used) == 1 and "import _BatchNorm" in used[0], used


def loaded_by(*modules: str) -> set[str]:
    """The packages that a process has loaded after it has imported these modules."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return {*subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()}


def test_importing_the_library_imports_little() -> None:
    assert not {"torch", "pandas", "matplotlib"} & loaded_by("bnlab")
    found = loaded_by("bnlab.exact", "bnlab.recording", "bnlab.cli")
    assert "torch" in found
    assert not {"pandas", "hydra", "omegaconf", "matplotlib", "torchvision", "pyarrow", "sklearn"} & found


def test_reports_and_questions_do_not_wait_for_torch() -> None:
    folders = {"bnlab.harness.reporting": PACKAGE / "harness" / "reporting"}
    folders["experiments.questions"] = PACKAGE.parent / "experiments" / "questions"
    modules = [f"{package}.{path.stem}" for package, folder in folders.items() for path in folder.glob("*.py")]
    found = loaded_by(*(name.removesuffix(".__init__") for name in modules))
    assert "pyarrow" in found and not {"torch", "torchvision", "hydra", "omegaconf"} & found


def test_configurations_do_not_wait_for_tables() -> None:
    """So that `sweep --help` answers soon."""
    found = loaded_by("experiments.compose")
    assert "hydra" in found and not {"pandas", "pyarrow", "matplotlib"} & found


# Packages whose module is called otherwise.
PACKAGED = {"PIL": "pillow", "hydra": "hydra-core", "sklearn": "scikit-learn", "yaml": "pyyaml"}
OURS = {"bnlab", "experiments", "benchmarks", "tests"}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def declared(*lists: list[str]) -> set[str]:
        return {re.split(r"[><=]", line)[0] for lines in lists for line in lines}

    def imported(paths: Iterable[Path]) -> set[str]:
        modules = {name.partition(".")[0] for path in paths for name in imports(path)}
        return {PACKAGED.get(module, module) for module in modules - OURS - sys.stdlib_module_names}

    library = [path for path in PACKAGE.rglob("*.py") if "harness" not in path.parts]
    assert imported(library) == declared(project["dependencies"])
    everything = [path for folder in OURS for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert imported(everything) <= declared(project["dependencies"], *extras.values())
    harness = [*(PACKAGE / "harness").rglob("*.py"), *(PACKAGE.parent / "experiments").rglob("*.py")]
    assert imported(harness) <= declared(project["dependencies"], extras["harness"])


def test_one_module_computes_digests() -> None:
    seeing = {path.stem for path in PACKAGE.rglob("*.py") if {"hashlib", "zlib"} & imports(path)}
    assert seeing == {"files"}


def test_public_names() -> None:
    assert all(hasattr(bnlab, name) for name in bnlab.__all__) and bnlab.__version__
