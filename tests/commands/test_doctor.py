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
from tests.commands.running import Done, call_bnlab, copy_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_module(tmp_path_factory.mktemp("mine"))


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


def test_explain_says_what_a_code_means_and_lists_all(tmp_path: Path) -> None:
    done = call_bnlab(tmp_path, "explain", "bn002")
    assert done.returncode == 0
    assert done.stdout.startswith("BN002: never updated\n")

    listed = call_bnlab(tmp_path, "explain").stdout.splitlines()
    assert [line.partition("  ")[0] for line in listed] == [rule.code for rule in list_causes()]


def test_a_code_that_is_part_of_another_one_is_explained_and_selected_by_it(folder: Path) -> None:
    done = call_bnlab(folder, "explain", "BN213")

    assert done.returncode == 0
    assert done.stdout.startswith("BN213 is part of BN209.\n\nBN209: ")
    assert doctor(folder, "mine:model", "--select", "bn213").returncode == 0


def test_the_least_difference_that_matters(folder: Path) -> None:
    words = ("mine:spoiled", "mine:images", "--evaluate", "mine:values")

    assert doctor(folder, *words, "--worth", "0.001").returncode == 1
    assert doctor(folder, *words, "--worth", "0.9").stdout.startswith("Healthy averages")
