"""python -m experiments.figures experiment=quickstart: draw an experiment's figures from its tables."""

from __future__ import annotations

import contextlib
import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.command import exit_code

USAGE = "usage: python -m experiments.figures experiment=NAME [results=FOLDER]"


def main() -> int:
    """Figures and a summary in words; exit 2 for a user's mistake."""
    return exit_code(_figures)


def _figures(words: list[str]) -> int:
    from experiments.compose import named
    from experiments.explain import choices

    if {"-h", "--help"} & set(words) or not words:
        print(f"{USAGE}\nNAME: {', '.join(choices('experiment'))}")
        return 0 if words else 2
    draw_all(*named(words, USAGE))
    return 0


def draw_all(experiment: str, name: str, results: str) -> None:
    """Every figure of the module `experiments.<experiment>` from the tables in `results/<name>`."""
    import matplotlib

    matplotlib.use("Agg")
    from bnlab.harness import load, style

    question = _question(experiment)
    tables = load(name, results)
    folder = Path(results) / name
    elsewhere = "" if results == "results" else f" results={results}"
    again = f"run: python -m experiments.sweep experiment={experiment}{elsewhere}"
    _require_rows(question, tables, folder, again)
    drawn = {}
    with style.paper():
        for figure in question.FIGURES:
            with _own_code(f"figure {figure.name}", folder, again):
                drawn[figure.name] = style.draw(figure, tables)
        with _own_code("the summary", folder, again):
            texts = question.summary(tables)
        for figure in drawn:
            print(f"{style.save(drawn[figure], folder / 'figures', figure)[0]}  (and .pdf)")
    print()
    for text in texts:
        print(textwrap.fill(text, 110, subsequent_indent="  "))


def _question(experiment: str) -> Any:
    """The experiment's module; UserError if it is missing, cannot be imported or lacks something."""
    from bnlab.harness.errors import UserError, where_raised
    from bnlab.harness.style import Figure

    path = f"experiments/{experiment}.py"
    try:
        question = importlib.import_module(f"experiments.{experiment}")
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == f"experiments.{experiment}":
            raise UserError(f"{path}: is missing; it has the figures of the experiment, FIGURES and summary") from error
        raise UserError(f"{path}: cannot be imported, {where_raised(error)}") from error
    figures = getattr(question, "FIGURES", None)
    if not figures or not all(isinstance(figure, Figure) for figure in figures):
        raise UserError(f"{path}: needs FIGURES, a list of bnlab.harness.style.Figure")
    if not callable(getattr(question, "summary", None)):
        raise UserError(f"{path}: needs a function summary(tables), which returns lines of text")
    return question


def _require_rows(question: Any, tables: dict[str, Any], folder: Path, again: str) -> None:
    from bnlab.harness.errors import UserError

    for figure in question.FIGURES:
        for table in figure.columns:
            if table not in (*tables, "log"):
                raise UserError(f"figure {figure.name}: there is no table {table!r}; choose from {', '.join(tables)}")
            if tables[table].empty:
                raise UserError(f"figure {figure.name}: no rows in {folder}/tables/{table}.parquet\n{again}")


@contextlib.contextmanager
def _own_code(what: str, folder: Path, again: str) -> Iterator[None]:
    """Errors of an experiment's code as UserError, with the line that raised it."""
    from bnlab.harness.errors import UserError, where_raised

    try:
        yield
    except UserError as error:
        raise UserError(f"{what}, from {folder}/tables: {error}") from error
    except (Exception, SystemExit) as error:
        # Often the tables are those of half a sweep, or of one with other settings.
        reason = f"{what} failed at {where_raised(error)}"
        raise UserError(f"{reason}\nif {folder}/tables lacks rows that it needs, {again}") from error


if __name__ == "__main__":
    sys.exit(main())
