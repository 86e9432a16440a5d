"""A plot that questions share: what a reader takes from the cells of a map."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.means import interval
from experiments.cells import Cells, find_certain

CELLS = Cells(
    "updates",
    "batch_size",
    "small",
    {"falling rate": "number of updates"},
    "batch size",
    "points lost",
    "in small: exact accuracy",
    {"is_picked": "picked under exact statistics"},
)
LOST = {(4, 36): 0.2, (4, 2250): 5.6, (64, 36): -0.02, (64, 2250): 20.0}


def plant(deviation: float = 0.2) -> pd.DataFrame:
    """Plant cells of two batch sizes after 36 and 2,250 updates, in one panel: seven seeds, from −3 to 3 deviations."""
    rows = []
    for (size, updates), mean in LOST.items():
        place = {"batch_size": size, "updates": updates, "small": f"of {size}%", "is_picked": size == 64}
        for seed in range(7):
            rows.append({**place, "panel": "falling rate", "seed": seed, "lost": mean + deviation * (seed - 3)})
    return interval(pd.DataFrame(rows), "lost", ("panel", "batch_size", "updates", "small", "is_picked"))


def test_a_cell_has_its_number_bold_where_it_is_certain_and_darker_the_larger_it_is() -> None:
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    from bnlab.harness.reporting import drawing

    drawn = drawing.draw(Figure("Points lost", "", lambda tables: plant(), CELLS), plant())
    (ax,) = drawn.axes

    texts = {text.get_text(): text for text in ax.texts}
    patches = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_width() > 0]
    cells = {tuple(np.add(patch.get_xy(), 0.5).round()): patch for patch in patches if patch.get_fill()}
    framed = [tuple(np.add(patch.get_xy(), 0.5).round()) for patch in patches if not patch.get_fill()]

    assert {*texts} == {"0.2", "5.6", "0.0", "20.0", "of 4%", "of 64%"}
    assert [name for name, text in texts.items() if text.get_fontweight() == "bold"] == ["5.6", "20.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["36", "2,250"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["4", "64"]
    assert ax.get_ylim() == (1.5, -0.5), "small batches on top"
    assert sum(to_rgb(cells[1, 1].get_facecolor()[:3])) < sum(to_rgb(cells[1, 0].get_facecolor()[:3]))
    assert framed == [(0, 1), (1, 1)]
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert [legend[0], legend[1], legend[3]] == ["points lost", CELLS.small_shown, "picked under exact statistics"]
    assert legend[2].startswith("bold")
    plt.close("all")


def test_certain_is_what_holm_leaves_over_the_map() -> None:
    """Four two-sided t tests: the smallest p-value times four, the next one times three, and so on."""
    from scipy import stats  # which takes long to import

    deviation = 0.09
    p = [stats.ttest_1samp(mean + deviation * np.arange(-3, 4), 0).pvalue for mean in LOST.values()]
    assert 0.05 / 2 < p[0] < 0.05, "certain by itself, not beside the others"

    assert find_certain(plant(deviation)) == [False, True, False, True]
    assert find_certain(plant(deviation)[:1]) == [True]


def test_one_seed_is_not_certain() -> None:
    one = pd.DataFrame({"panel": "", "batch_size": [4, 16], "seed": 0, "lost": [1.0, 30.0]})

    assert find_certain(interval(one, "lost", ("panel", "batch_size"))) == [False, False]
