"""Data sets: read as they lie there, split once and for all, standardized; glyphs and augmentation."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image
from torch import Tensor

from bnlab.common.digits import load_digits
from bnlab.harness import load, load_model
from bnlab.harness.artifacts.data import Data, Digits, Glyphs
from bnlab.harness.artifacts.data.cifar10 import Cifar10
from bnlab.harness.artifacts.data.fonts import FONTS
from bnlab.harness.artifacts.data.images.rendering import glyphs
from bnlab.harness.artifacts.dataset import Dataset, augment, load_dataset
from bnlab.harness.errors import UserError
from tests.harness.kills import interrupted_at
from tests.helpers import sweep_small, torchvision, write_copies

TRAIN, TEST = 40, 12


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    load_dataset.cache_clear()
    yield
    load_dataset.cache_clear()


def pixels(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(root: Path) -> np.ndarray:
    """Pickled batches, each image plane after plane."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    training = [f"data_batch_{number}" for number in range(1, 6)]
    for seed, file in enumerate([*training, "test_batch", "batches.meta"]):
        n = TEST if "test" in file else TRAIN // 5
        labels = [image % 10 for image in range(n)]
        batch = {"data": pixels(n, 3072, seed=seed), "labels": labels, "label_names": ["a"]}
        (folder / file).write_bytes(pickle.dumps(batch))

    of_test_batch = pixels(TEST, 3072, seed=len(training))
    return of_test_batch.reshape(TEST, 3, 32, 32)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CIFAR-10 have a few images."""
    monkeypatch.setattr(Cifar10, "size", Cifar10.size._replace(available=TRAIN, test=TEST))


def restore_pixels(dataset: Dataset, images: Tensor) -> Tensor:
    mean = torch.tensor(dataset.mean).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std).view(1, -1, 1, 1)
    return (images * std + mean).round().to(torch.uint8)


def assert_sound(config: Data, sizes: tuple[int, int, int]) -> None:
    """Disjoint splits of these sizes, standardized by the first, the same whenever they are read."""
    torch.manual_seed(1)
    dataset = load_dataset(config)
    load_dataset.cache_clear()
    torch.manual_seed(2)
    again = load_dataset(config)
    splits = (dataset.train, dataset.val, dataset.test)
    assert tuple(len(split.labels) for split in splits) == sizes
    assert config.count_training() == sizes[0]
    for split, other in zip(splits, (again.train, again.val, again.test), strict=True):
        assert torch.equal(split.images, other.images)
        assert torch.equal(split.labels, other.labels)
    images = [{image.numpy().tobytes() for image in restore_pixels(dataset, split.images)} for split in splits]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    train = dataset.train.images.double()
    assert dataset.train.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(train.shape[1]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(train.shape[1]).double())


def test_published_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files of the real kind in the real places; without their MD5 sums they are corrupt, and are not opened."""
    shrink(monkeypatch)
    expected = write_cifar10(tmp_path)
    config = Cifar10(root=str(tmp_path))
    with pytest.raises(UserError, match=rf"cifar10: .* {re.escape(str(tmp_path))}/cifar-10-batches-py"):
        load_dataset(config)
    monkeypatch.setattr(torchvision().datasets.cifar, "check_integrity", lambda *_: True)
    assert_sound(config, (36, 4, TEST))
    dataset = load_dataset(config)
    np.testing.assert_array_equal(restore_pixels(dataset, dataset.test.images), expected)  # in the file's order
    assert dataset.test.labels.tolist() == [i % 10 for i in range(TEST)]


def test_copies_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image with its class, in another order than that of the files; others than are published are refused."""
    write_copies(tmp_path, TRAIN, TEST)
    config = Cifar10(root=str(tmp_path), copies=True)
    with pytest.raises(UserError, match=rf"cifar10: {re.escape(str(tmp_path))} .*\b40\b.*\b12\b.*50,000 and 10,000"):
        load_dataset(config)
    shrink(monkeypatch)
    assert_sound(config, (36, 4, TEST))
    test = load_dataset(config).test

    assert restore_pixels(load_dataset(config), test.images)[:, 0, 9, 9].tolist() == test.labels.tolist()
    assert test.labels.tolist() != sorted(test.labels.tolist())

    one = next((tmp_path / "test").iterdir())
    one.rename(one.with_name("zebra"))
    with pytest.raises(UserError, match=r"zebra in test\b"):
        config.read()

    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match=r"train/<class>/ and test/<class>/"):
        config.read()


def test_a_sample_is_always_the_same() -> None:
    split = load_dataset(Digits()).test
    some = split.sample(50)

    different = {image.tobytes() for image in some.images.numpy()}
    assert len(some.labels) == len(different) == 50
    assert split.sample(359) is split

    again = split.sample(50)
    assert torch.equal(again.images, some.images)
    assert some.digest not in ("", split.digest)


def test_the_stored_digits_are_the_published_ones() -> None:
    """The digest is that of scikit-learn's copy, as whole numbers."""
    images, labels = load_digits()

    stored = images.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(stored).hexdigest() == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits() -> None:
    assert_sound(Digits(), (1295, 143, 359))
    assert_sound(Digits(images=100), (90, 10, 359))
    assert load_dataset(Digits(shift=1)).test.digest == load_dataset(Digits()).test.digest


