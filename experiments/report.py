"""python -m experiments.report: one page with every question that has results."""

from __future__ import annotations

import sys

from experiments.command import run_command
from experiments.places import RESULTS, answer_all

USAGE = """usage: python -m experiments.report [experiment=NAME [name=NAME]] [results=FOLDER]

Write results/report.html: questions, answers, figures. Without words from the reference results."""
PAGE = RESULTS / "report.html"


def main() -> int:
    """Exit 2 for a user's mistake."""
    return run_command(_write, USAGE)


def _write(words: list[str]) -> int:
    from bnlab.files import write_whole
    from bnlab.harness.reporting.page import write_html
    from experiments.catalogue import CATALOGUE

    answered = answer_all(words)
    figures = {
        (place.experiment, name): path
        for place, answer in answered
        for name, path in place.find_images(figure.name for figure in answer.experiment.figures).items()
    }
    page = write_html(CATALOGUE, [answer for _, answer in answered], figures)
    write_whole(PAGE, lambda path: path.write_text(page, encoding="utf-8"))
    count = "1 experiment" if len(answered) == 1 else f"{len(answered)} experiments"
    print(f"{PAGE}  ({count}, {len(page) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
