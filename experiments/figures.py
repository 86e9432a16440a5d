"""python -m experiments.figures experiment=quickstart: draw an experiment's figures from its tables."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

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
    from bnlab.harness.errors import UserError

    question = importlib.import_module(f"experiments.{experiment}")
    tables = load(name, results)
    folder = Path(results) / name / "figures"
    elsewhere = "" if results == "results" else f" results={results}"
    again = f"run: python -m experiments.sweep experiment={experiment}{elsewhere}"
    empty = {table for figure in question.FIGURES for table in figure.columns if tables[table].empty}
    if empty:
        raise UserError(f"{experiment}: no rows in {folder.parent}/tables/{min(empty)}.parquet\n{again}")
    try:
        with style.paper():
            drawn = {figure.name: style.draw(figure, tables) for figure in question.FIGURES}
        texts = question.summary(tables)
    except UserError as error:
        raise UserError(f"{experiment}: in {folder.parent}/tables, {error}") from error
    except (LookupError, ValueError) as error:  # the rows of a sweep with other settings, or of half a sweep
        reason = f"{experiment}: its tables in {folder.parent} lack rows that its figures need ({error!r})"
        raise UserError(f"{reason}\n{again}") from error
    with style.paper():
        for figure in drawn:
            print(f"{style.save(drawn[figure], folder, figure)[0]}  (and .pdf)")
    print()
    for text in texts:
        print(textwrap.fill(text, 110, subsequent_indent="  "))


if __name__ == "__main__":
    sys.exit(main())
