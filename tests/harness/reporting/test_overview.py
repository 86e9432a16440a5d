"""Figures of any sweep, of tables with planted effects: what is found to be swept, and where it is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Drawn

from bnlab.harness.errors import NoRows
from bnlab.harness.reporting import drawing, style
from bnlab.harness.reporting.experiment import Tables
from bnlab.harness.reporting.overview import Overview, make_overview
from bnlab.harness.reporting.plots import Curves, Forest
from bnlab.harness.reporting.swept import find_swept
from bnlab.harness.small_batches import ADVICE

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with style.made_for(style.PAGE):
        yield
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

    The gap is 0.5 · momentum in the first layer, and width · momentum · 1.1^(±1) for seeds 0 and 1 in all others, where
    width is 1 if it was not swept; cumulative has 0.5 there. Accuracy is 1 − momentum, and 1 under other statistics.
    """
    settings = {key.replace("__", "."): values for key, values in {"seed": (0, 1), **swept}.items()}
    runs = []
    gaps = []
    evaluations = []
    for values in itertools.product(*settings.values()):
        chosen: dict[str, Any] = {
            "data": "digits",
            "norm": "batch",
            "batch_size": 32,
            "epochs": 2.0,
            "steps": 10,
            "status": "finished",
        }
        chosen |= dict(zip(settings, values, strict=True))
        run = {**chosen, "run": "/".join(map(str, values))}
        runs.append(run)
        sources = [("ema", momentum) for momentum in momenta] + [(name, None) for name in others]
        for step, (name, momentum) in itertools.product(steps, sources):
            share = {"run": run["run"], "step": step, "epoch": step / 5, "estimator": name, "momentum": momentum}
            place = {**share, "statistics_split": "train"}
            lost = momentum or 0.0
            evaluations.append({**place, "split": "test", "shift": "none", "accuracy": 1 - lost})
            for depth in depths:
                spread = 1.1 ** (2 * run["seed"] - 1)
                behind = (momentum * spread if momentum else 0.5) * chosen.get("model.width", 1)
                gap = behind if depth > 1 else 0.5 * (momentum or 0)
                gaps.append({**place, "layer": f"l{depth}", "depth": depth, "mean_gap": gap})
    tables = {"runs": runs, "gaps": gaps, "evaluations": evaluations}
    frames = {name: pd.DataFrame(rows) for name, rows in tables.items()}
    return {name: frame if name == "runs" else frame.astype({"momentum": float}) for name, frame in frames.items()}


def draw(overview: Overview, name: str) -> Drawn:
    drawn = drawing.draw(name, overview.experiment.figures[name], overview.swept.tables)
    drawn.canvas.draw()
    return drawn


def list_panels(drawn: Drawn) -> list[str]:
    return [ax.get_title() for ax in drawn.axes if ax.axison]


def list_names(drawn: Drawn) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def read_caption(overview: Overview, name: str) -> str:
    return overview.experiment.figures[name].caption


def test_momenta_are_across_estimators_in_colours_and_settings_in_panels() -> None:
    tables = plant(momenta=(0.01, 0.1, 0.5), others=("cumulative", "exact"), batch_size=(4, 32), model__width=(8, 16))
    overview = make_overview("g", tables)

    assert [*overview.experiment.figures] == ["gap", "accuracy"], "one step was measured"

    gap = draw(overview, "gap")
    panels = ["batch size 4, width 8", "batch size 4, width 16", "batch size 32, width 8", "batch size 32, width 16"]
    assert list_panels(gap) == panels
    assert list_names(gap) == ["average of all batches", "EMA"], "exact statistics have no gap"
    assert list_names(draw(overview, "accuracy")) == ["average of all batches", "EMA", "exact population"]
    assert "statistics without momentum" in read_caption(overview, "gap")
    assert overview.swept.list_swept() == {
        "batch size": "4, 32",
        "width": "8, 16",
        "seed": "0, 1",
        "momentum": "0.01, 0.1, 0.5",
        "statistics": "EMA, average of all batches, exact population",
    }


