"""Models that cannot be trained or need a word: layers without sizes, called several times, too many parameters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bnlab.harness import load
from bnlab.harness.artifacts import trying
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.measurements.estimates import EXACT, frozen_statistics
from bnlab.lab.compose import plan_jobs
from bnlab.statistics import using
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


def test_a_layer_that_is_called_twice_is_named_and_measured(call: Call, tmp_path: Path) -> None:
    """Its exact statistics are of the inputs of both calls together."""
    words = ("model=own_models.make_repeated", *WORDS, "estimator=[ema,exact]", f"results={tmp_path}/r")

    done = call("sweep", *words)

    tables = load("adhoc", tmp_path / "r")

    assert done.code == 0 and "a forward calls layers several times (shared 2 times)" in done.out, done.err
    assert set(tables["gaps"]["layer"]) == {"norm", "shared"}
    assert tables["gaps"]["tid_mean"].notna().all()
    assert set(tables["evaluations"]["estimator"]) == {"ema", "exact"}

    run = Run(plan_jobs(words).configs[0])
    exact = frozen_statistics(run, 20, EXACT)
    inputs: list[torch.Tensor] = []
    with using(run.model_at(20), exact) as model, torch.no_grad():
        model.eval().get_submodule("shared").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        model(run.dataset.train.images)
    together = torch.cat(inputs).double()
    assert len(inputs) == 2
    torch.testing.assert_close(together.mean((0, 2, 3)), exact["shared"].mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.var((0, 2, 3), correction=0), exact["shared"].var, rtol=1e-4, atol=1e-5)


def test_tables_about_one_batch_a_step_are_refused_for_it(call: Call, tmp_path: Path) -> None:
    words = ("model=own_models.make_repeated", *WORDS, "measurements=[gaps,drift]", f"results={tmp_path}/r")

    done = call("sweep", *words)

    assert done.code == 2
    assert done.err.startswith("error: measurements=drift: ")
    assert "(shared 2 times)" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model.width=999999999", "model=cnn: has 8,999,999,991 parameters or more; with gradients"),
        ("model=mlp model.width=9999999", "model=mlp: has 100,000,639,999,935 parameters or more"),
        ("model.width=1000000000000000000", "model=cnn: has more parameters than can be counted"),
        ("model.width=100000000000000000000", "model=cnn: has more parameters than can be counted"),
    ],
)
def test_a_model_for_which_there_is_no_memory(words: str, message: str, call: Call, tmp_path: Path) -> None:
    done = call("sweep", *words.split(), f"results={tmp_path}/r")

    assert done.code == 2 and done.err.startswith(f"error: {message}"), done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_model_of_the_users_own_for_which_there_is_no_memory(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "find_free_bytes", lambda device: 600)

    done = call("sweep", "model=own_models.make_repeated", *WORDS, f"results={tmp_path}/r")

    # Weights, gradients and momentum of a convolution, of one norm and of a part of the other: 4 bytes each.
    assert done.code == 2 and "has 52 parameters or more" in done.err, done.err
