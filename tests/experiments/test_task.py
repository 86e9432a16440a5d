"""Tasks other than classification: masks and numbers are swept, reported, and gone on with after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnlab.harness import load, load_images, load_model
from bnlab.harness.reporting.any_sweep import describe_sweep
from tests.experiments.commands import Call, Write
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import find_network

MODULE = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def make_masks(count=60, size=8):
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 2, (count, size, size))
    images = (masks + draw.normal(0, 0.5, masks.shape))[:, None]
    return (images[20:], masks[20:]), (images[:20], masks[:20])


def make_depths(count=60, size=8):
    draw = np.random.default_rng(0)
    depths = draw.uniform(0, 10, count)
    images = draw.normal(depths[:, None, None, None], 1, (count, 1, size, size))
    return (images[20:], depths[20:]), (images[:20], depths[:20])


class UNet(nn.Module):
    def __init__(self, channels, image_size, classes, width=4):
        super().__init__()
        self.down = self.make_block(channels, width)
        self.low = self.make_block(width, 2 * width)
        self.up = self.make_block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def make_block(self, channels, width):
        return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        high = self.down(x)
        low = F.interpolate(self.low(F.max_pool2d(high, 2)), scale_factor=2)
        return self.head(self.up(torch.cat([high, low], 1)))


class Masks:
    name = "overlap"
    unit = ""
    larger_is_better = True

    def loss(self, output, batch):
        return F.cross_entropy(output, batch[1])

    def metric(self, output, batch):
        return (output.argmax(1) == batch[1]).double().mean((1, 2))


class Depth:
    name = "depth error"
    unit = "mm"
    larger_is_better = False

    def __init__(self, power: int = 2):
        self.power = power

    def loss(self, output, batch):
        return (output.squeeze(1) - batch[1]).abs().pow(self.power).mean()

    def metric(self, output, batch):
        return (output.squeeze(1) - batch[1]).abs()
"""
SMALL = ("batch_size=8", "steps=8", "evaluate_at=[3,8]", "accuracy_at=all", "hydra/launcher=basic", "threads=1",
         "estimator=[ema,exact]", "measurements=[gaps,evaluations,log]")  # fmt: skip
MASKS = ("data=shapes.make_masks", "task=shapes.Masks", "model=shapes.UNet")
DEPTHS = ("data=shapes.make_depths", "task=shapes.Depth", "model.width=4", "model.depth=2", "optimizer.lr=0.01")


def test_what_is_lost_or_added_has_its_direction(write: Write, call: Call, tmp_path: Path) -> None:
    """Running averages take away from a metric that is better where it is larger, and add to the others."""
    write(MODULE, "shapes")
    for words, sign in ((MASKS, -1), (DEPTHS, 1)):
        name = words[1].rpartition(".")[2]
        assert call("sweep", *SMALL, *words, f"name={name}", f"results={tmp_path}").code == 0
        tables = load(name, tmp_path)
        last = tables["evaluations"].query("step == 8").set_index("estimator")["metric"]

        figure = describe_sweep("trial", tables).question.figures[
            "overlap_lost_training" if sign < 0 else "depth_error_added_training"
        ]
        *_, mean = figure.score(tables).sort_values("epoch")["mean"]

        assert mean == pytest.approx(sign * (last["ema"] - last["exact"]))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("words", [MASKS, DEPTHS], ids=["masks", "numbers"])
