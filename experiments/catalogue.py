"""Finding what is asked, a module for each experiment in `questions/`, and the words on it in `answers/`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnlab.harness.reporting.experiment import Experiment
    from bnlab.harness.reporting.page import Catalogue

FIGURES = tuple(f"F{number}" for number in range(1, 22))

_HERE = Path(__file__).parent


def find_experiment(name: str) -> Experiment:
    """Find the EXPERIMENT of a question's module, and fill in name, question and source.

    Modules lie in `experiments/questions/`, and those of the user's own in `questions/` of the current folder.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    from bnlab.harness.errors import UserError, where_raised

    known = _find_modules()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise UserError(f"no question {name!r}; {hint}")
    try:
        module = importlib.import_module(known[name])
        found = module.EXPERIMENT
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        place = known[name].replace(".", "/")
        raise UserError(f"{place}.py has to define EXPERIMENT: {where_raised(error)}") from error
    question, _, source = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return replace(found, name=name, question=question, source=" ".join(source.split()))


def list_questions() -> list[str]:
    """List the names of all experiments: of those that are swept, and of those that another command measures."""
    return sorted(_find_modules())


def is_shipped(name: str) -> bool:
    """Find out if a question is one of bnlab's own, which its pages of answers are about."""
    return _find_modules().get(name, "").startswith("experiments.")


def _find_modules() -> dict[str, str]:
    """Find the import path of each question's module; one of the user's takes the place of one of bnlab's."""
    modules = {}
    packages = {"experiments.questions": _HERE / "questions", "questions": Path("questions")}
    for package, folder in packages.items():
        for path in sorted(folder.glob("*.py")):
            if path.stem != "__init__":
                modules[path.stem] = f"{package}.{path.stem}"
    return modules


def read_catalogue() -> Catalogue:
    """Read the questions Q1, Q2, … with their answers, the hypotheses with conclusions, and what stands around them."""
    from bnlab.harness.reporting.page import Catalogue

    folder = _HERE / "answers"
    pages = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    first = pages.pop("first")
    index = pages.pop("index")
    last = pages.pop("last")
    hypotheses = _read_hypotheses(pages.pop("hypotheses"))

    numbers = sorted(pages, key=lambda number: int(number[1:]))
    questions = {number: pages[number] for number in numbers}
    return Catalogue(questions, hypotheses, first, index, last)


def _read_hypotheses(text: str) -> dict[str, tuple[str, str]]:
    """Read hypotheses by their numbers, with the lines below them; empty lines are between them."""
    hypotheses = {}
    for part in text.strip().split("\n\n"):
        heading, _, conclusion = part.partition("\n")
        number, _, hypothesis = heading.partition(". ")
        hypotheses[number] = (hypothesis, conclusion)
    return hypotheses
