"""What is asked: a module for each question, with one EXPERIMENT each; and how commands find and run them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnlab.harness.reporting.experiment import Experiment


def find_experiment(name: str) -> Experiment:
    """The EXPERIMENT of `experiments/questions/<name>.py`; UserError if there is none or it cannot be imported."""
    from bnlab.harness.errors import UserError, where_raised
    from experiments.catalogue import FIGURES, HYPOTHESES, QUESTIONS

    path = f"experiments/questions/{name}.py"
    try:
        module = importlib.import_module(f"experiments.questions.{name}")
        found = module.EXPERIMENT
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"{path}: has to define EXPERIMENT ({where_raised(error)})") from error
    if unknown := sorted({*found.answers} - {*QUESTIONS, *HYPOTHESES, *FIGURES}):
        raise UserError(f"{path}: answers {unknown[0]}, which experiments/catalogue.py does not have; leave it out")
    question, _, source = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return replace(found, name=name, question=question, source=" ".join(source.split()))


def list_questions() -> list[str]:
    """The names of all modules here: of experiments that are swept, and of those that another command measures."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


@contextlib.contextmanager
def own_code(what: str, folder: Path, command: str) -> Iterator[None]:
    """Errors of an experiment's code as UserError, with the line that raised it; `command` makes the tables."""
    from bnlab.harness.errors import NoRows, UserError, where_raised

    try:
        yield
    except NoRows as error:
        raise UserError(f"{what}, from {folder}/tables: {error}\nrun: {command}") from error
    except UserError as error:
        raise UserError(f"{what}, from {folder}/tables: {error}") from error
    except (Exception, SystemExit) as error:
        # Often the tables are those of half a sweep, or of one with other settings.
        names = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        reason = f"{what}{names} failed: {where_raised(_below_caller(error))}"
        raise UserError(f"{reason}\nif {folder}/tables lacks rows that it needs, run: {command}") from error


def _below_caller(error: BaseException) -> BaseException:
    """The error without the lines of this module and of the command: whoever wrote the experiment has no others."""
    frames = error.__traceback__ and error.__traceback__.tb_next
    return error.with_traceback(frames and frames.tb_next)
