"""Figures of any sweep, of tables with planted effects: what is found to be swept, and where it is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.reporting.any_sweep import FigureRequest, describe_sweep, make_asked
from bnlab.harness.reporting.frames import select
from bnlab.harness.reporting.outcome import Outcome
from bnlab.harness.reporting.page import write_sweep
from bnlab.harness.reporting.question import Figure
from bnlab.harness.reporting.tables import LoadedTables, OwnTable
from bnlab.harness.reporting.wording import format_number

EMA = "running average (momentum 0.1)"
EXACT = "exact statistics"
Draw = Callable[[Figure, dict[str, pd.DataFrame]], Any]


@pytest.fixture
def draw() -> Iterator[Draw]:
    """Draws a figure, which is closed after the test."""
    import matplotlib.pyplot as plt

    from bnlab.harness.reporting import drawing

    yield lambda figure, tables: drawing.draw(figure, figure.score(tables))
    plt.close("all")


def plant(
    *,
    momenta: tuple[float, ...] = (0.1,),
    others: tuple[str, ...] = ("exact",),
    steps: tuple[int, ...] = (10,),
    depths: tuple[int, ...] = (1, 2, 3),
    **swept: tuple[Any, ...],
) -> dict[str, pd.DataFrame]:
    """Networks for each combination of settings (`model__width` for dotted ones) and two seeds.

    The gap is half the momentum in the first layer, and momentum · 1.1^(±1) for seeds 0 and 1 in all others; 0.5 of
    other estimators. Accuracy is 1 − momentum, and 1 under other statistics. A group norm has none.
    """
    settings = {key.replace("__", "."): values for key, values in {"seed": (0, 1), **swept}.items()}
    usual = {"data": "digits", "norm": "batch", "batch_size": 32, "epochs": 2.0, "steps": 10, "status": "finished"}
    runs = []
    gaps = []
    evaluations = []
    for values in itertools.product(*settings.values()):
        run: dict[str, Any] = {**usual, **dict(zip(settings, values, strict=True)), "run": "/".join(map(str, values))}
        runs.append(run)
        sources = [("ema", momentum) for momentum in momenta] + [(name, np.nan) for name in others]
        if run["norm"] == "group":
            sources = [("none", np.nan)]
        for step, (name, momentum) in itertools.product(steps, sources):
            row = {"run": run["run"], "step": step, "epoch": step / 5, "estimator": name, "momentum": momentum}
            row["statistics_split"] = "none" if name == "none" else "train"
            lost = np.nan_to_num(momentum)
            evaluations.append({**row, "split": "test", "shift": "none", "images": 1000, "accuracy": 1 - lost})
            for depth in depths if name != "none" else ():
                behind = lost * 1.1 ** (2 * run["seed"] - 1) if lost else 0.5
                gap = behind if depth > 1 else 0.5 * lost
                gaps.append({**row, "layer": f"l{depth}", "depth": depth, "mean_gap": gap})
    return {"runs": pd.DataFrame(runs), "gaps": pd.DataFrame(gaps), "evaluations": pd.DataFrame(evaluations)}


def describe(tables: dict[str, pd.DataFrame], own: dict[str, OwnTable] | None = None) -> Outcome:
    return describe_sweep("trial", LoadedTables(tables, own=own))


def read_table(outcome: Outcome, name: str = "") -> pd.DataFrame:
    assert outcome.means is not None
    return outcome.means[name]


SIZES = {"batch_size": (4, 32)}
LAYOUTS: list[tuple[dict[str, Any], str, list[str], list[str]]] = [
    # momenta across, estimators in colours, settings in panels
    ({"momenta": (0.1, 0.5), "others": ("cumulative", "exact"), **SIZES}, "accuracy",
     ["batch size 4", "batch size 32"], ["average of all batches", "running average", EXACT]),
    # one estimator: settings in colours
    ({"momenta": (0.1, 0.5), **SIZES}, "gap", [""], ["batch size 4", "batch size 32"]),
    # a number across
    ({"norm__groups": (4.0, np.nan), **SIZES}, "gap", [""], ["norm.groups 4", "no norm.groups"]),
    # a norm without statistics has an axis of momenta, too
    ({"momenta": (0.1, 0.5), "norm": ("batch", "group")}, "accuracy", ["norm batch", "norm group"],
     ["running average", EXACT, "without batch norm"]),
    # words one below the other
    ({"norm": ("batch", "ghost")}, "accuracy", [""],
     [f"norm {norm}, {words}" for norm in ("batch", "ghost") for words in (EMA, EXACT)]),
    # over the training momenta have colours
    ({"momenta": (0.1, 0.5), "steps": (5, 10), **SIZES}, "gap_training", ["batch size 4", "batch size 32"],
     [EMA, "running average (momentum 0.5)"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "figure", "panels", "names"), LAYOUTS)
def test_layouts(settings: dict[str, Any], figure: str, panels: list[str], names: list[str], draw: Draw) -> None:
    tables = plant(**settings)

    drawn = draw(describe(tables).question.figures[figure], tables)

    axes = [ax for ax in drawn.axes if ax.axison]
    assert [ax.get_title() for ax in axes] == panels
    assert len({ax.get_xlim() for ax in axes}) == 1

    labels = axes[0].get_yticklabels()  # where conditions stand one below the other
    for legend in drawn.legends:
        labels = legend.get_texts()
        looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
        assert len(looks) == len(names) or figure == "accuracy"
    assert [label.get_text().replace("\n", " ") for label in labels] == names


@pytest.mark.parametrize(
    ("settings", "figures"),
    [
        ({}, ["gap", "accuracy", "accuracy_lost"]),
        ({"norm": ("group",)}, ["accuracy"]),
        # one gap, or one loss, is no figure
        ({"steps": (5, 10)}, ["gap_training", "accuracy", "accuracy_training", "accuracy_lost_training", "cost"]),
        ({"steps": (5, 10), "batch_size": (4, 32)},
         ["gap", "gap_training", "accuracy", "accuracy_training", "accuracy_lost", "accuracy_lost_training", "cost"]),
    ],
)  # fmt: skip
def test_figures_of_the_last_step_and_over_the_training(settings: dict[str, Any], figures: list[str]) -> None:
    assert [*describe(plant(**settings)).question.figures] == figures


def test_the_last_step_is_the_one_that_counts() -> None:
    tables = plant(steps=(5, 10))
    evaluations = tables["evaluations"]
    earlier = evaluations["accuracy"].where(evaluations["step"] == 10, 0.0)
    outcome = describe({**tables, "evaluations": evaluations.assign(accuracy=earlier)})

    assert sorted(outcome.question.figures["accuracy"].score({})["mean"]) == pytest.approx([90, 100])


@pytest.mark.parametrize(
    ("changes", "swept"),
    [
        # It follows from the batch size, whose effect it is not told apart from.
        ({"optimizer.lr": [0.1, 0.1, 0.2, 0.2]}, {"learning rate": "0.1, 0.2"}),
        ({"model": ["mlp", "mlp", "cnn", "cnn"], "model.width": [8, 8, 16, 16]}, {"model": "cnn, mlp"}),
        ({"optimizer.lr": [0.1, 0.2, 0.1, 0.2]}, {"learning rate": "0.1, 0.2"}),
        ({"steps": 7, "epochs": [0.7, 0.7, 5.6, 5.6], "settings": '{"steps": 7}'}, {}),
        ({"steps": [7, 70, 7, 70], "epochs": [0.7, 7, 5.6, 56], "settings": '{"steps": 7}'}, {"steps": "7, 70"}),
        ({"steps": [20, 20, 3, 3], "settings": '{"epochs": 2}'}, {}),
        ({"data.flip": [True, False, True, False]}, {"data.flip": "no, yes"}),
    ],
)
def test_what_was_swept(changes: dict[str, Any], swept: dict[str, str]) -> None:
    tables = plant(batch_size=(4, 32), seed=(0,), model__copy=(1, 2))
    runs = tables["runs"].drop(columns="model.copy").assign(seed=[0, 1, 0, 1], **changes)
    table = read_table(describe({**tables, "runs": runs}))

    settings = table.loc[:, :"statistics"].drop(columns="statistics")
    found = {name: ", ".join(sorted({*cells})) for name, cells in settings.items()}
    expected = {"batch size": "32, 4", **swept}
    assert found == expected


@pytest.mark.parametrize(("depths", "gaps"), [((1, 2, 3), [0.1, 0.2]), ((1,), [0.05, 0.1])])
def test_a_gap_is_the_mean_over_the_layers_behind_the_first(depths: tuple[int, ...], gaps: list[float]) -> None:
    means = describe(plant(momenta=(0.1, 0.2), depths=depths)).question.figures["gap"].score({})

    np.testing.assert_allclose(means["mean"], gaps)  # geometric over seeds
    assert means["n"].tolist() == [2, 2]


RUNNING = np.array([0.20, 0.41, 0.55, 0.38, 0.66])  # accuracies of five seeds under running averages
LOST = np.array([0.05, 0.09, 0.06, 0.08, 0.05])


def plant_losses(**swept: tuple[Any, ...]) -> dict[str, pd.DataFrame]:
    """Networks of five seeds, which differ by far more than their two accuracies do."""
    tables = plant(seed=(0, 1, 2, 3, 4), **swept)
    evaluations = tables["evaluations"].merge(tables["runs"][["run", "seed"]], on="run")
    under_exact = evaluations["estimator"] == "exact"
    seeds = evaluations.pop("seed").to_numpy()
    return {**tables, "evaluations": evaluations.assign(accuracy=RUNNING[seeds] + under_exact * LOST[seeds])}


def test_accuracy_lost_is_paired_by_network() -> None:
    from scipy import stats  # which takes long to import

    outcome = describe(plant_losses())

    accuracies = outcome.question.figures["accuracy"].score({}).set_index("estimator")
    ema = accuracies.loc["ema", ["low", "high"]].to_numpy(float)
    exact = accuracies.loc["exact", ["low", "high"]].to_numpy(float)
    assert exact.min() < ema.max(), "unpaired, nothing could be said"
    for found, values in ((ema, RUNNING), (exact, RUNNING + LOST)):
        expected = stats.t.interval(0.95, 4, 100 * values.mean(), 100 * stats.sem(values))
        np.testing.assert_allclose(found, expected)

    (lost,) = outcome.question.figures["accuracy_lost"].score({}).to_dict("records")
    test = stats.ttest_rel(RUNNING + LOST, RUNNING)
    interval = 100 * np.array(test.confidence_interval(0.95))
    assert interval[0] > 0
    np.testing.assert_allclose([lost["mean"], lost["low"], lost["high"]], [100 * LOST.mean(), *interval])
    assert lost["n"] == 5

    written = read_table(outcome).set_index("statistics")["accuracy lost (points)"]
    assert written.to_dict() == {EMA: format_number(6.6, *interval), EXACT: ""}


def test_the_page_says_what_accuracy_lost_is_where_it_was_measured(tmp_path: Path) -> None:
    tables = plant_losses()
    page = write_sweep(describe(tables), tmp_path)
    assert "Accuracy lost: percentage points of accuracy lost against exact statistics of the same weights." in page

    evaluations = select(tables["evaluations"], estimator="ema")
    without = describe({**tables, "evaluations": evaluations})
    assert [*without.question.figures] == ["gap", "accuracy"]
    assert "Accuracy lost" not in write_sweep(without, tmp_path)


def test_accuracy_lost_is_of_networks_with_both_statistics() -> None:
    tables = plant_losses(norm=("batch", "group"))
    evaluations = tables["evaluations"]
    is_exact = evaluations["estimator"] == "exact"
    is_left_out = (evaluations["run"] == "0/batch") & is_exact
    is_left_out |= (evaluations["run"] == "1/batch") & ~is_exact
    outcome = describe({**tables, "evaluations": evaluations[~is_left_out]})

    (lost,) = outcome.question.figures["accuracy_lost"].score({}).to_dict("records")
    assert lost["norm"] == "batch"
    assert lost["n"] == 3
    assert lost["mean"] == pytest.approx(100 * LOST[2:].mean())


@pytest.mark.parametrize(
    ("populations", "lost", "measured_on"),
    [
        ({"train": 0.9, "train_augmented": 0.8}, {"ema": 40, "exact": 10}, ""),
        ({"val": 0.7, "train_augmented": 0.8}, {"ema": 30}, ", measured on train_augmented"),
    ],
)
def test_accuracy_lost_is_against_the_training_images(
    populations: dict[str, float], lost: dict[str, float], measured_on: str
) -> None:
    tables = plant(momenta=(0.5,))
    exact = select(tables["evaluations"], estimator="exact")
    evaluations = [select(tables["evaluations"], estimator="ema")]
    for split, accuracy in populations.items():
        evaluations.append(exact.assign(statistics_split=split, accuracy=accuracy))
    figure = describe({**tables, "evaluations": pd.concat(evaluations)}).question.figures["accuracy_lost"]

    means = figure.score({}).set_index("estimator")["mean"]
    assert means.to_dict() == pytest.approx(lost)
    assert figure.caption == f"Against exact statistics of the same weights{measured_on}."


@pytest.mark.parametrize("swept", [{}, {"norm": ("batch", "ghost")}])
def test_zero_is_seen_where_losses_are_compared_with_it(swept: dict[str, Any], draw: Draw) -> None:
    tables = plant(momenta=(0.05,), **swept)
    drawn = draw(describe(tables).question.figures["accuracy_lost"], tables)

    (ax,) = drawn.axes
    low, high = ax.get_xlim()
    assert low < 0 < 5 < high
    assert {0.0, 0.3, 1.0, 3.0} <= {*ax.get_xticks()}


@pytest.mark.parametrize(
    ("values", "scale"), [((0.0, 1e-4, 1e-2), "symlog"), ((1e-4, 1e-3, 1e-2), "log"), ((-1.0, 0.0, 1.0), "linear")]
)
def test_a_swept_axis_has_a_place_for_zero(values: tuple[float, ...], scale: str, draw: Draw) -> None:
    tables = plant(optimizer__weight_decay=values)
    drawn = draw(describe(tables).question.figures["gap"], tables)

    (ax,) = drawn.axes
    assert ax.get_xscale() == scale
    assert ax.get_xlabel() == "weight decay"
    assert ax.get_xticks().tolist() == list(values)
    (line,) = ax.lines
    places = ax.transData.transform([(value, 0.1) for value in np.asarray(line.get_xdata(), float)])[:, 0]
    shares = (places - ax.bbox.x0) / ax.bbox.width
    assert (np.diff([0.0, *shares, 1.0]) > 0.01).all(), "no value runs into another, or into the frame"


@pytest.mark.parametrize("kind", [{"split": "val"}, {"shift": "noise:1"}, {"statistics_split": "train_augmented"}])
def test_other_images_have_panels_of_their_own(kind: dict[str, str]) -> None:
    tables = plant()
    evaluations = [tables["evaluations"], tables["evaluations"].assign(accuracy=0.0, **kind)]
    means = describe({**tables, "evaluations": pd.concat(evaluations)}).question.figures["accuracy"].score({})

    assert means["panel"].nunique() == 1
    assert sorted(means["mean"]) == [0, 0, 90, 100]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_condition_whose_networks_diverged_stands_in_the_table(status: str) -> None:
    """Between others, also where none of its networks was measured."""
    tables = plant(optimizer__lr=(0.1, 100.0, 200.0))
    runs = tables["runs"].assign(status=tables["runs"]["optimizer.lr"].map({100.0: status}).fillna("finished"))
    lost = runs.loc[runs["status"] == status, "run"]
    measured = {name: rows[~rows["run"].isin(lost)] for name, rows in tables.items()}
    table = read_table(describe({**measured, "runs": runs}))

    assert table["learning rate"].tolist() == ["0.1", "0.1", "100", "200", "200"]
    assert table.iloc[2].tolist() == ["100", "", status, status, status, 2]
    assert table["n"].tolist() == [2] * 5

    alone = describe({"runs": runs[runs["status"] == status]})
    assert f"Of these 2 {status}" in alone.networks
    assert not alone.question.figures
    assert read_table(alone).to_dict("records") == [{"statistics": "", "result": status, "n": 2}]


def test_rows_before_a_network_diverged_are_no_result() -> None:
    tables = plant(batch_size=(4, 32))
    status = (tables["runs"]["batch_size"] == 4).map({True: "diverged", False: "finished"})
    outcome = describe({**tables, "runs": tables["runs"].assign(status=status)})

    assert "Of these 2 diverged" in outcome.networks
    assert [*outcome.question.figures] == ["gap", "accuracy", "accuracy_lost"], "one step of each network is no course"
    assert read_table(outcome).iloc[0].tolist() == ["4", "", "diverged", "diverged", "diverged", 2]
    assert {*read_table(outcome)["statistics"][1:]} == {EMA, EXACT}


def test_a_mean_is_of_the_networks_that_did_not_diverge_and_says_so() -> None:
    tables = plant(seed=(0, 1, 2))
    table = read_table(describe({**tables, "runs": tables["runs"].assign(status=["finished", "finished", "diverged"])}))

    assert table["n"].tolist() == ["2 (1 diverged)", "2 (1 diverged)"]


def test_of_many_panels_the_first_are_drawn_and_it_is_said() -> None:
    outcome = describe(plant(momenta=(0.1, 0.5), batch_size=(4, 8, 16, 32), model__width=(1, 2, 3, 4)))
    accuracy = outcome.question.figures["accuracy"]

    assert accuracy.score({})["panel"].nunique() == 12
    assert "The first 12 of 16 panels are drawn" in accuracy.caption
    assert len(read_table(outcome)) == 3 * 16


def test_the_table_has_means_with_intervals_by_condition() -> None:
    table = read_table(describe(plant(batch_size=(4, 32))))

    measured = ["gap of the mean (σ)", "test accuracy (%)", "accuracy lost (points)"]
    assert [*table] == ["batch size", "statistics", *measured, "n"]
    assert table.iloc[1].tolist() == ["4", EXACT, "", "100.0 (the same for all seeds)", "", 2]
    assert table.iloc[2, :2].tolist() == ["32", EMA]
    assert str(table.iloc[2, 2]).startswith("0.10 [")


def test_the_table_tells_apart_on_what_statistics_were_measured_also_for_one_of_its_results() -> None:
    tables = plant(others=())
    others = tables["gaps"].assign(statistics_split="val", mean_gap=3 * tables["gaps"]["mean_gap"])
    table = read_table(describe({**tables, "gaps": pd.concat([tables["gaps"], others])}))

    assert len(table) == 2
    assert table["statistics split"].tolist() == ["train", "val"]


def test_a_condition_has_one_row_also_where_its_means_are_over_different_networks() -> None:
    tables = plant(seed=(0, 1, 2), batch_size=(4, 32))
    gaps = tables["gaps"]
    lacks_gap = gaps["run"].isin(["0/4", "1/4"])
    table = read_table(describe({**tables, "gaps": gaps[~lacks_gap]}))

    gap, accuracy = "gap of the mean (σ)", "test accuracy (%)"
    conditions = list(table[["batch size", "statistics"]].itertuples(index=False, name=None))
    assert conditions == [(size, name) for size in ("4", "32") for name in (EMA, EXACT)]
    assert table["n"].tolist() == [3] * 4
    assert table[gap].iloc[0] == "0.133 (n = 1)"  # momentum 0.1 · 1.1³ of seed 2
    assert "n =" not in " ".join([*table[accuracy], *table[gap].iloc[1:]])


def test_names_are_no_html(tmp_path: Path) -> None:
    outcome = describe(plant())
    page = write_sweep(outcome, tmp_path / "<img src=x>")

    assert "<img src=x>" not in page
    assert "<h1>&lt;img src=x&gt;</h1>" in page


def test_where_nothing_was_measured_that_is_said() -> None:
    tables = plant()
    for empty in ({name: rows[:0] for name, rows in tables.items()}, {"runs": tables["runs"]}):
        with pytest.raises(NoRows, match="measurements="):
            describe(empty)


def plant_own(**swept: tuple[Any, ...]) -> tuple[dict[str, pd.DataFrame], dict[str, OwnTable]]:
    """Networks with a table of the user's own alone: `size` is the batch size plus the seed, ten times at step 10."""
    runs = plant(**swept)["runs"]
    rows = []
    for run in runs.to_dict("records"):
        size = run["batch_size"] + run["seed"]
        rows += [{"run": run["run"], "step": step, "size": size * step / 10, "words": "x"} for step in (1, 10)]
    described = OwnTable(["run", "step"], {"size": "of all weights"})
    return {"runs": runs, "mine": pd.DataFrame(rows)}, {"mine": described}


