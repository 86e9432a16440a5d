"""A model, a data set and an estimator of the user's own, by import path: trained, measured, told apart by source."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnlab.harness import load
from bnlab.harness.artifacts.data import load_dataset
from bnlab.harness.artifacts.data.own_data import describe_own
from bnlab.harness.artifacts.settings import network_hash
from bnlab.lab.compose import plan_jobs
from tests.experiments.commands import Call, Write

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from bnlab.estimators import Estimator


def make_model(channels, image_size, classes):
    head = nn.Linear(4 * (image_size - 2) ** 2, classes)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), head)


def read_arrays(root):
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 3) for n in (40, 12)]


def read_images(root):
    return [[(Image.fromarray(image.transpose(1, 2, 0)), label) for image, label in zip(*part)]
            for part in read_arrays(root)]


def read_tensors(root):
    return [[(torch.from_numpy(image) / 255, label) for image, label in zip(*part)] for part in read_arrays(root)]


@dataclass(frozen=True)
class Half(Estimator):
    name: ClassVar[str] = "half"

    def gains(self, stream):
        return torch.full((len(stream),), 0.5, dtype=torch.float64)
"""
WORDS = ("model=mine.make_model", "data=mine.read_arrays", "steps=9", "batch_size=12", "measurements=[gaps]")


def test_all_three(write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE)
    words = (*WORDS, f"data.root={tmp_path}", f"results={tmp_path}/r")
    code, _, err = call("sweep", *words, "momentum=0.5", "estimator=[ema,mine.Half,exact]")

    assert code == 0, err

    tables = load("adhoc", f"{tmp_path}/r")
    (row,) = tables["runs"].to_dict("records")
    assert row["data"] == "mine.read_arrays"
    assert row["model"] == "mine.make_model"
    assert row["status"] == "finished"

    gaps = tables["gaps"].set_index("estimator")["mean_gap"]
    assert list(gaps[["half"]]) == list(gaps[["ema"]])
    assert not gaps[["exact"]].any()


def test_another_source_is_another_network(write: Write) -> None:
    for word in ("model=mine.make_model", "data=mine.read_arrays"):
        hashes = []
        for text in (MODULE, MODULE, f"{MODULE}# changed\n"):
            write(text)
            hashes.append(network_hash(plan_jobs([word, "batch_size=12"]).configs[0]))
        assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("function", ["read_images", "read_tensors"])
def test_a_data_set_like_torchvisions_is_its_arrays(function: str, write: Write) -> None:
    write(MODULE)
    found, expected = (load_dataset(describe_own(f"mine.{name}")) for name in (function, "read_arrays"))

    assert len(found.train.labels) == 36
    assert len(found.val.labels) == 4
    assert len(found.test.labels) == 12
    assert found.classes == 3

    for split in ("train", "val", "test"):
        images = found.images_of(split).images
        # Of bytes bit for bit; floats are divided by 255 before.
        tolerance = 0 if function == "read_images" else 1e-6
        torch.testing.assert_close(images, expected.images_of(split).images, rtol=0, atol=tolerance)
    assert len(found.test.labels[:6].unique()) > 1, "in an order of their own"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("default_rng(0)", "default_rng(1 / 0)", "data=mine.read_arrays: .*mine.py:19: ZeroDivisionError"),
        ("dtype=np.uint8", "dtype=np.int16", "data=mine.read_arrays: the training part has int16 images; .*uint8"),
        ("np.arange(n) % 3)", "np.arange(n) % 3 / 2)", "data=mine.read_arrays: the training part has float64 labels"),
        ("(0, 256,", "(7, 8,", "data=mine.read_arrays: channel 0 of 3 is 7 in each pixel of all 36 training images"),
        ("def make_model", "def other", "mine.make_model: cannot be imported, AttributeError"),
        ("return nn.Sequential", "return len", "model=mine.make_model: .*mine.py:15: TypeError"),
        ("head)\n", "head), 3\n", "model=mine.make_model: has to give a torch.nn.Module, found a tuple"),
        ("nn.Conv2d(channels", "nn.Conv2d(7", "model=mine.make_model: cannot be trained, .*RuntimeError: "),
        ("** 2, classes)", "** 2, classes + 1)", r"cannot be trained, .*logits \[2, 3\]"),
        ("3, 8, 8)", "8, 8, 3)", r"has images of shape \[40, 8, 8, 3\]; .* \[N, C, H, W\]"),
        ("in (40, 12)]", "in (40,)]", "data=mine.read_arrays: .*; it has to give the training and the test part"),
        ("(len(stream),)", "(3,)", "estimator=half: mine.Half fails on 8 batches: "),
        ("Half(Estimator)", "Half", "estimator=mine.Half: "),
    ],
)
def test_a_mistake_is_named_with_its_line(
    old: str, new: str, message: str, write: Write, call: Call, tmp_path: Path
) -> None:
    write(MODULE.replace(old, new, 1))
    code, _, err = call("sweep", *WORDS, f"data.root={tmp_path}", "estimator=[mine.Half]", f"results={tmp_path}/r")

    assert code == 2 and err.count("\n") <= 2 and "Traceback" not in err and re.search(message, err), err
    assert not (tmp_path / "r").exists()


def test_an_estimator_that_fails_in_the_end_leaves_the_rows_of_all_others(
    write: Write, call: Call, tmp_path: Path
) -> None:
    write(MODULE.replace("return torch.full", "return 1 / 0 if len(stream) > 8 else torch.full"))
    words = ("steps=9", "batch_size=256", "measurements=[gaps]", "estimator=[mine.Half,ema]", f"results={tmp_path}/r")
    code, _, err = call("sweep", *words)
    tables = load("adhoc", f"{tmp_path}/r")

    assert code == 1
    assert "mine.py:37: ZeroDivisionError" in err
    assert "Traceback" not in err
    assert list(tables["runs"]["status"]) == ["failed"]
    assert set(tables["gaps"]["estimator"]) == {"ema"}


def test_the_module_of_the_readme(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [block for block in text.split("```")[1::2] if "def make_data" in block]
    (tmp_path / "readme_mine.py").write_text(block.partition("\n")[2])
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(48):
        folder = tmp_path / "photos" / ("train" if number % 3 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    own = ["model=readme_mine.make_model", "data=readme_mine.make_data", f"data.root={tmp_path / 'photos'}"]
    words = [*own, "estimator=[readme_mine.Slowing,exact]", "steps=3", "batch_size=8", f"results={tmp_path}"]
    code, out, err = call("sweep", *words)

    assert code == 0, out + err
    assert set(load("adhoc", tmp_path)["gaps"]["estimator"]) == {"slowing", "exact"}
