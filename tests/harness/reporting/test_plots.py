"""What a reader of a figure relies on: labels, legends, lines, colours, the caption."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from PIL import Image

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.drawing import PrintFile
from bnlab.harness.reporting.frames import average, interval, rows, score
from bnlab.harness.reporting.looks import RC, choose_looks, find_colour
from bnlab.harness.reporting.plots import ACCURACY, GAP, LOST, Axis, Cells, Curves, Dots, Forest, Plot
from bnlab.harness.reporting.question import Figure
from bnlab.harness.reporting.statistic_looks import LOOKS
from bnlab.harness.statistic_kinds import list_statistics
from tests.harness.reporting.planted import plant

matplotlib.use("Agg")
TABLES = plant()
LINES = Curves("epoch", "line", GAP)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def plant_rows(**columns: Any) -> pd.DataFrame:
    """Rows of a line `a` in a panel `p` with the mean 1, unless columns say otherwise."""
    usual = {"panel": "p", "line": "a", "mean": 1.0, "low": 0.5, "high": 2.0, "n": 3, "log": False}
    return pd.DataFrame({**usual, **columns, "epoch": columns.get("epoch", 1.0)}, index=range(count_rows(columns)))


def count_rows(columns: dict[str, Any]) -> int:
    return max((len(values) for values in columns.values() if isinstance(values, list)), default=1)


def draw(plot: Plot, frame: pd.DataFrame) -> Drawn:
    drawn = drawing.draw(Figure("A title", "", lambda tables: frame, plot), frame)
    drawn.canvas.draw()
    return drawn


def draw_panel(plot: Plot, frame: pd.DataFrame) -> Axes:
    (ax,) = draw(plot, frame).axes
    return ax


def list_names(drawn: Drawn) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def list_words(labels: list[Any]) -> list[str]:
    return [label.get_text() for label in labels]


def write_caption(plot: Plot, frame: pd.DataFrame, folder: Path, caption: str = "Read it so.") -> str:
    figure = Figure("A title", caption, lambda tables: frame, plot)
    return drawing.write("trial", figure, TABLES, folder, None).caption.replace("\u00a0", " ")


def test_curves() -> None:
    frame = score("gaps", "mean_gap", ("panel", "batch_size", "momentum"), at=(0.5, 1.0), layer="2")(TABLES)
    levels = frame[frame["momentum"] == 0.1].assign(momentum=np.nan)
    plot = Curves("momentum", "batch_size", GAP, level="exact", mark=(0.1, "default"))
    drawn = draw(plot, pd.concat([frame, levels]))
    axes = drawn.axes

    assert [ax.get_title() for ax in axes] == ["after 50% of training", "at the end of training"]
    assert [ax.get_ylabel() for ax in axes] == [GAP.label, ""], "said once, beside the panels"
    assert {ax.get_xlabel().replace("\n", " ") for ax in axes} == {"momentum (weight of the new batch)"}
    assert drawn.get_suptitle() == "A title"
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"
    assert list_names(drawn) == ["batch size 4", "batch size 32", "default", "exact"]
    assert [len(ax.collections) for ax in axes] == [2, 2], "a band a line"


MOMENTA = plant_rows(
    estimator=["ema", "ema", "ema", "exact", "cumulative"],
    momentum=[0.01, 0.1, 0.5, np.nan, np.nan],
    mean=[3.0, 1.0, 2.0, 0.5, 4.0],
    low=[2.7, 0.9, 1.8, 0.45, 3.6],
    high=[3.3, 1.1, 2.2, 0.55, 4.4],
)
"""Gaps of the EMA by momentum, and of two estimators without one."""


def test_an_estimator_is_one_line_across_its_momenta_and_levels_are_in_the_legend() -> None:
    drawn = draw(Curves("momentum", "estimator", GAP), MOMENTA)
    (ax,) = drawn.axes
    lines = {str(line.get_label()): line for line in ax.lines}

    assert list_names(drawn) == ["running average", "exact statistics", "average of all batches"]
    np.testing.assert_array_equal(lines["running average"].get_xdata(), [0.01, 0.1, 0.5])
    colours = {name: str(line.get_color()).lower() for name, line in lines.items()}
    assert colours == {"running average": "#0072b2", "exact statistics": "#000000", "average of all batches": "#cc79a7"}
    assert len(ax.collections) + len(ax.patches) == 3, "a band each"


def test_the_legend_shows_a_level_as_it_is_drawn() -> None:
    named = MOMENTA[:4].assign(line=["running"] * 3 + ["exact"])
    drawn = draw(Curves("momentum", "line", GAP, level="exact statistics"), named)

    assert list_names(drawn) == ["running", "exact statistics"]

    handle = drawn.legends[0].get_lines()[1]
    (level,) = [line for line in drawn.axes[0].lines if np.array_equal(line.get_ydata(), [0.5, 0.5])]
    assert handle.get_color() == level.get_color()
    assert handle.get_linestyle() == level.get_linestyle() == "--"


@pytest.mark.parametrize("plot", [LINES, Forest("line", GAP)])
def test_several_rows_at_one_place_are_refused(plot: Plot) -> None:
    frame = plant_rows(momentum=[0.1, 0.5], mean=[1.0, 2.0])
    message = r"several rows of p, .*a.*, which differ in momentum 0.1, 0.5;\ntell them apart"
    with pytest.raises(UserError, match=message):
        draw(plot, frame)
    draw(plot, frame.assign(panel=["p", "q"]))


def test_curves_over_words() -> None:
    frame = plant_rows(x=["late", "early"] * 2, by=[1, 1, 2, 2])
    assert list_words(draw_panel(Curves("x", "by", Axis("y")), frame).get_xticklabels()) == ["late", "early"]


def test_a_band_that_reaches_zero_and_a_single_point_are_seen_on_a_logarithmic_axis() -> None:
    frame = plant_rows(
        epoch=[1.0, 2.0, 1.0], line=["a", "a", "b"], mean=[1.0, 2.0, 3.0], low=[-1.0, 1.5, 2.0], high=4.0
    )
    ax = draw_panel(LINES, frame)

    assert ax.get_ylim()[0] > 0.1
    assert len(ax.containers) == 1


def test_a_forest_has_rows_in_order_and_one_axis() -> None:
    frame = plant_rows(line=["b", "a", "b", "c"], panel=["p", "p", "q", "q"], mean=[1.0, 2.0, 3.0, 4.0], high=5.0)

    drawn = draw(Forest("line", Axis("size"), mark=(2.0, "exact")), frame)

    left, right = drawn.axes
    assert list_words(left.get_yticklabels()) == ["b", "a", "c"]
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert left.get_xlim() == right.get_xlim()
    assert list_names(drawn) == ["exact"]


def test_panels_of_a_forest_share_the_ticks_of_all_means() -> None:
    means = [1.0, 1000.0, 2.0, 3.0]
    _, (left, right) = plt.subplots(1, 2)

    frame = plant_rows(panel=["p", "p", "q", "q"], line=["a", "b"] * 2, mean=means, low=means, high=means)
    Forest("line", Axis("size", ticks="values")).draw(frame, {"p": left, "q": right})

    assert sorted(means) == list(left.get_xticks()) == list(right.get_xticks())


def test_series_of_a_forest_share_a_name_and_numbers_are_in_order() -> None:
    frame = plant_rows(line=["a", "b"] * 2, batch_size=[64, 64, 2, 2], mean=[1.0, 2.0, 3.0, 4.0], high=5.0)
    drawn = draw(Forest("line", Axis("size"), series="batch_size"), frame)

    (ax,) = drawn.axes
    assert list_names(drawn) == ["batch size 2", "batch size 64"]
    heights = {tuple(np.asarray(line.get_xdata())): np.asarray(line.get_ydata(), float) for line in ax.lines}
    above = heights[3.0, 4.0]
    below = heights[1.0, 2.0]
    assert (above < below).all(), "heights grow downwards"
    assert (np.round(above) == np.round(below)).all(), "both beside their name"


DOTS = pd.DataFrame(
    {
        "panel": ["p"] * 4 + ["q"] * 4,
        "run": ["a", "a", "b", "b"] * 2,
        "data": "digits",
        "model": "cnn",
        "batch_size": [64, 64, 4, 4] * 2,
        "gap": [0.004, 0.03, 0.1, 0.2, 0.01, 0.02, 0.2, 0.3],
        "mean": [0.0, 2.0, 9.0, 8.0] * 2,
    }
)
"""Two networks at two steps each, in two panels."""


def test_dots_stand_at_their_rows_and_the_legend_counts_them() -> None:
    drawn = draw(Dots("gap", "batch_size", Axis("gap", log=True), LOST), DOTS)
    left, right = drawn.axes

    for ax, panel in ((left, "p"), (right, "q")):
        of_panel = DOTS.loc[DOTS["panel"] == panel, ["gap", "mean"]]
        places = np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections])
        np.testing.assert_array_equal(np.sort(places, axis=0), np.sort(of_panel, axis=0))
    assert left.get_xlim() == right.get_xlim()
    assert {"0.01", "0.1"} <= {*list_words(left.get_xticklabels())}
    assert list_names(drawn) == ["batch size 4 (2 dots)", "batch size 64 (2 dots)"]


def test_dots_have_the_colour_that_the_legend_has_for_their_value() -> None:
    ax, _ = draw(Dots("gap", "batch_size", Axis("gap", log=True), LOST), DOTS).axes

    dots, *legend = ax.collections
    gaps = np.asarray(dots.get_offsets())[:, 0]
    shades = np.asarray(dots.get_facecolor())[:, :3]
    small, large = (np.asarray(entry.get_facecolor())[0, :3] for entry in legend)
    assert (small != large).any()
    np.testing.assert_array_equal(shades, np.where(gaps[:, None] >= 0.1, small, large))


def test_the_caption_of_dots_counts_no_seeds(tmp_path: Path) -> None:
    assert write_caption(Dots("gap", "batch_size", Axis("gap", log=True), LOST), DOTS, tmp_path) == "Read it so."


LOSSES = plant_rows(
    batch_size=[4, 4, 64, 64],
    updates=[36, 2250] * 2,
    mean=[0.2, 5.6, -0.02, 20.0],
    low=[0.1, 5.0, -0.1, 15.0],
    high=[0.3, 6.2, 0.06, 25.0],
    is_learned=[False, True, True, True],
)
"""Cells of two batch sizes after 36 and 2,250 updates, in one panel."""


def test_a_cell_has_its_number_and_interval_and_is_grey_where_it_cannot_be_read() -> None:
    words = ("batch size", "points lost", "not learned")
    drawn = draw(Cells("updates", "batch_size", "is_learned", {"p": "number of updates"}, *words), LOSSES)
    ax, scale = drawn.axes
    (image,) = ax.images
    shades = image.to_rgba(np.ma.asarray(image.get_array()))[..., :3]

    assert [text.get_text() for text in ax.texts[::2]] == ["0.2", "5.6", "0.0", "20.0"]
    assert ax.texts[3].get_text() == "5.0 to 6.2"
    assert list_words(ax.get_xticklabels()) == ["36", "2250"]
    assert list_words(ax.get_yticklabels()) == ["4", "64"]
    assert len({*shades[0, 0]}) == 1, "grey"
    assert shades[1, 1].sum() < shades[0, 1].sum() < shades[1, 0].sum(), "the larger, the darker"
    assert scale.get_ylabel() == "points lost"
    assert list_names(drawn) == ["not learned"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for empty in (plant_rows()[:0], plant_rows(mean=np.nan)):
        with pytest.raises(NoRows, match="figure trial: the tables have no value for it"):
            write_caption(LINES, empty, tmp_path)


def test_rows_without_panels_are_drawn_in_one() -> None:
    figure = Figure("", "", lambda tables: plant_rows().drop(columns="panel"), LINES)
    assert {*drawing.read_points(figure, TABLES)[1]["panel"]} == {""}


def test_a_figure_names_its_panels_and_what_a_forest_lists() -> None:
    frame = plant_rows(estimator=["ema", "last", "ema", "last"], size=[256, 256, 4, 4]).drop(columns="panel")
    words = {"last": "the last one", "ema": "running averages"}
    figure = Figure(
        "", "", lambda tables: frame, Forest("estimator", GAP), panels="size {size}", names={"estimator": words}
    )
    drawn, points = drawing.read_points(figure, TABLES)

    assert isinstance(drawn.plot, Forest)
    assert points["panel"].tolist() == ["size 4", "size 4", "size 256", "size 256"]
    assert points[drawn.plot.by].tolist() == [*words.values()] * 2


def test_captions_say_what_all_networks_share(tmp_path: Path) -> None:
    gaps = average(rows(TABLES, "gaps", 1.0), "mean_gap", ("panel", "batch_size", "seed"))
    frame = interval(gaps, "mean_gap", ("panel", "batch_size"))
    caption = write_caption(Forest("batch_size", GAP), frame, tmp_path, "Batches of {batch_size}. {schedule}")
    assert caption.startswith("Batches of 4, 32. The learning rate is constant. Means over seeds, bars: 95% intervals;")


@pytest.mark.parametrize(("n", "end"), [(0, "Read it so."), (1, "Read it so. n = 1 seed.")])
def test_captions_speak_of_seeds_only_where_there_are_several(n: int, end: str, tmp_path: Path) -> None:
    assert write_caption(LINES, plant_rows(low=np.nan, high=np.nan, n=n), tmp_path) == end


def plant_training(**momenta: tuple[float, ...]) -> pd.DataFrame:
    """Estimators with several momenta, and exact statistics."""
    frames = [pd.DataFrame({"estimator": name, "momentum": values}) for name, values in momenta.items()]
    return pd.concat([*frames, pd.DataFrame({"estimator": ["exact"], "momentum": [np.nan]})])


SLOW, QUICK = "running average (momentum 0.01)", "running average (momentum 0.1)"
DEBIASED = "running average, start divided out (momentum 0.1)"


def test_of_several_momenta_each_has_its_colour_and_estimators_have_lines() -> None:
    frame = plant_training(ema=(0.01, 0.1), ema_debiased=(0.1, 0.5))
    _, looks = choose_looks(frame, "estimator", "epoch")

    colour = {name: look["color"] for name, look in looks.items()}
    line = {name: str(look["linestyle"]) for name, look in looks.items()}
    assert colour[QUICK] == colour[DEBIASED] == find_colour(0.1)
    assert len({*colour.values()}) == 4, "three momenta and black"
    assert line[SLOW] == line[QUICK] == "-" != line[DEBIASED]
    assert not looks[QUICK]["marker"]
    assert looks[DEBIASED]["marker"], "seen where both agree"
    assert colour["exact statistics"] == "#000000"

    _, others = choose_looks(plant_training(ema_debiased=(0.1, 0.9)), "estimator", "epoch")
    assert others[DEBIASED]["color"] == find_colour(0.1)
    _, of_one = choose_looks(plant_training(ema=(0.1,)), "estimator", "epoch")
    assert of_one[QUICK]["color"] == "#0072b2", "that of running averages"
    _, by_momentum = choose_looks(frame, "momentum", "epoch")
    assert by_momentum["momentum 0.1"]["color"] == find_colour(0.1)


def test_every_estimator_has_a_look_of_its_own() -> None:
    names = [*LOOKS, "mine", "yours"]
    _, looks = choose_looks(pd.DataFrame({"estimator": names}), "estimator")

    alike = defaultdict(list)
    for label, look in looks.items():
        alike[look["color"], str(look["linestyle"])].append(label)

    assert [labels for labels in alike.values() if len(labels) > 1] == [], "give one of them another colour or line"
    assert len(looks) == len(names)


def test_every_look_is_of_a_statistic_that_can_be_chosen() -> None:
    assert {*LOOKS} - {*list_statistics()} == {"none"}, "of networks without statistics"


@pytest.mark.parametrize(
    ("epochs", "scale"),
    [
        ([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], "log"),
        ([0.1, 1.0, 3.0], "linear"),  # of three places no spacing is known
        ([0.0, 0.01, 0.1, 1.0, 10.0], "linear"),
        ([0.1, 0.2, 1.0, 5.0, 9.0, 10.0], "linear"),  # shares of the training
    ],
)
def test_epochs_are_on_a_logarithmic_axis_where_they_are_at_equal_ratios(epochs: list[float], scale: str) -> None:
    assert draw_panel(LINES, plant_rows(epoch=epochs)).get_xscale() == scale


@pytest.mark.parametrize("across", [None, Axis("decay", log=True, ticks="values")])
@pytest.mark.parametrize(("smallest", "scale"), [(0.0, "symlog"), (1e-5, "log")])
def test_a_logarithmic_axis_across_shows_zero(across: Axis | None, smallest: float, scale: str) -> None:
    column = "optimizer.weight_decay"
    frame = plant_rows(**{column: [smallest, 1e-4, 1e-2]})
    panels = [frame.assign(panel=panel) for panel in "pq"]
    left, right = draw(Curves(column, "line", GAP, across=across), pd.concat(panels)).axes

    assert left.get_xscale() == scale
    assert left.get_xticks().tolist() == [smallest, 1e-4, 1e-2]
    assert left.get_xlim() == right.get_xlim()
    places = left.transData.transform([(value, 1.0) for value in left.get_xticks()])[:, 0]
    ends = [left.bbox.x0, *places, left.bbox.x1]
    first, *between, last = np.diff(ends) / left.bbox.width
    assert min(between) > 0.1, "on a linear axis the first two are one"
    assert max(first, last) < 0.1, "little room is lost beside them"


def test_an_axis_for_values_of_any_size_shows_small_ones_of_both_signs_beside_large_ones() -> None:
    means = [-0.2, 0.1, 3.0, 50.0]
    frame = plant_rows(epoch=[1.0, 2.0, 3.0, 4.0], mean=means, low=np.nan, high=np.nan)
    ax = draw_panel(Curves("epoch", "line", Axis("lost", linear=0.3)), frame)

    heights = ax.transData.transform([(1.0, value) for value in means])[:, 1]
    share = np.diff(heights) / ax.bbox.height
    assert share.min() > 0.05, "on a linear axis 0.3 of 50 points are 0.006 of the height"
    assert {"0", "0.3", "1", "3", "10", "30"} <= {*list_words(ax.get_yticklabels())}


@pytest.mark.parametrize(("panels", "shown"), [(1, "0.00625 0.025 0.1 0.4 1.6 6.4"), (3, "0.00625 0.1 1.6")])
def test_of_many_panels_side_by_side_each_has_fewer_ticks(panels: int, shown: str) -> None:
    rates = [0.00625, 0.025, 0.1, 0.4, 1.6, 6.4]
    frame = pd.concat([plant_rows(rate=rates, panel=str(panel)) for panel in range(panels)])

    plot = Curves("rate", "line", ACCURACY, across=Axis("rate", log=True, ticks="values"))
    for ax in draw(plot, frame).axes:
        assert " ".join(list_words(ax.get_xticklabels())) == shown
        assert ax.get_ylim() == ACCURACY.limits


def test_each_seed_has_a_thin_line_of_one_colour(tmp_path: Path) -> None:
    frame = plant_rows(epoch=[1.0, 2.0] * 2, seed=[0, 0, 1, 1], mean=[-1.0, 2.0, 3.0, 4.0], low=np.nan, high=np.nan)
    drawn = draw(Curves("epoch", "line", LOST), frame)
    *lines, zero = drawn.axes[0].lines

    assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [[-1.0, 2.0], [3.0, 4.0]]
    assert len({line.get_color() for line in lines}) == 1
    assert list_names(drawn) == ["a"]
    assert np.asarray(zero.get_ydata()).tolist() == [0, 0]
    assert write_caption(LINES, frame.assign(n=2), tmp_path) == "Read it so. n = 2 seeds."


def test_bands_of_many_lines_are_fainter() -> None:
    def measure_opacity(lines: int) -> float:
        names = [f"line {line}" for line in range(lines) for _ in range(2)]
        ax = draw_panel(LINES, plant_rows(line=names, epoch=[1.0, 2.0] * lines))
        (opacity,) = {band.get_alpha() for band in ax.collections}
        assert opacity is not None
        return float(opacity)

    assert measure_opacity(8) < measure_opacity(5) < measure_opacity(4) == measure_opacity(1)


def test_an_interval_between_points_without_any_is_a_bar() -> None:
    nothing = math.nan
    frame = plant_rows(epoch=[1.0, 2.0, 3.0], low=[nothing, 1.5, nothing], high=[nothing, 2.5, nothing])

    *_, bars = draw_panel(LINES, frame).collections

    (bar,) = bars.get_paths()
    assert np.asarray(bar.vertices).tolist() == [[2.0, 1.5], [2.0, 2.5]]


def test_a_series_with_few_points_has_no_line_between_them() -> None:
    every = plant_rows(epoch=[float(epoch) for epoch in range(40)])
    some = plant_rows(epoch=[0.0, 20.0, 39.0], line="b")

    lines = {len(np.asarray(line.get_xdata())): line for line in draw_panel(LINES, pd.concat([every, some])).lines}

    assert lines[40].get_linestyle() == "-"
    assert lines[3].get_linestyle() == "None"
    assert lines[3].get_marker() == "D"


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (3, (1, 3)), (5, (3, 2))])
def test_panels_take_several_rows(panels: int, grid: tuple[int, int]) -> None:
    shape = draw(LINES, plant_rows(panel=[str(n) for n in range(panels)])).axes[0].get_gridspec()

    assert shape is not None
    assert (shape.nrows, shape.ncols) == grid


def test_files_are_the_same_each_time_and_one_for_papers_has_no_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Drawn] = []
    make = drawing.draw

    def make_and_keep(*of: Any, **words: Any) -> Drawn:
        made.append(make(*of, **words))
        return made[-1]

    monkeypatch.setattr(drawing, "draw", make_and_keep)
    figure = Figure("A title", "Read it so.", lambda tables: MOMENTA, Curves("momentum", "estimator", GAP))
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        drawing.write("gap", figure, TABLES, folder)
        path = folder / "gap.png"
        files.append((path.read_bytes(), path.with_suffix(".pdf").read_bytes()))

    assert files[0] == files[1]
    page, paper = made[:2]
    assert (page.get_suptitle(), paper.get_suptitle()) == ("A title", "")
    assert "n = 3" in page.legends[0].get_title().get_text()
    assert not paper.legends[0].get_title().get_text()
    assert Image.open(path).mode == "P"

    drawing.write("gap", figure, TABLES, tmp_path / "c", None)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["gap.png"]


def test_a_file_for_a_paper_is_as_wide_and_looks_as_asked_for(tmp_path: Path) -> None:
    """Its fonts are those of the style file; the PNG of the page stays as it is."""
    style = tmp_path / "paper.mplstyle"
    style.write_text("font.size: 8\nfont.family: monospace\n", encoding="utf-8")
    figure = Figure("A title", "Read it so.", lambda tables: MOMENTA, Curves("momentum", "estimator", GAP))
    drawing.write("gap", figure, TABLES, tmp_path / "page")

    for folder in ("a", "b"):
        drawing.write("gap", figure, TABLES, tmp_path / folder, PrintFile(3.25, "svg", style))
    drawing.write("gap", figure, TABLES, tmp_path / "a", PrintFile(3.25))

    text = (tmp_path / "a" / "gap.svg").read_text(encoding="utf-8")
    assert re.search(r'<svg [^>]*width="234pt"', text), "3.25 inches"
    assert "DejaVuSansMono" in text
    assert "A title" not in text
    pdf = (tmp_path / "a" / "gap.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ ?0 0 234 ", pdf)
    assert (tmp_path / "a" / "gap.svg").read_bytes() == (tmp_path / "b" / "gap.svg").read_bytes()
    assert (tmp_path / "a" / "gap.png").read_bytes() == (tmp_path / "page" / "gap.png").read_bytes()


def test_a_style_file_with_a_mistake_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    style = tmp_path / "paper.mplstyle"
    with pytest.raises(UserError, match=r"figure\.style=\S+paper\.mplstyle: .*No such file"):
        PrintFile(style=style).read_settings()

    style.write_text("font.sise: 8\n", encoding="utf-8")
    assert PrintFile(style=style).read_settings() == RC
    assert "font.sise" in caplog.text


def test_no_words_of_a_figure_for_pages_are_cut_off_or_over_each_other() -> None:
    names = [f"batch size {n}, at the end of training" for n in range(4)]
    first = plant_rows(panel=names, line="a line with a long name")
    drawn = draw(LINES, pd.concat([first, first.assign(line="another line with a name that is longer")]))

    width, height = drawn.canvas.get_width_height()
    boxes = [text.get_window_extent() for text in (*drawn.texts, *(ax.title for ax in drawn.axes))]
    boxes.append(drawn.legends[0].get_window_extent())
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
