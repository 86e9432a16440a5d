"""The figure of a made stream: what is drawn of it, and where its words stand."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.plots import Axis
from experiments.questions.drift.plots import Stream, Zone

matplotlib.use("Agg")


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
