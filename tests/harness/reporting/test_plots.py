"""Each kind of panel draws every row of its frame, at its place, or refuses the frame."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Drawn

from bnlab.harness.errors import UserError
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.experiment import Figure, count_layers
from bnlab.harness.reporting.plots import Curves, EstimatorCurves, Forest, HeatMap, Histograms, Points, Stacked
from bnlab.harness.reporting.style import Axis


@pytest.fixture(autouse=True)
def closed() -> object:
    yield
    plt.close("all")


def draw(rows: pd.DataFrame, plot: Any) -> Drawn:
    drawn = drawing.draw(Figure("f", "t", "c.", lambda _: rows, plot), {})
    drawn.canvas.draw()
    return drawn


def panel(plot: Any, rows: pd.DataFrame) -> Axes:
    return plot(rows, ax=plt.figure().add_subplot())


def caption(drawn: Drawn) -> str:
    return " ".join(drawn.texts[-1].get_text().split())


def with_interval(rows: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"panel": "all", **rows})
    return frame.assign(low=frame["mean"] - 1, high=frame["mean"] + 2, n=3, log=False)


def test_single_batches_lie_under_the_estimators() -> None:
    steps = list(range(100))
    rows = pd.concat([
        with_interval({"estimator": "ema", "momentum": 0.1, "step": steps, "mean": np.sqrt(steps), "kind": ""}),
        with_interval({"estimator": "", "momentum": np.nan, "step": steps, "mean": np.sin(steps), "kind": "batch"}),
    ])  # fmt: skip
    ax = panel(EstimatorCurves(Axis("y"), x="step"), rows)
    assert ax.get_legend_handles_labels()[1] == ["single batches", "EMA (momentum 0.1)"] and ax.get_xscale() == "linear"
    dots, curve = ax.get_lines()
    assert (dots.get_linestyle(), dots.get_marker(), curve.get_linestyle()) == ("None", ".", "-")
    np.testing.assert_array_equal(dots.get_ydata(), np.sin(steps))
    np.testing.assert_array_equal(curve.get_ydata(), np.sqrt(steps))


def test_a_line_of_many_points_has_few_markers() -> None:
    rows = with_interval({"x": np.arange(1, 201), "mean": 1.0})
    _, ax = plt.subplots()
    style.draw_line(ax, rows, "x", "#000000", marker="o")
    assert ax.get_lines()[0].get_markevery() == 20 and len(ax.get_lines()[0].get_xdata()) == 200


def test_rows_that_no_line_could_show_are_refused() -> None:
    """Rows of no series were left out, and several at one place were joined by a line up and down."""
    rows = with_interval({"epoch": [1, 2, 1, 2], "momentum": [0.1, 0.1, 0.5, np.nan], "estimator": "ema", "mean": 1.0})
    curves = Curves("epoch", "momentum", Axis("y"))
    points = Points(("epoch", Axis("x")), ("mean", Axis("y")), "momentum")
    for plot in (curves, points):
        with pytest.raises(ValueError, match="rows without momentum would not be drawn"):
            panel(plot, rows)
    whole = rows[:3]
    assert len(panel(curves, whole).get_lines()) and len(panel(points, whole).get_lines()) == 2
    twice = pd.concat([whole, whole[:1]])
    for plot, line in ((curves, "momentum 0.1"), (EstimatorCurves(Axis("y")), "EMA .momentum 0.1.")):
        with pytest.raises(ValueError, match=f"{line} has several rows at epoch 1; average or select them"):
            panel(plot, twice)
    with pytest.raises(ValueError, match=r"momentum 0\.1 has several rows at epoch 1"):
        panel(curves, twice.assign(kind="dashed"))


def bins(estimator: str, heights: list[float]) -> pd.DataFrame:
    edges = np.arange(len(heights) + 1.0)
    return with_interval({"estimator": estimator, "momentum": np.nan, "left": edges[:-1], "right": edges[1:],
                          "mean": heights})  # fmt: skip


def test_histograms() -> None:
    rows = pd.concat([bins("exact", [1, 5, 2]), bins("precise", [2, 3])]).sample(frac=1, random_state=0)
    drawn = draw(rows, Histograms(Axis("across"), Axis("density")))
    (ax,) = drawn.axes
    outlines = {outline.get_label(): outline.get_data() for outline in ax.patches}
    assert set(outlines) == {"exact population", "precise BN"}
    assert outlines["exact population"].values.tolist() == [1, 5, 2]
    assert outlines["exact population"].edges.tolist() == [0, 1, 2, 3]
    assert outlines["precise BN"].values.tolist() == [2, 3] and len(ax.collections) == 2
    tops = {vertex[1] for vertex in ax.collections[0].get_paths()[0].vertices}
    assert tops in ({0, 4, 1, 3, 7}, {1, 2, 4, 5})  # low and high
    assert caption(drawn) == "c. Outlines: mean over seeds, bands: 95% intervals. n = 3 seeds."
    twice = pd.concat([bins("exact", [1, 2]), bins("exact", [1, 2])])
    for wrong in (twice, bins("exact", [1, 2, 3]).iloc[[0, 2]]):
        with pytest.raises(ValueError, match="bins of exact population overlap or leave gaps"):
            panel(Histograms(Axis("x"), Axis("y")), wrong)


def terms() -> pd.DataFrame:
    return with_interval({"epoch": [2.0, 1.0] * 3, "term": ["start"] * 2 + ["bias"] * 2 + ["lag"] * 2,
                          "mean": [3.0, 4.0, -1.0, -2.0, 5.0, -6.0]})  # fmt: skip


def test_a_heat_map_over_words() -> None:
    rows = with_interval({"schedule": ["step", "constant"], "layer": "1", "mean": [1.0, 2.0]})
    ax = panel(HeatMap("schedule", "layer", Axis("c")), rows)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["constant", "step"]


def test_stacked_areas() -> None:
    """Positive terms upon each other, negative ones below 0; each area is as high as its term."""
    ax = panel(Stacked("epoch", Axis("y"), "all of it"), terms())
    assert ax.get_legend_handles_labels()[1] == ["start", "bias", "lag", "all of it"]
    (total,) = ax.get_lines()
    assert total.get_xdata().tolist() == [1, 2] and total.get_ydata().tolist() == [4 - 2 - 6, 3 - 1 + 5]
    spans = {x: [] for x in (1.0, 2.0)}
    for area in ax.collections:
        corners = area.get_paths()[0].vertices
        for x in spans:
            heights = sorted(corners[corners[:, 0] == x, 1])
            spans[x].append((heights[0], heights[-1]))
    assert [span for span in spans[1.0] if span[0] < span[1]] == [(0, 4), (-2, 0), (-8, -2)]
    assert [span for span in spans[2.0] if span[0] < span[1]] == [(0, 3), (3, 8), (-1, 0)]
    assert len({tuple(area.get_facecolor()[0]) for area in ax.collections}) == 3


def test_a_single_stack_is_a_bar() -> None:
    ax = panel(Stacked("epoch", Axis("y"), "all of it"), terms().query("epoch == 1"))
    assert any(bar.get_height() for bar in ax.patches) and ax.get_lines()[0].get_marker() == "D"


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize(("x", "value"), [("batch_size", 128), ("images", 2000), ("lr", 0.01), ("share", 0.0)])
def test_a_single_stack_is_wide_on_each_axis(x: str, value: float, bars: bool) -> None:
    """Of a picture 6 inches wide an eighth of an inch and more."""
    ax = panel(
        Stacked(x, Axis("y"), bars=bars), terms().query("epoch == 1").rename(columns={"epoch": x}).assign(**{x: value})
    )
    spans = [ax.transAxes.inverted().transform(bar.get_window_extent())[:, 0] for bar in ax.patches]
    assert all(right - left > 0.02 for left, right in spans)


def test_dashed_values_that_no_line_joins_are_seen() -> None:
    rows = pd.DataFrame({"epoch": [1.0, 2.0, 3.0], "size": 4, "mean": [1.0, np.nan, 2.0], "kind": "dashed"})
    for frame, marked in ((rows, [True, False, True]), (rows.head(1), [True]), (rows.dropna(), [False, False])):
        ax = panel(Curves("epoch", "size", Axis("y")), frame.assign(low=np.nan, high=np.nan))
        (line,) = (line for line in ax.get_lines() if line.get_marker() == "_")
        assert line.get_markevery() == marked


def test_stacked_bars() -> None:
    """The same heights as those of areas, with nothing between them."""
    ax = panel(Stacked("epoch", Axis("y"), "all of it", bars=True), terms())
    assert sorted(ax.get_legend_handles_labels()[1]) == ["all of it", "bias", "lag", "start"]
    spans = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    seen = [span for span in spans if span[1] != span[2]]
    assert {(x, *sorted(ends)) for x, *ends in seen} == {
        (1, 0, 4), (1, -2, 0), (1, -8, -2), (2, 0, 3), (2, 3, 8), (2, -1, 0)
    }  # fmt: skip
    (total,) = ax.get_lines()
    assert total.get_linestyle() == "None" and total.get_ydata().tolist() == [4 - 2 - 6, 3 - 1 + 5]
    assert ax.get_xticks().tolist() == [1, 2]


def test_stacked_areas_of_missing_or_doubled_terms() -> None:
    plot = Stacked("epoch", Axis("y"))
    with pytest.raises(ValueError, match="not every term has a value at each epoch"):
        panel(plot, terms()[1:])
    with pytest.raises(ValueError, match="duplicate"):
        panel(plot, pd.concat([terms(), terms()]))
    with pytest.raises(UserError, match="room for 6 series"):
        panel(plot, with_interval({"epoch": 1.0, "term": list("abcdefg"), "mean": 1.0}))


def fields() -> pd.DataFrame:
    one = {"layer": ["stem", "stem", "b", "b"], "epoch": [2.0, 0.5] * 2}
    return pd.concat([with_interval({**one, "mean": [0.1, 0.2, 0.3, 10.0]}).assign(panel="first"),
                      with_interval({**one, "mean": [0.01, 0.2, 0.3, 0.4]})[1:].assign(panel="second")])  # fmt: skip


def test_heat_maps_share_rows_and_colours() -> None:
    drawn = draw(fields(), HeatMap("epoch", "layer", Axis("gap", log=True)))
    first, second, bar = drawn.axes
    assert [ax.collections[0].get_array().tolist() for ax in (first, second)] == [
        [[0.2, 0.1], [10.0, 0.3]],
        [[0.2, None], [0.4, 0.3]],  # by layer in order of appearance, by epoch in order
    ]
    assert [label.get_text() for label in first.get_yticklabels()] == ["stem", "b"]
    assert [label.get_text() for label in second.get_xticklabels()] == ["0.5", "2"]
    assert first.get_ylim() == second.get_ylim() == (1.5, -0.5) and bar.get_ylabel() == "gap"
    norms = [ax.collections[0].norm for ax in (first, second)]
    assert norms[0] is norms[1] and isinstance(norms[0], LogNorm) and (norms[0].vmin, norms[0].vmax) == (0.1, 10.0)
    assert caption(drawn) == "c. Colours: mean over seeds. n = 3 seeds." and not drawn.legends


def test_layers_with_numbers_are_counted_from_the_input() -> None:
    numbers = fields().replace({"layer": {"stem": "1", "b": "10"}})
    tables = {"runs": pd.DataFrame({"model.depth": [3, 3]}), "gaps": pd.DataFrame({"layer": ["1", "10", "5"]})}
    figure = Figure("f", "t", "c.", lambda _: numbers, HeatMap("epoch", "layer", Axis("gap", log=True)))
    ax = drawing.draw(figure, tables).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "3"]
    assert ax.get_ylabel() == "layer, counted from the input"
    several = tables | {"runs": pd.DataFrame({"model.depth": [3, 4]})}
    assert count_layers(numbers, several).equals(numbers) and count_layers(fields(), tables).equals(fields())


@pytest.mark.parametrize("plot", [HeatMap("epoch", "layer", Axis("y")), HeatMap("layer", "epoch", Axis("y")),
                                  Curves("layer", "epoch", Axis("y")), Stacked("layer", Axis("y"), bars=True),
                                  Forest("layer", Axis("y"))])  # fmt: skip
def test_layers_come_in_order_of_their_numbers(plot: Any) -> None:
    """Tables have them as words, and the first panel, or its first line, need not have all of them."""
    names, order = ["1", "13", "3.bn1", "3.bn2", "4"], ["1", "3.bn1", "3.bn2", "4", "13"]
    rows = with_interval({"layer": names, "mean": [1.0, 13.0, 3.0, 3.5, 4.0], "epoch": 1.0, "term": "bias"})
    gaps = pd.concat([rows[rows["layer"] != "3.bn1"].assign(panel="a"), rows.assign(panel="b")])
    drawn = drawing.draw(Figure("f", "t", "c.", lambda tables: tables["gaps"], plot), {"gaps": gaps})
    drawn.canvas.draw()
    first, second = drawn.axes[:2]
    axis = first.yaxis if plot.__class__ is Forest or getattr(plot, "y", "") == "layer" else second.xaxis
    assert [label.get_text() for label in axis.get_ticklabels()] == order
    if isinstance(plot, Curves):
        assert first.get_lines()[0].get_xdata(orig=False).tolist() == [0, 2, 3, 4]
        assert second.get_lines()[0].get_ydata().tolist() == [1, 3, 3.5, 4, 13]


def test_an_order_of_layers_that_a_score_has_made_stays() -> None:
    rows = with_interval({"layer": ["4", "1"], "mean": [4.0, 1.0]})
    (ax,) = draw(rows, Forest("layer", Axis("y"))).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["4", "1"]


def test_columns_of_a_map_can_be_told_apart() -> None:
    epochs = [0.25, 1.0, 12.25, 12.4, 112.5, 1000.0, np.nan]
    rows = with_interval({"layer": "1", "epoch": epochs, "mean": np.arange(7.0)})
    ax = draw(rows, HeatMap("epoch", "layer", Axis("gap"))).axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.25", "1", "12.2", "12.4", "112", "1000", "none"]


def test_colours_around_zero() -> None:
    signed = draw(fields().assign(mean=[-3.0, 1, 1, 1, 1, 1, 2]), HeatMap("epoch", "layer", Axis("gap")))
    norm = signed.axes[0].collections[0].norm
    assert (norm.vmin, norm.vmax) == (-3, 3)
    zero = draw(fields().assign(mean=[0.0, 1, 2, 4, 1, 1, 2]), HeatMap("epoch", "layer", Axis("gap", log=True)))
    norm = zero.axes[0].collections[0].norm
    assert (norm.vmin, norm.vmax) == (1, 4) and norm(0.0) == 0.0
    limited = draw(fields(), HeatMap("epoch", "layer", Axis("gap", (0, 1))))
    assert limited.axes[0].collections[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match="duplicate"):
        draw(pd.concat([fields(), fields()]), HeatMap("epoch", "layer", Axis("gap")))


def test_forests_share_rows_where_a_panel_lacks_one() -> None:
    rows = pd.concat([with_interval({"setting": ["lr", "flip"], "mean": [1.0, 2.0]}).assign(panel="a"),
                      with_interval({"setting": ["decay", "flip"], "mean": [3.0, 4.0]}).assign(panel="b")])  # fmt: skip
    drawn = draw(rows, Forest("setting", Axis("points"), (0.0, "no cost")))
    first, second = drawn.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["lr", "flip", "decay"]
    points = [[line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == "o"] for ax in drawn.axes]
    assert points == [[[[1, 0], [2, 1]]], [[[3, 2], [4, 1]]]]
    bars = [segment.tolist() for segment in second.collections[0].get_segments()]
    assert bars == [[[2, 2], [5, 2]], [[3, 1], [6, 1]]]
    assert first.get_xlim() == second.get_xlim()  # bars of one length mean the same
    assert first.get_ylim() == (2.5, -0.5) and drawn.legends[0].get_texts()[0].get_text() == "no cost"
    with pytest.raises(ValueError, match="setting flip has several rows"):
        panel(Forest("setting", Axis("x")), pd.concat([rows[:2], rows[1:2]]))
    many = with_interval({"setting": [f"s{i}" for i in range(41)], "mean": 1.0})
    with pytest.raises(UserError, match="room for 40 rows"):
        panel(Forest("setting", Axis("x")), many)


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (12, (3, 4)), (15, (3, 5))])
def test_panels_stand_in_rows_of_four_or_of_five_where_these_are_full(panels: int, grid: tuple[int, int]) -> None:
    rows = with_interval({"panel": [str(n) for n in range(panels)], "x": 1.0, "line": "a", "mean": 1.0})
    shape = draw(rows, Curves("x", "line", Axis("y"))).axes[0].get_subplotspec()
    assert shape is not None and shape.get_gridspec().get_geometry() == grid
