"""What may import what, and what a command does not wait for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bnlab"
HARNESS, QUESTIONS = PACKAGE / "harness", ROOT / "experiments" / "questions"
# Imports go to a lower floor only; the ground floor is first.
FLOORS = (
    "model common theory",
    "statistics estimators inference memory",
    "exact recording nn",
    "gaps",
    "doctor",
    "watching",
    "callbacks",
    "commands",
    "cli",
    "__main__",
)
# Of bnlab/harness/: data flows from one to the next.
STAGES = (
    "errors schema layer_average",  # what all of them share: no torch
    "updates",
    "user_code",
    "records",
    "settings",
    "own",
    "statistic_kinds",  # what can be chosen as estimator
    "artifacts",
    "run_table done",  # which jobs are done, by files alone: no torch
    "measurements",  # what needs a network
    "reporting",  # what needs tables only: no torch
    *("checks", "trial", "run_row", "jobs", "planning loading"),
    "lab",  # the commands sweep, report, runs
)
# Inside of a folder a module imports those before it only.
FOLDERS = {
    "model": "warn arguments batches layers calls borrow reading",
    "common": "files precision pages storage checkpoints names vision printing bars scores digits",
    "statistics": "moments provenance network layout",
    "gaps": "gap decomposition",
    "nn": "state self_tuned",
    "recording": "trace observer steps recorders block frozen",
    "exact": "task source fixed_point operations walk check measure population",
    "doctor": "codes scores patient cause fits history average_rows other_rows general_rows causes repair report "
    "diagnose",
    "harness.lab": "registry command launchers own_choices compose launch cluster sweep from_python report runs new",
    "watching": "keeper comparison watch",
    "commands.demo": "patterns network store specimen faults",
    "commands": "parsers images packages loading demo doctor explain gap recalibrate undo",
    "harness.artifacts": "seeding data dataset shifts corruptions norms models network optimizers objectives tasks "
    "training job_settings run_folder run live training_runner",
    "harness.reporting": "statistic_looks wording means selection frames tables axes looks plots verdicts question "
    "printed drawing outcome quotes measured means_table any_sweep page",
}
# In folders of components what these share, in the same order. A component imports no other one.
COMPONENTS = {
    "harness.artifacts.data": "parts fonts images base",
    "harness.artifacts.models": "base networks",
    "harness.artifacts.norms": "layers base",
}
# What reports are made of: no torch, no Hydra, nothing that trains or measures.
REPORTING = {
    *("pandas", "numpy", "scipy", "matplotlib", "PIL", "pyarrow", "filelock", "jinja2", "markdown_it"),
    *("bnlab.common.files", "bnlab.common.names", "bnlab.common.pages"),
    *(
        f"bnlab.harness.{name}"
        for name in (
            "errors",
            "schema",
            "artifacts.job_settings",
            "settings",
            "updates",
            "layer_average",
            "user_code",
            "run_table",
            "records",
            "reporting",
        )
    ),
}
SHARED = {f"experiments.{name}" for name in ("devices", "margins", "recipes")}  # by several questions
# The packages that install a module, where the names differ: its own one, or one that cannot be installed without it.
PACKAGED = {
    "hydra": "hydra-core",
    "omegaconf": "hydra-core",
    "yaml": "hydra-core",
    "markdown_it": "markdown-it-py",
    "filelock": "torch",
    "PIL": "matplotlib",
}
NAMED = {"torchvision"}  # `bnlab.common.vision` imports it by its name
OURS = {"bnlab", "experiments", "benchmarks", "docs", "tests"}


def list_library() -> list[Path]:
    """List the modules of the library."""
    return sorted(path for path in PACKAGE.rglob("*.py") if HARNESS not in path.parents)


def number(floors: Iterable[str]) -> dict[str, int]:
    """Number the names of floors from below."""
    return {name: height for height, names in enumerate(floors) for name in names.split()}


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all that a module imports, wherever it does so."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(found)


def find_imports_that_go_upwards() -> Iterator[str]:
    """Find modules that import from their own floor or above, and what a part of the project may not see."""
    rooms = [(PACKAGE, "bnlab.", FLOORS, list_library()), (HARNESS, "bnlab.harness.", STAGES, HARNESS.rglob("*.py"))]
    for root, prefix, floors, paths in rooms:
        floor = number(floors)
        for path in paths:
            own = path.relative_to(root).parts[0].removesuffix(".py")
            if own not in floor and own != "__init__":
                yield f"give {own} a floor, in tests/checks/imports.py and in docs/contributing/layout.md"
                continue
            for name in imports(path):
                used = name.removeprefix(prefix).split(".")[0]
                is_below = own in (used, "__init__") or floor.get(own, -1) > floor.get(used, -1)
                if name.startswith(prefix) and not is_below:
                    yield f"{path.relative_to(ROOT)} imports {name}, which is not below"


def find_packages_that_a_room_may_not_see() -> Iterator[str]:
    """Find Hydra outside of the rooms that plan and command, and what draws, or loads data, in the library."""
    for path in PACKAGE.rglob("*.py"):
        packages = {name.partition(".")[0] for name in imports(path)}
        forbidden = {"experiments"}
        if HARNESS not in path.parents:
            forbidden |= {"hydra", "omegaconf", "matplotlib", "torchvision"}
        elif path.relative_to(HARNESS).parts[0] != "lab":
            forbidden |= {"hydra", "omegaconf"}
        for package in sorted(packages & forbidden):
            yield f"{path.relative_to(ROOT)} imports {package}"
    for path in list_library():
        if any(name.startswith("bnlab.harness") for name in imports(path)):
            yield f"{path.relative_to(ROOT)} imports the harness, which the library does not know"


def find_imports_against_the_order_of_a_folder() -> Iterator[str]:
    """Find modules of a folder that import those after them, and modules without a place."""
    for folder, words in {**FOLDERS, **COMPONENTS}.items():
        place = PACKAGE.joinpath(*folder.split("."))
        modules = {path.stem for path in place.glob("*.py")} - {"__init__"}
        packages = {path.parent.name for path in place.glob("*/__init__.py")}
        order = words.split()
        others = (modules | packages) - {*order}
        if folder in FOLDERS and others:
            yield f"{folder}: give {sorted(others)} a place in tests/checks/imports.py"
        if {*order} - (modules | packages):
            yield f"{folder} has no {sorted({*order} - (modules | packages))} any more"

        below = {name: {*order[:height]} for height, name in enumerate(order)} | {name: {*order} for name in others}
        for name, allowed in below.items():
            paths = [place / f"{name}.py"] if name in modules else (place / name).glob("*.py")
            imported = set[str]().union(*(imports(path) for path in paths))
            used = {other for other in below if other != name and f"bnlab.{folder}.{other}" in imported}
            if not used <= allowed:
                yield f"{folder}: {name} imports {sorted(used - allowed)}, which comes after it"


def find_reports_that_see_more_than_tables() -> Iterator[str]:
    """Find modules of reports, and questions, that import what trains or measures."""
    for path in (HARNESS / "reporting").rglob("*.py"):
        yield from list_others(path, REPORTING)
    for path in list_questions():
        own_plots = f"experiments.questions.{path.parent.name}.plots"
        yield from list_others(path, {*REPORTING, *SHARED, own_plots, "bnlab.theory"}, beside="bnlab")


def list_questions() -> list[Path]:
    """List the files of all questions, and their own kinds of plot, without those of their measurements."""
    return [*QUESTIONS.glob("*.py"), *QUESTIONS.glob("*/__init__.py"), *QUESTIONS.glob("*/plots.py")]


def list_others(path: Path, allowed: set[str], beside: str = "") -> Iterator[str]:
    """List imports beside modules of the allowed packages, of Python itself, and the one named `beside`."""
    for name in imports(path) - {beside}:
        is_allowed = any(f"{name}.".startswith(f"{package}.") for package in allowed)
        if not is_allowed and name.partition(".")[0] not in sys.stdlib_module_names:
            yield f"{path.relative_to(ROOT)} imports {name}, which reads no tables"


def find_measurements_that_read_tables() -> Iterator[str]:
    """Find measurements of questions that import what reads tables, or another question."""
    for path in {*QUESTIONS.rglob("*.py")} - {*list_questions()}:
        own = f"experiments.questions.{path.parent.name}"
        for name in imports(path):
            is_of_another = name.startswith("experiments") and not name.startswith(f"{own}.")
            if is_of_another or name.startswith("bnlab.harness.reporting"):
                yield f"{path.relative_to(ROOT)} imports {name}"


def find_private_names_of_torch() -> Iterator[str]:
    """Find private names of torch in the library and the harness, but for the three that it cannot do without."""
    private = re.compile(r"torch\.(_\w+|[a-z_.]+\._\w+)|from torch[a-z_.]*\._|from torch[a-z_.]* import .*\b_[A-Za-z]")
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            is_code = not line.lstrip().startswith(("#", '"'))
            is_known = any(word in line for word in ("_BatchNorm", "torch._dynamo", "_python_dispatch"))
            if is_code and not is_known and private.search(line):
                yield f"{path.relative_to(ROOT)}: {line.strip()}"


def find_packages_that_are_not_declared() -> Iterator[str]:
    """Find packages that are imported and not declared, and those that whoever installs bnlab gets for nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    everything = [path for folder in OURS for path in (ROOT / folder).rglob("*.py")]
    packed = [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    parts = {
        "the package": (packed, list_declared(project["dependencies"], extras["slurm"])),
        "the project": (everything, list_declared(project["dependencies"], *extras.values())),
    }
    for part, (paths, declared) in parts.items():
        modules = {name.partition(".")[0] for path in paths for name in imports(path)}
        imported = {PACKAGED.get(module, module) for module in modules - OURS - sys.stdlib_module_names}
        for package in sorted(imported - declared):
            yield f"{part} imports {package}, which pyproject.toml does not declare"
        if part == "the package" and declared - imported - NAMED:
            yield f"{part} does not import {sorted(declared - imported - NAMED)}, which pyproject.toml declares"


def list_declared(*lists: list[str]) -> set[str]:
    """List the packages of requirements."""
    return {re.split(r"[><=]", line)[0] for lines in lists for line in lines}


def find_digests_of_other_modules() -> Iterator[str]:
    """Find modules that compute digests beside the one that does."""
    for path in PACKAGE.rglob("*.py"):
        if {"hashlib", "zlib"} & imports(path) and path.stem != "files":
            yield f"{path.relative_to(ROOT)} computes digests; bnlab.common.files does"


def find_what_commands_wait_for() -> Iterator[str]:
    """Find packages that are loaded, although what is imported or called does not need them."""
    measured = "bnlab.population_statistics(torch.nn.BatchNorm1d(1), [torch.rand(4, 1)])"
    reference = str(ROOT / "results" / "reference")
    reports = [*(HARNESS / "reporting").glob("*.py"), *list_questions()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in reports]
    # The modules, the call, what it needs, and what it does not.
    cases = [
        (
            ["torch", "bnlab.callbacks", "bnlab.recording.block", "bnlab.cli"],
            measured,
            "torch",
            "pandas hydra omegaconf matplotlib torchvision pyarrow sympy",
        ),
        (names, "None", "pyarrow", "torch torchvision hydra omegaconf"),
        (
            ["bnlab.harness.lab.sweep"],
            "bnlab.harness.lab.sweep.main(['--help'])",
            "bnlab",
            "torch hydra omegaconf pandas",
        ),
        (
            ["bnlab.harness.artifacts.job_settings", "bnlab.harness.done"],
            "None",
            "bnlab",
            "torch torchvision numpy scipy pandas pyarrow hydra omegaconf",
        ),
        (["bnlab.harness.lab.compose"], "None", "hydra", "pandas pyarrow matplotlib sympy"),
        (["bnlab.harness"], f"bnlab.harness.load('quickstart', {reference!r})", "pyarrow", "torch matplotlib"),
    ]
    for modules, call, needed, others in cases:
        found = list_loaded(*modules, call=call)
        if needed not in found or {*others.split()} & found:
            yield f"{modules[0]}, {call}: loads {sorted({*others.split()} & found)}"

    for line in ("--help", "--version", "explain BN002", "doctor --help", "gap --help", "recalibrate --help"):
        words = [sys.executable, "-X", "importtime", "-m", "bnlab", *line.split()]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
        found = {row.rpartition("|")[2].strip().partition(".")[0] for row in done.stderr.splitlines()}
        if {"torch", "numpy", "pandas"} & found or "bnlab" not in found:
            yield f"bnlab {line} loads torch, numpy or pandas"


def list_loaded(*modules: str, call: str) -> set[str]:
    """List the packages that a process has loaded after it has imported these modules, and made a call."""
    code = f"import sys, {', '.join(modules)}; {call}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    return {*done.stdout.splitlines()[-1].split()}  # before it stands what the call prints


def find_public_names_that_are_not_listed() -> Iterator[str]:
    """Find public names that `dir` lacks before they are asked for, and those that there are not."""
    code = """if True:
        import bnlab, bnlab.harness
        for module in (bnlab, bnlab.harness):
            print(*({*module.__all__} - {*dir(module)}))
            print(*(name for name in module.__all__ if not hasattr(module, name)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    for names in done.stdout.split():
        yield f"{names} is not listed, or not there"
