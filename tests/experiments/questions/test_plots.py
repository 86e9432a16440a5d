"""A plot of one question: what a reader takes from the cells of a map."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Figure
from experiments.questions.ground.plots import Cells

matplotlib.use("Agg")

CELLS = Cells("updates", "batch_size", ("number of updates", "batch size"), "points lost", "below 50%")


def plant(**columns: list[object]) -> pd.DataFrame:
    """Plant cells of two batch sizes after 36 and 2,250 updates, in one panel."""
    places = {"panel": "falling rate", "batch_size": [4, 4, 64, 64], "updates": [36, 2250, 36, 2250]}
    means = {"mean": [0.2, 5.6, -0.02, 20.0], "low": [-0.1, 2.0, -0.1, 15.0], "high": [0.5, 9.0, 0.1, 25.0]}
    return pd.DataFrame({**places, **means, "hollow": [True, False, False, False], "n": 7, "log": False, **columns})


def test_a_cell_has_its_number_bold_where_it_is_certain_and_darker_the_larger_it_is() -> None:
    drawn = drawing.draw(Figure("Points lost", "", lambda tables: plant(), CELLS), plant())
    (ax,) = drawn.axes

    texts = {text.get_text(): text for text in ax.texts}
    cells = {patch.get_xy(): patch for patch in ax.patches if isinstance(patch, Rectangle)}
    light, dark = cells[0.53, -0.46], cells[0.53, 0.54]

    assert {*texts} == {"0.2", "5.6", "0.0", "20.0"}
    assert [name for name, text in texts.items() if text.get_fontweight() == "bold"] == ["5.6", "20.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["36", "2,250"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["4", "64"]
    assert ax.get_ylim() == (1.5, -0.5), "small batches on top"
    assert sum(to_rgb(dark.get_facecolor()[:3])) < sum(to_rgb(light.get_facecolor()[:3]))
    assert [bool(patch.get_hatch()) for patch in cells.values()].count(True) == 1
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["points lost", "below 50%"]
    plt.close("all")
