"""A user's own code by import path: trained, measured, told apart by its code; arguments are settings; mistakes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bnlab
from bnlab.estimators import list_estimators
from bnlab.harness import load, load_images, load_model
from bnlab.harness.reporting.wording import format_number
from tests.experiments.commands import Call, Write, run

MODULE = """
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from bnlab.estimators import Estimator
from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real


def make_model(
    channels, image_size, classes, width=4, dropout: float = 0.0, kind="plain", sizes=(3,), act=nn.ReLU, note=None
):
    layers = [nn.Conv2d(channels, width, sizes[0]), nn.BatchNorm2d(width), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, classes))


def make_wide(channels, image_size, classes, *, width):
    return make_model(channels, image_size, classes, width)


def make_lazy(channels, image_size, classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(classes))


def clashes(channels, image_size, classes, name="a"):
    return make_model(channels, image_size, classes)


def make_data(root, noise=0.0, size=8):
    draw = np.random.default_rng(0)
    parts = [(draw.integers(0, 256, (n, 3, size, size), dtype=np.uint8), np.arange(n) % 3) for n in (40, 12)]
    parts[0][0][:, 0] += np.uint8(noise)
    return parts


class Centered(nn.BatchNorm2d):
    def __init__(self, channels, gain: float = 1.0):
        super().__init__(channels)
        self.gain = gain

    def forward(self, x):
        return self.gain * super().forward(x)


class Squared(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x * x)


def make_squares(channels, image_size, classes):
    layers = [nn.Conv2d(channels, 4, 3), Squared(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, classes))


class Auxiliary(nn.Module):
    def __init__(self, channels, classes, always=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.LazyLinear(classes))
        self.head = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(classes))

    def forward(self, x):
        x = self.body(x)
        return self.head(x) + 0.3 * self.aux(x) if self.training else self.head(x)


def make_auxiliary(channels, image_size, classes):
    model = Auxiliary(channels, classes)
    model(torch.zeros(2, channels, image_size, image_size))
    return model


SHARED = nn.Linear(4, 4)


def make_shared(channels, image_size, classes):
    body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, SHARED, nn.Linear(4, classes))


class Fading(nn.Sequential):
    alpha = 0.0

    def forward(self, x):
        if self.training:
            self.alpha += 0.5
        return self.alpha * super().forward(x)


def make_fading(channels, image_size, classes):
    return Fading(*make_shared(channels, image_size, classes)[0], nn.Linear(4, classes))


class Standardizing(nn.Sequential):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def make_standardizing(channels, image_size, classes):
    return Standardizing(*make_shared(channels, image_size, classes)[0], nn.Linear(4, classes))


class HeadFirst(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(x))


def make_head_first(channels, image_size, classes):
    return HeadFirst(channels, classes)


class Unused(nn.Sequential):
    def forward(self, x):
        return self[2](x.flatten(1)) + (self[1](self[0](x)).mean() if self.training else 0)


def make_unused(channels, image_size, classes):
    features = channels * image_size**2
    return Unused(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Linear(features, classes))


class Pair(nn.Sequential):
    late = False

    def forward(self, x):
        x = super().forward(x)
        return x if self.late and self.training else (x, x)


def make_pair(channels, image_size, classes):
    return Pair(*make_model(channels, image_size, classes))


def make_spoilt(*arguments):
    model = make_model(*arguments)
    nn.init.constant_(model[-1].bias, float("nan"))
    return model


def make_group_norm(channels, groups=2):
    return nn.GroupNorm(groups, channels)


@dataclass(frozen=True)
class Half(Estimator):
    name: ClassVar[str] = "half"

    def gains(self, stream):
        return torch.full((len(stream),), 0.5, dtype=torch.float64)


class Slow(Half):
    name: ClassVar[str] = "slow"
    weight: float = 0.5


@dataclass
class Largest(Measurement):
    name: str = "largest_weights"
    table: ClassVar[Table] = Table("The largest weights.", common("run step"), {"largest": real("of all weights")})

    def scope(self, run, sources):
        return {None: run.measured_steps}

    def measure(self, run, sources, steps):
        rows = []
        for step in steps:
            largest = max(weight.abs().max().item() for weight in run.model_at(step).parameters())
            rows.append({"run": run.id, "step": step, "largest": largest})
        return pd.DataFrame(rows)


@dataclass
class SameTable(Largest):
    pass


