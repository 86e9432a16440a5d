"""A sweep's networks as modules: the step, the statistics, and what cannot be loaded."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file

import bnlab
from bnlab.harness import load, load_images, load_model
from bnlab.harness.errors import UserError
from tests.harness.kills import read_trace
from tests.helpers import find_network, sweep_small


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of the small network, and the results with it. Not to be changed."""
    results = tmp_path_factory.mktemp("swept")
    sweep_small(results, "name=g", "estimator=[ema,exact]")
    return load("g", results)["runs"]["run"][0], results


def test_the_last_network_as_training_left_it(swept: tuple[str, Path]) -> None:
    run, results = swept

    model = load_model("g", run, results=results)

    assert not model.training
    expected = load_file(find_network(results) / "checkpoints" / "step_0000040.safetensors")
    state = model.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_exact_statistics_give_the_accuracy_of_the_table(swept: tuple[str, Path]) -> None:
    run, results = swept

    model = load_model("g", run[:4], step=40, statistics="exact", results=results)

    images, labels = load_images("g", run[:4], results=results)
    with torch.no_grad():
        hits = model(images).argmax(1) == labels
    table = load("g", results)["evaluations"].query("estimator == 'exact' and step == 40")
    assert hits.double().mean().item() == table["accuracy"].item()
    sizes = [len(load_images("g", run, split=split, results=results)[1]) for split in ("train", "val", "test")]
    assert sizes == [360, 40, 359]


def test_another_average_is_replayed(swept: tuple[str, Path]) -> None:
    run, results = swept

    model = load_model("g", run, step=7, statistics="ema(momentum=1.0)", results=results)

    trace = read_trace(find_network(results))
    last_batch = bnlab.replay(trace, bnlab.estimators.EMA(momentum=1.0), [7])[7]
    for name, moments in bnlab.running_statistics(model).items():
        torch.testing.assert_close(moments.mean, last_batch[name].mean.float().double())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 8}, r"\bstep 8\b.*\b1, 7, 20, 40\b"),
        ({"run": "zzz"}, r"^zzz: .*\bg\b"),
        ({"statistics": "exakt"}, r"^estimator=exakt: .*\bexact\?"),
        ({"statistics": "test_batch"}, r"^statistics=test_batch: "),
    ],
)
def test_what_is_not_there_is_named(changes: dict[str, str], named: str, swept: tuple[str, Path]) -> None:
    run, results = swept

    with pytest.raises(UserError, match=named):
        load_model(**{"name": "g", "run": run, "results": results, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["norm=ghost norm.batch_size=8 optimizer=adamw", "freeze_at=0.5 momentum=[0.1]"])
def test_a_network_is_found_again_by_its_file_of_settings(words: str, tmp_path: Path) -> None:
    sweep_small(tmp_path, *words.split(), "steps=2", "evaluate_at=[1,1.0]")

    run = load("adhoc", tmp_path)["runs"]["run"][0]

    assert not load_model("adhoc", run, results=tmp_path).training


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("step", "spoil"), [(7, Path.unlink), (40, damage)])
def test_what_is_lost_is_trained_again(
    step: int, spoil: Callable[[Path], None], swept: tuple[str, Path], tmp_path: Path
) -> None:
    """By the commands that the message names, to the same weights; rows that are there are not measured again.

    A sweep that reads other checkpoints keeps those that there were, too.
    """
    run, given = swept
    results = Path(shutil.copytree(given, tmp_path / "r"))
    path = find_network(results) / "checkpoints" / f"step_{step:07d}.safetensors"
    expected = {key: value.clone() for key, value in load_file(path).items()}  # not that of the file, which is spoiled
    words = ["estimator=[ema,exact]"] if spoil is damage else ["estimator=ema", "evaluate_at=final"]
    sweep_small(results, "name=g", *words)
    before = load("g", results)["gaps"]
    spoil(path)

    wanted = None if step == 40 else step
    remove = shlex.join(["bnlab", "runs", "rm", run, f"results={results}"])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: ") as found:
        load_model("g", run, step=wanted, results=results)
    assert (remove in str(found.value)) == (spoil is damage), "a sweep sees by itself that a file is gone"
    if spoil is damage:
        assert importlib.import_module("bnlab.harness.lab.runs").main(["rm", run, f"results={results}"]) == 0
    sweep_small(results, "name=g", *words)

    state = load_model("g", run, step=wanted, results=results).state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert_frame_equal(load("g", results)["gaps"], before)


def test_images_may_be_changed_by_whoever_loads_them(swept: tuple[str, Path]) -> None:
    """Networks of the same process are trained and measured on those that are kept."""
    run, results = swept
    images, labels = load_images("g", run, split="test", results=results)
    before = images.clone()
    images.zero_()
    labels.zero_()

    again, labels_again = load_images("g", run, split="test", results=results)

    assert torch.equal(again, before)
    assert labels_again.any()
