"""What may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bnlab

PACKAGE = Path(bnlab.__file__).parent
# Imports go to a lower number only.
LEVEL = {
    "arguments": -1,
    "flags": -1,
    "modes": 0,
    "moments": 0,
    "theory": 0,
    "layers": 0,
    "storage": 0,
    "memory": 0,
    "statistics": 1,
    "estimators": 1,
    "ranks": 1,
    "module_state": 1,
    "trace": 2,
    "inference": 2,
    "gap": 2,
    "exact": 3,
    "decomposition": 4,
    "cli": 5,
    "__init__": 6,
}
# Inside of bnlab/exact/ a module imports those before it only.
EXACT = (
    "standard_errors",
    "inspection",
    "breadth",
    "fixed_point",
    "job",
    "layerwise",
    "batch_upstream",
    "population",
    "consistency",
    "__init__",
)


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
    sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("estimators/*.py"), *PACKAGE.glob("exact/*.py")]),
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


@pytest.mark.parametrize("name", EXACT)
def test_the_order_of_what_measures_exactly(name: str) -> None:
    found = imports(PACKAGE / "exact" / f"{name}.py")
    assert {f"{path.stem}" for path in PACKAGE.glob("exact/*.py")} == set(EXACT)
    used = {module for module in EXACT if f"bnlab.exact.{module}" in found}
    assert used <= set(EXACT[: EXACT.index(name)])


def test_hydra_is_seen_by_the_configuration_only() -> None:
    seeing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    }
    assert seeing <= {"harness/config.py"}


# What scores and plots are made of, beside each other: no torch, no Hydra, nothing that trains or measures.
REPORTING = {"pandas", "numpy", "scipy", "matplotlib", "bnlab.harness.errors", "bnlab.harness.reporting"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "harness" / "reporting").glob("*.py")), ids=lambda path: path.stem)
def test_reporting_sees_tables_only(path: Path) -> None:
    for name in imports(path):
        known = any(f"{name}.".startswith(f"{package}.") for package in REPORTING)
        assert known or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "experiments/questions").glob("*.py")), ids=lambda p: p.stem)
def test_questions_see_reporting_and_theory(path: Path) -> None:
    for name in imports(path):
        known = any(f"{name}.".startswith(f"{package}.") for package in (*REPORTING, "bnlab.theory"))
        assert known or name == "bnlab" or name.partition(".")[0] in sys.stdlib_module_names, name


def test_importing_the_library_imports_little() -> None:
    code = "import sys, bnlab; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in found
    assert not {"pandas", "hydra", "omegaconf", "matplotlib", "torchvision", "pyarrow", "sklearn"} & set(found)


def test_public_names() -> None:
    assert all(hasattr(bnlab, name) for name in bnlab.__all__) and bnlab.__version__
