"""A folder of the user's own images, a folder for each class: train/<class>/ and test/<class>/."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnlab.files import digest
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError


def open_part(root: Path, part: str) -> Any:
    """The torchvision ImageFolder of a part, train or test; raises UserError if there is none."""
    folder = root / "image_folder" / part
    try:
        return torchvision().datasets.ImageFolder(str(folder))
    except OSError as error:  # there is none, it is a file, or it cannot be read
        raise UserError(f"image_folder: {error}; put images into {folder}/<class>/") from error


def digest_of_files(root: Path, part: str) -> str:
    """Of the names and contents of all images in a part; contents are read once while the files stay as they are."""
    paths = [path for path, _ in open_part(root, part).samples]
    states = tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, paths))
    return _digest_of_contents(root / "image_folder" / part, tuple(paths), states)


@lru_cache(maxsize=8)
def _digest_of_contents(folder: Path, paths: tuple[str, ...], states: tuple[object, ...]) -> str:
    parts: list[bytes] = []
    for path in paths:
        parts.append(os.fsencode(Path(path).relative_to(folder).as_posix()))
        parts.append(bytes.fromhex(digest(Path(path).read_bytes())))
    return digest(*parts, digits=16)


def read_images(folder: Any, size: int) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, size, size] and int64 labels [N] of an ImageFolder, class after class.

    Raises UserError for one that is corrupt or has more than 8 bits a value.
    """
    to_tensor = torchvision().transforms.functional.pil_to_tensor
    images = torch.empty(len(folder), 3, size, size, dtype=torch.uint8)
    for index, (path, _) in enumerate(folder.samples):
        try:
            images[index] = to_tensor(folder.loader(path).resize((size, size)))
        except (OSError, SyntaxError, ValueError) as error:  # PIL's answers to broken files
            raise UserError(f"image_folder: {path} is corrupt ({error}); replace or delete it") from error
        _require_bytes(path)
    return images, torch.tensor(folder.targets)


def _require_bytes(path: str) -> None:
    """UserError for an image of 16 or more bits a value: all above 255 would be white."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"image_folder: {path} has values of more than 8 bits ({image.mode}); store it with 8")
