"""A folder of images as batches."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bnlab.commands.images import ImageFolder, open_folder
from bnlab.commands.packages import make_transform
from bnlab.commands.parsers import add_image_arguments


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_image_arguments(parser)
    return parser.parse_args(words)


def find(folder: Path, *words: str) -> ImageFolder:
    """The images of a folder, for a model of the user's own."""
    arguments = parse(*words)
    return open_folder(folder, make_transform("mine:model", None, arguments), arguments.batch_size)


def save_gray(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 6), value).save(path)


def test_subfolders_are_classes_and_labels_stay_with_their_images(tmp_path: Path) -> None:
    values = {"ants": 0, "bees": 100, "cats": 200}
    for name, value in values.items():
        for number in range(5):
            save_gray(tmp_path / name / "deeper" / f"{number}.png", value + number)

    folder = find(tmp_path, "--size", "4", "--mean", "0", "--std", "1", "--batch-size", "4")
    batches = list(folder)

    assert folder.classes == ["ants", "bees", "cats"]
    assert "classes 0 to 2" in " ".join(folder.describe())
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 3]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    values_read = (255 * images[:, 0, 0, 0]).round()
    assert labels.tolist() == (values_read // 100).tolist()
    assert labels.tolist() != sorted(labels.tolist())  # each batch has several classes
    assert sorted(values_read.tolist()) == sorted(value + number for value in values.values() for number in range(5))


def test_the_order_is_the_same_each_time(tmp_path: Path) -> None:
    for number in range(20):
        save_gray(tmp_path / f"{number}.png", number)

    folder = find(tmp_path, "--size", "2", "--batch-size", "4")
    first = torch.cat(list(folder))

    assert torch.equal(first, torch.cat(list(folder)))
    assert torch.equal(first, torch.cat(list(find(tmp_path, "--size", "2"))))


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["only/1.png", "only/2.png"]])
def test_without_two_subfolders_there_are_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        save_gray(tmp_path / name, 9)

    (batch,) = find(tmp_path, "--size", "4")

    assert isinstance(batch, Tensor)
    assert batch.shape == (2, 3, 4, 4)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    """The classes after it would get the number before their own."""
    save_gray(tmp_path / "ants" / "1.png", 9)
    save_gray(tmp_path / "cats" / "1.png", 9)
    (tmp_path / "bees").mkdir()

    with pytest.raises(FileNotFoundError, match="bees"):
        find(tmp_path)


def test_batches_are_as_equal_as_possible(tmp_path: Path) -> None:
    """A small rest would be reported as the small last batch of somebody's training."""
    for number in range(9):
        save_gray(tmp_path / f"{number}.png", number)

    batches = list(find(tmp_path, "--size", "2", "--batch-size", "4"))

    assert [len(batch) for batch in batches] == [3, 3, 3]


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("one.png", "--std 1,1,0", "std"),
        ("one.png", "--batch-size 0", "batch_size=0"),
        ("notes.txt", "", r"no images.*\.png"),
        ("broken.png", "", r"broken\.png"),
    ],
)
def test_what_is_refused(file: str, line: str, named: str, tmp_path: Path) -> None:
    save_gray(tmp_path / "one.png", 9)
    (tmp_path / "one.png").rename(tmp_path / file)
    if file == "broken.png":
        (tmp_path / file).write_bytes(b"no image")

    with pytest.raises((ValueError, OSError), match=named):
        list(find(tmp_path, *line.split()))