@dataclass
class TooFar(Largest):
    name: str = "too_far"
    read: ClassVar[int] = 100

    def reads(self, run, subjects):
        return [self.read]


@dataclass
@dataclass
class OfEstimators(Measurement):
    name: str = "of_estimators"
    table: ClassVar[Table] = Table("A row of each.", common("run step estimator"), {"size": real("of its name")})

    def scope(self, run, subjects):
        return {subject: run.measured_steps for subject in subjects}

    def measure(self, run, subjects, steps):
        rows = [{"estimator": each.label, "step": step, "size": 3.0} for each in subjects for step in steps]
        return pd.DataFrame(rows)


@dataclass
class OfMomentum(Measurement):
    name: str = "of_momentum"
    table: ClassVar[Table] = Table("The optimizer's.", common("run step"), {"momentum": real("of the optimizer")})

    def measure(self, run, subjects, steps):
        return pd.DataFrame([{"step": at, "momentum": 0.9} for at in steps])


@dataclass
class Untold(OfEstimators):
    name: str = "untold"
    table: ClassVar[Table] = Table("Of which?", common("run step"), {"size": real("of its name")})
"""
ALL = ("model=mine.make_model", "data=mine.make_data", "estimator=[ema,mine.Half,exact]")
SMALL = ("steps=4", "batch_size=12", "evaluate_at=final", "hydra/launcher=basic")
MEASURED = "measurements=[gaps,mine.Largest]"


@pytest.fixture
def mine(write: Write) -> Iterator[None]:
    """The module `mine`, whose estimators are none after the test."""
    write(MODULE)
    yield
    for name, cls in list_estimators().items():
        if cls.__module__ == "mine":
            cls.name = f"forgotten {name} {id(cls)}"


def sweep(call: Call, results: Path, *words: str) -> str:
    """Sweep with these words beside or instead of the usual ones, and return what the command has printed."""
    by_key = {word.partition("=")[0]: word for word in (*SMALL, *words)}
    code, out, err = call("sweep", *by_key.values(), f"results={results}")
    assert code == 0, err
    return out


@pytest.mark.usefixtures("no_pictures")
def test_all_of_them(mine: None, call: Call, tmp_path: Path) -> None:
    of_a_question = "experiments.questions.streams.last_batches.LastBatches"
    sweep(call, tmp_path, *ALL, f"measurements=[gaps,mine.Largest,{of_a_question}]", "momentum=0.5")

    tables = load("adhoc", tmp_path)
    assert [*tables.own] == ["largest_weights"]  # and not the other one, although it has rows of an estimator of theirs
    (row,) = tables["runs"].to_dict("records")
    assert (row["data"], row["model"], row["status"]) == ("mine.make_data", "mine.make_model", "finished")

    gaps = tables["gaps"].set_index("estimator")["mean_gap"]
    assert list(gaps[["half"]]) == list(gaps[["ema"]])
    assert not gaps[["exact"]].any()

    (measured,) = tables["largest_weights"].to_dict("records")
    model = load_model("adhoc", row["run"], results=tmp_path)
    assert measured["largest"] == max(weight.abs().max().item() for weight in model.parameters())

    written = format_number(measured["largest"], math.nan, math.nan)
    assert written in call("report", "name=adhoc", f"results={tmp_path}").out
    page = (tmp_path / "adhoc" / "report.html").read_text(encoding="utf-8")
    assert "<h3>The table largest_weights</h3>" in page
    assert "<code>largest</code>: of all weights." in page
    (tmp_path / "adhoc" / "tables" / "records.json").unlink()  # so that the tables are put together again
    call("report", "name=adhoc", f"results={tmp_path}")
    assert (tmp_path / "adhoc" / "report.html").read_text(encoding="utf-8") == page


def test_tables_that_have_other_columns_than_ours_keep_their_rows(mine: None, call: Call, tmp_path: Path) -> None:
    """One tells estimators apart without a momentum, and one is of no estimators and has a column of this name."""
    words = ("momentum=0.5", "measurements=[mine.OfEstimators,mine.OfMomentum]")

    sweep(call, tmp_path, *ALL, *words)

    tables = load("adhoc", tmp_path)
    assert sorted(tables["of_estimators"]["estimator"]) == ["ema", "exact", "half"]
    assert [*tables["of_momentum"]["momentum"]] == [0.9]

    _, out, _ = call("sweep", *SMALL, *ALL, *words, f"results={tmp_path}", "dry_run=true")
    assert "all trained and measured" in out


def test_a_checkpoint_that_no_training_leaves_fails_the_job(mine: None, call: Call, tmp_path: Path) -> None:
    """Without training again and again for it."""
    words = (*SMALL, "model=mine.make_model", "measurements=mine.TooFar", f"results={tmp_path}")

    code, _, err = call("sweep", *words)

    assert code == 1
    assert "a checkpoint of step 100 is asked for, but the training has steps 0 to 4" in err
    assert "run.measured_steps" in err


def test_a_network_that_diverges_at_its_first_batch_has_no_rows_and_is_not_trained_again(
    mine: None, call: Call, tmp_path: Path
) -> None:
    words = (*SMALL, "model=mine.make_spoilt", "measurements=[drift,gaps]", f"results={tmp_path}")

    for _ in range(2):
        assert call("sweep", *words).code == 0

    (network,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert (network["status"], network["last_step"]) == ("diverged", 0)
    assert not [*tmp_path.glob("runs/*/*damaged*")]


def test_rows_of_estimators_have_to_say_of_which(mine: None, call: Call, tmp_path: Path) -> None:
    code, _, err = call("sweep", *SMALL, *ALL, "measurements=mine.Untold", f"results={tmp_path}")

    assert code == 2
    assert 'write key=common("run step estimator' in err


@pytest.mark.parametrize(("word", "measures"), [("norm=mine.Centered", True), ("norm=mine.make_group_norm", False)])
def test_a_norm(word: str, measures: bool, mine: None, call: Call, tmp_path: Path) -> None:
    """One that holds a batch norm is recorded, and its statistics are measured."""
    argument = "norm.gain=2,3" if measures else "norm.groups=1,3"
    network = ("data.images=200", "model.width=6", "model.depth=1", "steps=20")

    sweep(call, tmp_path, word, argument, *network, "measurements=[gaps,evaluations,drift]", "-m")

    tables = load("adhoc", tmp_path)
    runs = tables["runs"]
    assert {*runs["norm"]} == {word.partition("=")[2]}
    assert sorted(runs[argument.partition("=")[0]]) == [int(value) for value in argument.partition("=")[2].split(",")]
    assert runs["norm.source"].nunique() == 1
    assert ("gaps" in tables) == ("drift" in tables) == measures
    assert list(runs["norm_batch_size"].notna()) == [measures, measures]
    load_model("adhoc", runs["run"][0], results=tmp_path)


@pytest.mark.parametrize("words", [("model=mine.make_model",), ("norm=mine.Centered",)], ids=lambda words: words[0])
def test_other_code_is_another_network(
    words: tuple[str, ...], mine: None, write: Write, call: Call, tmp_path: Path
) -> None:
    for text, networks in (
        (MODULE, 1),
        (f'"""A comment."""  # another\n{MODULE}', 1),
        (f"{MODULE}CHANGED = True\n", 2),
    ):
        write(text)
        sweep(call, tmp_path, *words, "measurements=[log]")
        assert len(load("adhoc", tmp_path)["runs"]) == networks


def test_other_code_of_a_measurement_measures_again(mine: None, write: Write, call: Call, tmp_path: Path) -> None:
    """With a column more, then with one less and without a decorator; networks are not trained again."""
    sweep(call, tmp_path, MEASURED, "seed=0,1", "-m")
    first = load("adhoc", tmp_path)["largest_weights"]

    wider = MODULE.replace('{"largest":', '{"half": real("half of it"), "largest":')
    write(wider.replace('"largest": largest}', '"largest": largest, "half": largest / 2}'))
    assert "trained in" not in sweep(call, tmp_path, MEASURED, "seed=0")
    some = load("adhoc", tmp_path)["largest_weights"]
    (row,) = some.to_dict("records")  # that of the other seed is of earlier code
    assert row["largest"] == first.set_index("run")["largest"][row["run"]] == 2 * row["half"]

    undecorated = MODULE.replace("@dataclass\nclass Largest", "class Largest").replace(
        'name: str = "largest', 'name = "largest'
    )
    write(undecorated.replace("table: ClassVar[Table]", "table").replace("item()", "item() + 1"))
    sweep(call, tmp_path, MEASURED, "seed=0,1", "-m")
    last = load("adhoc", tmp_path)["largest_weights"]
    assert list(last) == list(first)
    assert list(last["largest"]) == list(first["largest"] + 1)


def test_arguments_are_settings(mine: None, call: Call, tmp_path: Path) -> None:
    """Swept, given to the function, and columns of `runs`; a default that is written out is the same network."""
    words = ("-m", *ALL[:2], "model.width=2,4", "data.noise=0,9", "data.size=6", "measurements=[gaps]")
    sweep(call, tmp_path, *words, "model.kind=other", "model.sizes=[2,2]", "model.dropout=1", "model.note=7")
    sweep(call, tmp_path, *ALL[:2], "measurements=[gaps]")
    sweep(call, tmp_path, *ALL[:2], "measurements=[gaps]", "model.width=4")

    runs = load("adhoc", tmp_path)["runs"]
    assert len(runs) == 5
    assert runs["model.source"].nunique() == 1
    assert list(runs.groupby(["data.noise", "data.size"])["data.content"].nunique()) == [1, 1, 1]
    assert {*runs["data.root"]} == {"data"}
    chosen = runs[runs["model.kind"] == "other"].sort_values(["model.width", "data.noise"])
    pairs = list(zip(chosen["model.width"], chosen["data.noise"], strict=True))
    assert pairs == [(2, 0), (2, 9), (4, 0), (4, 9)]
    assert {*chosen["model.dropout"]} == {1.0}
    assert {*chosen["model.note"]} == {7}

    model = load_model("adhoc", chosen["run"].iloc[0], results=tmp_path)
    assert model.get_parameter("0.weight").shape == (2, 3, 2, 2)


@pytest.mark.parametrize("word", ["norm=mine.Squared", "model=mine.make_squares"])
def test_what_a_layer_normalizes_in_place_of_its_input(
    word: str, mine: None, call: Call, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """It is recorded and measured: of a batch that is the whole population, both give the same."""
    words = ("data=mine.make_data", "batch_size=36", "optimizer.lr=1e-9", "momentum=1.0", "steps=2")
    sweep(call, tmp_path, word, *words, "estimator=[ema,precise,update_bn,exact]")

    assert not [str(warning.message) for warning in recwarn if "running buffers" in str(warning.message)]
    tables = load("adhoc", tmp_path)
    assert tables["gaps"]["mean_gap"].max() < 1e-3
    (run,) = tables["runs"]["run"]
    found = load_model("adhoc", run, statistics="ema(momentum=1.0)", results=tmp_path)
    images, _ = load_images("adhoc", run, split="train", results=tmp_path)
    squares = found.get_submodule("0")(images).square()
    torch.testing.assert_close(found.get_buffer("1.running_mean"), squares.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_a_word_in_a_column_of_numbers_makes_it_text(mine: None, call: Call, tmp_path: Path) -> None:
    for words in (["model.width=4"], ["model=mine.make_model", "model.kind=7", "model.width=5"]):
        sweep(call, tmp_path, *words, "data=mine.make_data", "measurements=[gaps]")

    runs = load("adhoc", tmp_path)["runs"].sort_values("model.width")
    assert list(runs["model.width"]) == [4, 5]
    assert list(runs["model.kind"].isna()) == [True, False]
    assert list(runs["norm"].isna()) == [False, True], "which is the model's own"


def test_a_forward_that_writes_into_its_input_changes_no_images(mine: None, call: Call, tmp_path: Path) -> None:
    """Exact statistics, which are predicted with first, and those of all checkpoints are of the same images."""
    measured = ["measurements=evaluations", "estimator=[ema,exact]", "accuracy_at=all"]
    words = [*SMALL, "data=mine.make_data", "model=mine.make_standardizing", "seed=0", *measured]
    done = call("sweep", *words, f"results={tmp_path}")

    assert done.code == 0, done.err
    run = load("adhoc", tmp_path)["runs"]["run"][0]
    images, labels = load_images("adhoc", run, split="test", results=tmp_path)
    found = load("adhoc", tmp_path)["evaluations"].query("estimator == 'ema'")
    (accuracy_in_table,) = found.loc[found["step"] == found["step"].max(), "accuracy"]
    model = load_model("adhoc", run, results=tmp_path)
    with torch.no_grad():
        accuracy = (model(images.clone()).argmax(1) == labels).double().mean().item()
    assert images.min() < -1e-6 or images.max() > 1e-6
    assert abs(images.mean()) < 0.2, "standardized once"
    assert accuracy_in_table == pytest.approx(accuracy)


def test_depth_is_the_order_of_the_forward_pass(mine: None, call: Call, tmp_path: Path) -> None:
    """Not that in which a network was given its parts: means over layers leave out the first one."""
    words = [
        *SMALL,
        "data=mine.make_data",
        "model=mine.make_head_first",
        "measurements=[gaps,traces,experiments.questions.drift.measurement.Decomposition]",
    ]
    done = call("sweep", *words, f"results={tmp_path}")

    assert done.code == 0, done.err
    tables = load("adhoc", tmp_path)
    for name in ("gaps", "traces", "decomposition"):
        depths = tables[name].groupby("layer")["depth"].unique().explode()
        assert dict(depths) == {"body.1": 1, "head.0": 2}, name

    # Without augmentation and dropout there is nothing of the data; with layers mixed up there is.
    terms = tables["decomposition"].groupby("term")["contribution"].agg(lambda values: values.abs().max())
    assert terms["data"] < 1e-4 * terms["lag"]


@pytest.mark.usefixtures("no_pictures")
def test_a_batch_norm_that_evaluation_does_not_call_is_left_out(mine: None, call: Call, tmp_path: Path) -> None:
    """As that of an auxiliary head; gaps of the others are those that the library measures."""
    measured = ["measurements=[gaps,evaluations,traces,drift]", "estimator=[ema,precise,update_bn,stale,test_batch]"]
    words = ["-m", *SMALL, "data=mine.make_data", "model=mine.make_auxiliary", "seed=0,1", *measured]
    done = call("sweep", *words, f"results={tmp_path}")

    assert done.code == 0, done.err
    said = "model=mine.make_auxiliary: an evaluation does not call 'aux.1'; no table has rows of such batch norms\n"
    assert done.err == said, "once, not for each network"
    tables = load("adhoc", tmp_path)
    assert {*tables["runs"]["unseen"]} == {"aux.1"}
    assert [{*tables[name]["layer"]} for name in ("gaps", "traces")] == [{"body.1", "head.1"}] * 2
    assert tables["evaluations"]["accuracy"].notna().all()

    gaps = tables["gaps"].query("estimator == 'ema'").set_index(["run", "layer"])["mean_gap"]
    for name in tables["runs"]["run"]:
        model = load_model("adhoc", name, results=tmp_path)
        images, _ = load_images("adhoc", name, split="train", results=tmp_path)
        expected = bnlab.gap(bnlab.population_statistics(model, [images]), bnlab.running_statistics(model))
        # Buffers and activations, which are of the size of σ, are float32: some 2⁻²⁴ for each of four updates.
        assert gaps[name].to_dict() == pytest.approx(expected.set_index("layer")["mean_gap"].to_dict(), abs=1e-5)

    call("report", "name=adhoc", f"results={tmp_path}")
    page = (tmp_path / "adhoc" / "report.html").read_text(encoding="utf-8")
    assert "Batch norms that an evaluation does not call are left out: aux.1." in page


BOUNDED = """
from torch import nn