def test_a_table_of_the_users_own_has_lines_over_the_training_and_means_at_its_end() -> None:
    from scipy import stats

    tables, own = plant_own(batch_size=(4, 32))
    outcome = describe(tables, own)

    half = stats.t.ppf(0.975, 1) * 0.5  # the standard error of k and k + 1
    means = outcome.question.figures["mine_size_training"].score({}).set_index(["line", "epoch"])["mean"]
    assert means.to_dict() == {
        ("batch size 4", 0.2): pytest.approx(0.45),
        ("batch size 4", 2.0): pytest.approx(4.5),
        ("batch size 32", 0.2): pytest.approx(3.25),
        ("batch size 32", 2.0): pytest.approx(32.5),
    }
    assert [*outcome.question.figures] == ["mine_size", "mine_size_training"]
    assert outcome.question.figures["mine_size"].caption == "`size`: of all weights."
    assert outcome.means is not None
    assert [*outcome.means] == ["mine"]
    expected = [["4", format_number(4.5, 4.5 - half, 4.5 + half), 2]]
    assert [*read_table(outcome, "mine")] == ["batch size", "mine: size", "n"]
    assert read_table(outcome, "mine").values.tolist()[:1] == expected


def test_what_the_key_of_a_table_of_the_users_own_tells_apart_is_never_averaged() -> None:
    """A layer is as a setting; an estimator has its words."""
    tables, _ = plant_own()
    last = tables["mine"].query("step == 10")
    rows = []
    for layer, estimator in itertools.product("ab", ("ema", "exact")):
        factor = 1 + (layer == "b") + 2 * (estimator == "exact")
        momentum = 0.1 if estimator == "ema" else math.nan
        rows.append(last.assign(layer=layer, estimator=estimator, momentum=momentum, size=factor * last["size"]))
    key = ["run", "step", "estimator", "momentum", "layer"]
    outcome = describe({**tables, "mine": pd.concat(rows)}, {"mine": OwnTable(key, {"size": "of all weights"})})

    table = read_table(outcome, "mine")
    assert table[["layer", "statistics"]].values.tolist() == [["a", EMA], ["a", EXACT], ["b", EMA], ["b", EXACT]]
    means = [float(words.split(" ")[0]) for words in table["mine: size"]]
    assert means == pytest.approx([32.5, 97.5, 65.0, 130.0], rel=0.02)
    assert [*outcome.question.figures] == ["mine_size"]


