"""Finding questions: a module or folder for each, in `experiments/questions` and `questions/` of the current folder."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bnlab.harness.errors import UserError, suggest

if TYPE_CHECKING:
    from bnlab.harness.measurements import Measurement
    from bnlab.harness.reporting.experiment import Experiment
    from bnlab.harness.reporting.outcome import Outcome

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


def find_experiment(name: str) -> Experiment:
    """Find the EXPERIMENT of a question, and fill in name, question and source; UserError if it cannot be imported."""
    from bnlab.harness.own import import_object

    known = _find_modules()
    if name not in known:
        raise UserError(f"no question {name!r}: {suggest(name, known)}")
    experiment: Experiment = import_object("experiment", f"{known[name]}.EXPERIMENT")
    module = importlib.import_module(known[name])
    # The first paragraph asks the question, and those below say where it comes from.
    question, _, source = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return replace(experiment, name=name, question=question, source=" ".join(source.split()))


def list_questions() -> list[str]:
    """List the names of all experiments: of those that are swept, and of those that another command measures."""
    return sorted(_find_modules())


def list_papers() -> dict[str, Path]:
    """List the files of all papers that are redrawn, by the papers' names."""
    (folder,) = importlib.import_module(f"{_SHIPPED}.papers").__path__
    return {path.stem: path for path in sorted(Path(folder).glob("*.yaml"))}


def is_shipped(name: str) -> bool:
    """Find out if a question is one of bnlab's own, which its pages of answers are about."""
    return _find_modules().get(name, "").startswith(_SHIPPED)


def write_pages(outcomes: Sequence[Outcome], results: Path) -> None:
    """Write the pages on all questions of a folder of results; the words on bnlab's own lie beside these."""
    importlib.import_module(f"{_SHIPPED}.pages").write_pages(outcomes, results)


def _find_modules() -> dict[str, str]:
    """Find the import path of each question's module; one of the user's takes the place of one of bnlab's."""
    shipped = f"{_SHIPPED}.questions"
    # Absolute, because Python caches what a path leads to, and the current folder may change.
    folder = Path(_FOLDER).resolve()
    packages = {shipped: list(importlib.import_module(shipped).__path__), _FOLDER: [str(folder)]}
    modules = {}
    for package, folders in packages.items():
        for module in pkgutil.iter_modules(folders):
            modules[module.name] = f"{package}.{module.name}"
    return modules


def list_measurements() -> dict[str, Measurement]:
    """List bnlab's measurements: those that are known by a short name, and those of questions by import path."""
    from bnlab.harness.artifacts.job_settings import as_list
    from bnlab.harness.measurements import find_measurement, list_names

    names = {*list_names()}
    for path in (CONF / "experiment").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        names.update(as_list(settings.get("measurements", [])))
    return {name: find_measurement(name) for name in sorted(names)}
