"""What a reader of a figure relies on: labels, legends, lines, colours, the caption."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawn
from PIL import Image

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import Figure
from bnlab.harness.reporting.frames import average, interval, rows, score
from bnlab.harness.reporting.plots import ACCURACY, GAP, Axis, Curves, Forest, Plot, Stacked, split_panels
from bnlab.harness.reporting.style import choose_looks, find_colour
from bnlab.harness.statistic_kinds import list_looks
from tests.harness.reporting.planted import plant

matplotlib.use("Agg")
TABLES = plant()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def draw(plot: Plot, frame: pd.DataFrame) -> Drawn:
    drawn = drawing.draw(Figure("A title", "", lambda tables: frame, plot), frame)
    drawn.canvas.draw()
    return drawn


def list_names(drawn: Drawn) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def write_caption(plot: Plot, frame: pd.DataFrame, folder: Path, caption: str = "Read it so.") -> str:
    figure = Figure("A title", caption, lambda tables: frame, plot)
    return drawing.write("trial", figure, TABLES, folder, pdf=False).caption.replace("\u00a0", " ")


def test_curves() -> None:
    frame = score("gaps", "mean_gap", ("panel", "batch_size", "momentum"), at=(0.5, 1.0), layer="2")(TABLES)
    levels = frame[frame["momentum"] == 0.1].assign(momentum=np.nan)
    drawn = draw(
        Curves("momentum", "batch_size", GAP, level="exact", mark=(0.1, "default")), pd.concat([frame, levels])
    )
    axes = drawn.axes

    assert [ax.get_title() for ax in axes] == ["after 50% of training", "at the end of training"]
    assert {ax.get_ylabel() for ax in axes} == {""}, "said once, beside the panels"
    assert {ax.get_xlabel().replace("\n", " ") for ax in axes} == {"momentum (weight of the new batch)"}
    assert drawn.get_suptitle() == "A title"
    assert drawn.get_supylabel() == GAP.label
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"
    assert list_names(drawn) == ["batch size 4", "batch size 32", "default", "exact"]
    assert [len(ax.collections) for ax in axes] == [2, 2], "a band a line"


def test_curves_of_estimators_have_their_own_colours_in_every_panel() -> None:
    by = ("panel", "estimator", "momentum", "epoch")
    frame = score("evaluations", "accuracy", by, scale=100)(TABLES)
    exact = frame[frame["estimator"] == "exact"]
    first_panel = exact["panel"].iloc[0]
    second = exact[exact["panel"] == first_panel].assign(panel="later")

    drawn = draw(Curves("epoch", "estimator", ACCURACY), pd.concat([frame, second]))

    slow, fast, population = "running average (momentum 0.1)", "running average (momentum 0.5)", "exact statistics"
    assert list_names(drawn) == [slow, fast, population]
    first, later, *_ = ({line.get_label(): line.get_color() for line in ax.lines} for ax in drawn.axes)
    assert first[population] == later[population] == "#000000"
    assert first[slow] != first[fast]
    assert {ax.get_ylim() for ax in drawn.axes[:2]} == {ACCURACY.limits}


def plant_momenta(**levels: float) -> pd.DataFrame:
    """Gaps of the EMA by momentum, and of estimators without one."""
    curve = pd.DataFrame({"estimator": "ema", "momentum": [0.01, 0.1, 0.5], "mean": [3.0, 1.0, 2.0]})
    others = pd.DataFrame({"estimator": [*levels], "momentum": np.nan, "mean": [*levels.values()]})
    means = pd.concat([curve, others], ignore_index=True)
    return means.assign(panel="p", low=means["mean"] * 0.9, high=means["mean"] * 1.1, n=3, log=False)


def test_an_estimator_is_one_line_across_its_momenta_and_levels_are_in_the_legend() -> None:
    drawn = draw(Curves("momentum", "estimator", GAP), plant_momenta(exact=0.5, cumulative=4.0))
    (ax,) = drawn.axes
    lines = {str(line.get_label()): line for line in ax.lines}

    assert list_names(drawn) == ["running average", "exact statistics", "average of all batches"]
    np.testing.assert_array_equal(lines["running average"].get_xdata(), [0.01, 0.1, 0.5])
    colours = {name: str(line.get_color()).lower() for name, line in lines.items()}
    assert colours == {"running average": "#0072b2", "exact statistics": "#000000", "average of all batches": "#cc79a7"}
    assert len(ax.collections) + len(ax.patches) == 3, "a band each"


def test_the_legend_shows_a_level_as_it_is_drawn() -> None:
    frame = plant_momenta(exact=0.5)
    named = frame.assign(line=frame["estimator"].map({"ema": "running", "exact": "exact"}))
    drawn = draw(Curves("momentum", "line", GAP, level="exact statistics"), named)

    assert list_names(drawn) == ["running", "exact statistics"]

    handle = drawn.legends[0].get_lines()[1]
    (level,) = [line for line in drawn.axes[0].lines if np.array_equal(line.get_ydata(), [0.5, 0.5])]
    assert handle.get_color() == level.get_color()
    assert handle.get_linestyle() == level.get_linestyle() == "--"


@pytest.mark.parametrize("plot", [Curves("epoch", "line", GAP), Forest("line", GAP)])
def test_several_rows_at_one_place_are_refused(plot: Plot) -> None:
    frame = pd.DataFrame({"panel": "p", "epoch": 1.0, "line": "a", "momentum": [0.1, 0.5], "mean": [1.0, 2.0],
                          "low": 0.5, "high": 3.0, "n": 2, "log": False})  # fmt: skip
    with pytest.raises(
        UserError, match=r"several rows of p, .*a.*, which differ in momentum 0.1, 0.5;\ntell them apart"
    ):
        draw(plot, frame)
    draw(plot, frame.assign(panel=["p", "q"]))


def test_curves_over_words() -> None:
    frame = pd.DataFrame({"panel": "p", "x": ["late", "early"] * 2, "by": [1, 1, 2, 2], "mean": [1.0, 2.0, 3.0, 4.0],
                          "low": 0.5, "high": 5.0, "n": 2, "log": False})  # fmt: skip
    (ax,) = draw(Curves("x", "by", Axis("y")), frame).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["late", "early"]


def test_a_band_that_reaches_zero_and_a_single_point_are_seen_on_a_logarithmic_axis() -> None:
    frame = pd.DataFrame({"panel": "p", "epoch": [1.0, 2.0, 1.0], "line": ["a", "a", "b"], "mean": [1.0, 2.0, 3.0],
                          "low": [-1.0, 1.5, 2.0], "high": [2.0, 3.0, 4.0], "n": 2, "log": False})  # fmt: skip
    (ax,) = draw(Curves("epoch", "line", GAP), frame).axes

    assert ax.get_ylim()[0] > 0.1
    assert len(ax.containers) == 1


def test_a_forest_has_rows_in_order_and_one_axis() -> None:
    evaluations = TABLES["evaluations"]
    line = evaluations["estimator"] + evaluations["momentum"].map(str)
    tables = {**TABLES, "evaluations": evaluations.assign(line=line)}
    accuracies = score("evaluations", "accuracy", ("panel", "line"), scale=100, average=("batch_size", "step"))
    frame = accuracies(tables).assign(panel=["a", "a", "b", "b", "b", "a"])

    drawn = draw(Forest("line", ACCURACY, mark=(90.0, "exact")), frame)

    left, right = drawn.axes
    names = [label.get_text() for label in left.get_yticklabels()]

    assert names == ["ema0.1", "ema0.5", "exactnan"]
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert left.get_xlim() == right.get_xlim()
    assert list_names(drawn) == ["exact"]


def test_panels_of_a_forest_share_the_ticks_of_all_means() -> None:
    means = [1.0, 1000.0, 2.0, 3.0]
    frame = pd.DataFrame({"panel": ["p", "p", "q", "q"], "name": ["a", "b"] * 2, "mean": means})
    frame = frame.assign(low=frame["mean"], high=frame["mean"])
    _, (left, right) = plt.subplots(1, 2)

    Forest("name", Axis("size", ticks="values")).draw(frame, {"p": left, "q": right})

    assert sorted(means) == list(left.get_xticks()) == list(right.get_xticks())


@dataclass(frozen=True)
class Counts(Plot):
    """A kind of plot that nothing in bnlab knows of: it writes how many rows a panel has."""

    intervals: ClassVar[str] = "words"

    def draw(self, frame: pd.DataFrame, axes: Mapping[Any, Axes]) -> None:
        for ax, here in split_panels(frame, axes):
            ax.text(0, 0, f"{len(here)} rows")


def test_a_figure_takes_any_kind_of_plot(tmp_path: Path) -> None:
    frame = pd.DataFrame({"panel": ["p", "p", "q"], "mean": 1.0, "low": 0.5, "high": 2.0, "n": 3, "log": False})

    drawn = draw(Counts(), frame)

    assert [ax.get_title() for ax in drawn.axes] == ["p", "q"]
    assert [ax.texts[0].get_text() for ax in drawn.axes] == ["2 rows", "1 rows"]
    assert (
        write_caption(Counts(), frame, tmp_path) == "Read it so. Means over seeds, words: 95% intervals; n = 3 seeds."
    )


@pytest.mark.parametrize("means", [[], [np.nan]])
def test_an_empty_figure_is_refused(means: list[float], tmp_path: Path) -> None:
    with pytest.raises(NoRows, match="figure trial: the tables have no value for it"):
        write_caption(Forest("line", GAP), pd.DataFrame({"mean": means}).assign(panel="p"), tmp_path)


def test_a_score_without_panels_is_refused(tmp_path: Path) -> None:
    frame = score("gaps", "mean_gap", ("batch_size", "momentum"), at=1.0, layer="2")(TABLES)

    with pytest.raises(UserError, match=r"its score has no column 'panel'.*by=\(\"panel\", \.\.\.\)"):
        write_caption(Curves("momentum", "batch_size", GAP), frame, tmp_path)


def test_captions_say_what_all_networks_share(tmp_path: Path) -> None:
    frame = interval(average(rows(TABLES, "gaps", 1.0), "mean_gap", ("panel", "batch_size", "seed")), "mean_gap",
                     ("panel", "batch_size"))  # fmt: skip
    caption = write_caption(Forest("batch_size", GAP), frame, tmp_path, "Batches of {batch_size}. {schedule}")
    assert caption.startswith("Batches of 4, 32. The learning rate is constant. Means over seeds, bars: 95% intervals;")


@pytest.mark.parametrize(("n", "end"), [(0, "Read it so."), (1, "Read it so. n = 1 seed.")])
def test_captions_speak_of_seeds_only_where_there_are_several(n: int, end: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"panel": "p", "epoch": 1.0, "line": "a", "mean": [1.0], "low": np.nan, "high": np.nan,
                          "n": n, "log": False})  # fmt: skip
    assert write_caption(Curves("epoch", "line", GAP), frame, tmp_path) == end


def plant_training(**momenta: tuple[float, ...]) -> pd.DataFrame:
    """Gaps of estimators with several momenta over the training, and of exact statistics."""
    frames = [pd.DataFrame({"estimator": name, "momentum": values}) for name, values in momenta.items()]
    frames.append(pd.DataFrame({"estimator": ["exact"], "momentum": [np.nan]}))
    epochs = pd.DataFrame({"epoch": [1.0, 2.0, 3.0], "mean": [1.0, 2.0, 3.0], "low": 0.5, "high": 4.0})
    return pd.concat(frames).merge(epochs, how="cross").assign(panel="p", n=3, log=False)


def test_a_momentum_has_one_colour_in_all_figures_and_estimators_have_lines() -> None:
    frame = plant_training(ema=(0.01, 0.1), ema_debiased=(0.1, 0.5))
    _, looks = choose_looks(frame, "estimator", "epoch")

    colour = {name: look["color"] for name, look in looks.items()}
    line = {name: str(look["linestyle"]) for name, look in looks.items()}
    assert (
        colour["running average (momentum 0.1)"]
        == colour["running average, start divided out (momentum 0.1)"]
        == find_colour(0.1)
    )
    assert len({*colour.values()}) == 4, "three momenta and black"
    assert line["running average (momentum 0.01)"] == line["running average (momentum 0.1)"] == "-"
    assert line["running average (momentum 0.1)"] != line["running average, start divided out (momentum 0.1)"]
    assert not looks["running average (momentum 0.1)"]["marker"]
    assert looks["running average, start divided out (momentum 0.1)"]["marker"], "seen where both agree"
    assert colour["exact statistics"] == "#000000"

    _, others = choose_looks(plant_training(ema_debiased=(0.1, 0.9)), "estimator", "epoch")
    assert others["running average, start divided out (momentum 0.1)"]["color"] == find_colour(0.1)
    _, alone = choose_looks(plant_training(ema=(0.1,)), "estimator", "epoch")
    assert alone["running average (momentum 0.1)"]["color"] == find_colour(0.1)
    _, by_momentum = choose_looks(frame, "momentum", "epoch")
    assert by_momentum["momentum 0.1"]["color"] == find_colour(0.1)


def test_many_estimators_of_one_momentum_have_lines_or_markers_of_their_own() -> None:
    names = ("ema", "ema_biased", "ema_debiased", "ema_pooled", "ema_detrended", "ema_weighted")
    _, looks = choose_looks(plant_training(**dict.fromkeys(names, (0.1,))), "estimator", "epoch")

    lines = {(str(look["linestyle"]), look["marker"], look["color"]) for look in looks.values()}

    assert len(lines) == len(names) + 1


def test_the_larger_a_momentum_the_lighter_its_colour() -> None:
    momenta = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)

    lightness = [float(np.dot(to_rgb(find_colour(momentum)), (0.2126, 0.7152, 0.0722))) for momentum in momenta]

    assert np.diff(lightness).min() > 0.01


def test_numbers_below_a_forest_have_the_room_that_its_names_leave() -> None:
    names = ["two networks averaged", "unchanged"]
    frame = pd.DataFrame({"name": names, "mean": [0.0065, 0.11], "low": [0.0058, 0.1], "high": [0.0073, 0.116]})
    drawn = draw(Forest("name", GAP), pd.concat([frame.assign(panel=panel) for panel in "pq"]))

    for ax in drawn.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        ordered = sorted(boxes, key=lambda box: box.x0)
        assert len(boxes) >= 2
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ordered))


def test_ticks_of_a_momentum_axis_are_the_momenta() -> None:
    momenta = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9, 1.0]
    frame = pd.DataFrame({"panel": "p", "momentum": momenta, "estimator": "ema", "mean": 1.0, "low": 0.5, "high": 2.0})
    (ax,) = draw(Curves("momentum", "estimator", GAP), frame).axes

    assert ax.get_xticks().tolist() == momenta
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert {"0.001", "0.01", "0.1", "1"} <= {*labels}, "powers of ten stay"
    assert "0.9" not in labels, "it would run into 1"


@pytest.mark.parametrize(
    ("epochs", "scale"),
    [
        ([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], "log"),
        ([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0], "linear"),
        ([0.1, 1.0, 3.0], "linear"),  # of three places no spacing is known
        ([0.0, 0.01, 0.1, 1.0, 10.0], "linear"),
        ([0.1, 0.2, 1.0, 5.0, 9.0, 10.0], "linear"),  # shares of the training
    ],
)
def test_epochs_are_on_a_logarithmic_axis_where_they_are_at_equal_ratios(epochs: list[float], scale: str) -> None:
    frame = pd.DataFrame({"panel": "p", "epoch": epochs, "line": "a", "mean": 1.0, "low": 0.5, "high": 2.0})
    (ax,) = draw(Curves("epoch", "line", GAP), frame).axes

    assert ax.get_xscale() == scale


def test_bands_of_many_lines_are_fainter() -> None:
    def measure_opacity(lines: int) -> float:
        frame = pd.DataFrame({"line": [f"line {line}" for line in range(lines)]}).merge(
            pd.DataFrame({"epoch": [1.0, 2.0], "mean": 1.0, "low": 0.5, "high": 2.0}), how="cross"
        )
        (ax,) = draw(Curves("epoch", "line", Axis("y")), frame.assign(panel="p")).axes
        (opacity,) = {band.get_alpha() for band in ax.collections}
        assert opacity is not None
        return float(opacity)

    assert measure_opacity(8) < measure_opacity(5) < measure_opacity(4) == measure_opacity(1)


def test_hollow_rows_have_a_circle_and_no_band() -> None:
    frame = pd.DataFrame({"epoch": [1.0, 2.0, 3.0, 4.0], "mean": 1.0, "low": 0.5, "high": [9.0, 9.0, 2.0, 2.0]})
    frame = frame.assign(line="a", panel="p", hollow=[True, True, False, False])
    (ax,) = draw(Curves("epoch", "line", Axis("y")), frame).axes

    (band,) = ax.collections
    (circles,) = [line for line in ax.lines if line.get_markerfacecolor() == "white"]

    assert band.get_datalim(ax.transData).y1 == 2.0
    assert np.asarray(circles.get_xdata()).tolist() == [1.0, 2.0]


def test_a_figure_for_papers_has_no_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: dict[str, str] = {}
    save = Drawn.savefig
    monkeypatch.setattr(
        Drawn,
        "savefig",
        lambda drawn, path, **words: titles.update(pdf=drawn.get_suptitle()) or save(drawn, path, **words),
    )
    frame = plant_momenta(exact=0.5)

    drawing.write(
        "trial", Figure("A title", "", lambda tables: frame, Curves("momentum", "estimator", GAP)), TABLES, tmp_path
    )

    assert titles == {"pdf": ""}
    assert (tmp_path / "trial.pdf").exists()


def test_every_estimator_has_a_look_of_its_own() -> None:
    ours = [name for name, look in list_looks().items() if look.colour]
    names = [*ours, "mine", "yours"]
    _, looks = choose_looks(pd.DataFrame({"estimator": names}), "estimator")

    alike = defaultdict(list)
    for label, look in looks.items():
        alike[look["color"], str(look["linestyle"])].append(label)

    assert [labels for labels in alike.values() if len(labels) > 1] == [], "give one of them another colour or line"
    assert len(looks) == len(names)
    assert len(ours) >= 22


def test_twenty_values_of_a_setting_have_looks_of_their_own() -> None:
    _, looks = choose_looks(pd.DataFrame({"size": range(20)}), "size")

    different = {(look["color"], look["marker"]) for look in looks.values()}
    assert len(different) == 20


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (3, 2)), (12, (6, 2))])
def test_panels_take_several_rows(panels: int, grid: tuple[int, int]) -> None:
    frame = pd.DataFrame({"panel": [str(n) for n in range(panels)], "epoch": 1.0, "line": "a", "mean": 1.0,
                          "low": 0.5, "high": 2.0, "n": 3, "log": False})  # fmt: skip
    shape = draw(Curves("epoch", "line", GAP), frame).axes[0].get_gridspec()

    assert shape is not None
    assert (shape.nrows, shape.ncols) == grid


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    frame = score("gaps", "mean_gap", ("panel", "batch_size", "momentum"), at=1.0, layer="2")(TABLES)
    figure = Figure("A title", "Read it so.", lambda tables: frame, Curves("momentum", "batch_size", GAP))
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        drawing.write("gap", figure, TABLES, folder)
        path = folder / "gap.png"
        files.append((path.read_bytes(), path.with_suffix(".pdf").read_bytes()))

    assert files[0] == files[1]
    assert Image.open(path).mode == "P"

    drawing.write("gap", figure, TABLES, tmp_path / "c", pdf=False)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["gap.png"]


def test_no_words_of_a_figure_for_pages_are_cut_off_or_over_each_other() -> None:
    frame = pd.DataFrame({"panel": [f"batch size {n}, at the end of training" for n in range(4)], "epoch": 1.0,
                          "line": "a line with a long name", "mean": 1.0, "low": 0.5, "high": 2.0, "n": 3,
                          "log": False})  # fmt: skip
    second = frame.assign(line="another line with a name that is longer")
    drawn = draw(Curves("epoch", "line", GAP), pd.concat([frame, second]))

    width, height = drawn.canvas.get_width_height()
    boxes = [text.get_window_extent() for text in (*drawn.texts, *(ax.title for ax in drawn.axes))]
    boxes.append(drawn.legends[0].get_window_extent())
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize(("panels", "shown"), [(1, "0.00625 0.025 0.1 0.4 1.6 6.4"), (2, "0.00625 0.1 0.4 1.6 6.4")])
def test_numbers_of_ticks_are_left_out_where_a_narrow_panel_has_no_room(panels: int, shown: str) -> None:
    rates = [0.00625, 0.025, 0.1, 0.4, 1.6, 6.4]
    frame = pd.DataFrame({"rate": rates, "line": "a", "mean": 1.0, "low": 0.5, "high": 1.5})
    frame = pd.concat([frame.assign(panel=str(panel)) for panel in range(panels)])

    plot = Curves("rate", "line", ACCURACY, across=Axis("rate", log=True, ticks="values"))
    for ax in draw(plot, frame).axes:
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert " ".join(filter(None, labels)) == shown
        assert ax.get_xticks().tolist() == rates, "each tick is there"


def test_a_series_with_few_points_has_no_line_between_them() -> None:
    every = pd.DataFrame({"epoch": np.arange(40.0), "line": "often", "mean": 1.0})
    some = pd.DataFrame({"epoch": [0.0, 20.0, 39.0], "line": "seldom", "mean": 2.0})
    frame = pd.concat([every, some]).assign(panel="p", low=np.nan, high=np.nan, n=1, log=False)

    (ax,) = draw(Curves("epoch", "line", Axis("y")), frame).axes

    lines = {len(np.asarray(line.get_xdata())): line for line in ax.lines}
    assert lines[40].get_linestyle() == "-"
    assert lines[3].get_linestyle() == "None"
    assert lines[3].get_marker() == "D"


def test_an_axis_for_values_of_any_size_shows_small_ones_of_both_signs_beside_large_ones() -> None:
    frame = pd.DataFrame({"panel": "p", "epoch": [1.0, 2.0, 3.0, 4.0], "line": "a", "mean": [-0.2, 0.1, 3.0, 50.0],
                          "low": np.nan, "high": np.nan, "n": 1, "log": False})  # fmt: skip
    (ax,) = draw(Curves("epoch", "line", Axis("lost", linear=0.3)), frame).axes

    heights = ax.transData.transform([(1.0, value) for value in (-0.2, 0.1, 3.0, 50.0)])[:, 1]
    share = np.diff(heights) / ax.bbox.height
    assert share.min() > 0.05, "on a linear axis 0.3 of 50 points are 0.006 of the height"

    names = [label.get_text() for label in ax.get_yticklabels()]
    assert {"0", "0.3", "1", "3", "10", "30"} <= {*names}


def test_series_of_a_forest_share_a_name_and_numbers_are_in_order() -> None:
    frame = pd.DataFrame({"panel": "p", "rule": ["a", "b", "a", "b"], "batch_size": [64, 64, 2, 2],
                          "mean": [1.0, 2.0, 3.0, 4.0]}).assign(low=0.5, high=5.0, n=2, log=False)  # fmt: skip
    drawn = draw(Forest("rule", Axis("size"), series="batch_size"), frame)

    (ax,) = drawn.axes
    assert list_names(drawn) == ["batch size 2", "batch size 64"]
    heights = {tuple(np.asarray(line.get_xdata())): np.asarray(line.get_ydata(), float) for line in ax.lines}
    above = heights[3.0, 4.0]
    below = heights[1.0, 2.0]
    assert (above < below).all(), "heights grow downwards"
    assert (np.round(above) == np.round(below)).all(), "both beside their name"


def test_parts_are_stacked_and_negative_ones_hang_below() -> None:
    lines = ["lag", "lag", "noise", "noise", "data", "data"]
    frame = pd.DataFrame({"when": ["early", "late"] * 3, "line": lines, "mean": [0.7, 0.2, 0.3, 0.9, 0.0, -0.1]})
    frame = frame.assign(panel="p", low=np.nan, high=np.nan, n=3, log=False)

    drawn = draw(Stacked("when", "line", Axis("share"), Axis("")), frame)

    (ax,) = drawn.axes
    assert list_names(drawn) == ["lag", "noise", "data"]
    bars = {str(bars.get_label()): [(bar.get_y(), bar.get_height()) for bar in bars] for bars in ax.containers}
    np.testing.assert_allclose(bars["noise"], [(0.7, 0.3), (0.2, 0.9)])
    np.testing.assert_allclose(bars["data"], [(1.0, 0.0), (0.0, -0.1)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["early", "late"]
