"""`bnlab doctor` and `bnlab explain`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from bnlab.doctor import Cause, Signs, list_causes
from bnlab.doctor.case import Case
from tests.commands.running import Done, call_bnlab

MODULE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    for _ in range(100):
        model(torch.randn(32, 1, 8, 8))
    return model.eval()

def spoiled():
    broken = model()
    broken[4].running_mean[0] += 5
    return broken

def fresh():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()

def batches():
    images = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model()(images).argmax(1)
    return list(zip(images.split(64), labels.split(64)))

def images():
    return [images for images, _ in batches()]

def constant():
    always_first = nn.Linear(2, 2)
    nn.init.zeros_(always_first.weight)
    always_first.bias.data[:] = torch.tensor([1.0, 0.0])
    return model().append(always_first)

def three_of_four():
    return [(torch.randn(64, 1, 8, 8), torch.tensor([0, 0, 0, 1] * 16)) for _ in range(4)]

def one():
    return torch.zeros(4, 1, 8, 8)

def one_labelled():
    return torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)

def scripted():
    return torch.jit.script(fresh())

class Missing(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        raise FileNotFoundError("photo.png")

def missing():
    return torch.utils.data.DataLoader(Missing(), num_workers=1)

def text():
    return "a model"

def values(model):
    return [(model(images).argmax(1) == labels).float().mean() for images, labels in batches()]

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x, scale):
        return self.bn(x * scale)

def two():
    return Two().eval()

def call_two(model, batch):
    return model(batch[0], 2.0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MODULE)
    return folder


def doctor(folder: Path, *words: str) -> Done:
    return call_bnlab(folder, "doctor", *words)


def test_a_healthy_model_is_told_so_with_status_0(folder: Path) -> None:
    done = doctor(folder, "mine:model", "mine:batches")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Healthy averages (2 batch norms).")
    assert "or pass --expected." in done.stdout
    assert done.stderr == ""


def test_averages_that_cost_points_are_status_1(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:batches")

    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("The averages are at fault (2 batch norms). ")


def test_without_batches_the_buffers_speak(folder: Path) -> None:
    assert doctor(folder, "mine:model").returncode == 0
    done = doctor(folder, "mine:fresh")

    assert done.returncode == 1
    assert "BN002 warning: never updated, in 1" in done.stdout
    assert "(without data)" in done.stdout


def test_fail_on_moves_the_line(folder: Path) -> None:
    statuses = [doctor(folder, "mine:fresh", "--fail-on", line).returncode for line in ("note", "warning", "error")]

    assert statuses == [1, 1, 0]
    assert doctor(folder, "mine:spoiled", "mine:batches", "--fail-on", "error").returncode == 1  # more than five points


class Quiet(Cause):
    """Finds nothing."""

    code = "BN998"
    title = "nothing"
    meaning = "Nothing."
    remedy = "Nothing."

    def look(self, case: Case) -> Signs | None:
        return None


def test_select_shows_and_judges_only_codes_that_begin_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.commands.doctor.list_causes", lambda: [*list_causes(), Quiet()])

    assert "BN002" in doctor(folder, "mine:fresh", "--select", "BN998,bn0").stdout
    done = doctor(folder, "mine:fresh", "--select", "BN998")
    assert done.returncode == 0
    assert "BN002" not in done.stdout


def test_the_verdict_is_no_selected_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.commands.doctor.list_causes", lambda: [Quiet()])

    done = doctor(folder, "mine:spoiled", "mine:batches", "--select", "BN9")

    assert done.returncode == 0
    assert done.stdout.startswith("The averages are at fault")


def test_what_is_not_selected_may_still_name_the_cause(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:batches", "--select", "BN9")

    assert "BN108 error" in doctor(folder, "mine:spoiled", "mine:batches").stdout
    assert "BN108 error" not in done.stdout


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
    assert "The averages are at fault" in page
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
    assert any("--before, an earlier checkpoint" in row["wanted"] for row in before["skipped"])
    assert not any("--before" in row["wanted"] for row in report["skipped"])


def test_a_metric_of_the_users_own(folder: Path) -> None:
    done = doctor(folder, "mine:spoiled", "mine:images", "--evaluate", "mine:values", "--json")

    report = json.loads(done.stdout)
    assert set(report["scores"]) == {"running", "exact", "batch"}
    assert report["scores"]["exact"] > report["scores"]["running"] + 0.1


def test_training_batches_are_named_as_batches_are(folder: Path) -> None:
    done = doctor(folder, "mine:model", "mine:images", "--training", "mine:batches", "--json")

    assert done.returncode == 0, done.stderr
    assert not any("--training" in row["wanted"] for row in json.loads(done.stdout)["skipped"])


def test_what_the_model_should_reach(folder: Path) -> None:
    words = ("mine:constant", "mine:three_of_four", "--expected")

    done = doctor(folder, *words, "0.9")
    assert done.returncode == 1
    assert done.stdout.startswith("The network is at fault, not the averages")
    assert "where 90.0% is expected." in " ".join(done.stdout.split())
    assert doctor(folder, *words, "0.7").returncode == 0
    done = doctor(folder, *words, "50")
    assert done.returncode == 2
    assert "expected=50.0, but scores are shares here; pass one between 0 and 1" in done.stderr


def test_a_model_that_is_called_otherwise(folder: Path) -> None:
    done = doctor(folder, "mine:two", "mine:batches")
    assert done.returncode == 2
    assert "--forward package.module:function of model and batch" in done.stderr

    done = doctor(folder, "mine:two", "mine:batches", "--forward", "mine:call_two", "max_images=64", "--json")
    assert json.loads(done.stdout)["images"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine:nowhere",), "mine:nowhere: cannot be imported"),
        (("mine:text",), "doctor: expected a torch.nn.Module, found str"),
        (("mine:model", "nowhere"), "nowhere: no such folder; name a folder of images, or write package.module:funct"),
        (("mine:model", "mine:one"), "doctor: mine:one is a Tensor; pass an iterable of batches"),
        (
            ("mine:model", "mine:one_labelled"),
            "mine:one_labelled is one batch of images and labels; pass a list of bat",
        ),
        (("mine:scripted", "mine:batches"), "doctor: the model is TorchScript, whose layers cannot be watched; pass"),
        (("mine:model", "mine:missing"), "error: FileNotFoundError: photo.png"),
        (("mine:model", "--evaluate", "mine:values"), "--evaluate is about batches, and none are given"),
        (("mine:model", "--worth", "1"), "--worth is about batches, and none are given"),
        (("mine:model", "mine:batches", "--worth", "0"), "worth=0.0; pass a positive difference of scores"),
        (("mine:model", "max_images=3"), "--max-images is about batches, and none are given"),
        (("mine:model", "mine:batches", "--max-images", "0"), "max_images=0"),
        (("mine:model", "--weights", "nowhere.pt"), "--weights nowhere.pt: no such file"),
        (("mine:model", "--before", "nowhere.pt"), "--before nowhere.pt: no such file"),
        (("mine:model", "--select", "BN7"), "--select BN7: no code begins so; bnlab explain lists them"),
        (("mine:model", "--html", "nowhere/page.html"), "--html nowhere/page.html: is a folder, or lies in none"),
        (("mine:model", "--html", "."), "--html .: is a folder"),
        (("mine:model", "--fail-on", "never"), "invalid choice: 'never'"),
        (("torchvision:resnet19",), "torchvision has no such model; is it resnet"),
        ((), "name a model, package.module:function; or see what the doctor does: bnlab doctor --demo"),
    ],
)
def test_mistakes_are_one_line_and_status_2(folder: Path, words: tuple[str, ...], message: str) -> None:
    done = doctor(folder, *words)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_packaged_model_and_a_folder_of_images(tmp_path: Path) -> None:
    for number in range(8):
        place = tmp_path / "photos" / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (30 * number, 100, 200 - 20 * number)).save(place / f"{number}.png")

    done = doctor(tmp_path, "torchvision:resnet18", "photos", "--size", "32", "--batch-size", "4", "--json")

    report = json.loads(done.stdout)
    assert report["images"] == 8
    assert report["notes"] == [
        "torchvision:resnet18 has its initial weights; --weights FILE loads trained ones.",
        "The 2 subfolders are classes 0 to 1, in alphabetical order.",
    ]
    assert set(report["scores"]) == {"running", "exact", "batch"}


def test_explain_says_what_a_code_means(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain", "bn002")

    assert done.returncode == 0
    assert done.stdout.startswith("BN002: never updated\n")


def test_a_code_that_is_part_of_another_one_is_explained_and_selected_by_it(folder: Path) -> None:
    done = call_bnlab(folder, "explain", "BN213")

    assert done.returncode == 0
    assert done.stdout.startswith("BN213 is part of BN209.\n\nBN209: ")
    assert doctor(folder, "mine:model", "--select", "bn213").returncode == 0


def test_the_least_difference_that_matters(folder: Path) -> None:
    words = ("mine:spoiled", "mine:images", "--evaluate", "mine:values")

    assert doctor(folder, *words, "--worth", "0.001").returncode == 1
    assert doctor(folder, *words, "--worth", "0.9").stdout.startswith("Healthy averages")


def test_explain_lists_all_codes(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain")

    assert [line.partition("  ")[0] for line in done.stdout.splitlines()] == [rule.code for rule in list_causes()]


def test_explain_knows_no_other_code(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain", "BN000")

    assert done.returncode == 2
    assert "'BN000' is no code; there are" in done.stderr
    assert done.stderr.count("\n") == 1
