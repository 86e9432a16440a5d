"""What may import what."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import bnlab

PACKAGE = Path(bnlab.__file__).parent
HARNESS, QUESTIONS = PACKAGE / "harness", PACKAGE.parent / "experiments" / "questions"
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if HARNESS not in path.parents)
# Imports go to a lower floor only; the ground floor is first.
FLOORS = (
    "model common theory",
    "statistics estimators inference memory",
    "exact recording nn",
    "gaps doctor",
    "watching",
    "callbacks",
    "commands",
    "cli",
    "__main__",
)
# Of bnlab/harness/: data flows from one to the next.
STAGES = (
    *(
        "errors schema updates progress layer_average trained_with",
        "source_code",
        "run_table requests",
        "components",
        "own",
    ),  # what all of them share: no torch
    "statistic_kinds",  # what can be chosen as estimator
    "artifacts",
    "measurements",  # what needs a network
    "reporting",  # what needs tables only: no torch
    *("help setting_columns", "config", "trial", "jobs", "durations", "planning loading"),
    "lab",  # the commands sweep, report, runs
)
# Inside of a folder a module imports those before it only.
FOLDERS = {
    "model": "warn arguments batches layers borrow reading",
    "common": "files precision pages storage names vision printing",
    "statistics": "moments provenance network layout",
    "gaps": "gap decomposition",
    "nn": "state self_tuned",
    "recording": "trace steps recorders block frozen",
    "exact": "task source input_probe walk samples measure population",
    "doctor": "codes thresholds undo evidence words cause causes catalogue interventions verdict report diagnose "
    "backup recalibrate gallery",
    "doctor.evidence": "labels exported stored scores observing looking history setup predictions formula case fills "
    "lag sample first_layer choosing scoring decisions examine",
    "doctor.interventions": "experiment",
    "doctor.verdict": "verdict attribution findings labelled unlabelled",
    "doctor.report": "page diagnosis",
    "harness.lab": "registry command watching explaining launchers compose launch sweep from_python papers "
    "reproduction report removing forgetting runs",
    "doctor.gallery": "patterns network store specimen faults table",
    "watching": "snapshot keeper comparison watch",
    "commands": "parsers images packages loading demo doctor explain gap recalibrate undo",
    "harness.artifacts": "seeding data corruptions norms models optimizers training job_settings code_changes run live "
    "attributes training_runner",
    "harness.reporting": "wording means selection frames tables style plots verdicts experiment drawing outcome "
    "overview page watched",
}
# In folders of components what these share, in the same order. A component imports no other one.
COMPONENTS = {
    "doctor.causes": "",
    "harness.artifacts.data": "pixels rendering base dataset",
    "harness.artifacts.models": "base",
    "harness.artifacts.norms": "base",
}
# What reports are made of: no torch, no Hydra, nothing that trains or measures.
REPORTING = {
    *("pandas", "numpy", "scipy", "matplotlib", "PIL", "pyarrow", "filelock", "jinja2", "markupsafe", "markdown_it"),
    *("bnlab.common.files", "bnlab.common.names", "bnlab.common.pages"),
    *(
        f"bnlab.harness.{name}"
        for name in (
            "errors",
            "schema",
            "updates",
            "layer_average",
            "source_code",
            "run_table",
            "requests",
            "reporting",
        )
    ),
}
SHARED = {f"experiments.{name}" for name in ("cells", "margins", "recipes", "tuning")}  # by several questions
PACKAGED = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "markdown_it": "markdown-it-py",
}  # where the names differ
OURS = {"bnlab", "experiments", "benchmarks", "docs", "tests"}


def number(floors: Iterable[str]) -> dict[str, int]:
    return {name: height for height, names in enumerate(floors) for name in names.split()}


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever it does so."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(found)


@pytest.mark.parametrize("path", [*LIBRARY, *sorted(HARNESS.rglob("*.py"))], ids=lambda path: "/".join(path.parts[-2:]))
def test_imports_go_downwards(path: Path) -> None:
    in_library = path in LIBRARY
    root, prefix, floors = (PACKAGE, "bnlab.", FLOORS) if in_library else (HARNESS, "bnlab.harness.", STAGES)
    floor, own = number(floors), path.relative_to(root).parts[0].removesuffix(".py")
    assert own in floor or own == "__init__", f"give {own} a floor here and in the design"
    for name in imports(path):
        known = {"experiments", *(() if own in ("config", "lab") else ("hydra", "omegaconf"))}
        assert name.partition(".")[0] not in known, "only bnlab.harness.lab and harness.config see Hydra"
        if in_library:
            assert name.partition(".")[0] not in {"matplotlib", "torchvision"}, name
            assert not name.startswith("bnlab.harness"), "the library does not know the harness"
        if name.startswith(prefix):
            used = name.removeprefix(prefix).split(".")[0]
            assert own in (used, "__init__") or floor[own] > floor.get(used, -1), f"{own} imports {used}"


@pytest.mark.parametrize("folder", [*FOLDERS, *COMPONENTS])
def test_the_order_inside_of_a_folder(folder: str) -> None:
    place = PACKAGE.joinpath(*folder.split("."))
    modules = {path.stem for path in place.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in place.glob("*/__init__.py")}
    order = {**FOLDERS, **COMPONENTS}[folder].split()
    others = (modules | packages) - {*order}

    assert {*order} <= modules | packages
    if folder in FOLDERS:
        assert not others, f"give {others} a place here"

    below = {name: {*order[:height]} for height, name in enumerate(order)} | {name: {*order} for name in others}
    for name, allowed in below.items():
        paths = [place / f"{name}.py"] if name in modules else (place / name).glob("*.py")
        imported = set[str]().union(*(imports(path) for path in paths))
        used = {other for other in below if other != name and f"bnlab.{folder}.{other}" in imported}
        assert used <= allowed, f"{name} imports {used}"


def test_reports_see_tables_only() -> None:
    for path in (HARNESS / "reporting").rglob("*.py"):
        looks = {"bnlab.harness.statistic_kinds"} if path.stem == "wording" else set[str]()
        assert_imports_only(path, REPORTING | looks)


def list_questions() -> list[Path]:
    """List the files of all questions, and their own kinds of plot, without those of their measurements."""
    return [*QUESTIONS.glob("*.py"), *QUESTIONS.glob("*/__init__.py"), *QUESTIONS.glob("*/plots.py")]


def test_questions_see_reports_and_theory_only() -> None:
    for path in list_questions():
        own_plots = f"experiments.questions.{path.parent.name}.plots"
        assert_imports_only(path, {*REPORTING, *SHARED, own_plots, "bnlab.theory", "sklearn"}, beside="bnlab")


def test_measurements_of_questions_see_nothing_that_reads_tables() -> None:
    paths = {*QUESTIONS.rglob("*.py")} - {*list_questions()}
    for path in paths:
        own = f"experiments.questions.{path.parent.name}"
        for name in imports(path):
            assert not name.startswith("bnlab.harness.reporting"), f"{path} imports {name}"
            assert not name.startswith("experiments") or name.startswith(f"{own}."), f"{path} imports {name}"
    assert len(paths) >= 10


def assert_imports_only(path: Path, allowed: set[str], beside: str = "") -> None:
    """Modules of the allowed packages, of Python itself, and the one named `beside`."""
    for name in imports(path) - {beside}:
        is_allowed = any(f"{name}.".startswith(f"{package}.") for package in allowed)
        is_of_python = name.partition(".")[0] in sys.stdlib_module_names
        assert is_allowed or is_of_python, f"{path.name} imports {name}"


def test_the_library_uses_two_private_names_of_torch() -> None:
    private = re.compile(r"torch\.(_\w+|[a-z_.]+\._\w+)|from torch[a-z_.]*\._|from torch[a-z_.]* import .*\b_[A-Za-z]")
    lines = [
        line
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    used = [line for line in lines if not line.lstrip().startswith(("#", '"'))]
    names = {name for line in used for name in ("_BatchNorm", "torch._dynamo") if name in line}
    assert len(used) == len(names) == 2, used


def loaded_by(*modules: str, call: str = "None") -> set[str]:
    """The packages that a process has loaded after it has imported these modules, and made a call."""
    code = f"import sys, {', '.join(modules)}; {call}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return {*done.stdout.splitlines()[-1].split()}  # before it stands what the call prints


def test_nobody_waits_for_what_is_not_used() -> None:
    call = "bnlab.population_statistics(torch.nn.BatchNorm1d(1), [torch.rand(4, 1)])"
    found = loaded_by("torch", "bnlab.callbacks", "bnlab.recording.block", "bnlab.cli", call=call)
    assert not {"pandas", "hydra", "omegaconf", "matplotlib", "torchvision", "pyarrow", "sklearn"} & found
    assert "sympy" not in found  # torch's compiler
    paths = [*(HARNESS / "reporting").glob("*.py"), *list_questions()]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    found = loaded_by(*(name.removesuffix(".__init__") for name in modules))
    assert "pyarrow" in found and not {"torch", "torchvision", "hydra", "omegaconf"} & found
    found = loaded_by("bnlab.harness.lab.sweep", call="bnlab.harness.lab.sweep.main(['--help'])")
    assert not {"torch", "hydra", "omegaconf", "pandas"} & found
    found = loaded_by("bnlab.harness.lab.compose")  # so that mistakes are answered soon
    assert "hydra" in found and not {"pandas", "pyarrow", "matplotlib", "sympy"} & found


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "explain",
        "explain BN003",
        *(f"{command} --help" for command in ("doctor", "explain", "gap", "recalibrate", "undo")),
    ],
)
def test_help_and_explanations_do_not_wait_for_torch(line: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "bnlab", *line.split()]

    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)

    found = {row.rpartition("|")[2].strip().partition(".")[0] for row in done.stderr.splitlines()}
    assert "bnlab" in found
    assert not {"torch", "numpy", "pandas"} & found


def test_reading_tables_does_not_wait_for_torch() -> None:
    reference = PACKAGE.parent / "results" / "reference"

    found = loaded_by(
        "bnlab.harness", "bnlab.common.names", call=f"bnlab.harness.load('quickstart', {str(reference)!r})"
    )

    assert "pyarrow" in found
    assert not {"torch", "matplotlib"} & found


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base, extras = project["dependencies"], project["optional-dependencies"]

    def declared(*lists: list[str]) -> set[str]:
        return {re.split(r"[><=]", line)[0] for lines in lists for line in lines}

    def imported(paths: Iterable[Path]) -> set[str]:
        modules = {name.partition(".")[0] for path in paths for name in imports(path)}
        return {PACKAGED.get(module, module) for module in modules - OURS - sys.stdlib_module_names}

    assert imported(LIBRARY) == declared(base)
    everything = [path for folder in OURS for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert imported(everything) <= declared(base, *extras.values())
    harness = [*HARNESS.rglob("*.py"), *(PACKAGE.parent / "experiments").rglob("*.py")]
    assert imported(harness) <= declared(base, extras["harness"])


def test_public_names_are_listed_before_they_are_loaded() -> None:
    """In a process of its own: a name may be listed because it was asked for before."""
    code = "import bnlab, bnlab.harness; print([{*m.__all__} - {*dir(m)} for m in (bnlab, bnlab.harness)])"

    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)

    assert listed.stdout == "[set(), set()]\n"


def test_one_module_computes_digests_and_the_public_names_are_there() -> None:
    assert {path.stem for path in PACKAGE.rglob("*.py") if {"hashlib", "zlib"} & imports(path)} == {"files"}
    assert all(hasattr(bnlab, name) for name in bnlab.__all__) and bnlab.__version__
