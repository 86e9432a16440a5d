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


def test_images_are_resized_and_normalized(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 0, 51)).save(tmp_path / "one.png")

    (image,) = list_images(tmp_path, "--size", "8")

    assert image.shape == (3, 8, 8)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor([1.0, 0.0, 0.2]) - mean) / std
    torch.testing.assert_close(image, expected.view(3, 1, 1).expand(3, 8, 8))


def test_images_are_cropped_about_their_center_and_not_squeezed(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12), dtype=np.uint8)
    pixels[:, 4:8] = 255  # the middle third, a square
    Image.fromarray(pixels).save(tmp_path / "wide.png")

    (image,) = list_images(tmp_path, "--size", "4", "--mean", "0", "--std", "1")

    torch.testing.assert_close(image, torch.ones(1, 4, 4))


def test_one_number_of_the_mean_means_gray(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (51, 51, 51)).save(tmp_path / "one.png")

    (image,) = list_images(tmp_path, "--size", "4", "--mean", "0.1", "--std", "0.5")

    torch.testing.assert_close(image, torch.full((1, 4, 4), 0.2))


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mean", "0.5"), "--mean has 1 number(s), --std 3"),
        (("--mean", "0,0", "--std", "1,1"), "--mean has 2 number(s), --std 2"),
        (("--std", "1,1,0"), "--std 0.0: give positive numbers"),
        (("--size", "0"), "--size 0: give at least 1"),
        (("--batch-size", "-1"), "--batch-size -1: give at least 1"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    save_gray(tmp_path / "one.png", 9)

    with pytest.raises(ValueError) as caught:
        find_images(tmp_path, parse(*words))

    assert message in str(caught.value)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ValueError, match=r"has no images; they end in \.bmp, "):
        find_images(tmp_path, parse())


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")

    with pytest.raises(ValueError, match=r"broken\.png: cannot be read as an image"):
        list(find_images(tmp_path, parse()))


def test_a_missing_pillow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ValueError, match="images are read by Pillow, which is not installed: pip install pillow"):
        find_images(tmp_path, parse())
