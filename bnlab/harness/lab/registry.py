"""Finding questions: a module or folder for each, in `experiments/questions` and `questions/` of the current folder.

Papers that are redrawn are questions too, in `experiments/papers`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bnlab.harness.errors import UserError, suggest

if TYPE_CHECKING:
    from bnlab.harness.measurements import Measurement
    from bnlab.harness.reporting.outcome import Outcome
    from bnlab.harness.reporting.question import Paper, Question

_PACKAGE = Path(__file__).resolve().parents[2]
_IN_WHEEL = _PACKAGE / "conf"  # where a wheel has what lies beside the package in a clone

CONF = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "conf"
REFERENCE = _PACKAGE.parent / "results" / "reference"
"""The results that are committed, in a clone."""
_SHIPPED = "experiments"  # the package of bnlab's own questions
_FOLDER = "questions"  # of the user's, in the current folder


def import_shipped() -> None:
    """Import the package of bnlab's own questions, as long as a clone in the current folder cannot be found instead.

    UserError if another module of this name is found, as a user's experiments.py.
    """
    spec = importlib.util.find_spec(_SHIPPED)
    # In a clone and in a wheel the two packages lie beside each other.
    wanted = _PACKAGE.parent / _SHIPPED / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != wanted.resolve():
        found = "not found" if spec is None else f"hidden by {spec.origin or 'a folder of this name'}"
        raise UserError(
            f"bnlab's own package {_SHIPPED!r} is {found}; rename that, or start in another folder: bnlab imports its "
            "questions from there"
        )
    importlib.import_module(_SHIPPED)


def find_question(name: str) -> Question:
    """Find the QUESTION of a module, and fill in name, question and source; UserError if it cannot be imported."""
    return _import_question("question", name, _find_modules())


def find_paper(name: str) -> Question:
    """Find the QUESTION of a paper that is redrawn, in the same way; it may have the name of another question."""
    return _import_question("paper", name, _find_papers())


def read_paper(module: str) -> Paper:
    """Read what a paper says that is redrawn, in the YAML file beside its module: `read_paper(__file__)`."""
    from bnlab.harness.reporting.question import Paper, Printed

    declared = yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))
    printed = {key: Printed(**number) for key, number in declared.pop("printed", {}).items()}
    return Paper(printed=printed, **declared)


def _import_question(kind: str, name: str, known: Mapping[str, str]) -> Question:
    from bnlab.harness.own import import_object

    if name not in known:
        raise UserError(f"no {kind} {name!r}: {suggest(name, known)}")
    question: Question = import_object("experiment", f"{known[name]}.QUESTION")
    module = importlib.import_module(known[name])
    # The first paragraph asks the question, and those below say where it comes from.
    asks, _, source = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return replace(question, name=name, asks=" ".join(asks.split()), source=source)


def list_questions() -> list[str]:
    """List the names of all experiments: of those that are swept, and of those that another command measures."""
    return sorted(_find_modules())


def list_papers() -> list[str]:
    """List the names of all papers that are redrawn."""
    return sorted(_find_papers())


def is_shipped(name: str) -> bool:
    """Find out if a question is one of bnlab's own, which its pages of answers are about."""
    return _find_modules().get(name, "").startswith(_SHIPPED)


def write_pages(outcomes: Sequence[Outcome], results: Path) -> None:
    """Write the pages on all questions of a folder of results; the words on bnlab's own lie beside these."""
    importlib.import_module(f"{_SHIPPED}.pages").write_pages(outcomes, results)


def _find_modules() -> dict[str, str]:
    """Find the import path of each question's module; one of the user's takes the place of one of bnlab's."""
    # Absolute, because Python caches what a path leads to, and the current folder may change.
    folder = Path(_FOLDER).resolve()
    own = {module.name: f"{_FOLDER}.{module.name}" for module in pkgutil.iter_modules([str(folder)])}
    return _list_modules(f"{_SHIPPED}.questions") | own


def _find_papers() -> dict[str, str]:
    """Find the import path of the module of each paper."""
    return _list_modules(f"{_SHIPPED}.papers")


def _list_modules(package: str) -> dict[str, str]:
    """List the modules of a package by their names."""
    folders = importlib.import_module(package).__path__
    return {module.name: f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)}


def list_measurements() -> dict[str, Measurement]:
    """List bnlab's measurements: those that are known by a short name, and those of questions by import path."""
    from bnlab.harness.artifacts.job_settings import as_list
    from bnlab.harness.measurements import find_measurement, list_tables

    names = {*list_tables()}
    for path in (CONF / "experiment").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        names.update(as_list(settings.get("measurements", [])))
    return {name: find_measurement(name) for name in sorted(names)}
