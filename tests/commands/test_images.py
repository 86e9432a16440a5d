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

from bnlab.commands.images import ImageFolder, Preparation, find_images
from bnlab.commands.parsers import add_image_arguments
from tests.helpers import torchvision


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_image_arguments(parser)
    return parser.parse_args(words)


def find(folder: Path, *words: str) -> ImageFolder:
    """The images of a folder, for a model of the user's own."""
    return find_images(folder, parse(*words), Preparation())


def save_gray(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def list_images(folder: Path, *words: str) -> list[Tensor]:
    """The images in their order, one by one."""
    batches = list(find(folder, *words))
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

    folder = find(tmp_path, "--size", "4", "--mean", "0", "--std", "1", "--batch-size", "4")
    batches = list(folder)

    assert folder.classes == ["ants", "bees", "cats"]
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

    folder = find(tmp_path, "--size", "4")

    assert folder.labels is None
    (batch,) = folder
    assert batch.shape == (len(names), 3, 4, 4)
    has_subfolders = len(names) == 3
    described = " ".join(folder.describe())
    assert has_subfolders == ("2 subfolders" in described)
    assert has_subfolders == ("(1.png)" in described)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    """The classes after it would get the number before their own."""
    save_gray(tmp_path / "ants" / "1.png", 9)
    save_gray(tmp_path / "cats" / "1.png", 9)
    (tmp_path / "bees").mkdir()
    (tmp_path / ".cache").mkdir()

    with pytest.raises(ValueError, match=r"1 of 3 .*\(bees\)"):
        find(tmp_path)


def test_classes_may_be_links_to_folders(tmp_path: Path) -> None:
    for name in ("ants", "bees", "cats"):
        save_gray(tmp_path / "all" / name / "1.png", 9)
    subset = tmp_path / "subset"
    subset.mkdir()
    save_gray(subset / "ants" / "1.png", 9)
    for name in ("bees", "cats"):
        (subset / name).symlink_to(tmp_path / "all" / name)

    folder = find(subset)

    assert folder.classes == ["ants", "bees", "cats"]
    assert folder.labels is not None
    assert sorted(folder.labels.tolist()) == [0, 1, 2]


def test_a_link_back_is_not_followed(tmp_path: Path) -> None:
    save_gray(tmp_path / "ants" / "1.png", 9)
    save_gray(tmp_path / "bees" / "1.png", 9)
    (tmp_path / "bees" / "all").symlink_to(tmp_path)

    assert len(find(tmp_path).paths) == 2


def test_batches_are_as_equal_as_possible(tmp_path: Path) -> None:
    """A small rest would be reported as the small last batch of somebody's training."""
    for number in range(9):
        save_gray(tmp_path / f"{number}.png", number)

    batches = list(find(tmp_path, "--size", "2", "--batch-size", "4"))

    assert [len(batch) for batch in batches] == [3, 3, 3]


@pytest.mark.parametrize("size", [(53, 41), (40, 97), (64, 64)])
@pytest.mark.parametrize(("crop", "resize", "interpolation"), [(24, 32, "bilinear"), (30, 31, "bicubic")])
def test_images_are_those_of_torchvision_to_the_pixel(
    size: tuple[int, int], crop: int, resize: int, interpolation: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    mode = torchvision().transforms.InterpolationMode(interpolation)
    weights = torchvision().models.get_model_weights("resnet18").DEFAULT
    theirs = weights.transforms(crop_size=crop, resize_size=resize, interpolation=mode)

    found = find_images(tmp_path, parse(), Preparation(crop, resize, interpolation=interpolation))
    (batch,) = found

    torch.testing.assert_close(batch[0], theirs(Image.open(tmp_path / "one.png")), rtol=0, atol=1e-6)


REFUSED = [
    # a file of the folder, what is typed, and what the message names
    ("one.png", "--mean 0.5", ["--mean", "--std 3"]),
    ("one.png", "--std 1,1,0", ["--std 0.0"]),
    ("one.png", "--size 0", ["--size 0"]),
    ("one.png", "--batch-size 0", ["--batch-size 0"]),
    ("one.png", "--size 32 --resize 16", ["--resize 16", "32"]),
    ("notes.txt", "", ["no images", ".bmp, "]),
    ("broken.png", "", ["broken.png"]),
]


@pytest.mark.parametrize(("file", "line", "named"), REFUSED)
def test_what_is_refused(file: str, line: str, named: list[str], tmp_path: Path) -> None:
    (tmp_path / file).touch()

    with pytest.raises(ValueError) as caught:
        list_images(tmp_path, *line.split())

    assert all(words in str(caught.value) for words in named)


def test_a_missing_pillow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ValueError, match="pip install pillow"):
        find(tmp_path)


def test_a_suspiciously_large_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's error of this is neither an OSError nor does it name the file."""
    save_gray(tmp_path / "panorama.png", 9, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(ValueError, match=r"panorama\.png"):
        list_images(tmp_path)


PREPARED = [
    # what is typed, and the size of the square and of the shorter side before
    ("", 224, 256),
    ("--size 32", 32, 32),
    ("--resize 232", 224, 232),
    ("--size 32 --resize 40", 32, 40),
]


@pytest.mark.parametrize(("line", "size", "resize"), PREPARED)
def test_which_part_of_an_image_is_seen(line: str, size: int, resize: int, tmp_path: Path) -> None:
    save_gray(tmp_path / "one.png", 9)

    preparation = find(tmp_path, *line.split()).preparation

    assert (preparation.size, preparation.resize) == (size, resize)
