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
from torch.optim.swa_utils import AveragedModel

from tests.commands.running import assert_refused, call_bnlab, copy_module
from tests.helpers import torchvision


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
    assert "256 images" in done.stdout
    assert "9,216 values" in done.stdout

    for words in (("--max-images", "64"), ("max_images=64",)):
        assert "2,304 values" in call_bnlab(folder, "gap", "mine:model", "mine:batches", *words).stdout


def test_warnings_are_one_line(folder: Path) -> None:
    done = call_bnlab(folder, "gap", "mine:partly", "mine:batches")

    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.startswith("warning: population_statistics: '1' ")
    assert done.stderr.count("\n") == 1


# The words of a command line, and keys and values that its message has
MISTAKES = {
    # words
    "": "command",
    "nonsense": "'nonsense'",
    "gap mine:model mine:batches max_images=x": "'x'",
    "gap mine:model mine:batches --max-images 0": "max_images=0",
    "doctor": "package.module:function --demo",
    "doctor mine:model --evaluate mine:values": "--evaluate",
    "doctor mine:model --metric mine:is_right": "--metric",
    "doctor mine:model mine:batches --metric mine:nowhere": "mine:nowhere",
    "doctor mine:model mine:batches --expected nan": "expected=nan",
    "doctor mine:model --html nowhere/page.html": "--html nowhere/page.html:",
    "explain BN000": "'BN000'",
    # models
    "gap mine:plain mine:batches": "BatchNorm Linear",
    "gap mine:modle mine:batches": "mine:modle:",
    "gap mine:nowhere mine:batches": "mine:nowhere: mine.py",
    "gap ./mine.py:model mine:batches": "./mine.py:model: package.module:function",
    "gap mine:net mine:batches": "mine:net Sequential;",
    "gap mine:deep mine:batches": "deep() 'layers'",
    "doctor mine:text": "mine:text str; torch.nn.Module",
    "doctor mine:scripted mine:batches": "TorchScript,",
    "doctor torchvision:resnet19": "torchvision:resnet19:",
    "doctor torchvision:deeplabv3_resnet50": "torchvision:deeplabv3_resnet50:",  # it would download
    # batches and files
    "gap mine:model mine:nothing": "batches empty",
    "doctor mine:model mine:batches --training mine:nothing": "training_batches empty",
    "doctor mine:model nowhere": "nowhere: package.module:function",
    "doctor mine:model mine:one": "mine:one Tensor;",
    "doctor mine:model mine:one_labelled": "mine:one_labelled list",
    "doctor mine:model mine:garbled": "json.decoder.JSONDecodeError:",
    "doctor mine:model --weights nowhere.pt": "--weights nowhere.pt:",
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

    assert_refused(done, *MISTAKES[line].split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("model", "error", "line"),
    [
        ("mine:broken", "ValueError", """raise ValueError("of the function's own")"""),
        ("mine:Breaking", "RuntimeError", "return self.bn(x) @ torch.zeros(3, 3)"),
        ("mine:leave", "RuntimeError", "sys.exit(0)"),
        ("spelled:model", "AttributeError", "spelled.py:2: net = nn.Sequentail()"),
        ("unclosed:model", "SyntaxError", "unclosed.py:1: def model(:"),
        ("lacking:model", "ModuleNotFoundError", "lacking.py:1: import nobody_has_this"),
    ],
)
def test_errors_of_the_users_code_have_their_line(folder: Path, model: str, error: str, line: str) -> None:
    (folder / "spelled.py").write_text("from torch import nn\nnet = nn.Sequentail()\n", encoding="utf-8")
    (folder / "unclosed.py").write_text("def model(:\n", encoding="utf-8")
    (folder / "lacking.py").write_text("import nobody_has_this\n", encoding="utf-8")

    done = call_bnlab(folder, "gap", model, "mine:images")

    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith(f"error: {error}: ")
    assert last.startswith("  at ")
    assert last.endswith(line)


@pytest.mark.parametrize("command", ["gap", "doctor", "recalibrate --out new.safetensors"])
def test_a_model_that_is_called_otherwise(folder: Path, command: str) -> None:
    words = [*command.split(), "mine:two", "mine:images"]

    done = call_bnlab(folder, *words)
    assert done.returncode == 2
    assert "'scale'" in done.stderr
    assert "--forward package.module:function" in done.stderr
    assert "Traceback" not in done.stderr

    assert_refused(call_bnlab(folder, *words, "--forward", "mine:nowhere"), "mine:nowhere")

    done = call_bnlab(folder, *words, "--forward", "mine:call_two")
    assert done.returncode < 2, done.stderr


def make_fresh() -> nn.Module:
    """A network as `mine:fresh` makes it, with a batch that it has counted."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(8, 1, 8, 8))
    return model


def assert_loaded(folder: Path, file: str) -> None:
    """`mine:fresh` has counted a batch once it has the weights of a file, and is at its start without."""
    done = call_bnlab(folder, "doctor", "mine:fresh", "--weights", file, "--json")
    assert done.returncode < 2, done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert "1 updates were counted" in finding["found"]


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("state_dict", ""), ("model_state_dict", ""), ("model", "module."), ("", "_orig_mod."), ("", "")],
)
def test_weights_are_found_in_what_trainers_save(key: str, prefix: str, folder: Path) -> None:
    state = {prefix + name: value for name, value in make_fresh().state_dict().items()}
    further = {"epoch": 3, "best": torch.tensor(76.0), "optimizer": {"state": {}}}
    torch.save({key: state, **further} if key else state, folder / "weights.pt")

    assert_loaded(folder, "weights.pt")


def test_averaged_weights_are_those_of_their_model(folder: Path) -> None:
    """`AveragedModel` saves its own count beside them."""
    torch.save(AveragedModel(make_fresh()).state_dict(), folder / "averaged.pt")

    assert_loaded(folder, "averaged.pt")


def test_weights_are_read_from_safetensors(folder: Path) -> None:
    save_file(make_fresh().state_dict(), folder / "weights.safetensors")

    assert_loaded(folder, "weights.safetensors")


def test_a_file_of_tensors_alone_is_loaded_into_a_model_that_asks_for_its_version(tmp_path: Path) -> None:
    """Safetensors do not hold it; MNASNet refuses a state without."""
    model = torchvision().models.mnasnet0_5()
    save_file(model.state_dict(), tmp_path / "new.safetensors")

    done = call_bnlab(tmp_path, "doctor", "torchvision:mnasnet0_5", "--weights", "new.safetensors")

    assert done.returncode < 2, done.stderr


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("w.pt", None, ""),
        ("w.pt", [1, 2], "list"),
        ("w.pt", {"0.weight": torch.zeros(1)}, '"0.bias"'),
        ("w.pt", b"version https://git-lfs.github.com", "no file of weights"),
        ("w.pt", b"PK, and no archive", ""),
        ("w.safetensors", {"0.weight": torch.zeros(1)}, "SafetensorError"),  # not what its name says
    ],
)
def test_weights_that_cannot_be_loaded(folder: Path, name: str, content: Any, found: str) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        torch.save(content, folder / name)

    done = call_bnlab(folder, "gap", "mine:model", "mine:batches", "--weights", name)

    assert_refused(done, f"--weights {name}", found)


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

    assert_refused(done, f"{line.split()[-1].strip('-')} w.pt: ", "a file of model.state_dict()")
    assert "weights_only" not in done.stderr
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
