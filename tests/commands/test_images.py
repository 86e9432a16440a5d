"""A folder of images as batches."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bnlab.commands.images import add_image_arguments, find_images


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_image_arguments(parser)
    return parser.parse_args(words)


def save_gray(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def list_images(folder: Path, *words: str) -> list[Tensor]:
    """The images in their order, one by one."""
    batches = list(find_images(folder, parse(*words)))
    return [image for batch in batches for image in (batch if isinstance(batch, Tensor) else batch[0])]


def paint(*colour: int) -> np.ndarray:
    """Pixels of one colour, 20 high and 40 wide."""
    return np.full((20, 40, 3), colour, dtype=np.uint8)


WIDE = np.zeros((4, 12), dtype=np.uint8)
WIDE[:, 4:8] = 255  # the middle third, a square
READ = {  # an image, what is typed, and the value of each channel
    "resized and normalized": (
        paint(255, 0, 51), "--size 8", [(1.0 - 0.485) / 0.229, (0.0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225],
    ),
    "cropped about the center, not squeezed": (WIDE, "--size 4 --mean 0 --std 1", [1.0]),
    "one number of the mean means gray": (paint(51, 51, 51), "--size 4 --mean 0.1 --std 0.5", [0.2]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_how_an_image_is_read(case: str, tmp_path: Path) -> None:
    pixels, line, channels = READ[case]
    Image.fromarray(pixels).save(tmp_path / "one.png")

    (image,) = list_images(tmp_path, *line.split())

    size = int(line.split()[1])
    torch.testing.assert_close(image, torch.tensor(channels).view(-1, 1, 1).expand(-1, size, size))


def test_subfolders_are_classes_and_labels_stay_with_their_images(tmp_path: Path) -> None:
    values = {"ants": 0, "bees": 100, "cats": 200}
    for name, value in values.items():
        for number in range(5):
            save_gray(tmp_path / name / "deeper" / f"{number}.png", value + number)

    folder = find_images(tmp_path, parse("--size", "4", "--mean", "0", "--std", "1", "--batch-size", "4"))
    batches = list(folder)

    assert folder.classes == 3
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

    first = torch.stack(list_images(tmp_path, "--size", "2"))

    assert torch.equal(first, torch.stack(list_images(tmp_path, "--size", "2")))


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["only/1.png", "only/2.png"], ["1.png", "a/2.png", "b/3.png"]])
def test_without_two_subfolders_there_are_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        save_gray(tmp_path / name, 9)

    folder = find_images(tmp_path, parse("--size", "4"))

    assert folder.labels is None
    (batch,) = folder
    assert batch.shape == (len(names), 3, 4, 4)


REFUSED = [
    # a file of the folder, what is typed, and what is said
    ("one.png", "--mean 0.5", "--mean has 1 number(s), --std 3"),
    ("one.png", "--std 1,1,0", "--std 0.0: give positive numbers"),
    ("one.png", "--size 0", "--size 0: give at least 1"),
    ("notes.txt", "", "has no images; they end in .bmp, "),
    ("broken.png", "", "broken.png: cannot be read as an image"),
]


@pytest.mark.parametrize(("file", "line", "message"), REFUSED)
def test_what_is_refused(file: str, line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()

    with pytest.raises(ValueError) as caught:
        list_images(tmp_path, *line.split())

    assert message in str(caught.value)


def test_a_missing_pillow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ValueError, match="images are read by Pillow, which is not installed: pip install pillow"):
        find_images(tmp_path, parse())