def test_a_gap_is_the_mean_over_the_layers_behind_the_first() -> None:
    overview = make_overview("g", plant(momenta=(0.1, 0.2)))
    means = overview.experiment.figures["gap"].score({})
    np.testing.assert_allclose(means["mean"], [0.1, 0.2])  # geometric over seeds; the first layer has a half
    assert means["n"].tolist() == [2, 2]
    assert means["low"].notna().all()

    alone = make_overview("g", plant(momenta=(0.1, 0.2), depths=(1,)))
    np.testing.assert_allclose(alone.experiment.figures["gap"].score({})["mean"], [0.05, 0.1])
    assert "of networks with a single layer, that one" in read_caption(alone, "gap")


def test_a_number_is_across_where_momentum_was_not_swept() -> None:
    overview = make_overview("g", plant(norm=("batch", "ghost"), model__width=(8, 16, 1000)))
    gap = overview.experiment.figures["gap"]

    assert isinstance(gap.plot, Curves)
    assert gap.plot.x == "model.width"
    assert gap.plot.by == "line"

    drawn = draw(overview, "gap")
    assert list_names(drawn) == ["norm batch", "norm ghost"]
    assert "Statistics: EMA (momentum 0.1)." in gap.caption

    (ax,) = drawn.axes
    assert ax.get_xlabel() == "width"
    assert ax.get_xscale() == "log"

    accuracy = draw(overview, "accuracy")
    assert list_panels(accuracy) == ["norm batch", "norm ghost"]
    assert list_names(accuracy) == ["EMA (momentum 0.1)", "exact population"]


def test_numbers_that_cannot_be_told_apart_on_an_axis_are_words() -> None:
    overview = make_overview("g", plant(optimizer__lr=(0.0, 0.0001, 0.1)))
    (ax,) = draw(overview, "gap").axes

    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.0001", "0.1"]
    assert ax.get_xlabel() == "learning rate"


def test_words_stand_one_below_the_other() -> None:
    overview = make_overview("g", plant(norm=("batch", "ghost")))

    assert isinstance(overview.experiment.figures["accuracy"].plot, Forest)

    (ax,) = draw(overview, "accuracy").axes
    names = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    assert names == [
        f"norm {norm}: {words}" for norm in ("batch", "ghost") for words in ("EMA (momentum 0.1)", "exact population")
    ]


def test_over_the_training_all_settings_are_told_apart() -> None:
    overview = make_overview("g", plant(momenta=(0.1, 0.5), steps=(1, 5, 10), epochs=(2.0, 4.0)))

    assert [*overview.experiment.figures] == ["gap", "gap_training", "accuracy", "accuracy_training"]

    drawn = draw(overview, "gap_training")
    assert list_panels(drawn) == ["epochs 2", "epochs 4"]
    assert list_names(drawn) == ["EMA (momentum 0.1)", "EMA (momentum 0.5)"]

    at_the_end = draw(overview, "gap")
    assert list_names(at_the_end) == ["epochs 2", "epochs 4"]


def test_of_many_momenta_some_are_drawn_over_the_training() -> None:
    momenta = tuple(round(0.01 * 1.5**k, 4) for k in range(12))
    overview = make_overview("g", plant(momenta=momenta, steps=(5, 10)))
    drawn = draw(overview, "gap_training")
    names = list_names(drawn)

    assert len(names) == 6
    assert names[0] == "EMA (momentum 0.01)"
    assert f"{momenta[-1]:g}" in names[-1]
    assert "Over the training 6 of 12 momenta are drawn." in overview.notes


def test_lengths_in_steps_are_told_apart_by_steps() -> None:
    tables = plant(steps=(7,), batch_size=(4, 32))
    length = tables["runs"]["batch_size"].map({4: 0.7, 32: 5.6})
    same = {**tables, "runs": tables["runs"].assign(steps=7, epochs=length)}

    assert find_swept(same).settings == ["batch_size"]

    steps = tables["runs"]["seed"].map({0: 7, 1: 70})
    other = {**tables, "runs": tables["runs"].assign(steps=steps, epochs=steps * length)}
    assert find_swept(other).settings == ["batch_size", "steps"]


def test_settings_of_ones_own_are_settings() -> None:
    """Lists and truth values too."""
    swept = find_swept(plant(model__sizes=([8, 1], [8, 2]), model__deep=(True,)))

    assert swept.settings == ["model.sizes"]
    assert swept.list_swept()["sizes"] == "8, 1, 8, 2"
    assert swept.list_shared()["model.deep"] == "yes"