def test_a_table_of_the_users_own_may_have_a_column_line() -> None:
    tables, _ = plant_own(batch_size=(4, 8))
    last = tables["mine"].query("step == 10")
    rows = [last.assign(part=part, line=line) for part, line in itertools.product("ab", ("first", "second"))]
    described = OwnTable(["run", "step", "part", "line"], {"size": "of all weights"})
    outcome = describe({**tables, "mine": pd.concat(rows)}, {"mine": described})

    named = outcome.question.figures["mine_size"].score({})
    assert sorted(named["panel"].unique()) == ["first", "second"]
    assert sorted(named["line"].unique()) == ["part a", "part b"]


def test_the_page_of_a_sweep_with_a_table_of_the_users_own_alone(tmp_path: Path) -> None:
    tables, own = plant_own()
    outcome = describe(tables, own)
    from bnlab.harness.reporting import drawing  # which takes long to import

    drawn = {
        name: drawing.write(name, each, tables, tmp_path / "figures") for name, each in outcome.question.figures.items()
    }

    page = write_sweep(replace(outcome, question=replace(outcome.question, figures=drawn)), tmp_path)

    assert "<h3>The table mine</h3>" in page
    assert "<th>mine: size</th>" in page
    assert "gap of the mean" not in page
    assert page.count("data:image/png;base64,") == 1


