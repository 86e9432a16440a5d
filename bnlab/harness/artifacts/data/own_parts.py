"""Parts of a data set that a user's own function gives: training, test, and the training part with random transforms.

All measurements read the first two, which have to be the same whenever they are read.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnlab.borrow import keep_random_state
from bnlab.harness.artifacts.data.pixels import Pixels, describe_images, draw_order, read_items, read_part, shuffle
from bnlab.harness.artifacts.own import import_object
from bnlab.harness.errors import UserError, where_raised

_EXPECTED = (
    "it has to give the training and the test part, each (images, labels), or a data set of such pairs; a third part "
    "is the training part with random transforms"
)
_READ_AGAIN = 64  # items of a part that are read twice; a transform that changes one in ten is missed once in 10⁵ times


class OwnParts(NamedTuple):
    """The parts that a function gives, in an order that is drawn once for ever, as a folder has class after class."""

    train: Pixels
    test: Pixels
    augmented: AugmentedPart | None


class AugmentedPart(NamedTuple):
    """The training part with random transforms, which draw again each time that an item is read."""

    items: Any  # the data set, as the function gives it
    order: Tensor  # its item for each image of the training part, int64 [N]
    where: str  # what messages begin with

    def select(self, chosen: Tensor) -> AugmentedPart:
        """Select the part for these images of the training part."""
        return self._replace(order=self.order[chosen])

    def draw(self, chosen: Tensor, seed: int) -> Tensor:
        """Draw images [N, C, H, W] of the places `chosen`, always the same for a seed."""
        numbers = self.order[chosen.cpu()].tolist()
        images, _ = _draw_items(self.items, numbers, seed, self.where)
        return images


@lru_cache(maxsize=2)
def read_own(path: str, arguments: tuple[tuple[str, Any], ...]) -> OwnParts:
    """Call the function at this import path with these arguments and their values, and read what it gives.

    What it draws from the global generators of torch, numpy and random is the same each time.

    Raises:
        UserError: the function fails, or gives something from which no network can be trained and measured.
    """
    make = import_object(path)
    try:
        with seed_generators(0):
            return _read_parts(make(**dict(arguments)), f"data={path}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data={path}: {where_raised(error)}; {_EXPECTED}") from error


@contextlib.contextmanager
def seed_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (on the CPU), numpy and random in the block; they are restored after it."""
    with keep_random_state():
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed: that would also reseed the accelerators, which are not restored here.
        torch.default_generator.manual_seed(seed)
        yield


def _read_parts(parts: Any, name: str) -> OwnParts:
    if not isinstance(parts, tuple | list):
        raise UserError(f"{name}: found a {type(parts).__name__}; {_EXPECTED}")
    if len(parts) not in (2, 3):
        raise UserError(f"{name}: found {len(parts)} instead of 2 or 3 parts; {_EXPECTED}")

    train_part, test_part, *further = parts
    _require_same_names(train_part, test_part, name)
    train = _read_twice(train_part, f"{name}: the training part")
    test = _read_twice(test_part, f"{name}: the test part")
    _require_alike(train, test, name)

    augmented = None
    if further:
        augmented = _describe_augmented(further[0], train, f"{name}: the augmented part")
    return OwnParts(shuffle(*train), shuffle(*test), augmented)


def _describe_augmented(items: Any, train: Pixels, where: str) -> AugmentedPart:
    """Describe the augmented part, whose items are drawn in the order into which the training part is shuffled."""
    _, labels = train
    order = draw_order(len(labels))
    augmented = AugmentedPart(items, order, where)
    _check_augmented(augmented, train)
    return augmented


def _require_same_names(train: Any, test: Any, name: str) -> None:
    """Raise UserError unless the classes have the same names in the same order, where both parts have names."""
    first = getattr(train, "classes", None)
    second = getattr(test, "classes", None)
    if not isinstance(first, tuple | list) or not isinstance(second, tuple | list):
        return
    for number, (one, other) in enumerate(zip_longest(first, second, fillvalue="missing")):
        if one != other:
            raise UserError(
                f"{name}: class {number} is {one} in the training part, {other} in the test part; "
                "both need the same classes in the same order"
            )


def _read_twice(part: Any, where: str) -> Pixels:
    """Read a part whole, and some of its items again."""
    images, labels = read_part(part, where)
    if isinstance(part, tuple):
        return images, labels
    chosen = _spread(len(labels))
    images_again, labels_again = read_items(part, chosen, where)
    if not torch.equal(images[chosen], images_again) or not torch.equal(labels[chosen], labels_again):
        raise UserError(
            f"{where} gives other images or labels when it is read again. Random transforms belong in a third part: "
            "return (train, test, augmented), where augmented is train with random transforms"
        )
    return images, labels


def _spread(count: int) -> list[int]:
    """Choose the indices of at most `_READ_AGAIN` of so many items, evenly spread."""
    distance = max(1, -(-count // _READ_AGAIN))
    return list(range(0, count, distance))


def _require_alike(train: Pixels, test: Pixels, name: str) -> None:
    images, labels = train
    test_images, test_labels = test
    kind = describe_images(images)
    test_kind = describe_images(test_images)
    if kind != test_kind:
        raise UserError(
            f"{name}: the training part has images {kind}, the test part {test_kind}; both need the same type, "
            "channels and size"
        )

    classes = set(labels.tolist())
    empty = sorted(set(range(max(classes))) - classes)
    if empty:
        raise UserError(
            f"{name}: the training part has the label {max(classes)}, but no image of {_list_some(empty)}; number "
            "classes 0, 1, 2, ... without gaps"
        )
    unseen = sorted(set(test_labels.tolist()) - classes)
    if unseen:
        raise UserError(f"{name}: only the test part has the classes {_list_some(unseen)}; no network can learn them")


def _list_some(classes: list[int]) -> str:
    """Write the first ten classes, and how many more there are."""
    some = ", ".join(map(str, classes[:10]))
    return f"{some} and {len(classes) - 10:,} more" if len(classes) > 10 else some


def _check_augmented(part: AugmentedPart, train: Pixels) -> None:
    """Raise UserError unless item i is item i of the training part, and a seed repeats what is drawn."""
    items, _, where = part
    images, labels = train
    if isinstance(items, tuple):
        raise UserError(f"{where} is a tuple; it has to be a data set that draws again each time an item is read")
    if len(items) != len(labels):
        raise UserError(
            f"{where} has {len(items):,} items, the training part {len(labels):,}; it has to be the training part with "
            "random transforms (bnlab takes the validation split from the training part by itself)"
        )

    chosen = _spread(len(labels))
    drawn, drawn_labels = _draw_items(items, chosen, 0, where)
    again, _ = _draw_items(items, chosen, 0, where)
    if describe_images(drawn) != describe_images(images):
        raise UserError(
            f"{where} has images {describe_images(drawn)}, the training part {describe_images(images)}; both need the "
            "same type, channels and size"
        )
    if not torch.equal(drawn_labels, labels[chosen]):
        raise UserError(f"{where} has other labels than the training part; item i has to be item i of it, transformed")
    if not torch.equal(drawn, again):
        raise UserError(
            f"{where} draws other images from the same seed; its transforms have to draw from the global generators "
            "of torch, numpy or random, so that a training can be repeated"
        )


def _draw_items(items: Any, chosen: list[int], seed: int, where: str) -> Pixels:
    with seed_generators(seed):
        return read_items(items, chosen, where)