def test_what_follows_from_a_setting_is_no_panel() -> None:
    tables = plant(batch_size=(4, 32, 256))
    size = tables["runs"]["batch_size"]
    lr = size / 256
    groups = size.map({4: 8.0, 32: np.nan, 256: np.nan})
    runs = tables["runs"].assign(**{"optimizer.lr": lr, "norm.groups": groups})
    overview = make_overview("g", {**tables, "runs": runs})

    assert overview.swept.settings == ["batch_size"]
    assert overview.swept.companions == {"optimizer.lr": "batch_size"}
    assert "optimizer.lr differs together with batch_size." in overview.notes


def test_networks_without_batch_norm_have_accuracies_only() -> None:
    tables = plant(momenta=(), others=("none",), norm=("group",), norm__groups=(2, 4, 8))
    overview = make_overview("g", {**tables, "gaps": tables["gaps"][:0]})

    assert [*overview.experiment.figures] == ["accuracy"]
    assert list_names(draw(overview, "accuracy")) == ["without batch norm"]
    assert "gap of the mean (σ)" not in overview.table


def test_some_networks_without_batch_norm_are_levels() -> None:
    tables = plant(momenta=(0.1, 0.5), norm=("batch", "group"))
    group = tables["runs"].loc[tables["runs"]["norm"] == "group", "run"]
    evaluations = tables["evaluations"]
    is_group = evaluations["run"].isin(group)
    kept = evaluations[~is_group | (evaluations["estimator"] == "exact")]
    kept = kept.assign(estimator=kept["estimator"].mask(kept["run"].isin(group), "none"))
    gaps = tables["gaps"][~tables["gaps"]["run"].isin(group)]
    overview = make_overview("g", {**tables, "evaluations": kept, "gaps": gaps})

    assert list_panels(draw(overview, "gap")) == [""]

    accuracy = draw(overview, "accuracy")
    assert list_panels(accuracy) == ["norm batch", "norm group"]
    assert list_names(accuracy) == ["EMA", "exact population", "without batch norm"]

    left, right = accuracy.axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xlim()[0] < 0.1
    assert left.get_xlim()[1] < 1


def test_one_seed_has_no_interval_and_the_caption_says_so() -> None:
    overview = make_overview("g", plant(seed=(0,), momenta=(0.1, 0.2)))

    assert "What is of one seed has no interval." in read_caption(overview, "gap")
    assert overview.table["gap of the mean (σ)"].tolist() == ["0.0909", "0.182", ""]

    draw(overview, "gap")


def test_diverged_networks_are_said_and_have_the_rows_that_there_are() -> None:
    tables = plant(momenta=(0.1, 0.5), steps=(5, 10))
    runs = tables["runs"].assign(status=["finished", "diverged"])
    diverged = runs["run"].iloc[1]
    left = {
        name: rows[(rows["run"] != diverged) | (rows["step"] < 10)] for name, rows in tables.items() if name != "runs"
    }
    overview = make_overview("g", {"runs": runs, **left})

    assert overview.notes[0] == "2 networks, 2 seeds. Of these 1 diverged: means are of the rows that there are."
    assert {*overview.table["n"]} == {"1"}

    early = overview.experiment.figures["gap_training"].score({})
    assert early.groupby("epoch")["n"].first().to_dict() == {1.0: 2, 2.0: 1}


def test_of_many_panels_the_first_are_drawn_and_it_is_said() -> None:
    overview = make_overview("g", plant(momenta=(0.1, 0.5), batch_size=(4, 8, 16, 32), model__width=(1, 2, 3, 4)))
    accuracy = draw(overview, "accuracy")

    assert len(list_panels(accuracy)) == 12
    assert list_panels(accuracy)[-1] == "batch size 16, width 4"
    assert "The first 12 of 16 panels are drawn." in read_caption(overview, "accuracy")
    assert any("of 16 panels 12 are drawn, up to batch size 16, width 4" in note for note in overview.notes)
    assert "sweep fewer values under another name" in overview.notes[-1]
    assert len(overview.table) == 3 * 16


def test_the_table_has_means_with_intervals_by_condition() -> None:
    tables = plant(momenta=(0.1,), batch_size=(4, 32))

    table = make_overview("g", tables).table

    assert [*table] == ["batch size", "statistics", "gap of the mean (σ)", "test accuracy (%)", "n"]
    assert table.iloc[1].tolist() == ["4", "exact population", "", "100.000 [100.000, 100.000]", "2"]

    *words, gap, _, _ = table.iloc[2].tolist()
    assert words == ["32", "EMA (momentum 0.1)"]
    assert gap.startswith("0.10 [")


