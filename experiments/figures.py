"""python -m experiments.figures experiment=quickstart: draw an experiment's figures from its tables."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from experiments.answers import describe
from experiments.command import run_command

USAGE = """usage: python -m experiments.figures experiment=NAME [name=NAME] [results=FOLDER]

Draw the figures of an experiment from its tables, and print the verdicts on its claims."""


def main() -> int:
    """Figures, and verdicts in aligned lines; exit 2 for a user's mistake."""
    return run_command(_draw, USAGE)


def _draw(words: list[str]) -> int:
    from experiments.compose import find_results

    draw_all(*find_results(words))
    return 0


def draw_all(experiment: str, name: str, results: str) -> None:
    """Every figure of the experiment from the tables in `results/<name>`, and the verdicts on its claims."""
    import matplotlib

    matplotlib.use("Agg")
    from bnlab.harness import load
    from bnlab.harness.reporting import drawing, style
    from bnlab.harness.reporting.answer import READING, compose_answer
    from bnlab.harness.reporting.experiment import declared
    from experiments.questions import find_experiment, own_code

    question = find_experiment(experiment)
    tables = load(name, results)
    place = (Path(results) / name, experiment, results)
    with own_code("columns", *place):
        available = declared(question, tables)
    drawn = {}
    with style.paper():
        for figure in question.figures:
            with own_code(f"figure {figure.name}", *place):
                drawn[figure.name] = drawing.draw(figure, available)
        with own_code("the claims", *place):
            lines = describe(compose_answer(question, tables))
        for file, image in drawn.items():
            print(f"{drawing.save(image, place[0] / 'figures', file)[0]}  (and .pdf)")
    print("\n".join(["", question.question, *lines]))
    print(textwrap.fill(READING, 110))


if __name__ == "__main__":
    sys.exit(main())
