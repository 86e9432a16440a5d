"""Data sets: read whole, split once and for all, standardized, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.files import digest
from bnlab.harness.artifacts.glyphs import CLASSES, DIFFICULTIES, FONTS, SIZE, glyphs
from bnlab.harness.artifacts.own import REQUIRED, add_arguments, find_arguments
from bnlab.harness.artifacts.own_data import AugmentedPart, OwnParts, read_own
from bnlab.harness.artifacts.pixels import Pixels
from bnlab.harness.artifacts.published import PUBLISHED, read_copies, read_published, require_file
from bnlab.harness.checks import require_one_of, require_within
from bnlab.harness.components import Component
from bnlab.harness.errors import UserError
from bnlab.moments import Moments

READ_ONLY = ("root", "download", "test_fonts")
"""Settings of the data that no network is trained with."""


@dataclass(unsafe_hash=True)
class DataConfig(Component):
    """Which data; the split into training, validation and test images is the same for every run."""

    group: ClassVar[str] = "data"
    images: int | None = None  # training and validation images to use; None: all (glyphs makes 20,000)
    shift: int = 0  # augmentation: random shift by up to this many pixels

    @property
    def flips(self) -> bool:
        """Whether training images are mirrored at random."""
        return getattr(self, "flip", False)


@dataclass(unsafe_hash=True)
class Digits(DataConfig):
    """1,797 images of 8×8 pixels that ship with scikit-learn: nothing to download."""

    name: str = "digits"


@dataclass(unsafe_hash=True)
class Glyphs(DataConfig):
    """Images of 32×32 pixels made on the spot."""

    name: str = "glyphs"
    classes: int = 36  # 10 digits, 36 with capitals, 62 with small letters
    difficulty: str = "medium"  # weak, medium, strong
    fonts: str = "all"  # dejavu, stix_cm, all; of the training and validation images
    test_fonts: str = "all"  # of the test images; others than `fonts` are a shift


@dataclass(unsafe_hash=True)
class Published(DataConfig):
    """A data set that torchvision downloads: mnist, svhn."""

    root: str = "data"  # the folder in which it is
    download: bool = False
    copies: bool = False  # as image files train/<class>/*, test/<class>/* in root, such as JPEG copies


@dataclass(unsafe_hash=True)
class Flippable(Published):
    """One whose classes stay the same in a mirror: cifar10, cifar100, fashion_mnist."""

    flip: bool = False  # augmentation: random horizontal flip


@dataclass(unsafe_hash=True)
class OwnData(DataConfig):
    """The user's own: `name` is the import path of a function that gives the training and the test part.

    Each part is a pair of images [N, C, H, W] (uint8 or floats) and labels [N], or a torchvision data set with images
    of one size. A third part may be the training part with random transforms: see `own_data`.
    The function's arguments are settings, see `describe_own`.
    """

    has_any_name: ClassVar[bool] = True
    is_own: ClassVar[bool] = True
    flip: bool = False  # augmentation: random horizontal flip


CHOICES: dict[str, DataConfig] = {
    "digits": Digits(),
    "glyphs": Glyphs(),
    **{name: Published(name=name) for name in ("mnist", "svhn")},
    **{name: Flippable(name=name) for name in ("fashion_mnist", "cifar10", "cifar100")},
}
"""What `data=` chooses from, beside functions of the user's own."""
_FEWEST = 10  # training and validation images


