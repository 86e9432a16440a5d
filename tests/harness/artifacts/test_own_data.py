"""Own data: bytes and floats stay what they are, random transforms are for training alone, anything else is refused."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bnlab.harness.artifacts import shifts
from bnlab.harness.artifacts.data import Dataset, load_dataset
from bnlab.harness.artifacts.data.own_data import OwnData
from bnlab.harness.artifacts.data.own_parts import read_own
from bnlab.harness.artifacts.models.cnn import Cnn
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.estimates import EXACT, draw_population, frozen_statistics
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.statistic_kinds import Exact
from bnlab.vision import torchvision
from tests.conftest import small_config
from tests.harness.kills import assert_same, killed_at

TRAIN, TEST = 40, 12
AUGMENTED = Subject(Exact(), "train_augmented")
Part = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray], Any]
Give = Callable[..., OwnData]


def make_part(count: int) -> Part:
    """Random bytes [N, 3, 8, 8] of three classes; the first pixel is the image's number."""
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    return images, np.arange(count) % 3


def change_images(change: Change) -> tuple[Part, Part]:
    """The training and the test part with other images."""
    (images, labels), (test, test_labels) = make_part(TRAIN), make_part(TEST)
    return (change(images), labels), (change(test), test_labels)


class Items:
    """A data set of an array's images as PIL's, transformed each time that one is read."""

    def __init__(self, part: Part, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.labels = part
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index].transpose(1, 2, 0))
        return self.transform(image), int(self.labels[index])


def keep(image: Image.Image) -> Image.Image:
    return image


def brighten(image: Image.Image) -> Image.Image:
    """Add what is drawn by torch, numpy and random, on all pixels but the first."""
    pixels = np.array(image)
    more = int(torch.randint(3, ())) + np.random.randint(3) + random.randrange(3)
    pixels.reshape(-1, 3)[1:] //= 2
    pixels.reshape(-1, 3)[1:] += more
    return Image.fromarray(pixels)


def make_three_parts() -> tuple[Items, Items, Items]:
    return Items(make_part(TRAIN), keep), Items(make_part(TEST), keep), Items(make_part(TRAIN), brighten)


THREE_PARTS = OwnData(name=f"{__name__}.make_three_parts")


def forget_data() -> None:
    load_dataset.cache_clear()
    read_own.cache_clear()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    forget_data()
    yield
    forget_data()


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Lets the function `mine.make_data` give these parts: the data's configuration."""

    def configure(*parts: Any) -> OwnData:
        monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make_data=lambda: parts))
        forget_data()
        return OwnData(name="mine.make_data")

    return configure


def to_tensors(change: Change) -> Change:
    return lambda images: torch.from_numpy(change(images.astype(np.float64)))


FLOATS: dict[str, Change] = {
    "ToTensor": lambda images: images.astype(np.float32) / 255,
    "Normalize": lambda images: (images / 255 - 0.45) / 0.22,
    "from 0 to 240": lambda images: images * (240 / 255),
    "float16": lambda images: images.astype(np.float16),
    "tensors": to_tensors(lambda images: images - 300),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_taken_as_they_are(kind: str, give: Give) -> None:
    """Standardized they are the bytes that they have been made of; their mean is their own."""
    bytes_ = load_dataset(give(*change_images(lambda images: images)))
    parts = change_images(FLOATS[kind])
    found = load_dataset(give(*parts))

    for split in ("train", "val", "test"):
        expected = bytes_.images_of(split)
        torch.testing.assert_close(found.images_of(split).images, expected.images, rtol=0, atol=2e-5)
        assert torch.equal(found.images_of(split).labels, expected.labels)
    pixels = restore_pixels(bytes_, bytes_.train.images)
    mean = torch.as_tensor(FLOATS[kind](pixels.numpy().round())).double().mean((0, 2, 3))

    assert found.mean == pytest.approx(mean.tolist(), rel=1e-5)
    assert found.train.digest != bytes_.train.digest
    assert np.isnan(found.largest)


def restore_pixels(dataset: Dataset, images: Tensor) -> Tensor:
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)
    return images * std + mean