def ask(asked: FigureRequest, **swept: Any) -> Outcome:
    return make_asked("trial", LoadedTables(plant(**swept)), asked)


def test_a_figure_is_laid_out_as_asked() -> None:
    asked = FigureRequest(x="momentum", colour="estimator", panels=["layer"], where={"batch_size": 4})
    outcome = ask(asked, momenta=(0.1, 0.2), others=("cumulative", "exact"), **SIZES)

    points = outcome.read_figure("gap_by_momentum_estimator_layer")
    assert [*points["panel"].unique()] == ["layer l1", "layer l2", "layer l3"]
    means = points.set_index(["panel", "estimator", "momentum"])["mean"]
    assert means["layer l1", "ema", 0.2] == pytest.approx(0.1)
    assert means["layer l2", "ema", 0.2] == pytest.approx(0.2)
    assert read_table(outcome, "gap_by_momentum_estimator_layer")["n"].tolist() == [2] * 9
    assert [*outcome.question.figures] == ["gap_by_momentum_estimator_layer"], "accuracies have no layers"


def test_what_is_told_apart_by_nothing_that_was_asked_has_panels() -> None:
    outcome = ask(FigureRequest(x="batch_size", colour="norm"), norm=("batch", "ghost"), momenta=(0.1, 0.2), **SIZES)

    panels = outcome.read_figure("gap_by_batch_size_norm")["panel"].unique()
    assert [*panels] == [EMA, "running average (momentum 0.2)"]