def describe_own(path: str) -> OwnData:
    """Make the configuration of a user's function: its arguments are settings; `root`, a folder, is "data" by default.

    Raises:
        UserError: it cannot be imported, or an argument has the name of a setting of bnlab's.
    """
    config = add_arguments(OwnData, path, ())(name=path)
    if getattr(config, "root", None) == REQUIRED:
        config.root = "data"  # type: ignore[attr-defined]
    return config


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, shared by all runs of a process: not to be changed in place."""

    images: Tensor  # float32 [N, C, H, W], standardized, channels_last, on the device
    labels: Tensor  # int64 [N]
    digest: str = ""  # of the stored pixels and the labels

    def sample(self, count: int | None) -> Split:
        """So many images, always the same, or all."""
        if count is None or count >= len(self.labels):
            return self
        chosen = _permutation(len(self.labels))[:count].to(self.labels.device)
        images = self.images[chosen].contiguous(memory_format=torch.channels_last)
        return Split(images, self.labels[chosen], f"{self.digest}-{count}")


@dataclass(frozen=True, eq=False)
class Augmented:
    """The training split with random transforms of the user's own, which are drawn again each time it is read."""

    part: AugmentedPart
    mean: Sequence[float]  # of the training split without them
    std: Sequence[float]
    device: torch.device | str

    def draw(self, chosen: Tensor, seed: int) -> Tensor:
        """The training split's images of these numbers, standardized; the same seed gives the same images."""
        return _standardize(self.part.draw(chosen, seed), self.mean, self.std, self.device)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `mean` and `std` are of the training split's stored pixels, one per channel."""

    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float  # value that a stored pixel can have, where the smallest is 0; NaN of floats, which may have any
    augmented: Augmented | None = None  # what is trained on instead of the training split; None: that itself

    @cached_property
    def train_augmented(self) -> Split:
        """The training split as its random transforms draw it once, the same always; without any as it is."""
        if self.augmented is None:
            return self.train
        images = self.augmented.draw(torch.arange(len(self.train.labels)), seed=0)
        return Split(images, self.train.labels, f"{self.train.digest}-augmented")

    def images_of(self, split: str) -> Split:
        """What is predicted of a split, test, val or train; of train as many images as test has, if there are."""
        if split != "train":
            return {"test": self.test, "val": self.val}[split]
        # The splits were drawn in random order, so that the first images are a fair sample.
        count = min(len(self.train.labels), len(self.test.labels))
        return Split(self.train.images[:count], self.train.labels[:count], f"{self.train.digest}-{count}")


class _Size(NamedTuple):
    """How large a data set is."""

    available: int  # training and validation images that there are; of glyphs that are made
    test: int  # images
    pixels: int  # in a row
    classes: int


def _read_own(config: OwnData) -> OwnParts:
    return read_own(config.name, tuple(find_arguments(config).items()))