def test_to_tensor_and_normalize_of_torchvision(give: Give) -> None:
    """A data set that is read item by item."""
    v1 = torchvision().transforms
    normalize = v1.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    transform = v1.Compose([v1.ToTensor(), normalize])
    train = make_part(TRAIN)
    test = make_part(TEST)

    item_by_item = give(Items(train, transform), Items(test, transform))
    found = load_dataset(item_by_item)

    expected = load_dataset(give(train, test))
    torch.testing.assert_close(found.train.images, expected.train.images, rtol=0, atol=2e-5)
    assert torch.equal(found.test.labels, expected.test.labels)


def test_standardizing_leaves_the_images_that_were_read(give: Give) -> None:
    """Gray floats are channels_last as they are, so that no copy is needed to make them so."""
    config = give(*change_images(lambda images: images[:, :1].astype(np.float32)))
    first = load_dataset(config)
    again = load_dataset(replace(config, shift=1))

    assert again is not first
    assert again.test.digest == first.test.digest
    assert torch.equal(again.test.images, first.test.images)


def spoil(value: float) -> Change:
    def changed(images: np.ndarray) -> np.ndarray:
        floats = images.astype(np.float64)
        floats[5, 1, 2, 3] = value
        return floats

    return changed


def fill_channel(images: np.ndarray) -> np.ndarray:
    images[:, 1] = 255
    return images


def label_as(labels: Any) -> tuple[Any, Part]:
    return (make_part(TRAIN)[0], labels), make_part(TEST)


def name_classes(*names: tuple[str, ...]) -> list[Items]:
    """The two parts as data sets with the names of their classes."""
    parts = [Items(make_part(count), keep) for count in (TRAIN, TEST)]
    for part, own in zip(parts, names, strict=True):
        part.classes = list(own)  # type: ignore[attr-defined]
    return parts


def transform_items(transform: Callable[[Image.Image], Any]) -> list[Items]:
    return [Items(make_part(TRAIN), transform), Items(make_part(TEST), transform)]


def resize_some(image: Image.Image) -> Image.Image:
    return image.resize((6, 6)) if np.array(image)[0, 0, 0] % 2 else image