def test_it_is_swept_and_reported(words: tuple[str, ...], write: Write, call: Call, tmp_path: Path) -> None:
    """Tables have the metric in place of accuracy, as somebody computes it from the loaded network."""
    write(MODULE, "shapes")
    done = call("sweep", "-m", *SMALL, *words, "seed=0,1", f"results={tmp_path}")
    assert (done.code, done.err) == (0, "")

    tables = load("adhoc", tmp_path)
    run = tables["runs"]["run"][0]
    images, labels = load_images("adhoc", run, results=tmp_path)
    with torch.no_grad():
        output = load_model("adhoc", run, statistics="exact", results=tmp_path)(images)
    if words == MASKS:
        expected = F.cross_entropy(output, labels), (output.argmax(1) == labels).double().mean()
    else:
        expected = F.mse_loss(output[:, 0], labels), F.l1_loss(output[:, 0], labels)
    (row,) = tables["evaluations"].query("run == @run and step == 8 and estimator == 'exact'").to_dict("records")
    # Outputs are float32, and are summed in another order.
    assert (row["loss"], row["metric"]) == pytest.approx([each.item() for each in expected], rel=1e-4)
    assert np.isnan([row["ece"], row["disagreement"]]).all()
    assert "accuracy" not in {*tables["evaluations"], *tables["log"]}
    assert tables["log"]["metric"].notna().all()

    name, unit = ("overlap", "") if words == MASKS else ("depth error", "mm")
    assert {*tables["runs"]["task.metric"]} == {name}
    assert call("report", "name=adhoc", f"results={tmp_path}").code == 0
    page = (tmp_path / "adhoc" / "report.html").read_text(encoding="utf-8")
    assert f"test {name}{f' ({unit})' if unit else ''}" in page
    assert "test accuracy" not in page


def test_it_goes_on_after_a_kill(write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE, "shapes")
    words = (*SMALL, *MASKS)
    call("sweep", *words, f"results={tmp_path / 'whole'}")
    with interrupted_at(5):
        call("sweep", *words, f"results={tmp_path / 'killed'}")

    call("sweep", *words, f"results={tmp_path / 'killed'}")

    assert_same(find_network(tmp_path / "killed"), find_network(tmp_path / "whole"))


def test_arguments_of_a_task_are_settings(write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE, "shapes")
    done = call("sweep", "-m", *SMALL, *DEPTHS, "task.power=1,2", f"results={tmp_path}")

    assert (done.code, done.err) == (0, "")
    assert {*load("adhoc", tmp_path)["runs"]["task.power"]} == {1, 2}


def test_two_tasks_in_one_sweep_stand_apart(write: Write, call: Call, tmp_path: Path) -> None:
    """Each under its own name and unit; classification keeps its column."""
    write(MODULE, "shapes")
    for words in (MASKS, DEPTHS, ("model.width=4", "model.depth=1", "data.images=100")):
        assert call("sweep", *SMALL, *words, f"results={tmp_path}").code == 0

    tables = load("adhoc", tmp_path)
    described = describe_sweep("trial", tables)
    assert described.means is not None

    assert tables["evaluations"][["accuracy", "metric"]].notna().sum(axis=1).eq(1).all()
    assert {"overlap_training", "depth_error_training", "accuracy_training"} <= {*described.question.figures}
    labels = {"test overlap", "test depth error (mm)", "test accuracy (%)"}
    assert labels <= {*described.means[""].columns}


MISTAKES = {
    "labels that are no classes": ((*DEPTHS[:1], *DEPTHS[2:]), "", "", "have to be the numbers of classes"),
    "maps that would have to be moved": ((*MASKS, "data.shift=1"), "", "", "move images, but not labels that are maps"),
    "one value of all items": (MASKS, ".mean((1, 2))", ".mean()", "has to give a value of each item"),
    "maps that would be translated": ((*MASKS, "shifts=translation:1"), "", "", "move images, but not labels"),
    "labels that are smoothed": ((*DEPTHS, "optimizer.label_smoothing=0.1"), "", "", "are of classes"),
    "outputs that are broadcast": (
        DEPTHS,
        "output.squeeze(1) - batch[1]).abs()\n",
        "output - batch[1]).abs()\n",
        "each item",
    ),
    "a word that bnlab needs": ((*DEPTHS, "task.unit=1"), "power: int = 2", "unit=1", "bnlab needs itself"),
    "no unit": (MASKS, '    unit = ""\n', "", "task=shapes.Masks: lacks unit"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, write: Write, call: Call, tmp_path: Path) -> None:
    words, old, new, message = MISTAKES[case]
    write(MODULE.replace(old, new, 1), "shapes")

    code, _, err = call("sweep", *SMALL, *words, f"results={tmp_path / 'r'}")

    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()
