"""`bnlab doctor` and `bnlab explain`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from bnlab.doctor import list_causes
from tests.commands.running import Done, assert_refused, call_bnlab, copy_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_module(tmp_path_factory.mktemp("mine"))


def doctor(folder: Path, *words: str) -> Done:
    return call_bnlab(folder, "doctor", *words)


# What is typed, the status, and what is printed, or is not
CASES = [
    ("mine:model mine:batches", 0, "Healthy averages", None),
    ("mine:spoiled mine:batches", 1, "at fault", None),
    ("mine:spoiled mine:batches --fail-on error", 1, "BN108 error", None),  # more than five points
    ("mine:model", 0, "No warnings", None),
    ("mine:fresh --fail-on error", 0, "BN002 warning", None),
    ("mine:fresh --select BN9,bn0", 1, "BN002", None),
    ("mine:spoiled mine:batches --select BN9", 0, "at fault", "BN108 error"),
    ("mine:model --select bn213", 0, "No warnings", None),  # a part of another code
    ("mine:constant mine:three_of_four --expected 0.9", 1, "The network", None),
    ("mine:constant mine:three_of_four --expected 0.7", 0, "", "at fault"),
    ("mine:constant mine:three_of_four --expected 50", 2, "expected=50.0", None),
    ("mine:spoiled mine:batches --worth 0.9", 0, "Healthy averages", None),
]


@pytest.mark.parametrize(("line", "status", "said", "unsaid"), CASES)
def test_what_is_typed_and_what_is_said(line: str, status: int, said: str, unsaid: str | None, folder: Path) -> None:
    done = doctor(folder, *line.split())

    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == (status == 2)
    printed = " ".join((done.stdout + done.stderr).split())
    assert said in printed
    assert unsaid is None or unsaid not in printed


def test_json_is_all_there_is_on_stdout(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:batches", "--json", "--html", "page.html")

    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["verdict"] == "averages"
    assert report["images"] == 256
    assert [layer["layer"] for layer in report["layers"]] == ["1", "4"]
    assert str(folder) not in done.stdout
    assert done.stderr == "page: page.html\n"
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "at fault" in page
    assert str(folder) not in page


def test_weights_and_an_earlier_checkpoint_come_from_files(folder: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(8, 1, 8, 8))
    save_file(model.state_dict(), folder / "now.safetensors")
    torch.save({"state_dict": model.state_dict()}, folder / "before.pt")

    assert load_file(folder / "now.safetensors")["1.num_batches_tracked"] == 1
    before = json.loads(doctor(folder, "mine:fresh", "--json").stdout)
    done = doctor(folder, "mine:fresh", "--weights", "now.safetensors", "--before", "before.pt", "--json")

    report = json.loads(done.stdout)
    assert before["layers"][0]["updates"] == 0
    assert report["layers"][0]["updates"] == 1
    assert any("--before" in row["wanted"] for row in before["skipped"])
    assert not any("--before" in row["wanted"] for row in report["skipped"])


def test_training_images_of_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for place in ("test/ants", "test/cats", "training/ants", "training/bees", "training/cats"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "1.png")
    photos = [str(tmp_path / "test"), "--training", str(tmp_path / "training")]

    done = doctor(folder, "mine:model", *photos, "--mean", "0", "--std", "1")

    assert_refused(done, f"--training {tmp_path / 'training'}: ", "(bees)")


def test_a_metric_of_the_users_own(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:images", "--evaluate", "mine:values", "--json")

    report = json.loads(done.stdout)
    assert set(report["scores"]) == {"running", "exact", "batch"}
    assert report["scores"]["exact"] > report["scores"]["running"] + 0.1


def test_training_batches_are_named_as_batches_are(folder: Path) -> None:
    done = doctor(folder, "mine:model", "mine:images", "--training", "mine:batches", "--json")

    assert done.returncode == 0, done.stderr
    assert not any("--training" in row["wanted"] for row in json.loads(done.stdout)["skipped"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a folder of eight images, of two classes."""
    for number in range(8):
        place = tmp_path / "photos" / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (30 * number, 100, 200 - 20 * number)).save(place / f"{number}.png")
    return tmp_path


@pytest.mark.usefixtures("timm")
def test_a_packaged_model_and_a_folder_of_images(photos: Path) -> None:
    done = doctor(photos, "timm:resnet18", "photos", "--size", "32", "--batch-size", "4", "--json")

    report = json.loads(done.stdout)
    assert report["images"] == 8
    origin, prepared, classes = report["notes"]
    assert "timm:resnet18" in origin
    assert "--weights FILE" in origin
    assert "crop_size=[32]" in prepared
    # Which two of its thousand outputs are meant is not known.
    assert "1,000 outputs" in classes
    assert "2 subfolders" in classes
    assert not report["scores"]


@pytest.mark.usefixtures("timm")
def test_a_forward_that_chooses_among_the_outputs_keeps_the_labels(photos: Path) -> None:
    """As of two of ImageNet's classes; one that only calls the model does not."""
    (photos / "two.py").write_text(
        "def call(model, batch):\n    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)\n\n\n"
        "def choose(model, batch):\n    return call(model, batch)[:, :2]\n",
        encoding="utf-8",
    )
    words = ("timm:resnet18", "photos", "--size", "32", "--json", "--forward")

    chosen = json.loads(doctor(photos, *words, "two:choose").stdout)
    called = json.loads(doctor(photos, *words, "two:call").stdout)

    assert set(chosen["scores"]) == {"running", "exact", "batch"}
    assert not called["scores"]
    assert any("1,000 outputs" in note for note in called["notes"])


def test_explain_says_what_a_code_means_and_lists_all(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain", "bn002")
    assert done.returncode == 0
    assert done.stdout.startswith("BN002: never updated\n")

    listed = call_bnlab(tmp_path, "explain").stdout.splitlines()
    assert [line.partition("  ")[0] for line in listed] == [rule.code for rule in list_causes()]
