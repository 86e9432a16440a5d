"""Loaders that write the next batch into the memory of one before it: measured as if they had yielded copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bnlab

BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(5)]
LABELS = torch.arange(16) % 4


def refill_one(batches: list[Tensor]) -> Iterator[Any]:
    memory = torch.empty_like(batches[0])
    for batch in batches:
        yield memory.copy_(batch)


def refill_ring(batches: list[Tensor]) -> Iterator[Any]:
    memory = [torch.empty_like(batches[0]) for _ in range(3)]
    for number, batch in enumerate(batches):
        yield memory[number % 3].copy_(batch), LABELS


def refill_views(batches: list[Tensor]) -> Iterator[Any]:
    """Parts of one tensor, which is overwritten twice as many batches later."""
    memory = torch.empty(2, *batches[0].shape)
    for number, batch in enumerate(batches):
        memory[number % 2] = batch
        yield memory[number % 2]


def refill_array(batches: list[Tensor]) -> Iterator[Any]:
    memory = np.empty(tuple(batches[0].shape), np.float32)
    for batch in batches:
        memory[...] = batch.numpy()
        yield [memory]


def refill_dictionary(batches: list[Tensor]) -> Iterator[Any]:
    memory: dict[str, Tensor] = {}
    for batch in batches:
        memory["images"] = batch
        yield memory


def refill_nested(batches: list[Tensor]) -> Iterator[Any]:
    memory = {"images": torch.empty_like(batches[0])}
    for batch in batches:
        memory["images"].copy_(batch)
        yield {**memory}


@dataclass(slots=True)
class Slotted:
    """A batch whose tensor is not in a dictionary of attributes."""

    images: Tensor


def refill_slot(batches: list[Tensor]) -> Iterator[Any]:
    memory = torch.empty_like(batches[0])
    for batch in batches:
        yield Slotted(memory.copy_(batch))


class Pair(NamedTuple):
    images: Tensor
    name: str


class MadeOfImages(Pair):
    """A named tuple with a constructor of its own."""

    __slots__ = ()

    def __new__(cls, images: Tensor) -> MadeOfImages:
        return super().__new__(cls, images, "made")


def refill_made(batches: list[Tensor]) -> Iterator[Any]:
    memory = torch.empty_like(batches[0])
    for batch in batches:
        yield MadeOfImages(memory.copy_(batch))


def forward(model: nn.Module, batch: Any) -> Any:
    while not isinstance(batch, (Tensor, np.ndarray)):
        if isinstance(batch, Slotted):
            return model(batch.images)
        batch = batch["images"] if isinstance(batch, dict) else batch[0]
    return model(torch.as_tensor(batch))


class Loader:
    """Yields batches in its own way, as often as it is read; counts how often that was."""

    def __init__(self, fill: Callable[[list[Tensor]], Iterator[Any]], batches: list[Tensor] = BATCHES) -> None:
        self.fill = fill
        self.batches = batches
        self.times_read = 0

    def __iter__(self) -> Iterator[Any]:
        self.times_read += 1
        return self.fill(self.batches)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 4)).eval()


def assert_same(measured: bnlab.Statistics, expected: bnlab.Statistics) -> None:
    for name, moments in expected.items():
        assert measured[name].count == moments.count
        torch.testing.assert_close(measured[name].mean, moments.mean, rtol=0, atol=0)
        torch.testing.assert_close(measured[name].var, moments.var, rtol=0, atol=0)


FILLS = [refill_one, refill_ring, refill_views, refill_dictionary, refill_nested, refill_slot, refill_made]


@pytest.mark.parametrize("fill", FILLS)
def test_memory_that_is_refilled_is_copied(fill: Callable[..., Any], model: nn.Module) -> None:
    expected = bnlab.population_statistics(model, BATCHES)
    loader = Loader(fill)

    measured = bnlab.population_statistics(model, loader, forward=forward)

    assert_same(measured, expected)
    assert loader.times_read == 1
    assert measured.cost is not None
    assert measured.cost.images == 80


def test_an_array_that_is_refilled_is_copied(model: nn.Module) -> None:
    """An array is not laid out with channels innermost, so that sums have another order: rounding, some 1e-7 σ."""
    expected = bnlab.population_statistics(model, BATCHES)

    measured = bnlab.population_statistics(model, Loader(refill_array), forward=forward, images=lambda batch: 16)

    assert bnlab.gap(expected, measured)["mean_gap"].max() < 1e-6


def test_more_and_more_images_of_a_loader_that_refills(model: nn.Module) -> None:
    """The second part of `max_images="auto"` overwrites what was read for the first."""
    batches = [batch + 0.1 * number for number in range(8) for batch in BATCHES]

    def refill_late(batches: list[Tensor]) -> Iterator[Any]:
        memory = [torch.empty_like(batches[0]) for _ in range(20)]
        for number, batch in enumerate(batches):
            yield memory[number % 20].copy_(batch)

    settings: dict[str, Any] = {"max_images": "auto", "tolerance": 1e-9}
    expected = bnlab.population_statistics(model, batches, **settings)

    measured = bnlab.population_statistics(model, Loader(refill_late, batches), **settings)

    assert_same(measured, expected)


def test_what_is_read_once_is_copied(model: nn.Module) -> None:
    expected = bnlab.population_statistics(model, BATCHES)

    assert_same(bnlab.population_statistics(model, iter(Loader(refill_one))), expected)


def test_a_loader_of_torch_that_refills(model: nn.Module) -> None:
    """A function that collates into one tensor, as loaders with pinned memory of their own do."""
    images = torch.cat(BATCHES)
    memory = torch.empty(16, 3, 8, 8)

    def collate(batch: list[Tensor]) -> Tensor:
        return memory.copy_(torch.stack(batch))

    loader: Any = DataLoader(images, batch_size=16, collate_fn=collate)  # type: ignore[arg-type]
    expected = bnlab.population_statistics(model, BATCHES)
    assert_same(bnlab.population_statistics(model, loader), expected)

    bnlab.recalibrate(model, loader)
    written = bnlab.running_statistics(model)["1"].mean
    torch.testing.assert_close(written, expected["1"].mean, rtol=1e-6, atol=1e-6)