def make_bounded(channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Tanh())
"""


def test_an_activation_in_a_norm_keeps_what_its_gradient_needs(write: Write, call: Call, tmp_path: Path) -> None:
    """Nothing writes into its output, as into that of bnlab's norms."""
    write(BOUNDED, "bounded")
    for model in ("cnn", "resnet model.depth=8"):
        words = ["norm=bounded.make_bounded", *f"model={model}".split(), "measurements=[log]"]
        done = call("sweep", *SMALL, *words, f"results={tmp_path}")
        assert (done.code, done.err) == (0, "")


SEEDED = """
import torch

from mine import make_model


def make_seeded(*sizes):
    torch.manual_seed(0)
    return make_model(*sizes)
"""


def test_a_model_that_is_the_same_for_every_seed_is_said_once(
    mine: None, write: Write, call: Call, tmp_path: Path
) -> None:
    write(SEEDED, "seeded")
    words = ["data=mine.make_data", "model=seeded.make_seeded", "measurements=[log]"]
    done = call("sweep", "-m", *SMALL, *words, "seed=0,1", f"results={tmp_path}")

    assert done.code == 0
    assert done.err.startswith("model=seeded.make_seeded: gives the same initial weights for every seed")
    assert done.err.count("\n") == 1


# The words beside those on own code, what is changed in the module, and what the message says
NEEDS = "mine.Largest: needs a name, a table with run and step in its key, and a method"
OTHER_NAME = "give it another name than '{}', of letters, digits and _"
MISTAKES = {
    "data fail": ("", "default_rng(0)", "default_rng(1 / 0)", r"data=mine.make_data: .*mine.py:\d+: ZeroDivisionError"),
    "no model": ("", "def make_model", "def other", "model=mine.make_model: cannot be imported, AttributeError"),
    "refused": ("", "    layers =", "    assert 0\n    layers =", r"AssertionError; it was called with 3, 8, 3$"),
    "model": ("", "nn.Linear(width, classes))\n", "nn.Linear(width, classes)), 3\n", "has to give a torch.nn.Module"),
    "logits": ("", "nn.Linear(width, classes)", "nn.Linear(width, 4)", r"not logits \[2, 3\]"),
    "estimator": ("", "(len(stream),)", "(3,)", "estimator=half: mine.Half fails on 8 batches: "),
    "looks ahead": ("", "0.5, dtype", "1 / len(stream), dtype", "half: gives other values of 4 batches where 8 are"),
    "draws at random": (
        "",
        "torch.full((len(stream),), 0.5,",
        "torch.rand(len(stream),",
        "looks ahead, or draws at random",
    ),
    "no estimator": ("", "Half(Estimator)", "Half", "estimator=mine.Half: "),
    "data leaves": ("", "default_rng(0)", "default_rng(sys.exit(3))", r"data=mine.make_data: .*:\d+: SystemExit: 3"),
    "leaves": ("", "import sys\n", "import sys\nsys.exit(0)\n", r"mine.py:3: SystemExit: 0"),
    "arguments": ("model.widht=8", "", "", "no setting model.widht; did you mean model.width"),
    "no value": ("model=mine.make_wide", "", "", r"model\.width: has no value.*add model\.width="),
    "clash": ("model=mine.clashes", "", "", "model=mine.clashes: its argument name .* rename it"),
    "sizes": ("model=mine.make_lazy", "", "", "model=mine.make_lazy: has lazy layers"),
    "tuple": ("model=mine.make_pair", "", "", r"make_pair: gives a tuple, .* \[N, classes\]; let its"),
    "no batch norm": ("", "nn.BatchNorm2d(width)", "nn.Identity()", "make_model: has no batch norm, "),
    "shared weights": ("model=mine.make_shared", "", "", "make_shared: gives the same weights whenever it is called"),
    "lost attribute": ("model=mine.make_fading", "", "", "make_fading: its predictions change when it is loaded"),
    "a module": ("model=torchvision.models.resnet", "", "", "model=torchvision.models.resnet: is a module; name a fun"),
    "frozen later": (
        "freeze_at=0.5 estimator=ema",
        "nn.BatchNorm2d(width)",
        "nn.BatchNorm2d(width, momentum=0.01)",
        "freeze_at freezes running averages of momentum 0.1, and '1' ha",
    ),
    "unused": ("model=mine.make_unused", "", "", "make_unused: has no batch norm"),
    "no measurement": ("measurements=largest", "", "", "measurements=largest: must be one of "),
    "other class": ("measurements=mine.Table", "", "", "measurements=mine.Table: is no class below bnlab.harness.meas"),
    "file name": (MEASURED, '"largest_weights"', '"a/b"', OTHER_NAME.format("a/b")),
    "key": (MEASURED, 'common("run step")', 'common("run")', NEEDS),
    "the network's": (MEASURED, '{"largest": real(', '{"steps": real(', "the table runs has a column 'steps' already"),
    "of means": (
        MEASURED,
        'common("run step")',
        'common("run step") | {"count": real("x")}',
        "have a column 'count' already",
    ),
    "undecorated": (
        "estimator=mine.Slow",
        "",
        "",
        r"weight is no parameter yet; write @dataclass\(frozen=True\) above",
    ),
    "two": ("measurements=[mine.Largest,mine.SameTable]", "", "", "there is another table largest_weights"),
    "parameters": ("model=cnn model.width=999999999", "", "", "model=cnn: cannot be trained, .*memory"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_line(case: str, mine: None, write: Write, call: Call, tmp_path: Path) -> None:
    line, old, new, message = MISTAKES[case]
    write(MODULE.replace(old, new, 1))
    words = dict(word.split("=", 1) for word in [*ALL, *SMALL, *line.split()])

    settings = [f"{key}={value}" for key, value in words.items()]
    code, _, err = call("sweep", *settings, f"data.root={tmp_path}", f"results={tmp_path}/r")

    assert code == 2, err
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not (tmp_path / "r").exists()


ROW = 'rows.append({"run": run.id, "step": step, "largest": largest})'
OF_ROWS = "failed, largest_weights: "
FAILURES = {
    "estimator": ("return torch.full", "return 1 / 0 if len(stream) > 8 else torch.full", r"mine.py:\d+: ZeroDivision"),
    "measurement": ("rows = []", "rows = [1 / 0]", rf"{OF_ROWS}.*mine.py:\d+: ZeroDivisionError"),
    "twice": (ROW, f"{ROW}; {ROW}", rf"{OF_ROWS}two of its rows agree in the key: run=\w+/seed_0, step=9"),
    "other step": ('"step": step', '"step": 1', f"{OF_ROWS}its rows have step 1, which was not asked for: 9 were"),
    "lacking": (', "largest": largest', "", f"{OF_ROWS}its rows have no column largest"),
    "unknown": (
        '"largest": largest',
        '"largest": largest, "half": 1',
        f"{OF_ROWS}its rows have a column half, which its",
    ),
    "no frame": ("pd.DataFrame(rows)", "rows", rf"{OF_ROWS}measure\(\) has to give a pandas.DataFrame, found a list"),
    "NaN": (
        '"largest": largest',
        '"largest": largest if step < 9 else float("nan")',
        rf"{OF_ROWS}its row run=\w+/seed_0, step=9 has largest=NaN; give it a value, or leave the row out",
    ),
    "type": (
        '"largest": largest',
        '"largest": "much"',
        f"{OF_ROWS}its rows have values .* of their column's type: .*larg",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_in_the_end_leaves_all_else(case: str, mine: None, write: Write, call: Call, tmp_path: Path) -> None:
    """The job has failed, which is said in two lines; other tables have their rows."""
    old, new, message = FAILURES[case]
    write(MODULE.replace(old, new))
    small = ("data.images=100", "model.width=4", "model.depth=1")
    words = (*small, "steps=9", "batch_size=16", "evaluate_at=final", MEASURED, "estimator=[mine.Half,ema]")

    code, out, err = call("sweep", *words, f"results={tmp_path}")

    assert code == 1
    assert re.search(message, err), err
    assert err.count("\n") == 2
    assert "Traceback" not in out + err
    tables = load("adhoc", tmp_path)
    assert list(tables["runs"]["status"]) == ["failed"]
    assert "ema" in {*tables["gaps"]["estimator"]}


def test_a_module_that_hides_bnlabs_own_is_named(tmp_path: Path) -> None:
    """It is not run, and nothing is trained before it is said."""
    (tmp_path / "experiments.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    # Of a module that is run, Python finds the current folder first, as a notebook does.
    words = [sys.executable, "-m", "bnlab", "runs", "list"]
    path = os.pathsep.join([str(Path(bnlab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")

    assert done.returncode == 2
    assert "bnlab's own package 'experiments' is hidden by" in done.stderr
    assert "experiments.py; rename that, or start in another folder" in done.stderr


def test_ctrl_c_while_a_command_starts(tmp_path: Path) -> None:
    """Importing torch takes most of that time."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    done = run("sweep", "experiment=quickstart", path=tmp_path, expect=130)

    assert not done.stdout
    assert done.stderr.strip() == "stopped; the same command continues"


def test_the_augmented_data_of_the_how_to(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "howto" / "own_code.md").read_text(encoding="utf-8")
    (block,) = [block for block in text.split("```")[1::2] if "def make_augmented_data" in block]
    (tmp_path / "photos.py").write_text(block.partition("\n")[2], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(48):
        folder = tmp_path / "photos" / ("train" if number % 3 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    own = ["data=photos.make_augmented_data", f"data.root={tmp_path / 'photos'}", "population=train_augmented"]
    words = [*own, "estimator=[ema,exact]", "steps=3", "batch_size=8", f"results={tmp_path}"]

    code, out, err = call("sweep", *words)

    assert code == 0, out + err
    assert {*load("adhoc", tmp_path)["gaps"]["estimator"]} == {"ema", "exact"}