def draw_own(generator: np.random.Generator) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image if generator.random() < 0.5 else Image.fromarray(np.array(image) // 2)


LABELS = make_part(TRAIN)[1]
PAIRS = [make_part(TRAIN), make_part(TEST)]
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # images
    "int16": (lambda: change_images(lambda i: i.astype(np.int16)), "the training part has int16 images; .*uint8"),
    "int64": (lambda: change_images(lambda i: i.astype(np.int64)), "the training part has int64 images; .*uint8"),
    "bool": (lambda: change_images(lambda i: i > 99), "the training part has bool images; .*uint8"),
    "channels last": (
        lambda: change_images(lambda i: i.transpose(0, 2, 3, 1)),
        r"the training part has images of shape \[40, 8, 8, 3\]; they have to be \[N, C, H, W\]",
    ),
    "channels first in items": (
        lambda: transform_items(lambda image: np.array(image).transpose(2, 0, 1)),
        r"has arrays of shape \[3, 8, 8\]; arrays have to be \[H, W, C\], and tensors \[C, H, W\]",
    ),
    "palette": (lambda: transform_items(lambda i: i.convert("P")), r"palette images, .* image.convert\(\"RGB\"\)"),
    "black or white": (lambda: transform_items(lambda i: i.convert("1")), "the training part has bool images"),
    "NaN": (
        lambda: change_images(spoil(np.nan)),
        "the training part has NaN or infinite pixels .* in 1 of 40 images, the first of which is item 5",
    ),
    "infinite": (lambda: [PAIRS[0], change_images(spoil(np.inf))[1]], "the test part has NaN or infinite pixels"),
    "too large for float32": (lambda: change_images(spoil(1e300)), "the training part has NaN or infinite pixels"),
    "sizes": (
        lambda: transform_items(resize_some),
        r"the training part has images that differ: uint8 \[3, 8, 8\], uint8 \[3, 6, 6\]; give all the same size",
    ),
    "channels": (
        lambda: transform_items(lambda i: i.convert("L") if np.array(i)[0, 0, 0] > 30 else i),
        r"images that differ: uint8 \[3, 8, 8\], uint8 \[1, 8, 8\]",
    ),
    "parts of two types": (
        lambda: [PAIRS[0], change_images(FLOATS["ToTensor"])[1]],
        r"the training part has images uint8 \[3, 8, 8\], the test part float32 \[3, 8, 8\]",
    ),
    "parts of two sizes": (
        lambda: [PAIRS[0], change_images(lambda i: i[:, :, 1:, 1:])[1]],
        r"the training part has images uint8 \[3, 8, 8\], the test part uint8 \[3, 7, 7\]",
    ),
    "constant channel": (
        lambda: change_images(fill_channel),
        "channel 1 of 3 is 255 in each pixel of all 36 training images",
    ),
    "no images": (lambda: [PAIRS[0], []], "the test part has no images"),
    "no arrays": (lambda: [PAIRS[0], make_part(0)], "the test part has no images"),
    "few images": (lambda: [make_part(7), make_part(3)], "has 7 training images; at least 10 are needed"),
    # labels
    "regression": (
        lambda: label_as(LABELS / 2),
        "the training part has float64 labels such as 0.0, 0.5, 1.0; .*0, 1, 2",
    ),
    "float classes": (lambda: label_as(LABELS * 1.0), "the training part has float64 labels such as 0.0, 1.0, 2.0"),
    "one-hot": (lambda: label_as(np.eye(3, dtype=int)[LABELS]), r"has 40 images and labels of shape \[40, 3\]; labels"),
    "fewer labels": (lambda: label_as(LABELS[:-1]), r"has 40 images and labels of shape \[39\]"),
    "negative": (lambda: label_as(LABELS - 1), "the training part has the label -1; labels have to be the numbers"),
    "words": (lambda: label_as(["cat"] * TRAIN), "the training part has labels such as 'cat'; labels have to be"),
    "floats in items": (
        lambda: [[(torch.zeros(1, 8, 8), label / 2) for label in labels] for _, labels in PAIRS],
        "the training part has float64 labels such as 0.0, 0.5, 1.0",
    ),
    "a class without images": (
        lambda: label_as(np.asarray(LABELS) + 1),
        "the training part has the label 3, but no image of 0; number classes 0, 1, 2",
    ),
    "only in the test part": (
        lambda: [PAIRS[0], (PAIRS[1][0], PAIRS[1][1] + 2)],
        "only the test part has the classes 3, 4; ",
    ),
    "names": (
        lambda: name_classes(("ant", "bee", "cat"), ("ant", "cat", "dog")),
        "class 1 is bee in the training part, cat in the test part; both need the same classes",
    ),
    "fewer names": (lambda: name_classes(("ant", "bee", "cat"), ("ant", "bee")), "class 2 is cat .*, missing in the"),
    # random transforms
    "random": (lambda: transform_items(brighten), r"the training part gives other images .*\(train, test, augmented\)"),
    "random test": (lambda: [PAIRS[0], transform_items(brighten)[1]], "the test part gives other images"),
    "third part of arrays": (lambda: [*PAIRS, PAIRS[0]], "the augmented part is a tuple; it has to be a data set"),
    "a validation part": (
        lambda: [*transform_items(keep), transform_items(keep)[1]],
        "the augmented part has 12 items, the training part 40; .*bnlab takes the validation split",
    ),
    "another type": (
        lambda: [*PAIRS, transform_items(torchvision().transforms.ToTensor())[0]],
        r"the augmented part has images float32 \[3, 8, 8\], the training part uint8 \[3, 8, 8\]",
    ),
    "another order": (
        lambda: [*PAIRS, Items((PAIRS[0][0], PAIRS[0][1][::-1]), brighten)],
        "the augmented part has other labels than the training part",
    ),
    "a generator of its own": (
        lambda: [*PAIRS, transform_items(draw_own(np.random.default_rng(0)))[0]],
        "the augmented part draws other images from the same seed; .* global generators of torch, numpy or random",
    ),
    # parts
    "one part": (lambda: [PAIRS[0]], "found 1 instead of 2 or 3 parts; it has to give the training and the test part"),
    "four parts": (
        lambda: [*PAIRS, *PAIRS],
        "found 4 instead of 2 or 3 parts; it has to give the training and the test part",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(case: str, give: Give) -> None:
    make, message = REFUSED[case]
    config = give(*make())
    with pytest.raises(UserError) as caught:
        config.check()
        load_dataset(config)
    found = str(caught.value)

    assert found.startswith("data=mine.make_data: ") and re.search(message, found) and "\n" not in found, found


def test_corruptions_need_a_known_range(give: Give) -> None:
    floats = change_images(FLOATS["Normalize"])
    config = give(*floats)
    shifts.check(["none"], config, ["test"])
    with pytest.raises(UserError, match=r"^shifts=noise:1: data=mine.make_data has float images, .*; give bytes"):
        shifts.check(["none", "noise:1"], config, ["test"])

    of_bytes = give(*PAIRS)
    shifts.check(["none", "noise:1"], of_bytes, ["test"])


def test_what_a_function_draws_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before, which goes on as if the data had not been read."""
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make_data=draw_parts))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = draw_states()
        found.append(read_own("mine.make_data", ()))
        assert draw_states() == before
        forget_data()

    assert torch.equal(found[0].train[0], found[1].train[0])


def draw_parts() -> list[tuple[Tensor, Tensor]]:
    few = torch.rand(20, 1, 8, 8) + np.random.rand() + random.random()
    return [(few, torch.arange(20) % 2), (few[:5], torch.arange(5) % 2)]


def draw_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def test_augmented_images_are_those_of_the_training_split() -> None:
    """Each with its label, drawn again at each step, the same for a seed; what is measured is as without them."""
    dataset = load_dataset(THREE_PARTS)
    batches = Batches(dataset.train, 8, Seeds.of(0), augmented=dataset.augmented)
    plain = replace(batches, augmented=None)

    assert batches.augments
    assert not plain.augments

    before = draw_states()
    steps = [*islice(batches.from_step(0), 10)]
    assert draw_states() == before

    for (images, labels), (expected, their_labels) in zip(steps, plain.from_step(0), strict=False):
        assert torch.equal(labels, their_labels)
        assert not torch.equal(images, expected)
        assert torch.equal(images[:, :, 0, 0], expected[:, :, 0, 0])  # which no transform changes
        assert images.is_contiguous(memory_format=torch.channels_last)
    for step in (3, 7):
        again, _ = next(iter(batches.from_step(step)))
        assert torch.equal(again, steps[step][0])

    seeds = replace(Seeds.of(0), augmentation=1)
    other_seed, _ = next(iter(replace(batches, seeds=seeds).from_step(0)))
    assert not torch.equal(other_seed, steps[0][0])


def test_augmented_images_are_standardized_by_the_training_split(give: Give) -> None:
    config = give(*PAIRS)
    expected = load_dataset(config)
    found = load_dataset(THREE_PARTS)

    assert found.mean == expected.mean
    assert torch.equal(found.train.images, expected.train.images)

    drawn = restore_pixels(found, found.train_augmented.images)
    assert (drawn - drawn.round()).abs().max() < 1e-3
    assert drawn[:, :, 1:].max() < 128 + 9
    assert found.train_augmented.digest != found.train.digest
    assert expected.train_augmented is expected.train


def test_an_augmented_training_that_is_killed_goes_on_as_it_was(tmp_path: Path) -> None:
    settings = {"data": THREE_PARTS, "model": Cnn(depth=1, width=4), "batch_size": 8, "steps": 12}
    job = small_config(tmp_path / "whole", **settings, evaluate_at=[6, 12])
    whole = Run(job)
    ensure_trained(whole)
    torch.manual_seed(7)
    forget_data()
    killed = replace(job, results=str(tmp_path / "killed"))
    with killed_at(7):
        ensure_trained(Run(killed))
    forget_data()
    ensure_trained(Run(killed))
    assert_same(Run(killed), whole)

    (drawn,) = draw_population(whole, 12, AUGMENTED, 100)
    (plain,) = draw_population(whole, 12, EXACT, 100)

    assert torch.equal(drawn, whole.dataset.train_augmented.images)
    assert torch.equal(plain, whole.dataset.train.images)
    assert not torch.equal(drawn, plain)

    exact = frozen_statistics(whole, 12, EXACT)
    augmented = frozen_statistics(whole, 12, AUGMENTED)
    (layer,) = exact
    assert not torch.equal(exact[layer].mean, augmented[layer].mean)