def _find_size(config: DataConfig) -> _Size:
    if isinstance(config, OwnData):
        own = _read_own(config)
        images, labels = own.train
        return _Size(len(labels), len(own.test[1]), images.shape[-1], int(labels.max()) + 1)
    if isinstance(config, Published):
        source = PUBLISHED[config.name]
        return _Size(source.train, source.test, source.size, source.classes)
    if isinstance(config, Glyphs):
        count = 20_000 if config.images is None else config.images
        return _Size(count, min(5_000, count // 4), SIZE, config.classes)
    return _Size(1438, 359, 8, 10)


def check(config: DataConfig) -> int:
    """The number of training images; only a data set of the user's own is read for it.

    Raises UserError for a value out of range, or files that are neither there nor to be downloaded.
    """
    if isinstance(config, Glyphs):
        require_one_of("data.classes", config.classes, CLASSES)
        require_one_of("data.difficulty", config.difficulty, DIFFICULTIES)
        require_one_of("data.fonts", config.fonts, FONTS)
        require_one_of("data.test_fonts", config.test_fonts, FONTS)
    if isinstance(config, Published) and not config.download:
        require_file(config.name, Path(config.root), config.copies)
    size, images = _find_size(config), images_used(config)
    require_within("data.shift", config.shift, 0, size.pixels // 2, f"half of the {size.pixels} pixels")
    is_made = isinstance(config, Glyphs)  # as many as are wanted
    if size.available < _FEWEST and not is_made:
        raise UserError(f"data={config.name}: has {size.available} training images; at least {_FEWEST} are needed")
    require_within("data.images", images, _FEWEST, math.inf if is_made else size.available)
    return images - images // 10


def images_used(config: DataConfig) -> int:
    """Training and validation images."""
    return _find_size(config).available if config.images is None else config.images


def has_known_range(config: DataConfig) -> bool:
    """Whether the smallest and the largest value of a stored pixel are known: of all but floats of the user's own."""
    return not isinstance(config, OwnData) or not _read_own(config).train[0].is_floating_point()


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


def _permutation(n: int) -> Tensor:
    # One seed for ever: a split that moved with the run's seed would mix training and test images.
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=2)
def load_dataset(config: DataConfig, device: torch.device | str = "cpu") -> Dataset:
    """The data set, standardized by its training split; UserError for files that are missing or corrupt."""
    (images, labels), test = _read(config)
    order = _permutation(len(images))[: config.images]
    val, train = order.tensor_split([len(order) // 10])  # as `check` counts
    trained_on = images[train]
    _require_contrast(config, trained_on)
    mean, std = _pixel_moments(trained_on)

    def split(images: Tensor, labels: Tensor) -> Split:
        standardized = _standardize(images, mean, std, device)
        return Split(standardized, labels.to(device), _digest_of_images(images, labels))

    augmented = None
    part = _read_own(config).augmented if isinstance(config, OwnData) else None
    if part is not None:
        augmented = Augmented(part.select(train), mean, std, device)
    return Dataset(
        split(trained_on, labels[train]),
        split(images[val], labels[val]),
        split(*test),
        _find_size(config).classes,
        tuple(mean),
        tuple(std),
        _find_largest(config, images),
        augmented,
    )


def _standardize(images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Tensor:
    """A copy of stored pixels, float32 in channels_last on the device."""
    centre, scale = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    pixels = images.to(device).contiguous(memory_format=torch.channels_last).to(torch.float32, copy=True)
    return pixels.sub_(centre).div_(scale)


def _find_largest(config: DataConfig, images: Tensor) -> float:
    if isinstance(config, Digits):
        return 16
    return math.nan if images.is_floating_point() else 255


def _require_contrast(config: DataConfig, images: Tensor) -> None:
    """UserError for a channel that has a standard deviation of 0, by which no pixel can be divided."""
    is_constant = images.amin((0, 2, 3)) == images.amax((0, 2, 3))
    if is_constant.any():
        channel = int(is_constant.nonzero()[0])
        value = images[0, channel, 0, 0].item()
        raise UserError(
            f"data={config.name}: channel {channel} of {images.shape[1]} is {value:g} in each pixel of all "
            f'{len(images):,} training images; leave it out, such as an alpha channel by image.convert("RGB")'
        )


def _digest_of_images(images: Tensor, labels: Tensor) -> str:
    values = (tensor.contiguous().numpy().data for tensor in (images, labels))
    return digest(repr(tuple(images.shape)), *values, digits=16)


def _pixel_moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (ddof 0) per channel, in float64; of uint8 images from exact counts."""
    if images.is_floating_point():
        moments = Moments.of(images)
        return moments.mean.tolist(), moments.var.sqrt().tolist()
    values = torch.arange(256, dtype=torch.float64)
    mean, std = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten()
        share = torch.bincount(pixels, minlength=256).double() / len(pixels)
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]) ** 2) ** 0.5)
    return mean, std


def _read(config: DataConfig) -> tuple[Pixels, Pixels]:
    """The training and the test part."""
    if isinstance(config, OwnData):
        own = _read_own(config)
        return own.train, own.test
    if isinstance(config, Published):
        if config.copies:
            return read_copies(config.name, Path(config.root))
        return read_published(config.name, Path(config.root), download=config.download)
    if isinstance(config, Glyphs):
        size = _find_size(config)
        train = glyphs(size.available, config.classes, config.difficulty, config.fonts, seed=0)
        return train, glyphs(size.test, config.classes, config.difficulty, config.test_fonts, seed=1)
    return _read_digits()


def _read_digits() -> tuple[Pixels, Pixels]:
    from sklearn.datasets import load_digits  # here: takes a second to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    test, train = _permutation(len(labels)).tensor_split([len(labels) // 5])
    return (images[train], labels[train]), (images[test], labels[test])