def test_versus_is_a_difference_within_each_network() -> None:
    asked = FigureRequest(value="accuracy", x="batch_size", against="ema")
    outcome = ask(asked, others=("cumulative", "exact"), **SIZES)

    points = outcome.read_figure("accuracy_by_batch_size_versus_ema")
    assert points["mean"].tolist() == pytest.approx([10] * 4), "100 under both, less 90"
    assert points["low"].isna().all()
    (figure,) = outcome.question.figures.values()
    assert figure.title.endswith("difference to running average")


def test_versus_a_value_of_a_setting_is_a_difference_within_each_seed() -> None:
    asked = FigureRequest(x="batch_size", against="batch", along="norm", where={"norm": "ghost"})
    points = ask(asked, norm=("batch", "ghost"), **SIZES).read_figure("gap_by_batch_size_versus_batch")

    assert points["mean"].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert points["n"].tolist() == [2, 2]


def test_colours_are_those_that_were_given(draw: Draw) -> None:
    asked = FigureRequest(x="batch_size", colour="norm", colours={"ghost": "black"})
    tables = plant(norm=("batch", "ghost"), batch_size=(4, 32))
    figures = make_asked("trial", LoadedTables(tables), asked).question.figures

    drawn = draw(figures["gap_by_batch_size_norm"], tables)

    (legend,) = drawn.legends
    colours = {
        text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert colours["norm ghost"] == "black"
    assert colours["norm batch"] != "black"


def test_names_and_their_order_are_those_that_were_given() -> None:
    names = {"norm": {"ghost": "parts", "batch": "whole batches"}}
    asked = FigureRequest(x="batch_size", colour="norm", names=names, title="As said", y_label="gap")
    outcome = ask(asked, norm=("batch", "ghost"), **SIZES)

    assert [*outcome.read_figure("gap_by_batch_size_norm")["line"].unique()] == ["parts", "whole batches"]
    assert outcome.question.figures["gap_by_batch_size_norm"].title == "As said"


def test_a_setting_of_a_component_is_named_with_it() -> None:
    """Batch renorm has a momentum that batch norm has not: both stand in one panel, and are compared."""
    tables = plant(norm=("batch", "renorm"), batch_size=(4, 32))
    momentum = (tables["runs"]["norm"] == "renorm").map({True: 0.1, False: math.nan})
    # Another one, so that it does not follow from the norm.
    momentum = momentum.mask((tables["runs"]["norm"] == "renorm") & (tables["runs"]["batch_size"] == 4), 0.2)
    sweep = LoadedTables({**tables, "runs": tables["runs"].assign(**{"norm.momentum": momentum})})

    drawn = make_asked("trial", sweep, FigureRequest(x="batch_size", colour="norm")).read_figure(
        "gap_by_batch_size_norm"
    )
    assert {*drawn["panel"]} == {""}
    assert {*drawn["line"]} == {"norm batch", "norm renorm, norm.momentum 0.1", "norm renorm, norm.momentum 0.2"}

    across = make_asked("trial", sweep, FigureRequest(x="norm.momentum", colour="norm", panels=["batch_size"]))
    assert {*across.read_figure("gap_by_norm_momentum_norm_batch_size")["line"]} == {"norm batch", "norm renorm"}

    asked = FigureRequest(x="batch_size", colour="norm", against="batch", along="norm")
    versus = make_asked("trial", sweep, asked)
    assert versus.read_figure("gap_by_batch_size_norm_versus_batch")["n"].tolist() == [2, 2]


def test_a_table_of_the_users_own_is_drawn_as_asked() -> None:
    tables, own = plant_own(batch_size=(4, 32))
    outcome = make_asked("trial", LoadedTables(tables, own=own), FigureRequest(value="size", x="batch_size"))

    assert outcome.read_figure("mine_size_by_batch_size")["mean"].tolist() == [4.5, 32.5]


@pytest.mark.parametrize(("at", "accuracies"), [([0.5], [90]), ([0.5, 1.0], [90, 90]), ([], [90])])
def test_shares_of_the_training(at: list[float], accuracies: list[float]) -> None:
    asked = FigureRequest(value="accuracy", x="batch_size", at=at, where={"estimator": "ema", "batch_size": 4})
    points = ask(asked, steps=(5, 10), **SIZES).read_figure("accuracy_by_batch_size")

    assert points["mean"].tolist() == pytest.approx(accuracies)
    assert len(points[["panel", "line"]].drop_duplicates()) == len(accuracies)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (FigureRequest(x="momentun"), "no column 'momentun'.*momentum"),
        (FigureRequest(value="acuracy"), "acuracy.*accuracy"),
        (FigureRequest(x="batch_size", where={"batch_size": 7}), "no batch_size 7: there are 4, 32"),
        (FigureRequest(value="accuracy", panels=["layer"]), "no column 'layer'"),
        (FigureRequest(value="accuracy", at=[0.3]), "at=0.3: 4 of 4 networks have no step near it; these have 1"),
    ],
)
def test_what_there_is_not_is_said(asked: FigureRequest, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(asked, **SIZES)


def test_what_the_gap_costs() -> None:
    tables = plant(momenta=(0.1, 0.2), batch_size=(4, 32))
    dots = describe(tables).question.figures["cost"].score({})

    assert len(dots) == 8
    np.testing.assert_allclose(dots["mean"], 100 * dots["momentum"])
    assert (dots["gap"] > dots["momentum"] / 1.2).all()
