"""`bnlab recalibrate` and `bnlab undo`: files that are written, and files that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.commands.running import assert_refused, call_bnlab, copy_module

STATE = {
    "0.weight": torch.ones(1),
    "0.bias": torch.zeros(1),
    "0.running_mean": torch.tensor([50.0]),
    "0.running_var": torch.tensor([torch.nan]),
    "0.num_batches_tracked": torch.tensor(7),
    "1.weight": torch.tensor([[-2.0], [2.0]]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "given.safetensors")
    return copy_module(tmp_path)


def list_files(folder: Path) -> set[str]:
    """List what a command has written."""
    return {path.name for path in folder.glob("*.safetensors")} - {"given.safetensors"}


def test_new_weights_and_the_way_back(folder: Path) -> None:
    words = ["mine:stale", "mine:unlabelled", "--weights", "given.safetensors", "--out", "new.safetensors"]

    done = call_bnlab(folder, "recalibrate", *words)

    assert done.returncode == 0, done.stderr
    assert list_files(folder) == {"new.safetensors", "new.undo.safetensors"}
    new = load_file(folder / "new.safetensors")
    assert new["0.running_mean"].item() == 100
    assert new["0.running_var"].item() == 1
    kept = ("0.weight", "0.bias", "0.num_batches_tracked", "1.weight")
    assert all(torch.equal(new[name], STATE[name]) for name in kept)

    reported = done.stdout.splitlines()[-1].partition("bnlab undo ")[2]
    undone = call_bnlab(folder, "undo", *reported.split())

    assert undone.returncode == 0, undone.stderr
    assert "old statistics of 1 batch norms" in undone.stdout
    old = load_file(folder / "OLD.safetensors")
    assert old.keys() == STATE.keys()
    assert all(old[name].numpy().tobytes() == value.numpy().tobytes() for name, value in STATE.items())


WRITTEN = "Recalibrated 1 batch norms: the averages were at fault, never updated (BN002)."


@pytest.mark.parametrize(
    "words",
    [
        "mine:stale mine:labelled",
        "mine:stale mine:labelled --metric mine:is_right",
        "mine:stale mine:unlabelled --evaluate mine:evaluate",
        "mine:two mine:images --forward mine:call_two",
    ],
)
def test_what_was_at_fault_is_told(folder: Path, words: str) -> None:
    done = call_bnlab(folder, "recalibrate", *words.split(), "--out", "new.safetensors")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == WRITTEN


def save_photos(folder: Path) -> None:
    """Save gray images of two classes: bright ones and, 100 of 255 steps below, dark ones."""
    for number in range(40):
        label = number % 2
        place = folder / "photos" / ("bright" if label == 0 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 200 - 100 * label + number).save(place / f"{number}.png")


@pytest.mark.parametrize("command", ["recalibrate", "gap"])
def test_a_folder_of_images(folder: Path, command: str) -> None:
    save_photos(folder)
    words = ["mine:brightness", "photos", "--size", "4", "--mean", "0", "--std", "1"]
    if command == "recalibrate":
        words += ["--training", "photos", "--out", "new.safetensors"]

    done = call_bnlab(folder, command, *words)

    assert done.returncode == 0, done.stderr
    if command == "gap":
        assert "40 images" in done.stdout
        return
    lines = done.stdout.splitlines()
    assert "(BN002)" in lines[0]
    assert "crop_size=[4]" in lines[1]
    assert "classes 0 to 1" in lines[2]
    assert load_file(folder / "new.safetensors")["0.running_mean"][0].item() == pytest.approx(169.5 / 255)


def test_nothing_is_written_where_nothing_is_gained(folder: Path) -> None:
    words = ["mine:stale", "mine:labelled", "--out"]
    call_bnlab(folder, "recalibrate", *words, "first.safetensors")
    again = ["--weights", "first.safetensors"]

    done = call_bnlab(folder, "recalibrate", *words, "second.safetensors", *again)

    assert done.returncode == 1
    assert (
        done.stdout
        == "Not recalibrated: nothing that was tried surely brings back what matters; --force writes anyway.\n"
    )
    assert list_files(folder) == {"first.safetensors", "first.undo.safetensors"}

    done = call_bnlab(folder, "recalibrate", *words, "second.safetensors", *again, "--force")
    assert done.returncode == 0
    assert "second.safetensors" in list_files(folder)


RECALIBRATE = "recalibrate mine:stale mine:labelled"
UNDO = "undo mine:stale first.undo.safetensors --out new.safetensors --weights given.safetensors"
MISTAKES = {  # what is typed, and what the message names
    f"{RECALIBRATE} --out given.safetensors": "--out given.safetensors: ",
    f"{RECALIBRATE} --out other.safetensors": "--out other.undo.safetensors: ",
    f"{RECALIBRATE} --out new.pt": "--out new.pt: ",
    "recalibrate mine:with_state mine:labelled --out new.safetensors": "(_extra_state)",
    UNDO.replace("first.undo.safetensors", "nowhere"): "nowhere: ",
    UNDO.replace("first.undo", "given"): "'bnlab.Statistics/1'",
    UNDO: "first.undo.safetensors: was written beside other weights than given.safetensors",
    UNDO.replace("stale", "plain"): "--weights given.safetensors: ",
    UNDO.partition(" --weights")[0]: "required: --weights",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_write_nothing(line: str, folder: Path) -> None:
    call_bnlab(folder, *RECALIBRATE.split(), "--out", "first.safetensors")
    (folder / "other.undo.safetensors").touch()
    before = list_files(folder)

    done = call_bnlab(folder, *line.split())

    assert_refused(done, MISTAKES[line])
    assert list_files(folder) == before
    assert torch.equal(load_file(folder / "given.safetensors")["1.weight"], STATE["1.weight"])
