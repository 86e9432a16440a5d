"""python -m experiments.figures experiment=quickstart: draw an experiment's figures from its tables."""

from __future__ import annotations

import sys
from dataclasses import replace

from experiments.answers import describe, wrap
from experiments.command import run_command
from experiments.places import Place

USAGE = """usage: python -m experiments.figures experiment=NAME [name=NAME] [results=FOLDER]

Draw the figures of an experiment from its tables, and print the verdicts on its claims."""


def main() -> int:
    """Figures, and verdicts in aligned lines; exit 2 for a user's mistake."""
    return run_command(_draw, USAGE)


def _draw(words: list[str]) -> int:
    from experiments.compose import find_results

    draw_all(Place(*find_results(words)))
    return 0


def draw_all(place: Place) -> None:
    """Draw every figure of an experiment, and print the verdicts on its claims."""
    import matplotlib

    matplotlib.use("Agg")
    from bnlab.harness.reporting import drawing, style
    from bnlab.harness.reporting.answer import READING, compose_answer
    from bnlab.harness.reporting.experiment import NoRows, declared
    from experiments.questions import find_experiment

    question, tables = find_experiment(place.experiment), place.load()
    with place.explain_errors("columns"):
        available = declared(question, tables)
    drawn, changes = {}, place.describe_changes(tables)
    with style.paper():
        for figure in question.figures:
            with place.explain_errors(f"figure {figure.name}"):
                try:
                    drawn[figure.name] = drawing.draw(figure, available, changes)
                except NoRows as error:  # as where it is of other estimators than were swept
                    print(f"{error}; it is left out", file=sys.stderr)
        with place.explain_errors("the claims"):
            answer = compose_answer(question, tables)
        for name, image in drawn.items():
            print(f"{drawing.save(image, place.figures, name)[0]}  (and .pdf)")
    print("\n".join(["", question.question, *describe(replace(answer, changes=changes))]))
    print(wrap(READING))


if __name__ == "__main__":
    sys.exit(main())
