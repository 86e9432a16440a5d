"""Every series of a figure can be told from the others, in all panels alike, or the figure is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from bnlab import estimators, inference
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.sources import AVERAGING, FROZEN
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.experiment import Figure, NoRows, Tables
from bnlab.harness.reporting.plots import Curves, EstimatorCurves, Forest, HeatMap, Points, Stacked
from bnlab.harness.reporting.style import Axis

OURS = [name for name, cls in estimators.list_estimators().items() if cls.__module__.startswith("bnlab.")]
ALL = [*OURS, *FROZEN, *AVERAGING, *inference.list_rules()]


def frame(series: list[tuple[str, float]], panel: str = "all") -> pd.DataFrame:
    rows = [
        (panel, name, momentum, epoch, i + epoch, i + epoch, i + epoch, 1)
        for i, (name, momentum) in enumerate(series)
        for epoch in (1.0, 2.0)
    ]
    return pd.DataFrame(rows, columns=["panel", "estimator", "momentum", "epoch", "mean", "low", "high", "n"])


def draw(rows: pd.DataFrame) -> list[Axes]:
    return list(drawing.draw(Figure("f", "t", "c", lambda _: rows, EstimatorCurves(Axis("y"))), {}).axes)


def looks(ax: Axes) -> dict[str, tuple[object, ...]]:
    lines = ax.get_lines()
    return {str(line.get_label()): (line.get_color(), str(line._dash_pattern), line.get_marker()) for line in lines}


@pytest.fixture(autouse=True)
def closed() -> object:
    yield
    plt.close("all")


def test_every_estimator_has_a_line_of_its_own() -> None:
    series = [(name, np.nan) for name in (*ALL, "mine", "theirs")]
    (ax,) = draw(frame(series))
    found = looks(ax)
    assert len(found) == len(set(found.values())) == len(ALL) + 2 == 29
    colours = [np.array(to_rgb(str(look[0]))) for look in found.values()]
    for a in colours:
        for b in colours:
            assert (a == b).all() or np.abs(a - b).max() > 0.15  # another colour is another colour


def test_settings_of_an_estimator() -> None:
    names = [("ema", m) for m in (0.01, 0.1, 0.3, 1.0)] + [("window(k=5)", np.nan), ("window(k=9)", np.nan)]
    (ax,) = draw(frame([*names, ("exact", np.nan), ("exact(images=9)", np.nan)]))
    found = looks(ax)
    assert len(found) == len(set(found.values())) == 8
    assert len({look[0] for look in found.values()}) == 8  # also without markers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("window(k=20,pooled=False)", "mean of the last 20 batches"),
        ("window(k=20,pooled=True)", "mean of the last 20 batches (pooled=True)"),
        ("kalman(per=layer)", "Kalman filter"),
        ("kalman(per=channel)", "Kalman filter (per=channel)"),
        ("precise(images=2048)", "precise BN (2,048 images)"),
        ("polynomial(alpha=0.7)", "average, new batch weighs 1/t^0.7"),
        ("delagged", "EMA, lag subtracted"),
        ("mine(a=1,b=x)", "mine (a=1, b=x)"),
        ("mine(a=(0.5, 0.1),b=x)", "mine (a=(0.5, 0.1), b=x)"),
    ],
)
def test_parameters_in_words(name: str, words: str) -> None:
    assert style.estimator_label(name) == words
    assert style.estimator_label("ema", 0.1) == "EMA (momentum 0.1)"


def test_bands_that_reach_zero_have_no_lower_half_on_a_logarithmic_axis() -> None:
    rows = frame([("ema", 0.1)]).assign(mean=[1.0, 2.0], low=[-1.0, 1.5], high=3.0, log=False)
    for is_log, lowest in ((True, 1.0), (False, -1.0)):
        figure = Figure("f", "t", "c", lambda _: rows, EstimatorCurves(Axis("y", log=is_log)))
        drawn = drawing.draw(figure, {})
        bands = [path.vertices[:, 1] for band in drawn.axes[0].collections for path in band.get_paths()]
        assert min(map(min, bands)) == lowest and max(map(max, bands)) == 3
        assert ("lower half of a band is left out" in " ".join(drawn.texts[-1].get_text().split())) == is_log


def test_means_that_a_logarithmic_axis_cannot_show_are_told() -> None:
    """As the gap of exact statistics, which is in the legend."""
    for is_log, least in ((True, 0.0), (False, 0.0), (True, 0.1)):
        rows = frame([("ema", 0.1)]).assign(mean=[1.0, least], low=np.nan, high=np.nan, log=False)
        figure = Figure("f", "t", "c", lambda _, rows=rows: rows, EstimatorCurves(Axis("y", log=is_log)))
        drawn = drawing.draw(figure, {})
        assert ("are not drawn" in " ".join(drawn.texts[-1].get_text().split())) == (is_log and not least)


@pytest.mark.parametrize(
    "plot",
    [
        Points(("size", Axis("x")), ("mean", Axis("y", log=True)), "estimator"),
        Points(("mean", Axis("x", log=True)), ("size", Axis("y")), "estimator"),
        Forest("size", Axis("x", log=True)),
        Curves("momentum", "size", Axis("y")),
    ],
)
def test_points_that_a_logarithmic_axis_cannot_show_are_told(plot: Callable[..., Axes]) -> None:
    for least in (0.0, 0.1):
        values = {"mean": [1.0, least], "momentum": [1.0, least], "size": [1, 2]}
        rows = frame([("ema", 0.1)]).assign(**values, low=np.nan, high=np.nan, log=False)
        drawn = drawing.draw(Figure("f", "t", "c", lambda _, rows=rows: rows, plot), {})
        assert ("are not drawn" in " ".join(drawn.texts[-1].get_text().split())) == (not least)


@pytest.mark.parametrize(
    "plot",
    [
        Forest("size", Axis("x", log=True)),
        HeatMap("momentum", "size", Axis("colour", log=True)),
        Curves("momentum", "size", Axis("y", log=True)),
        EstimatorCurves(Axis("y", log=True), x="momentum"),
        Points(("momentum", Axis("x")), ("mean", Axis("y", log=True)), "size"),
    ],
)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_figure_of_values_without_a_place_is_refused(plot: Callable[..., Axes], value: float) -> None:
    rows = frame([("ema", 0.1)]).assign(
        mean=value, momentum=[0.1, 0.2], size=[1, 2], low=np.nan, high=np.nan, log=False
    )
    with pytest.raises(NoRows, match="figure f: nothing can be drawn"):
        drawing.draw(Figure("f", "t", "c", lambda _: rows, plot), {})


def caption(plot: Callable[..., Axes], means: list[float], low: float = np.nan) -> str:
    """Of a figure of two rows."""
    rows = frame([("ema", 0.1)]).assign(mean=means, momentum=[0.1, 0.2], size=[1, 2], low=low, high=3.0, log=False)
    drawn = drawing.draw(Figure("f", "t", "c", lambda _: rows, plot), {})
    return " ".join(drawn.texts[-1].get_text().split())


def test_what_a_map_and_an_interval_cannot_show_is_told() -> None:
    map_of = HeatMap("momentum", "size", Axis("colour", log=True))
    assert "Values of 0 and less have the lowest colour." in caption(map_of, [1.0, 0.0])
    assert "missing or infinite are not drawn" in caption(map_of, [1.0, np.inf])
    assert caption(map_of, [1.0, 2.0]) == "c Colours: mean over seeds. n = 1 seed."
    forest = Forest("size", Axis("x", log=True))
    assert "Intervals that reach 0 go on beyond the axis." in caption(forest, [1.0, 2.0], low=-1.0)
    assert caption(forest, [1.0, 2.0], low=0.5) == "c Points: mean over seeds, bars: 95% intervals. n = 1 seed."


def test_values_beyond_the_limits_of_an_axis_are_told() -> None:
    for limits, beyond in (((0.0, 1.5), True), ((0.0, 2.0), False)):
        axis = Axis("y", limits)
        assert ("Values beyond the ends of an axis" in caption(Curves("momentum", "size", axis), [1.0, 2.0])) == beyond
        assert "Intervals that reach beyond the ends of an axis are cut off" in caption(
            Forest("size", axis), [1.0, 2.0]
        )
        told = "Values beyond the ends of the scale have the colours of these."
        assert (told in caption(HeatMap("momentum", "size", axis), [1.0, 2.0])) == beyond


def test_words_stand_on_an_axis_that_is_logarithmic_for_numbers() -> None:
    rows = pd.DataFrame({"panel": "all", "batch_size": ["4", "16", "64"], "kind of": "a", "mean": 1.0, "low": np.nan,
                         "high": np.nan, "log": False, "n": 2})  # fmt: skip
    (ax,) = drawing.draw(Figure("f", "t", "c", lambda _: rows, Curves("batch_size", "kind of", Axis("y"))), {}).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "16", "64"] and ax.get_xscale() != "log"


@pytest.mark.parametrize("missing", [np.nan, np.inf, None])
def test_rows_without_a_place_across_are_told(missing: Any) -> None:
    rows = pd.DataFrame({"panel": "all", "position": [1.0, 2.0, missing], "term": "a", "mean": [1.0, 2.0, 3.0],
                         "word": ["x", "y", missing], "log": False, "n": 2})  # fmt: skip
    plots = [Stacked("position", Axis("y"))]
    if missing is None:
        plots = [Points(("word", Axis("x")), ("mean", Axis("y")), "term")]
    for plot in plots:
        drawn = drawing.draw(Figure("f", "t", "c", lambda _: rows, plot), {})
        assert "missing or infinite are not drawn" in " ".join(drawn.texts[-1].get_text().split())


def test_numbers_that_may_be_missing_in_pandas_way_are_drawn() -> None:
    rows = pd.DataFrame({"panel": "all", "momentum": [0.1, 0.2, 0.3], "size": 4, "low": np.nan, "high": np.nan,
                         "mean": pd.array([1.0, None, 3.0], dtype="Float64"), "log": False, "n": 2})  # fmt: skip
    drawn = drawing.draw(Figure("f", "t", "c", lambda _: rows, Curves("momentum", "size", Axis("y"))), {})
    assert np.nanmax(drawn.axes[0].get_lines()[0].get_ydata()) == 3
    assert "missing or infinite are not drawn" in " ".join(drawn.texts[-1].get_text().split())


def test_a_point_of_a_line_without_a_place_across_is_refused() -> None:
    rows = frame([("ema", 0.1)]).assign(epoch=[1.0, np.nan], log=False)
    with pytest.raises(ValueError, match="a row has no epoch; select those that have one"):
        drawing.draw(Figure("f", "t", "c", lambda _: rows, EstimatorCurves(Axis("y"))), {})


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_points_beside_missing_ones_are_seen_and_these_are_told(missing: float) -> None:
    rows = pd.DataFrame({"panel": "all", "momentum": [0.1, 0.2, 0.3], "size": 4, "mean": [1.0, missing, 3.0], "n": 2})
    figure = Figure("f", "t", "c", lambda _: rows.assign(low=np.nan, high=np.nan, log=False),
                    Curves("momentum", "size", Axis("y")))  # fmt: skip
    drawn = drawing.draw(figure, {})
    assert "missing or infinite are not drawn" in " ".join(drawn.texts[-1].get_text().split())
    assert "o" in {line.get_marker() for line in drawn.axes[0].get_lines()}


def test_points_between_missing_ones_are_seen_on_long_lines() -> None:
    """Where only some points of a line have a mark, those that no line goes to have one too."""
    alone, means = [3, 5, 17, 30], np.full(40, np.nan)
    means[alone] = 1.0
    rows = frame([("ema", 0.1)] * 20).assign(epoch=np.arange(1.0, 41.0), mean=means, low=np.nan, high=np.nan, log=False)
    (line,) = draw(rows)[0].get_lines()
    assert line.get_marker() not in ("", "None", None)
    assert {i for i, marked in enumerate(line.get_markevery()) if marked} >= {*alone}


def test_a_line_is_interrupted_where_a_logarithmic_axis_has_no_place() -> None:
    _, ax = plt.subplots()
    rows = frame([("ema", 0.1)] * 2).assign(epoch=[1.0, 2.0, 3.0, 4.0], mean=[1.0, 0.0, 2.0, 2.0], low=0.0, high=3.0)
    style.draw_line(ax, rows, "epoch", "#000000", log=True)
    (line,) = ax.get_lines()
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("schedules", "said"), [(["constant"], " The learning rate is constant."), (["step", "constant"], "")]
)
@pytest.mark.parametrize(("split", "images"), [("val", " Predictions are of other images: split val."), ("test", "")])
def test_captions_say_what_the_networks_have_in_common(
    schedules: list[str], said: str, split: str, images: str
) -> None:
    rows = frame([("ema", 0.1)]).assign(log=False)
    evaluations = pd.DataFrame({"split": [split], "shift": ["none"]})
    tables = {"runs": pd.DataFrame({"optimizer.schedule": schedules}), "evaluations": evaluations}

    def read(tables: Tables) -> pd.DataFrame:
        return rows.iloc[: 10 * len(tables["evaluations"])]

    caption = drawing.draw(Figure("f", "t", "How to read it. {schedule}", read, EstimatorCurves(Axis("y"))), tables)
    assert " ".join(caption.texts[-1].get_text().split()).startswith(f"How to read it.{said}{images} Lines:")


def test_captions_say_batch_size_momentum_and_whose_statistics_they_are() -> None:
    tables = {
        "runs": pd.DataFrame({"batch_size": [16, 4, 16]}),
        "gaps": frame([("ema", 0.1), ("ema", 0.01), ("exact", np.nan)]).assign(statistics_split="train", log=False),
    }
    tables["gaps"].loc[4:, "statistics_split"] = "val"
    figure = Figure("f", "t", "Of {batch_size}, {momentum}.", lambda tables: tables["gaps"], EstimatorCurves(Axis("y")))
    told = " ".join(drawing.draw(figure, tables).texts[-1].get_text().split())
    measured = (
        "Where estimators are measured on frozen weights, exact ones too, they are of the validation split; what gaps "
        "and doses are measured from, and what networks are frozen with, is of the training split."
    )
    assert told.startswith(f"Of 4 and 16, 0.01 and 0.1. {measured} Lines:")


@pytest.mark.parametrize(
    ("epochs", "missing", "said"),
    [
        ([1.0, 2.0], [], "Lines: mean over seeds, bands: 95% intervals. The lower half of a band is left out beside "
                         "points whose interval reaches 0."),
        ([1.0, 2.0], ["low", "high"], "Lines: mean over seeds."),
        ([1.0], [], "Points: mean over seeds, bars: 95% intervals. Intervals that reach 0 go on beyond the axis."),
        ([1.0], ["low", "high"], "Points: mean over seeds."),
    ],
)  # fmt: skip
def test_captions_say_what_is_drawn_of_few_places_and_seeds(epochs: list[float], missing: list[str], said: str) -> None:
    rows = frame([("ema", 0.1)]).query("epoch in @epochs").assign(log=False, low=0.0)
    rows[missing] = np.nan
    figure = Figure("f", "t", "c.", lambda _: rows, EstimatorCurves(Axis("y", log=True)))
    told = " ".join(drawing.draw(figure, {}).texts[-1].get_text().split())
    assert told.replace("\u00a0", " ") == f"c. {said} n = 1 seed."


def test_a_line_has_one_level() -> None:
    rows = frame([("ema", 0.1), ("exact", np.nan)]).assign(size=4)
    rows.loc[2:, "epoch"] = np.nan
    with pytest.raises(ValueError, match="size 4 has several levels"):
        Curves("epoch", "size", Axis("y"))(rows, ax=plt.figure().add_subplot())


def test_words_stand_on_the_axis() -> None:
    rows = pd.DataFrame({"panel": "all", "schedule": ["constant", "onecycle", "step"] * 2, "size": [4] * 3 + [8] * 3,
                         "mean": 1.0, "low": 0.5, "high": 1.5, "log": False, "n": 2})  # fmt: skip
    figure = Figure("f", "t", "c", lambda _: rows, Curves("schedule", "size", Axis("y", log=True)))
    (ax,) = drawing.draw(figure, {}).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["constant", "onecycle", "step"]
    assert ax.get_yscale() == "log"


def test_panels_agree_where_one_lacks_a_series() -> None:
    some = [("ema", 0.1), ("mine", np.nan), ("theirs", np.nan)]
    first, second = draw(pd.concat([frame(some[2:], "a"), frame([("ema", 0.01), *some], "b")]))
    assert looks(first).items() <= looks(second).items() and len(set(looks(second).values())) == 4


def test_more_than_can_be_told_apart() -> None:
    with pytest.raises(UserError, match=r"room for 6 settings of ema, found EMA \(momentum 0.1\).*0.7\); sweep fewer"):
        draw(frame([("ema", m / 10) for m in range(1, 8)]))
    with pytest.raises(UserError, match=r"room for 12 estimators of your own, found mine0.*mine12; sweep fewer"):
        draw(frame([(f"mine{i}", np.nan) for i in range(13)]))
    assert len(set(style.choose_colours(range(6)).values())) == 6
    with pytest.raises(UserError, match="room for 6 series, found 2, 4, 8, 16, 32, 64, 128; sweep fewer"):
        style.choose_colours([2, 4, 8, 16, 32, 64, 128])


def test_a_series_keeps_its_colour_in_a_later_panel() -> None:
    rows = pd.concat([frame([("ema", 0.1)], "a").assign(size=8), frame([("ema", 0.1)], "b").assign(size=4)])

    def plot(part: pd.DataFrame, *, ax: Axes) -> Axes:
        for size, colour in style.choose_colours(sorted(part["size"].unique())).items():
            style.draw_line(ax, part[part["size"] == size], "epoch", colour, str(size))
        return ax

    axes = drawing.draw(Figure("f", "t", "c", lambda _: rows, plot), {}).axes
    assert len({line.get_color() for ax in axes for line in ax.get_lines()}) == 2


def test_a_single_value_is_seen() -> None:
    _, ax = plt.subplots()
    style.draw_line(ax, frame([("ema", 0.1)]).head(1), "epoch", "#000000", "ema")
    style.set_axes(ax, style.axis_of("epoch"), Axis("y"), pd.Series([1.0]))
    assert ax.get_legend_handles_labels()[1] == ["ema"] and ax.get_xlim() == (0.5, 2.0)
    assert ax.get_lines()[0].get_marker() == "o"


def curves(panels: int = 1, kind: str = "", log: bool = False) -> pd.DataFrame:
    """Two batch sizes, three momenta and a level in each panel."""
    rows = [
        (f"panel {i}", size, momentum, kind if momentum == 1 else "", size * (momentum or 9), 0.0, 99.0, 3, log)
        for i in range(panels)
        for size in (4, 32)
        for momentum in (0.01, 0.1, 1, None)
    ]
    return pd.DataFrame(rows, columns=["panel", "batch_size", "momentum", "kind", "mean", "low", "high", "n", "log"])


CURVES = Curves(
    "momentum", "batch_size", Axis("up"), level="flat", dashed="predicted", star="best", mark=(0.1, "default")
)


def values(ax: Axes, style: str = "-", marker: str = "None") -> list[list[float]]:
    lines = [line for line in ax.get_lines() if (line.get_linestyle(), str(line.get_marker())) == (style, marker)]
    return [[float(y) for y in line.get_ydata()] for line in lines if len(line.get_ydata())]


def test_curves_draw_all_rows_by_their_kind() -> None:
    _, ax = plt.subplots()
    assert CURVES(curves(kind="star"), ax=ax) is ax
    assert values(ax) == [[0.04, 0.4], [0.32, 3.2]]
    assert values(ax, "None", "*") == [[4], [32]]
    assert values(ax, "--")[-2:] == [[36, 36], [288, 288]]  # the levels
    names = ["batch size 4", "batch size 32", "default", "flat", "predicted", "best"]
    assert ax.get_legend_handles_labels()[1] == names and ax.get_xscale() == "log" and ax.get_yscale() == "linear"
    _, ax = plt.subplots()
    Curves("momentum", "batch_size", Axis("", log=True))(curves(kind="dashed"), ax=ax)
    assert values(ax, "--", "_") == [[4.0], [32.0]] and ax.get_yscale() == "log"


def test_points() -> None:
    rows = pd.DataFrame({"panel": "all", "batch_size": [4, 4, 32], "a": [0.1, 0.2, 0.3], "b": 0.5, "seed": [0, 1, 1]})
    plot = Points(("a", Axis("A")), ("b", Axis("B", log=True)), "batch_size", (0.1, 1), 2)
    (ax,) = drawing.draw(Figure("f", "t", "c", lambda _: rows, plot), {}).axes
    assert values(ax, "None", "o") == [[0.5, 0.5], [0.5]] and values(ax) == [[0.1, 1]]
    assert ax.get_legend_handles_labels()[1] == ["batch size 4", "batch size 32", "within ×2"]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("linear", "log", "A", "B")
    alone = Points(("a", Axis("A")), ("b", Axis("B")), "batch_size")(rows, ax=plt.figure().add_subplot())
    assert values(alone) == [] and len(values(alone, "None", "o")) == 2
    averages = pd.DataFrame({"estimator": ["ema", "ema", "last_batch"], "momentum": [0.1, 0.5, np.nan], "a": 1, "b": 2})
    plot = Points(("a", Axis("A")), ("b", Axis("B")), "estimator")
    (named,) = drawing.draw(Figure("f", "t", "c", lambda _: averages.assign(panel="all", n=2), plot), {}).axes
    assert named.get_legend_handles_labels()[1] == ["EMA (momentum 0.1)", "EMA (momentum 0.5)", "last batch only"]
    looks = [(line.get_marker(), line.get_color()) for line in named.get_lines()]
    assert len(set(looks)) == 3 and looks[0][1] == style.estimator_style("ema", 0.1)["colour"]


def test_axes() -> None:
    _, ax = plt.subplots()
    style.set_axes(ax, style.axis_of("batch_size"), Axis("up", (0, 2)), pd.Series([4.0, 8.0]))
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()) == ("log", "batch size", "up", (0, 2))
    assert ax.get_xticks().tolist() == [4, 8] and not ax.get_xticks(minor=True).tolist()
    style.set_axes(ax, style.axis_of("model.width"), Axis("up"), pd.Series([8, 32]))
    assert ax.get_xlabel() == "model width" and ax.get_xticks().tolist() == [8, 32]
    for values in (pd.Series(range(11)), pd.Series(["batch", "none"])):  # too many, or no numbers
        style.set_axes(plt.subplots()[1], style.axis_of("norm.name"), Axis("up"), values)
    _, crowded = plt.subplots()
    crowded.set_xlim(1, 17)  # where ticks would be at 2.5, 5 and 7.5
    style.set_axes(crowded, style.axis_of("depth"), Axis("up"), pd.Series(range(2, 17)))
    assert all(tick == round(tick) for tick in crowded.get_xticks())
    assert style.axis_of("some.column_") == Axis("some column ", ticks="values")


@pytest.mark.parametrize(
    ("limits", "shown"), [((0.3, 3), ["0.5", "1", "2"]), ((0.8, 2.5), ["1", "1.2", "1.5", "2"]), ((0.01, 100), None)]
)
def test_short_logarithmic_axes_have_plain_numbers(limits: tuple[float, float], shown: list[str] | None) -> None:
    drawn, ax = plt.subplots()
    ax.set(yscale="log", ylim=limits)
    style.write_out_decades(ax)
    drawn.canvas.draw()
    inside = [label.get_text() for label in ax.get_yticklabels() if limits[0] <= label.get_position()[1] <= limits[1]]
    assert inside == shown if shown else all("10^" in text for text in inside)


@pytest.mark.parametrize(("log", "mean"), [(False, "mean"), (True, "geometric mean")])
def test_the_drawing_says_what_lines_and_bands_are(log: bool, mean: str) -> None:
    drawn = drawing.draw(Figure("f", "t", "How to read it.", lambda _: curves(log=log), CURVES), {})
    caption = " ".join(drawn.texts[-1].get_text().split())
    assert caption == f"How to read it. Lines: {mean} over seeds, bands: 95% intervals. n = 3 seeds."


def test_more_than_four_panels_take_several_rows() -> None:
    drawn = drawing.draw(Figure("f", "t", "c", lambda _: curves(6), CURVES), {})
    shown = [ax for ax in drawn.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == [f"panel {i}" for i in range(6)]
    assert [bool(ax.get_ylabel()) for ax in shown] == [True, False, False, True, False, False]
    drawn.canvas.draw()
    tops = [round(ax.get_position().y1, 3) for ax in shown]
    assert len(set(tops[:3])) == 1 and len(set(tops[3:])) == 1 and tops[3] < shown[0].get_position().y0
    assert all(0 < ax.get_position().x0 < ax.get_position().x1 < 1 for ax in shown)
    with pytest.raises(ValueError, match="figure f: the tables have no row for it"):
        drawing.draw(Figure("f", "t", "c", lambda _: curves(0), CURVES), {})
