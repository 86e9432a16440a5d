"""What a user's function gives as a data set: read, checked, described and digested."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnlab.common.files import digest
from bnlab.harness.artifacts.data.images.pixels import (
    check_pixels,
    describe_images,
    digest_pixels,
    draw_order,
    read_items,
    shuffle,
)
from bnlab.harness.artifacts.data.parts import Description, Parts, Size
from bnlab.harness.artifacts.seeding import seed_generators
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.own import OWN_CLASSES, call_own, make_own
from bnlab.harness.user_code import digest_code

if TYPE_CHECKING:
    from bnlab.harness.artifacts.data.parts import Draw, Pixels

_EXPECTED = (
    "it has to give the training and the test part, each (images, labels), or a data set of such pairs; a third part "
    "is the training part with random transforms"
)
_READ_AGAIN = 64  # items of a part that are read twice; a transform that changes one in ten is missed once in 10⁵ times


def read_parts(path: str, arguments: Mapping[str, Any]) -> Parts:
    """Call the user's function, and read what it gives; what it draws from global generators is the same each time."""
    with seed_generators(0):
        given = call_own("data", path, **arguments)
        try:
            parts = _read_given(given, f"data={path}")
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the user's data set may raise either
            raise UserError(f"data={path}: {where_raised(error)}; {_EXPECTED}") from error
    return _digest_parts(parts, path, arguments)


def describe_parts(parts: Parts) -> Description:
    """Describe a data set that has been read."""
    images, labels = parts.train
    _, test_labels = parts.test
    size = Size(
        available=len(labels),
        test=len(test_labels),
        pixels=min(images.shape[2:]),
        classes=_count_outputs(labels),
    )
    has_known_range = not images.is_floating_point()
    fault = _find_label_fault(labels, test_labels)
    return Description(size, parts.content, has_known_range, labels.dim() > 2, fault)


def _count_outputs(labels: Tensor) -> int:
    """Count a network's outputs: the numbers of a label [N, K], classes of whole numbers, channels of maps, or 1."""
    if labels.dim() == 2:
        return labels.shape[1]
    if not labels.is_floating_point():
        return int(labels.max()) + 1
    return labels.shape[1] if labels.dim() > 3 else 1


def _find_label_fault(labels: Tensor, test_labels: Tensor) -> str:
    """Say why labels are not the numbers of classes; empty where they are."""
    if labels.dim() != 1 or labels.is_floating_point():
        kind = str(labels.dtype).removeprefix("torch.")
        found = f"labels of shape {list(labels.shape)}, {kind}"
        return f"{found}; they have to be the numbers of classes, 0, 1, 2, ..., unless task= takes others"
    classes = labels.unique()
    if not torch.equal(classes, torch.arange(len(classes))):
        return f"the classes {_list_some(classes)}; number them 0, 1, 2, ... without gaps"
    unseen = set(test_labels.tolist()) - set(classes.tolist())
    return f"classes of the test part alone ({_list_some(unseen)}); no network can learn them" if unseen else ""


def _list_some(values: Iterable[Any]) -> str:
    """Write the first ten values, and how many more there are."""
    known = [int(value) for value in values]
    some = ", ".join(map(str, known[:10]))
    return f"{some} and {len(known) - 10:,} more" if len(known) > 10 else some


def _digest_parts(parts: Parts, path: str, arguments: Mapping[str, Any]) -> Parts:
    """Digest images, labels and their order; of random transforms what they draw first, their code and its arguments.

    Which other images they draw no sample tells, so that other code counts as other transforms, and so do arguments
    that are not the default; not the folder, which may be moved.
    """
    digests = [digest_pixels(*parts.train), digest_pixels(*parts.test)]
    if parts.augmented is None:
        return parts._replace(content=digest(*digests, digits=10))

    _, labels = parts.train
    some = torch.tensor(_spread(len(labels)))
    digests.append(digest_pixels(parts.augmented(some, 0), labels[some]))
    code = digest_code(path.rpartition(".")[0])
    defaults = make_own("data", path).arguments
    usual = OWN_CLASSES["data"].usual
    chosen = {key: value for key, value in arguments.items() if key not in usual and value != defaults[key]}
    source = digest(code, json.dumps(chosen, sort_keys=True), digits=10) if chosen else code
    return parts._replace(content=f"{digest(*digests, digits=10)}-{source}")


def _read_given(parts: Any, name: str) -> Parts:
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        found = f"{len(parts)} of 2 or 3 parts" if isinstance(parts, tuple | list) else f"a {type(parts).__name__}"
        raise UserError(f"{name}: found {found}; {_EXPECTED}")
    train = _read_twice(parts[0], f"{name}: the training part")
    test = _read_twice(parts[1], f"{name}: the test part")
    _require_kind(test[0], train[0], f"{name}: the test part")
    if test[1].shape[1:] != train[1].shape[1:] or test[1].dtype != train[1].dtype:
        raise UserError(
            f"{name}: the labels of the test part have another shape or type than those of the training part"
        )
    augmented = _make_drawer(parts[2], train, f"{name}: the augmented part") if len(parts) == 3 else None
    # Data sets made of folders list class after class, so that a batch of test images would be of one class.
    return Parts(shuffle(*train), shuffle(*test), augmented)


def _read_twice(part: Any, where: str) -> Pixels:
    """Read a part whole, and some of its items again: arrays are the same each time, a data set computes its items."""
    if isinstance(part, tuple):
        images, labels = part
        return check_pixels(images, labels, where)
    images, labels = read_items(part, range(len(part)), where)
    chosen = _spread(len(labels))
    again, labels_again = read_items(part, chosen, where)
    if not torch.equal(images[chosen], again) or not torch.equal(labels[chosen], labels_again):
        raise UserError(
            f"{where} gives other images or labels when it is read again. Random transforms belong in a third part: "
            "return (train, test, augmented), where augmented is train with random transforms"
        )
    return images, labels


def _require_kind(images: Tensor, train: Tensor, where: str) -> None:
    kind = describe_images(images)
    expected = describe_images(train)
    if kind != expected:
        raise UserError(
            f"{where} has images {kind}, the training part {expected}; both need the same type, channels and size"
        )


def _spread(count: int) -> list[int]:
    """Choose the indices of at most `_READ_AGAIN` of so many items, evenly spread."""
    distance = max(1, -(-count // _READ_AGAIN))
    return list(range(0, count, distance))


def _make_drawer(items: Any, train: Pixels, where: str) -> Draw:
    """Make what draws images of the training part with random transforms, in the order into which that is shuffled."""
    images, labels = train

    def draw(chosen: list[int], seed: int) -> Pixels:
        with seed_generators(seed):
            return read_items(items, chosen, where)

    some = _spread(len(labels))
    drawn, drawn_labels = draw(some, 0)
    again, _ = draw(some, 0)
    _require_kind(drawn, images, where)
    if len(items) != len(labels) or not torch.equal(drawn_labels, labels[some]):
        raise UserError(f"{where} has other labels than the training part; item i has to be item i of it, transformed")
    if not torch.equal(drawn, again):
        raise UserError(
            f"{where} draws other images from the same seed; its transforms have to draw from the global generators "
            "of torch, numpy or random, so that a training can be repeated"
        )

    # The same order that `shuffle` gives the training part, of which this returns transformed images.
    order = draw_order(len(labels))

    def draw_shuffled(numbers: Tensor, seed: int) -> Tensor:
        drawn, _ = draw(order[numbers].tolist(), seed)
        return drawn

    return draw_shuffled
