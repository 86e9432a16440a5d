"""Data sets by name: read whole, split once and for all, standardized, on the device."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.files import digest
from bnlab.harness.artifacts import image_folder
from bnlab.harness.artifacts.glyphs import CLASSES, DIFFICULTIES, FONTS, stored_glyphs
from bnlab.harness.artifacts.published import PUBLISHED, read_published, require_files
from bnlab.harness.errors import UserError

Pixels = tuple[Tensor, Tensor]
"""uint8 images [N, C, H, W] and int64 labels [N]."""


@dataclass
class DataConfig:
    """Which data; the split into training, validation and test images is the same for every run."""

    name: str = "digits"  # digits, glyphs, mnist, fashion_mnist, cifar10, cifar100, svhn, image_folder
    root: str = "data"  # where data sets are stored
    download: bool = False
    images: int | None = None  # training and validation images to use; None: all (glyphs makes 20,000)
    classes: int = 36  # glyphs: 10 digits, 36 with capitals, 62 with small letters
    difficulty: str = "medium"  # glyphs: weak, medium, strong
    fonts: str = "all"  # glyphs: dejavu, stix_cm, all; fonts of the training and validation images
    test_fonts: str = "all"  # glyphs: fonts of the test images; others than `fonts` are a shift
    image_size: int = 32  # image_folder: resize to this
    shift: int = 0  # augmentation: random shift by up to this many pixels
    flip: bool = False  # augmentation: random horizontal flip


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, shared by all runs of a process: not to be changed in place."""

    images: Tensor  # float32 [N, C, H, W], standardized, channels_last, on the device
    labels: Tensor  # int64 [N]
    digest: str = ""  # of the stored pixels and the labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `mean` and `std` are of the training split's stored pixels, one per channel."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: int  # value that a stored pixel can have; the smallest is 0
    test_files: str = ""  # digest of the files of all test images; empty where these are made from fixed seeds

    def images_of(self, split: str) -> Split:
        """What is predicted of a split, test, val or train; of train as many images as test has, if there are."""
        if split != "train":
            return {"test": self.test, "val": self.val}[split]
        # The splits were drawn in random order, so that the first images are a fair sample.
        count = min(len(self.train.labels), len(self.test.labels))
        return Split(self.train.images[:count], self.train.labels[:count], f"{self.train.digest}-{count}")


# What the training images of a data set depend on besides its name, number and augmentation.
_READ = {"glyphs": ("classes", "difficulty", "fonts"), "image_folder": ("image_size",)}
_FLIPPABLE = ("fashion_mnist", "cifar10", "cifar100", "image_folder")
_DIGITS, _DIGITS_TEST = 1797, 1797 // 5
_GLYPHS, _GLYPHS_TEST = 20_000, 5_000
_MOST_GLYPHS = 10_000_000  # images: more is a mistake
_LARGEST = 1024  # pixels across: more is a mistake


def check(config: DataConfig) -> int:
    """The number of training images, without reading or downloading them.

    Raises UserError for an unknown name, a value out of range, or files that are neither there nor to be
    downloaded.
    """
    _check_choices(config)
    if config.flip and config.name not in _FLIPPABLE:
        raise UserError(f"data.flip=true: a mirror image in {config.name} may be of another class; use false")
    size = _image_size(config)
    if not 8 <= config.image_size <= _LARGEST:
        raise UserError(f"data.image_size={config.image_size}: must be 8 to {_LARGEST:,}")
    if not 0 <= config.shift <= size // 2:
        raise UserError(f"data.shift={config.shift}: must be 0 to {size // 2}, half of the {size} pixels")
    available, used = _available(config), images_used(config)
    most, why = (_MOST_GLYPHS, "") if config.name == "glyphs" else (available, ", all that there are")
    if not 10 <= used <= most:
        allowed = f"10 to {most:,}{why}"
        raise UserError(f"data.images={used}: must be {allowed}")
    return used - _val_images(used)


def training_settings(config: DataConfig) -> dict[str, Any]:
    """The settings that the training images depend on; of an image folder also its files, by a digest.

    All other data sets have one content each: it is made from fixed seeds or published. Should that differ all the
    same, the digest of the training split does (`Split.digest`), which is stored with each network.
    """
    found = {key: getattr(config, key) for key in ("name", "images", "shift", "flip", *_READ.get(config.name, ()))}
    if config.name == "image_folder":
        found["files"] = image_folder.digest_of_files(Path(config.root), "train")
    return found


def images_used(config: DataConfig) -> int:
    """Training and validation images, which `check` need not have approved."""
    return _available(config) if config.images is None else config.images


def predicted_images(config: DataConfig, split: str) -> int:
    """As many as `Dataset.images_of(split)` has, without reading them; `check` has approved the settings."""
    images = images_used(config)
    if split == "val":
        return _val_images(images)
    test = _available_for_test(config)
    return min(images - _val_images(images), test) if split == "train" else test


