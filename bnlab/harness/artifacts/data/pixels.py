"""Images and labels as a data set gives them: bytes stay bytes, floats stay floats, and anything else is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bnlab.common.files import digest
from bnlab.harness.errors import UserError, where_raised

Pixels = tuple[Tensor, Tensor]
"""Images [N, C, H, W], uint8 or float32, and int64 labels [N]."""

_LABELS = "labels have to be the numbers of classes, 0, 1, 2, ..., one for each image"


def read_part(part: Any, where: str) -> Pixels:
    """Read a pair of arrays (images, labels), or a data set of such pairs; UserError, from `where` on, for others."""
    if not isinstance(part, tuple):
        return read_items(part, range(len(part)), where)
    images, labels = part
    return _check_pixels(torch.as_tensor(images), labels, where)


def read_items(part: Any, chosen: Iterable[int], where: str) -> Pixels:
    """Read these items of a data set; see `read_part`."""
    images = []
    labels = []
    for index in chosen:
        with _name_failed_item(part, index, where):
            item = part[index]
        if isinstance(item, Mapping):
            raise UserError(
                f"{where} has items that are dictionaries ({', '.join(map(str, item))}); they have to be pairs of an "
                "image and its label"
            )
        image, label = item
        with _name_failed_item(part, index, where):  # PIL reads some files only now
            images.append(_read_image(image, where))
        if isinstance(label, Tensor | np.ndarray):
            label = label.tolist()
        labels.append(label)
    if not images:
        raise UserError(f"{where} has no images")

    kinds = list(dict.fromkeys(describe_images(image) for image in images))
    if len(kinds) > 1:
        raise UserError(f"{where} has images that differ: {', '.join(kinds[:3])}; give all the same size and channels")

    return _check_pixels(torch.stack(images), labels, where)


@contextlib.contextmanager
def _name_failed_item(part: Any, index: int, where: str) -> Iterator[None]:
    """Raise UserError, which names the item of the data set, for whatever fails in the block: a file that is cut off.

    It names its file, too, where the data set lists these as torchvision's folders do.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's data set may raise either
        samples = getattr(part, "samples", None)
        file = ""
        if isinstance(samples, list) and index < len(samples) and isinstance(samples[index], tuple):
            file = f", {samples[index][0]},"
        raise UserError(f"{where}: item {index}{file} cannot be read, {where_raised(error)}") from error


def shuffle(images: Tensor, labels: Tensor) -> Pixels:
    """Put a part into an order that is drawn once for ever."""
    order = draw_order(len(labels))
    return images[order], labels[order]


def draw_order(count: int) -> Tensor:
    """Draw an order of so many images, int64 [count]."""
    # One seed for ever: a split that moved with the run's seed would mix training and test images.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def digest_pixels(images: Tensor, labels: Tensor) -> str:
    """Digest images, labels and their order, to sixteen hexadecimal digits."""
    pixels = images.contiguous().numpy().data
    classes = labels.contiguous().numpy().data
    return digest(repr(tuple(images.shape)), pixels, classes, digits=16)


def describe_images(images: Tensor) -> str:
    """Describe images [..., C, H, W] by type, channels, height and width: `uint8 [3, 32, 32]`."""
    kind = str(images.dtype).removeprefix("torch.")
    return f"{kind} {list(images.shape[-3:])}"


def _read_image(image: Any, where: str) -> Tensor:
    """Read an image [C, H, W] from a tensor [C, H, W] or [H, W], an array [H, W, C] or [H, W], or one of PIL's."""
    if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
        raise UserError(
            f"{where} has palette images, whose pixels are indices into a table of colours; convert them with "
            'image.convert("RGB")'
        )
    # A copy, because torch warns of arrays that cannot be written, such as those of PIL's images.
    tensor = image if isinstance(image, Tensor) else torch.as_tensor(np.array(image))
    if tensor.dim() == 2:
        return tensor[None]
    has_channels_last = tensor.dim() == 3 and not isinstance(image, Tensor)
    return tensor.permute(2, 0, 1) if has_channels_last else tensor


def _check_pixels(images: Tensor, labels: Any, where: str) -> Pixels:
    images = images.detach().cpu()
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(
            f"{where} has {describe_images(images)} images; they have to be bytes from 0 to 255 (uint8) or floats"
        )
    # Images of shape [N, H, W, C] have four axes, too, but of these the second, their height, is larger than the last.
    if images.dim() != 4 or images.shape[1] > min(images.shape[2:]):
        raise UserError(
            f"{where} has images of shape {list(images.shape)}; they have to be [N, C, H, W], with no more channels "
            "than rows or columns, and each item of a data set a tensor [C, H, W] or an array [H, W, C]"
        )
    if not len(images):
        raise UserError(f"{where} has no images")
    if images.is_floating_point():
        # Converted before the check, because a large float64 number is infinite in float32.
        images = images.float()
        is_finite = images.isfinite().flatten(1).all(1)
        faulty = (~is_finite).nonzero().flatten().tolist()
        if faulty:
            raise UserError(
                f"{where} has NaN or infinite pixels (as float32) in {len(faulty):,} of {len(images):,} images, "
                f"the first of which is item {faulty[0]}"
            )
    return images, _read_labels(labels, len(images), where)


def _read_labels(labels: Sequence[Any] | Tensor | np.ndarray, images: int, where: str) -> Tensor:
    on_cpu = labels.cpu() if isinstance(labels, Tensor) else labels
    classes = np.asarray(on_cpu)
    if classes.shape != (images,):
        raise UserError(f"{where} has {images:,} images and labels of shape {list(classes.shape)}; {_LABELS}")
    if classes.dtype.kind not in "biu" or classes.min() < 0:
        different = dict.fromkeys(classes.tolist())
        some = ", ".join(map(str, [*different][:3]))
        raise UserError(f"{where} has labels such as {some}; {_LABELS}, as integers")
    return torch.from_numpy(classes.astype(np.int64))
