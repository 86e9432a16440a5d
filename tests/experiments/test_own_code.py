"""A user's code and what it imports: what is trained and measured again, and what stands in one line."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bnlab.estimators import list_estimators
from bnlab.harness import load, load_model
from bnlab.harness.artifacts.dataset import load_dataset
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError
from bnlab.harness.lab.compose import plan_jobs
from bnlab.harness.reporting.tables import read_tables
from tests.experiments.commands import Call, Write, list_trained

NET = """
from torch import nn

from net_layers import make_act


def make_model(channels, image_size, classes, width=4):
    layers = [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), make_act(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, classes))
"""
LAYERS = """
from torch import nn


def make_act():
    return nn.ReLU()
"""
TANH = LAYERS.replace("ReLU", "Tanh")
AVERAGE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from average_gain import GAIN
from bnlab.estimators import Estimator


@dataclass(frozen=True)
class Half(Estimator):
    name: ClassVar[str] = "mine3"

    def gains(self, stream):
        return torch.full((len(stream),), GAIN, dtype=torch.float64)
"""
PICTURES = """
import numpy as np

from pictures_noise import make_noise

IMAGES = np.random.default_rng(0).integers(0, 200, (60, 1, 6, 6), dtype=np.uint8)
LABELS = np.arange(60) % 3


class Noisy:
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return IMAGES[index].transpose(1, 2, 0) + make_noise(), LABELS[index]


def make_data():
    return (IMAGES, LABELS), (IMAGES[:12], LABELS[:12]), Noisy()
"""
NOISE = """
import numpy as np


def make_noise():
    return np.uint8(np.random.randint(9) if np.random.rand() < 1 else 50)
"""
SMALL = ("steps=4", "batch_size=16", "data.images=100", "evaluate_at=final", "hydra/launcher=basic", "threads=1")
OF_NET = (*SMALL, "model=net.make_model", "name=c17")
OF_AVERAGE = (*SMALL, "model.width=2", "model.depth=1", "estimator=[ema,average.Half]", "name=mine3", "-m")


@pytest.fixture
def sweep(call: Call, tmp_path: Path) -> Callable[..., str]:
    """Sweeps, and returns what the command has printed."""

    def swept(*words: str) -> str:
        code, out, err = call("sweep", *words, f"results={tmp_path / 'results'}")
        assert code == 0, err
        return out

    return swept


@pytest.fixture
def net(write: Write) -> Callable[[str, str], None]:
    """Writes the model and its layers."""

    def written(text: str = NET, layers: str = LAYERS) -> None:
        write(layers, "net_layers")
        write(text, "net")

    written()
    return written


@pytest.fixture
def average(write: Write) -> Iterator[Callable[[float], None]]:
    """Writes an estimator whose gain stands in a module of its own; it is none after the test."""

    def forget() -> None:
        for name, cls in list_estimators().items():
            if cls.__module__ == "average":
                cls.name = f"forgotten {name} {id(cls)}"

    def written(gain: float) -> None:
        forget()
        write(f"GAIN = {gain}\n", "average_gain")
        write(AVERAGE, "average")

    yield written
    forget()


def read_layers(results: Path) -> dict[str, str]:
    """The kind of the activation by the name of its network, of all that can be loaded."""
    kinds = {}
    for run in load("c17", results)["runs"]["run"]:
        try:
            kinds[run] = type(load_model("c17", run, results=results).get_submodule("2")).__name__
        except UserError as error:
            kinds[run] = str(error).partition(": ")[2]
    return kinds