def test_only_what_was_predicted_on_test_images_as_they_are_is_drawn() -> None:
    tables = plant(momenta=(0.1, 0.5))
    evaluations = tables["evaluations"]
    others = [
        evaluations.assign(split="val"),
        evaluations.assign(shift="noise:1"),
    ]
    worse = pd.concat(others).assign(accuracy=0.0)
    overview = make_overview("g", {**tables, "evaluations": pd.concat([worse, evaluations], ignore_index=True)})

    assert overview.experiment.figures["accuracy"].score({})["mean"].tolist() == [90.0, 50.0, 100.0]
    assert [note.partition(" has rows of ")[2] for note in overview.notes[1:]] == [
        "split test, val; one is drawn.",
        "shift noise:1, none; one is drawn.",
    ]


def test_statistics_of_other_images_have_lines_of_their_own() -> None:
    tables = plant(momenta=(0.1,))
    evaluations = tables["evaluations"]
    exact = evaluations[evaluations["estimator"] == "exact"]
    augmented = exact.assign(statistics_split="train_augmented", accuracy=0.25)
    both = pd.concat([evaluations, augmented], ignore_index=True)

    overview = make_overview("g", {**tables, "evaluations": both})

    means = overview.experiment.figures["accuracy"].score({}).set_index("line")["mean"]
    assert means["exact population (train_augmented)"] == 25.0
    assert means["exact population"] == 100.0


def test_where_nothing_was_measured_that_is_said() -> None:
    tables = plant()
    nothing: list[Tables] = [{}, {name: rows[:0] for name, rows in tables.items()}, {"runs": tables["runs"]}]
    for empty in nothing:
        with pytest.raises(NoRows, match="measurements="):
            make_overview("g", empty)


def test_diverged_networks_are_named_by_their_settings() -> None:
    tables = plant(optimizer__lr=(0.1, 100.0))
    status = tables["runs"]["optimizer.lr"].map({0.1: "finished", 100.0: "diverged"})
    runs = tables["runs"].assign(status=status)
    overview = make_overview("g", {**tables, "runs": runs})

    assert overview.notes[1] == "Diverged: learning rate 100."
    assert set(overview.table["learning rate"]) == {"0.1"}


def test_a_setting_that_some_networks_do_not_read_is_a_level() -> None:
    overview = make_overview("g", plant(norm__groups=(4.0, np.nan)))
    drawn = draw(overview, "gap")

    assert "networks without groups" in read_caption(overview, "gap")

    (ax,) = drawn.axes
    assert ax.get_xlabel() == "groups"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4"]


def test_a_small_last_batch_of_an_epoch_is_said() -> None:
    """Of 10,000 images 9,000 are trained on: 40 are left by batches of 128 and 256, 808 by those of 1024."""
    tables = plant(batch_size=(128, 256, 1024), last_batch=("keep", "drop"))
    runs = tables["runs"].assign(**{"data.images": 10_000, "norm_batch_size": 128, "steps": 500})

    overview = make_overview("g", {**tables, "runs": runs})

    said = f"The last batch of an epoch had 40 images of 128, 40 images of 256, {ADVICE}."
    assert [note for note in overview.notes if "last batch" in note] == [said]

    without_column = runs[runs["last_batch"] == "keep"].drop(columns="last_batch")
    assert said in make_overview("g", {**tables, "runs": without_column}).notes


@pytest.mark.parametrize(
    "changes", [{"last_batch": "drop"}, {"norm_batch_size": np.nan}, {"steps": 35}, {"data.images": 9956}]
)
def test_other_last_batches_are_not_said(changes: dict[str, Any]) -> None:
    """Of 9,956 images 8,961 are trained on, one more than 35 batches of 256."""
    tables = plant(batch_size=(256,))
    usual = {"data.images": 10_000, "norm_batch_size": 256, "steps": 500, "last_batch": "keep"}
    runs = tables["runs"].assign(**{**usual, **changes})

    overview = make_overview("g", {**tables, "runs": runs})

    assert not any("last batch" in note for note in overview.notes)
