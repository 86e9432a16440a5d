"""Models that cannot be trained: layers without sizes, too many parameters, no logits; layers that are called twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bnlab import running_statistics
from bnlab.harness import load, load_images, load_model
from tests.experiments.commands import Call

MODULE = """
from torch import nn


def make_lazy(channels, image_size, classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes))


def make_lazy_norm(channels, image_size, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.Linear(image_size**2, classes))


class Repeated(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, images):
        values = self.norm(self.first(images))
        for _ in range(2):
            values = self.shared(values.relu())
        return self.head(values.mean((2, 3)))


def make_repeated(channels, image_size, classes):
    return Repeated(channels, classes)


def make_headless(channels, image_size, classes):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
"""
WORDS = ("data.images=400", "batch_size=32", "steps=20", "evaluate_at=final")


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `own_models`, which can be imported."""
    (tmp_path / "own_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.parametrize(
    ("function", "layers"),
    [("make_lazy", "0 (LazyConv2d), 3 (LazyLinear) have"), ("make_lazy_norm", "1 (LazyBatchNorm1d) have")],
)
def test_layers_without_sizes_are_refused(function: str, layers: str, call: Call, tmp_path: Path) -> None:
    done = call("sweep", f"model=own_models.{function}", *WORDS, f"results={tmp_path}/r")

    assert done.code == 2
    assert done.err.startswith(f"error: model=own_models.{function}: {layers} no sizes yet; give ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_layer_that_is_called_twice_is_measured(call: Call, tmp_path: Path) -> None:
    """Its exact statistics are of the inputs of both calls together."""
    words = ("model=own_models.make_repeated", *WORDS, "estimator=[ema,exact]", f"results={tmp_path}/r")

    done = call("sweep", *words)

    assert done.code == 0, done.err
    tables = load("adhoc", tmp_path / "r")
    assert set(tables["gaps"]["layer"]) == {"norm", "shared"}
    assert tables["gaps"]["tid_mean"].notna().all()
    assert set(tables["evaluations"]["estimator"]) == {"ema", "exact"}

    where = ("adhoc", tables["runs"]["run"][0])
    images, _ = load_images(*where, split="train", results=tmp_path / "r")
    model = load_model(*where, statistics="exact", results=tmp_path / "r")
    inputs: list[torch.Tensor] = []
    model.get_submodule("shared").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(images)
    exact = running_statistics(model)["shared"]
    together = torch.cat(inputs).double()
    assert len(inputs) == 2
    torch.testing.assert_close(together.mean((0, 2, 3)), exact.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.var((0, 2, 3), correction=0), exact.var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", ["model.width=999999999", "model=mlp model.width=9999999", f"model.width={10**20}"])
def test_a_model_for_which_there_is_no_memory(words: str, call: Call, tmp_path: Path) -> None:
    done = call("sweep", *words.split(), f"results={tmp_path}/r")

    assert done.code == 2 and ": cannot be trained, " in done.err, done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_model_that_gives_no_logits(call: Call, tmp_path: Path) -> None:
    done = call("sweep", "model=own_models.make_headless", *WORDS, f"results={tmp_path}/r")

    assert done.code == 2 and "of two images, not logits [2, 10]" in done.err, done.err
    assert not (tmp_path / "r").exists()