def test_a_file_that_the_model_imports_is_part_of_it(
    net: Callable[..., None], sweep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ReLU becomes Tanh there: another network, beside the old one, which is refused."""
    monkeypatch.chdir(tmp_path)
    (old,) = list_trained(sweep(*OF_NET, "estimator=ema"))

    net(layers=TANH)
    out = sweep(*OF_NET, "estimator=[ema,exact]")

    (new,) = list_trained(out)
    refusal = "your code or bnlab has changed since it was trained; undo that, or sweep it again"
    assert read_layers(tmp_path / "results") == {old: refusal, new: "Tanh"}
    rows = load("c17", tmp_path / "results")["evaluations"]
    assert {*rows["run"][rows["estimator"] == "exact"]} == {old, new}, "the reference of each gap"

    net()
    assert not list_trained(sweep(*OF_NET, "estimator=[ema,exact]", "dry_run=true"))
    assert read_layers(tmp_path / "results")[old] == "ReLU"


@pytest.mark.usefixtures("no_pictures")
def test_versions_of_a_model_are_told_apart(
    net: Callable[..., None], sweep: Callable[..., str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs list` has a column for them, without norms of bnlab's, and a page says which is the code as it is now."""
    monkeypatch.chdir(tmp_path)
    (old,) = list_trained(sweep(*OF_NET, "estimator=ema"))
    net(layers=TANH)
    (new,) = list_trained(sweep(*OF_NET, "estimator=ema"))
    sources = load("c17", tmp_path / "results")["runs"].set_index("run")["model.source"]

    header, *lines, _ = call("runs list").out.splitlines()
    assert header.split() == ["run", "model.source", "status", "step", "seconds", "MB"]
    assert {tuple(line.split()[:2]) for line in lines} == {(run, sources[run]) for run in (old, new)}

    assert call("report", "name=c17").code == 0
    page = (tmp_path / "results" / "c17" / "report.html").read_text(encoding="utf-8")
    assert f"model.source {sources[new]} is net.make_model as it is now." in page
    assert f"model.source {sources[old]} is" not in page


def test_comments_docstrings_and_layout_are_no_part_of_it(
    net: Callable[..., None], sweep: Callable[..., str], tmp_path: Path
) -> None:
    (run,) = list_trained(sweep(*OF_NET, "estimator=ema"))

    net(f'"""A network."""\n# Of three layers\n{NET}', LAYERS.replace("\n\n\n", "\n# an activation\n"))

    assert not list_trained(sweep(*OF_NET, "estimator=[ema,exact]"))
    assert read_layers(tmp_path / "results") == {run: "ReLU"}


@pytest.fixture
def pictures(write: Write) -> Callable[[str, str], None]:
    """Writes data with random transforms, which stand in a module of their own."""

    def written(text: str = PICTURES, noise: str = NOISE) -> None:
        write(noise, "pictures_noise")
        write(text, "pictures")

    written()
    return written


def test_random_transforms_of_data_are_known_by_their_code(
    pictures: Callable[..., None],
    sweep: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("data=pictures.make_data", *SMALL[:2], *SMALL[3:], "measurements=[log]", "name=pictures")
    (run,) = list_trained(sweep(*words))
    results = tmp_path / "results"

    assert not list_trained(sweep(*words))
    load_model("pictures", run, results=results)
    pictures(f"# A comment\n{PICTURES}")
    assert not list_trained(sweep(*words))
    load_model("pictures", run, results=results)

    pictures(noise=NOISE.replace("50", "60"))
    load_dataset.cache_clear()  # as in another process
    with pytest.raises(UserError, match="gives other images or labels than those that this network is named by"):
        load_model("pictures", run, results=results)
    assert len(list_trained(sweep(*words))) == 1


def test_committed_networks_keep_their_names() -> None:
    """Code of bnlab's own questions is known by the text of its module, as it always was."""
    runs = load("quantized", "results/reference")["runs"]

    sweeps = [plan_jobs([f"experiment={name}"]).configs for name in ("quantized", "quantized_full")]
    planned = {Run(config).id for configs in sweeps for config in configs}

    assert {*runs["model"]} == {"experiments.questions.quantized.network.build_network"}
    assert {*runs["run"]} == planned


def read_gaps(results: Path) -> dict[str, set[float]]:
    """The gaps of the user's estimator, by the name of the network."""
    gaps = read_tables("mine3", results)["gaps"]
    of_mine = gaps[gaps["estimator"] == "mine3"]
    return {str(run): {*rows["mean_gap"]} for run, rows in of_mine.groupby("run")}


@pytest.mark.usefixtures("no_pictures")
def test_two_versions_of_an_estimator_never_stand_in_one_line(
    average: Callable[[float], None],
    sweep: Callable[..., str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that were measured last count; log and page say which command measures the others again."""
    monkeypatch.chdir(tmp_path)
    average(0.5)
    sweep(*OF_AVERAGE, "seed=0,1")
    first = read_gaps(tmp_path / "results")
    assert len(first) == 2

    average(0.02)
    out = sweep(*OF_AVERAGE, "seed=0")

    (line,) = [line for line in out.splitlines() if "mine3" in line and "1 network " in line and "again: " in line]
    (run,) = read_gaps(tmp_path / "results")
    assert run.endswith("seed_0")
    assert not read_gaps(tmp_path / "results")[run] & first[run]
    reported = call("report", "name=mine3", "results=results")
    assert reported.err.splitlines() == [line]
    page = (tmp_path / "results" / "mine3" / "report.html").read_text(encoding="utf-8")
    assert line in html.unescape(page)

    program, command, *words = shlex.split(line.partition("again: ")[2])
    assert (program, command) == ("bnlab", "sweep")
    assert "left out" not in call(command, *words).out
    both = read_gaps(tmp_path / "results")
    assert {*both} == {*first}
    assert not any(both[run] & first[run] for run in both)
    assert not call("report", "name=mine3", "results=results").err


def test_rows_of_the_code_as_it_was_before_come_back_with_it(
    average: Callable[[float], None], sweep: Callable[..., str], tmp_path: Path
) -> None:
    """Though others were written later; and no row is measured again."""
    average(0.5)
    sweep(*OF_AVERAGE, "seed=0,1")
    first = read_gaps(tmp_path / "results")
    average(0.02)
    sweep(*OF_AVERAGE, "seed=0,1")
    assert read_gaps(tmp_path / "results") != first

    average(0.5)
    assert "left out" not in sweep(*OF_AVERAGE, "seed=0,1")

    assert read_gaps(tmp_path / "results") == first


def test_rows_whose_code_is_not_found_from_here_are_shown(
    average: Callable[[float], None], sweep: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a report in another folder: whether they are of the code as it is now, nobody knows."""
    average(0.5)
    sweep(*OF_AVERAGE, "seed=0")
    first = read_gaps(tmp_path / "results")
    capsys.readouterr()

    for name in ("average", "average_gain"):
        (tmp_path / f"{name}.py").unlink()
    load("mine3", tmp_path / "results")

    assert read_gaps(tmp_path / "results") == first
    assert not capsys.readouterr().err
