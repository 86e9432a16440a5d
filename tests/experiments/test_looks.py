"""In figures of committed results each kind of statistics has one colour and line, and nothing else has its colour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Drawn
from matplotlib.lines import Line2D

from bnlab.harness.lab.registry import REFERENCE, find_question
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.looks import find_kind
from bnlab.harness.reporting.tables import load

matplotlib.use("Agg")
FIGURES = (
    "averaging_windows.windows",
    "changed_weights.lost",
    "cifar10.training",
    "clients.accuracy",
    "drift.one_network",
    "drift.running_average",
    "forecast.errors",
    "gap.accuracy",
    "gap.layers",
    "ghost.accuracy",
    "ground.best_momentum",
    "predictive.training",
    "quickstart.accuracy",
    "rates.rates_running",
    "real.cosine",
    "streams.sizes",
    "test_streams.sizes",
    "tolerance.doses",
    "weight_averaging.accuracy",
)


def list_looks(drawn: Drawn) -> Iterator[tuple[str, str, str]]:
    """List the words of the legend with the colour of what is drawn, and the line if it is one."""
    for ax in drawn.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            if isinstance(handle, ErrorbarContainer):
                yield str(label), to_hex(handle[0].get_color()), ""
            elif isinstance(handle, Line2D):
                line = handle.get_linestyle()  # of broken lines not which
                yield str(label), to_hex(handle.get_color()), "" if line == "None" else str(line)


@pytest.mark.slow  # it draws nineteen figures
def test_each_kind_of_statistics_has_one_look_in_all_figures() -> None:
    colours = defaultdict(set)
    lines = defaultdict(set)
    others = {}
    for name in FIGURES:
        question, _, key = name.partition(".")
        figure, frame = drawing.read_points(find_question(question).figures[key], load(question, REFERENCE))
        drawn = drawing.draw(figure, frame)
        of_kind: dict[str, str] = {}
        for label, colour, line in list_looks(drawn):
            kind = find_kind(label)
            if kind is None:
                others[colour] = f"{name}: {label}"
            # Further series of a kind have shades of its colour.
            elif of_kind.setdefault(kind.words, label) == label:
                colours[kind.words].add(colour)
                if line:
                    lines[kind.words].add(line)
        plt.close(drawn)

    assert len(colours) >= 9
    assert {words: found for words, found in colours.items() if len(found) > 1} == {}
    assert {words: found for words, found in lines.items() if len(found) > 1} == {}
    of_kinds = {colour for found in colours.values() for colour in found}
    assert {words for colour, words in others.items() if colour in of_kinds} == set()
