"""`bnlab doctor` and `bnlab explain`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bnlab.doctor.codes import read_explanations
from tests.commands.running import Done, assert_refused, call_bnlab, copy_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_module(tmp_path_factory.mktemp("mine"))


def doctor(folder: Path, *words: str) -> Done:
    return call_bnlab(folder, "doctor", *words)


# What is typed, the status, and what is printed, or is not
CASES = [
    ("mine:model mine:batches", 0, "Healthy", "To do"),
    ("mine:spoiled mine:batches", 1, "The averages are at fault", None),
    ("mine:spoiled mine:batches --metric mine:is_right", 1, "The averages are at fault", None),
    ("mine:spoiled mine:images --evaluate mine:values", 1, "The averages are at fault", None),
    ("mine:off_by_half mine:twenty", 3, "Undecided", None),
    ("mine:model", 0, "No images were looked at", "BN"),
    ("mine:fresh", 1, "never updated (BN002)", None),
    ("mine:constant mine:three_of_four", 1, "the network is at fault", None),
    ("mine:constant mine:three_of_four --expected 0.7", 0, "Healthy", None),
    ("mine:constant mine:three_of_four --expected 0.9", 1, "the network is at fault", None),
    ("mine:constant mine:three_of_four --expected 50", 2, "expected=50.0", None),
]


@pytest.mark.parametrize(("line", "status", "said", "unsaid"), CASES)
def test_what_is_typed_and_what_is_said(line: str, status: int, said: str, unsaid: str | None, folder: Path) -> None:
    done = doctor(folder, *line.split())

    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == (status == 2)
    printed = " ".join((done.stdout + done.stderr).split())
    assert said in printed
    assert unsaid is None or unsaid not in printed


def test_options_that_would_tell_more_are_named_as_they_are_typed(folder: Path) -> None:
    printed = doctor(folder, "mine:spoiled", "mine:batches").stdout

    assert "To tell more, pass --training and --before." in printed


def test_json_is_all_there_is_on_stdout(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:batches", "--json", "--html", "page.html")

    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["verdict"] == "averages"
    assert {row["undone"] for row in report["table"]} >= {"as it is", "under exact statistics"}
    assert str(folder) not in done.stdout
    assert done.stderr == "page: page.html\n"
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "at fault" in page
    assert str(folder) not in page


def test_weights_and_an_earlier_checkpoint_come_from_files(folder: Path) -> None:
    """The one counts a batch that the other has not seen, with the same weights."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    torch.save({"state_dict": model.state_dict()}, folder / "before.pt")
    model(torch.randn(8, 1, 8, 8))
    save_file(model.state_dict(), folder / "now.safetensors")
    words = ("mine:fresh", "--weights", "now.safetensors", "--json")

    without = json.loads(doctor(folder, *words).stdout)
    done = json.loads(doctor(folder, *words, "--before", "before.pt").stdout)

    assert [row["code"] for row in without["findings"]] == ["BN306"]
    assert [row["code"] for row in done["findings"]] == ["BN104", "BN306"]
    assert (
        "no weight before them has changed since before=, and 1 layers' averages have" in done["findings"][0]["found"]
    )


def test_training_images_of_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for place in ("test/ants", "test/cats", "training/ants", "training/bees", "training/cats"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "1.png")
    photos = [str(tmp_path / "test"), "--training", str(tmp_path / "training")]

    done = doctor(folder, "mine:model", *photos, "--mean", "0", "--std", "1")

    assert_refused(done, f"--training {tmp_path / 'training'}: ", "(bees)")


def test_training_batches_are_named_as_batches_are(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:batches", "--training", "mine:batches", "--json")

    assert json.loads(done.stdout)["asks"] == ["before"]


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
    done = doctor(photos, "timm:resnet18", "photos", "--size", "32", "--batch-size", "4")

    origin, prepared, classes = done.stdout.splitlines()[-3:]
    assert "of 8 images" in done.stdout
    assert "timm:resnet18" in origin
    assert "--weights FILE" in origin
    assert "crop_size=[32]" in prepared
    # Which two of its thousand outputs are meant is not known.
    assert "1,000 outputs" in classes
    assert "2 subfolders" in classes


@pytest.mark.usefixtures("timm")
def test_a_forward_or_a_metric_that_chooses_among_the_outputs_keeps_the_labels(photos: Path) -> None:
    """As of two of ImageNet's classes; a forward that only calls the model does not."""
    (photos / "two.py").write_text(
        "def call(model, batch):\n    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)\n\n\n"
        "def choose(model, batch):\n    return call(model, batch)[:, :2]\n\n\n"
        "def is_right(output, batch):\n    return output[:, :2].argmax(1) == batch[1]\n",
        encoding="utf-8",
    )
    words = ("timm:resnet18", "photos", "--size", "32")

    for further in (("--forward", "two:choose"), ("--metric", "two:is_right")):
        assert "1,000 outputs" not in doctor(photos, *words, *further).stdout
    assert "1,000 outputs" in doctor(photos, *words, "--forward", "two:call").stdout


def test_explain_says_what_a_code_means_and_lists_all(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain", "bn002")
    assert done.returncode == 0
    assert done.stdout.startswith("BN002: never updated\n")

    listed = call_bnlab(tmp_path, "explain").stdout.splitlines()
    assert [line.partition("  ")[0] for line in listed] == [*read_explanations()]
