"""`bnlab gap package.module:model package.module:batches`, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.commands.running import Done, call_bnlab

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))

def batches():
    return [torch.randn(8, 1, 8, 8) + 3 for _ in range(3)]

def nothing():
    return []

def plain():
    return nn.Linear(2, 2)

def broken():
    raise ValueError("of the function's own")

class Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.bn(x) @ torch.zeros(3, 3)

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))

    def forward(self, x):
        return x - self.running_mean

def partly():
    return nn.Sequential(nn.BatchNorm2d(1), Own())

def deep(layers):
    return model()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x, scale):
        return self.bn(x * scale)

def two():
    return Two()

def call_two(model, batch):
    return model(batch, 2.0)

net = model()
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def run_bnlab(folder: Path, *words: str) -> Done:
    """Run the command as a user does, in a process of its own."""
    command = [sys.executable, "-m", "bnlab.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_table(folder: Path) -> None:
    done = run_bnlab(folder, "gap", "mine:model", "mine:batches")

    assert done.returncode == 0, done.stderr

    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layer", "depth", "channels", "mean_gap", "var_gap", "kl", "output_gap"]
    assert [line.split()[:3] for line in lines[1:3]] == [["1", "1", "4"], ["4", "2", "2"]]
    assert float(lines[1].split()[3]) > 0.1  # 0 and 1 against images around 3
    assert "24 images, 864 values per channel" in done.stdout

    for words in (("--max-images", "8"), ("max_images=8",)):
        assert "288 values" in call_bnlab(folder, "gap", "mine:model", "mine:batches", *words).stdout


def test_warnings_are_one_line(folder: Path) -> None:
    done = call_bnlab(folder, "gap", "mine:partly", "mine:batches")

    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.startswith("warning: population_statistics: '1' keep running statistics")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine:model", "mine:nothing"), "batches is empty"),
        (("mine:plain", "mine:batches"), "no BatchNorm layer"),
        (("mine:modle", "mine:batches"), "mine:modle: cannot be imported"),
        (("nowhere:model", "mine:batches"), "No module named 'nowhere'"),
        (("mine", "mine:batches"), "mine: write package.module:function"),
        (("mine:broken", "mine:batches"), "error: ValueError: of the function's own\n  at "),
        (("mine:Breaking", "mine:batches"), "error: RuntimeError: "),
        (("mine:Breaking", "mine:batches"), "return self.bn(x) @ torch.zeros(3, 3)"),
        (("mine:number", "mine:batches"), "mine:number is a int; name a function without arguments"),
        (("mine:net", "mine:batches"), "mine:net is a Sequential; name a function without arguments"),
        (("mine:deep", "mine:batches"), "mine:deep takes arguments (missing a required argument: 'layers')"),
        (("./mine:model", "mine:batches"), "./mine:model: write package.module:function"),
        ((":model", "mine:batches"), ":model: write package.module:function"),
        (("mine:model", "mine:batches", "--max-images", "0"), "max_images=0"),
    ],
)
def test_mistakes(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = call_bnlab(folder, "gap", *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_a_model_that_is_called_otherwise(folder: Path) -> None:
    done = call_bnlab(folder, "gap", "mine:two", "mine:batches")

    assert done.returncode == 2
    assert "missing 1 required positional argument: 'scale'" in done.stderr
    assert "--forward package.module:function" in done.stderr
    assert "Traceback" not in done.stderr

    done = call_bnlab(folder, "gap", "mine:two", "mine:batches", "--forward", "mine:call_two")
    assert done.returncode == 0
    assert "24 images" in done.stdout

    done = call_bnlab(folder, "gap", "mine:two", "mine:batches", "--forward", "mine:nowhere")
    assert done.returncode == 2
    assert "mine:nowhere: cannot be imported" in done.stderr


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "wrapped.pt"])
def test_weights_of_a_file(folder: Path, name: str) -> None:
    torch.manual_seed(1)
    state = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    ).state_dict()
    state["1.running_mean"] += 100
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"state_dict": state} if name == "wrapped.pt" else state, folder / name)
    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", name)

    assert done.returncode == 0
    assert float(done.stdout.splitlines()[1].split()[3]) > 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ([1, 2], "holds a list; pass safetensors or a state dict"),
        ({"0.weight": torch.zeros(1)}, "is not of this model"),
    ],
)
def test_weights_that_cannot_be_loaded(folder: Path, content: Any, message: str) -> None:
    if content is not None:
        torch.save(content, folder / "w.pt")
    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", "w.pt")

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["text.pt", "cut.pt", "pickled.safetensors"])
def test_weights_that_are_damaged(folder: Path, name: str) -> None:
    torch.save({"0.weight": torch.zeros(1)}, folder / name)
    content = (folder / name).read_bytes()
    if name == "text.pt":
        content = b"hello"
    if name == "cut.pt":
        content = content[:200]
    (folder / name).write_bytes(content)

    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", name)

    assert done.returncode == 2
    assert f"--weights {name}: cannot be read (" in done.stderr
    assert done.stderr.count("\n") == 1


class Leaves:
    """Leaves a file behind where it is loaded."""

    def __reduce__(self) -> Any:
        return open, ("was_run", "w")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("gap", "mine:model", "mine:batches"), "--weights"),
        (("doctor", "mine:model"), "--weights"),
        (("doctor", "mine:model"), "--before"),
        (("recalibrate", "mine:model", "mine:batches", "--out", "new.safetensors"), "--weights"),
        (("undo", "mine:model", "w.pt", "--out", "new.safetensors"), "--weights"),
    ],
    ids=["gap", "doctor", "before", "recalibrate", "undo"],
)
@pytest.mark.parametrize("kind", ["code", "module", "legacy", "script"])
def test_code_in_a_file_is_refused_without_advice_to_run_it(
    folder: Path, words: tuple[str, ...], option: str, kind: str
) -> None:
    if kind == "script":
        torch.jit.script(nn.Linear(1, 1)).save(folder / "w.pt")
    elif kind == "code":
        torch.save({"state_dict": {}, "extra": Leaves()}, folder / "w.pt")
    else:
        torch.save(nn.Linear(1, 1), folder / "w.pt", _use_new_zipfile_serialization=kind != "legacy")

    done = call_bnlab(folder, *words, option, "w.pt")

    assert done.returncode == 2
    assert done.stderr == (
        f"error: {option} w.pt: holds Python objects, which can run code when they are loaded, and is not read; save "
        "model.state_dict() alone, or safetensors\n"
    )
    assert not (folder / "was_run").exists()


def test_help_and_version(folder: Path) -> None:
    assert "gap" in run_bnlab(folder, "--help").stdout
    assert run_bnlab(folder, "--version").stdout.startswith("bnlab 0.")
    assert "max_images=N" in run_bnlab(folder, "gap", "--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: command"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("gap", "mine:model"), "required: batches"),
        (("gap", "mine:model", "mine:batches", "max_images=x"), "invalid int value: 'x'"),
        (("gap", "mine:model", "mine:batches", "--most", "3"), "unrecognized arguments: --most 3"),
    ],
)
def test_mistakes_in_words_are_one_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = call_bnlab(folder, *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