def load_dataset(config: DataConfig, device: torch.device | str = "cpu") -> Dataset:
    """The data set, standardized by its training split; read once per process.

    Raises UserError as `check` does, and for files that are corrupt.
    """
    check(config)
    files = [
        image_folder.digest_of_files(Path(config.root), part)
        for part in ("train", "test")
        if config.name == "image_folder"
    ]
    return _load(astuple(replace(config, shift=0, flip=False)), torch.device(device), tuple(files))


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Each image [C, H, W] of a batch shifted by up to `shift` pixels each way and mirrored half the time.

    What comes in from outside is 0: the mean of standardized pixels. Draws nothing if both are off.
    """
    if not shift and not flip:
        return images
    n, _, height, width = images.shape
    at = generator.device
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator, device=at)
    rows = down + torch.arange(height, device=at)
    columns = right + torch.arange(width, device=at)
    if flip:
        mirrored = torch.randint(2, (n, 1), generator=generator, device=at).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(n, device=images.device)
    # The slice between index tensors moves the channels to the end: the result is channels_last.
    padded = F.pad(images, [shift] * 4)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _check_choices(config: DataConfig) -> None:
    allowed: dict[str, tuple[str | int, ...]] = {
        "name": tuple(_READERS),
        "classes": tuple(CLASSES),
        "difficulty": tuple(DIFFICULTIES),
        "fonts": tuple(FONTS),
        "test_fonts": tuple(FONTS),
    }
    for key, values in allowed.items():
        value = getattr(config, key)
        if value not in values:
            raise UserError(f"data.{key}={value}: must be one of {', '.join(map(str, values))}")


def _image_size(config: DataConfig) -> int:
    if config.name in PUBLISHED:
        return PUBLISHED[config.name].size
    return {"digits": 8, "glyphs": 32, "image_folder": config.image_size}[config.name]


def _available(config: DataConfig) -> int:
    """Training and validation images that there are (glyphs: that are made unless told otherwise)."""
    if config.name == "digits":
        return _DIGITS - _DIGITS_TEST
    if config.name == "glyphs":
        return _GLYPHS
    if config.name == "image_folder":
        return len(image_folder.open_part(Path(config.root), "train"))
    if not config.download:
        require_files(config.name, Path(config.root))
    return PUBLISHED[config.name].train


def _available_for_test(config: DataConfig) -> int:
    """Test images; of glyphs a quarter as many as there are others, 5,000 at most."""
    if config.name == "glyphs":
        return min(_GLYPHS_TEST, images_used(config) // 4)
    if config.name == "image_folder":
        return len(image_folder.open_part(Path(config.root), "test"))
    return _DIGITS_TEST if config.name == "digits" else PUBLISHED[config.name].test


def _val_images(images: int) -> int:
    return images // 10


def _permutation(n: int) -> Tensor:
    # One seed for ever: a split that moved with the run's seed would mix training and test images.
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=2)
def _load(settings: tuple[object, ...], device: torch.device, files: tuple[str, ...]) -> Dataset:
    """`files`: digests, so that an image folder that has changed is read again."""
    config = DataConfig(*settings)  # type: ignore[arg-type]
    (images, labels), test, classes = _READERS[config.name](config)
    order = _permutation(len(images))[: config.images]
    val, train = order.tensor_split([_val_images(len(order))])
    mean, std = _pixel_moments(images[train])
    for channel, value in enumerate(std):
        if value == 0:
            raise UserError(f"{config.name}: channel {channel} is the same in all training pixels")

    def split(images: Tensor, labels: Tensor) -> Split:
        centre, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
        pixels = images.to(device).contiguous(memory_format=torch.channels_last).float()
        return Split(pixels.sub_(centre).div_(scale), labels.to(device), _digest_of_images(images, labels))

    tested = split(*test)
    return Dataset(
        config.name,
        split(images[train], labels[train]),
        split(images[val], labels[val]),
        tested,
        classes,
        tuple(mean),
        tuple(std),
        16 if config.name == "digits" else 255,
        files[-1] if files else tested.digest if config.name in PUBLISHED else "",
    )


def _digest_of_images(images: Tensor, labels: Tensor) -> str:
    values = (tensor.contiguous().numpy().data for tensor in (images, labels))
    return digest(repr(tuple(images.shape)), *values, digits=16)


def _pixel_moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (ddof 0) per channel of uint8 images, from exact counts, in float64."""
    values = torch.arange(256, dtype=torch.float64)
    mean, std = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten()
        share = torch.bincount(pixels, minlength=256).double() / len(pixels)
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]) ** 2) ** 0.5)
    return mean, std


def _read_digits(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    from sklearn.datasets import load_digits  # here: takes a second to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    test, train = _permutation(_DIGITS).tensor_split([_DIGITS_TEST])
    return (images[train], labels[train]), (images[test], labels[test]), 10


def _read_glyphs(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    folder = Path(config.root) / "glyphs"
    images, test_images = images_used(config), _available_for_test(config)
    train = stored_glyphs(folder, images, config.classes, config.difficulty, config.fonts, seed=0)
    test = stored_glyphs(folder, test_images, config.classes, config.difficulty, config.test_fonts, seed=1)
    return train, test, config.classes


def _read_published(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    train, test = read_published(config.name, Path(config.root), download=config.download)
    return train, test, PUBLISHED[config.name].classes


def _read_image_folder(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    train, test = (image_folder.open_part(Path(config.root), part) for part in ("train", "test"))
    if train.classes != test.classes:
        differing = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise UserError(f"image_folder: train and test need the same classes; only one of them has {differing}")
    images, labels = image_folder.read_images(test, config.image_size)
    order = _permutation(len(labels))  # a folder has class after class, of which a test batch would have one
    return image_folder.read_images(train, config.image_size), (images[order], labels[order]), len(train.classes)


_READERS: dict[str, Callable[[DataConfig], tuple[Pixels, Pixels, int]]] = {
    "digits": _read_digits,
    "glyphs": _read_glyphs,
    **dict.fromkeys(PUBLISHED, _read_published),
    "image_folder": _read_image_folder,
}