def test_glyphs_of_fonts_that_can_be_kept_apart() -> None:
    config = Glyphs(images=200, fonts="dejavu")
    assert_sound(config, (180, 20, 50))
    plain = load_dataset(config)
    other = load_dataset(config.change_test_images("fonts:stix_cm"))

    assert plain.classes == 36
    assert torch.equal(plain.train.images, other.train.images)
    assert plain.test.digest != other.test.digest

    fonts = set(FONTS["dejavu"])
    assert fonts.isdisjoint(FONTS["stix_cm"])


@pytest.mark.parametrize("settings", [(36, "all"), (62, "stix_cm")])
def test_a_glyph_depends_on_seed_and_index_alone(settings: tuple[int, str]) -> None:
    few, few_labels = glyphs(30, *settings, seed=3)
    many, many_labels = glyphs(1100, *settings, seed=3)

    assert torch.equal(few, many[:30])
    assert torch.equal(few_labels, many_labels[:30])
    assert not torch.equal(few, glyphs(30, *settings, seed=4)[0])
    assert many.shape == (1100, 1, 32, 32)
    assert many.dtype == torch.uint8
    assert set(many_labels.tolist()) == set(range(settings[0]))


def number(n: int) -> Tensor:
    return torch.arange(1.0, n * 12 + 1).view(n, 2, 2, 3)


def test_a_flip_mirrors_whole_images_half_the_time() -> None:
    images = number(2000)
    generator = torch.Generator().manual_seed(0)

    out = augment(images, generator, shift=0, flip=True)

    kept = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)

    assert (kept ^ mirrored).all()

    deviation = 0.5 / 2000**0.5  # of a fair coin
    assert abs(mirrored.double().mean() - 0.5) < 5 * deviation


def test_no_flip_and_no_shift_give_the_images_themselves() -> None:
    images = number(4)

    assert augment(images, torch.Generator(), shift=0, flip=False) is images


def test_a_shift_moves_each_image_by_its_own_offset_and_fills_with_zero() -> None:
    images = number(500)
    out = augment(images, torch.Generator().manual_seed(0), shift=1, flip=False)
    again = augment(images, torch.Generator().manual_seed(0), shift=1, flip=False)
    other = augment(images, torch.Generator().manual_seed(1), shift=1, flip=False)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    matches = torch.stack(
        [(out == padded[:, :, y : y + 2, x : x + 3]).all(dim=(1, 2, 3)) for y in range(3) for x in range(3)]
    )

    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) > 30).all()
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, again)
    assert not torch.equal(out, other)


def copies_of(root: Path) -> list[str]:
    return ["data=cifar10", "data.copies=true", f"data.root={root}", "batch_size=9", "steps=5", "evaluate_at=final"]


def test_a_network_is_neither_measured_nor_continued_on_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published data has its name wherever it lies, but nobody has checked files that are copies."""
    shrink(monkeypatch)
    write_copies(tmp_path / "first", TRAIN, TEST)
    write_copies(tmp_path / "other", TRAIN, TEST)
    for path in (tmp_path / "other" / "train").glob("*/*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    results = tmp_path / "r"
    sweep_small(results, *copies_of(tmp_path / "first"))
    before = load("adhoc", results)["gaps"]
    capsys.readouterr()

    sweep_small(results, *copies_of(tmp_path / "other"), expect=2)

    message = r"data=cifar10: .*\w{10}/seed_\d"
    assert re.search(message, capsys.readouterr().err)
    assert_frame_equal(load("adhoc", results)["gaps"], before)

    (tmp_path / "first").rename(tmp_path / "moved")
    sweep_small(results, *copies_of(tmp_path / "moved"))
    assert "trained in" not in capsys.readouterr().out
    load_dataset.cache_clear()
    load_model("adhoc", load("adhoc", results)["runs"]["run"][0], results=results)

    with interrupted_at(2):
        sweep_small(results, *copies_of(tmp_path / "moved"), "seed=1", expect=130)
    sweep_small(results, *copies_of(tmp_path / "other"), "seed=1", expect=2)
    assert re.search(message, capsys.readouterr().err)
