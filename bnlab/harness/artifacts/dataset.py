"""A data set in memory: three splits, standardized by the training split, on the device; random shifts and flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.common.files import digest
from bnlab.harness.artifacts.data import Data
from bnlab.harness.artifacts.data.images.pixels import digest_pixels, draw_order
from bnlab.harness.errors import UserError
from bnlab.statistics.moments import Moments

if TYPE_CHECKING:
    from bnlab.harness.artifacts.data.parts import Draw


# Compared by identity: a generated == would compare tensors, which have no single truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, shared by all runs of a process: not to be changed in place."""

    images: Tensor  # float32 [N, C, H, W], standardized, channels_last, on the device
    labels: Tensor  # [N, ...], int64 [N] of classes
    digest: str = ""  # of the stored pixels and the labels

    def sample(self, count: int | None) -> Split:
        """Select so many images, always the same, or all."""
        available = len(self.labels)
        if count is None or count >= available:
            return self

        order = draw_order(available)
        chosen = order[:count].to(self.labels.device)
        images = self.images[chosen]
        labels = self.labels[chosen]
        return Split(
            images.contiguous(memory_format=torch.channels_last),
            labels,
            digest=f"{self.digest}-{count}",
        )


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
    augmented: Draw | None = None  # draws images of the training split, with random transforms of the user's

    @cached_property
    def train_augmented(self) -> Split:
        """The training split as its random transforms draw it once, the same always; without any as it is."""
        if self.augmented is None:
            return self.train
        images = self.augmented(torch.arange(len(self.train.labels)), 0)
        return Split(images, self.train.labels, f"{self.train.digest}-augmented")

    @property
    def trained_on(self) -> str:
        """A digest of the images and labels of the training and the validation split."""
        return digest(self.train.digest, self.val.digest, digits=16)

    def images_of(self, split: str) -> Split:
        """Select the images of a split that are predicted: all of test or val, of train at most as many as test has."""
        if split != "train":
            return {"test": self.test, "val": self.val}[split]

        # The splits were drawn in random order, so that the first images are a fair sample.
        count = min(len(self.train.labels), len(self.test.labels))
        return Split(self.train.images[:count], self.train.labels[:count], f"{self.train.digest}-{count}")


@lru_cache(maxsize=2)
def load_dataset(data: Data, device: torch.device | str = "cpu") -> Dataset:
    """Read a data set and standardize it by its training split; UserError for files that are missing or corrupt."""
    parts = data.read()
    images, labels = parts.train
    used = draw_order(len(images))[: data.images]
    val, train = used.tensor_split([len(used) // 10])  # as `Data.count_training` counts
    trained_on = images[train]
    _require_contrast(data, trained_on)
    mean, std = _pixel_moments(trained_on)

    def split(images: Tensor, labels: Tensor) -> Split:
        standardized = _standardize(images, mean, std, device)
        return Split(standardized, labels.to(device), digest_pixels(images, labels))

    def draw(numbers: Tensor, seed: int) -> Tensor:
        assert parts.augmented is not None
        # `numbers` count within the split, and `train` says which images of the stored part these are.
        images = parts.augmented(train[numbers.cpu()], seed)
        return _standardize(images, mean, std, device)

    return Dataset(
        train=split(trained_on, labels[train]),
        val=split(images[val], labels[val]),
        test=split(*parts.test),
        classes=data.find_size().classes,
        mean=tuple(mean),
        std=tuple(std),
        largest=math.nan if images.is_floating_point() else data.largest,
        augmented=draw if parts.augmented else None,
    )


def _standardize(images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Tensor:
    """Copy stored pixels and standardize them: float32 in channels_last on the device."""
    by_channel = (1, -1, 1, 1)
    center = torch.tensor(mean, device=device).view(by_channel)
    scale = torch.tensor(std, device=device).view(by_channel)

    stored = images.to(device)
    in_channels_last = stored.contiguous(memory_format=torch.channels_last)
    # Without a copy, float32 images would be the user's own tensor, which the next lines would change.
    pixels = in_channels_last.to(torch.float32, copy=True)
    pixels -= center
    pixels /= scale
    return pixels


def _require_contrast(data: Data, images: Tensor) -> None:
    """Raise UserError for a channel that has a standard deviation of 0, by which no pixel can be divided."""
    smallest = images.amin((0, 2, 3))
    largest = images.amax((0, 2, 3))
    # Extremes are compared, because the standard deviation of equal pixels may be rounded to a little more than 0.
    is_constant = smallest == largest
    if not is_constant.any():
        return
    channel = int(is_constant.nonzero()[0])
    raise UserError(
        f"data={data.name}: channel {channel} of {images.shape[1]} is {smallest[channel].item():g} in each pixel of "
        f'all {len(images):,} training images; leave it out, such as an alpha channel by image.convert("RGB")'
    )


def _pixel_moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation (ddof 0) per channel, in float64."""
    if images.is_floating_point():
        moments = Moments.of(images)
        return moments.mean.tolist(), moments.var.sqrt().tolist()

    means = []
    deviations = []
    values = torch.arange(256, dtype=torch.float64)
    for channel in images.unbind(1):  # exact counts of the bytes' values
        pixels = channel.flatten()
        counts = torch.bincount(pixels, minlength=256).double()
        shares = counts / len(pixels)
        mean = float(shares @ values)
        variance = float(shares @ (values - mean) ** 2)
        means.append(mean)
        deviations.append(variance**0.5)
    return means, deviations


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Shift each image [C, H, W] of a batch by up to `shift` pixels, and mirror half of them; the mean, 0, comes in."""
    if not shift and not flip:
        return images

    n, _, height, width = images.shape
    device = generator.device
    # Drawn on the generator's device: with a generator of the CPU, every device shifts and mirrors alike.
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator, device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.arange(width, device=device)
    if flip:
        is_mirrored = torch.randint(2, (n, 1), generator=generator, device=device).bool()
        mirrored = columns.flip(1)
        columns = torch.where(is_mirrored, mirrored, columns)

    # Three indices that broadcast to [N, H, W].
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    rows = rows.to(images.device).view(n, height, 1)
    columns = columns.to(images.device).view(n, 1, width)

    padded = F.pad(images, [shift] * 4)
    # The slice between index tensors moves the channels to the end: the result is channels_last.
    augmented = padded[which, :, rows, columns]
    return augmented.permute(0, 3, 1, 2)
