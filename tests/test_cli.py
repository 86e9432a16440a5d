"""What all commands for a model have in common, as a user types it: names, weights, mistakes; and `bnlab gap`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.commands.running import call_bnlab, copy_module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_module(tmp_path)


def test_the_table(folder: Path) -> None:
    done = call_bnlab(folder, "gap", "mine:spoiled", "mine:batches")

    assert done.returncode == 0, done.stderr

    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layer", "depth", "channels", "mean_gap", "var_gap", "kl", "output_gap"]
    assert [line.split()[:3] for line in lines[1:3]] == [["1", "1", "4"], ["4", "2", "2"]]
    assert float(lines[1].split()[3]) < 0.1 < float(lines[2].split()[3])
    assert "256 images, 9,216 values per channel" in done.stdout

    for words in (("--max-images", "64"), ("max_images=64",)):
        assert "2,304 values" in call_bnlab(folder, "gap", "mine:model", "mine:batches", *words).stdout


def test_warnings_are_one_line(folder: Path) -> None:
    done = call_bnlab(folder, "gap", "mine:partly", "mine:batches")

    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.startswith("warning: population_statistics: '1' keep running statistics")
    assert done.stderr.count("\n") == 1


# The words of a command line, and what its message says
MISTAKES = {
    # words
    "": "the following arguments are required: command",
    "nonsense": "invalid choice: 'nonsense'",
    "gap mine:model mine:batches max_images=x": "invalid int value: 'x'",
    "gap mine:model mine:batches --max-images 0": "max_images=0",
    "doctor": "name a model, package.module:function; or see what the doctor does: bnlab doctor --demo",
    "doctor mine:model --evaluate mine:values": "--evaluate is about batches, and none are given",
    "doctor mine:model mine:batches --worth 0": "worth=0.0; pass a positive difference of scores",
    "doctor mine:model --select BN7": "--select BN7: no code begins so; bnlab explain lists them",
    "doctor mine:model --select ,": "--select: names no code; bnlab explain lists them",
    "doctor mine:model mine:batches --expected nan": "expected=nan; pass a mean score",
    "doctor mine:model --html nowhere/page.html": "--html nowhere/page.html: is a folder, or lies in none",
    "explain BN000": "'BN000' is no code; there are",
    # models
    "gap mine:plain mine:batches": "no BatchNorm layer",
    "gap mine:modle mine:batches": "mine:modle: cannot be imported",
    "gap mine:nowhere mine:batches": "mine.py has no nowhere)",
    "gap ./mine.py:model mine:batches": "./mine.py:model: write package.module:function",
    "gap mine:net mine:batches": "mine:net is a Sequential; name a function without arguments",
    "gap mine:deep mine:batches": "deep() missing 1 required positional argument: 'layers'",
    "doctor mine:text": "doctor: expected a torch.nn.Module, found str",
    "doctor mine:scripted mine:batches": "doctor: the model is TorchScript, whose layers cannot be watched; pass",
    "doctor torchvision:resnet19": "torchvision:resnet19: torchvision has no classifier resnet19",
    "doctor torchvision:deeplabv3_resnet50": "torchvision has no classifier deeplabv3_resnet50",  # it would download
    # batches and files
    "gap mine:model mine:nothing": "batches is empty",
    "doctor mine:model mine:batches --training mine:nothing": "training_batches is empty",
    "doctor mine:model nowhere": "nowhere: no such folder; name a folder of images, or write package.module:function",
    "doctor mine:model mine:one": "doctor: mine:one is a Tensor; pass an iterable of batches",
    "doctor mine:model mine:one_labelled": "mine:one_labelled is one batch of images and labels; pass a list",
    "doctor mine:model mine:missing": "error: FileNotFoundError: photo.png",
    "doctor mine:model --weights nowhere.pt": "--weights nowhere.pt: no such file",
}


def test_into_a_closed_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-m", "bnlab.cli", "runs", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # a short output is written at the end
        stdout=writing,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line_and_status_2(folder: Path, line: str) -> None:
    done = call_bnlab(folder, *line.split())

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert MISTAKES[line] in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mine:broken", "error: ValueError: of the function's own\n  at "),
        ("mine:Breaking", "return self.bn(x) @ torch.zeros(3, 3)"),
        ("mine:leave", "error: RuntimeError: the program was ended by sys.exit(0)\n  at "),
        ("spelled:model", "has no attribute 'Sequentail'\n  at "),
        ("spelled:model", "spelled.py:2: net = nn.Sequentail()"),
        ("unclosed:model", "unclosed.py:1: def model(:"),
        ("lacking:model", "error: ModuleNotFoundError: No module named 'nobody_has_this'\n  at "),
    ],
)
def test_errors_of_the_users_code_have_their_line(folder: Path, model: str, message: str) -> None:
    (folder / "spelled.py").write_text("from torch import nn\nnet = nn.Sequentail()\n", encoding="utf-8")
    (folder / "unclosed.py").write_text("def model(:\n", encoding="utf-8")
    (folder / "lacking.py").write_text("import nobody_has_this\n", encoding="utf-8")
    done = call_bnlab(folder, "gap", model, "mine:images")

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize("command", ["gap", "doctor", "recalibrate --out new.safetensors"])
def test_a_model_that_is_called_otherwise(folder: Path, command: str) -> None:
    words = [*command.split(), "mine:two", "mine:images"]

    done = call_bnlab(folder, *words)
    assert done.returncode == 2
    assert "missing 1 required positional argument: 'scale'" in done.stderr
    assert "--forward package.module:function of model and batch" in done.stderr
    assert "Traceback" not in done.stderr

    done = call_bnlab(folder, *words, "--forward", "mine:nowhere")
    assert "mine:nowhere: cannot be imported" in done.stderr
    done = call_bnlab(folder, *words, "--forward", "mine:call_two")
    assert done.returncode < 2, done.stderr


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
    ("name", "content", "message"),
    [
        ("w.pt", None, "no such file"),
        ("w.pt", [1, 2], "holds a list; pass safetensors or a state dict"),
        ("w.pt", {"0.weight": torch.zeros(1)}, "is not of this model"),
        ("w.pt", b"version https://git-lfs.github.com", "is no checkpoint (it begins with 'version https://git-lfs.')"),
        ("w.pt", b"PK, and no archive", "cannot be read ("),
        ("w.safetensors", {"0.weight": torch.zeros(1)}, "cannot be read ("),  # not what its name says
    ],
)
def test_weights_that_cannot_be_loaded(folder: Path, name: str, content: Any, message: str) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        torch.save(content, folder / name)

    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", name)

    assert done.returncode == 2
    assert f"--weights {name}: {message}" in done.stderr
    assert done.stderr.count("\n") == 1


class Leaves:
    """Leaves a file behind where it is loaded."""

    def __reduce__(self) -> Any:
        return open, ("was_run", "w")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("code", "gap mine:model mine:batches --weights"),
        ("code", "doctor mine:model --before"),
        ("module", "doctor mine:model --weights"),
        ("legacy", "recalibrate mine:model mine:batches --out new.safetensors --weights"),
        ("script", "undo mine:model w.pt --out new.safetensors --weights"),
    ],
)
def test_code_in_a_file_is_refused_without_advice_to_run_it(folder: Path, kind: str, line: str) -> None:
    if kind == "script":
        torch.jit.script(nn.Linear(1, 1)).save(folder / "w.pt")
    elif kind == "code":
        torch.save({"state_dict": {}, "extra": Leaves()}, folder / "w.pt")
    else:
        torch.save(nn.Linear(1, 1), folder / "w.pt", _use_new_zipfile_serialization=kind != "legacy")

    done = call_bnlab(folder, *line.split(), "w.pt")

    assert done.returncode == 2
    assert done.stderr == (
        f"error: {line.split()[-1]} w.pt: holds Python objects, which can run code when they are loaded, and is not "
        "read; save model.state_dict() alone, or safetensors\n"
    )
    assert not (folder / "was_run").exists()


def test_help_and_version(folder: Path) -> None:
    for words, shown in (("--help", "recalibrate"), ("--version", "bnlab 0."), ("gap --help", "max_images=N")):
        done = call_bnlab(folder, *words.split())
        assert done.returncode == 0
        assert shown in done.stdout


def test_an_interrupted_command_says_so(folder: Path) -> None:
    done = call_bnlab(folder, "doctor", "mine:model", "mine:interrupted")

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_json_stands_alone_whatever_the_users_code_prints(folder: Path) -> None:
    done = call_bnlab(folder, "doctor", "mine:talking", "--json")

    assert json.loads(done.stdout)["findings"] == []
    assert "hello" in done.stderr


def test_safetensors_are_known_by_what_they_begin_with(folder: Path) -> None:
    torch.manual_seed(1)
    save_file({"another.weight": torch.zeros(1)}, folder / "w.pth")

    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", "w.pth")

    assert "is not of this model (Error(s) in loading state_dict for Sequential: Missing key(s)" in done.stderr
