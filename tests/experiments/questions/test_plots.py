"""Plots of one question each: what a reader takes from the cells of a map, and from a made stream."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.plots import Axis
from experiments.questions.drift.plots import Stream, Zone
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


def test_a_stream_shows_values_truth_and_average_and_names_its_zones() -> None:
    parts = [pd.DataFrame({"batch": [1, 2, 3], "line": name, "mean": [value, value, value + 1.0]})
             for name, value in (("batch", 1.0), ("truth", 2.0), ("average", 0.0))]  # fmt: skip
    frame = pd.concat(parts).assign(panel="", low=np.nan, high=np.nan, n=0, log=False)
    zones = (Zone(0, 2, "START"), Zone(2, 4, "NOISE"))
    axes = (Axis("batches"), Axis("mean"))

    plot = Stream("batch", "line", "batch", "truth", "average", axes, zones)
    drawn = drawing.draw(Figure("A title", "", lambda tables: frame, plot), frame)
    drawn.canvas.draw()

    (ax,) = drawn.axes
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["batch", "truth", "average"]
    assert [text.get_text() for text in ax.texts] == ["START", "NOISE"]
    lines = {str(line.get_label()): line for line in ax.lines}
    assert lines["batch"].get_linestyle() == "None"
    np.testing.assert_array_equal(lines["average"].get_ydata(), [0.0, 0.0, 1.0])
    highest = max(np.max(np.asarray(line.get_ydata())) for line in ax.lines[:3])
    words = ax.texts[0].get_window_extent()
    assert ax.transData.transform((1.0, highest))[1] < words.y0, "no point lies under the words"
    plt.close(drawn)
