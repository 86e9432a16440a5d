"""Loaders that write the next batch into the memory of one before it: measured as if they had yielded copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bnlab
from bnlab.exact import source

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
    assert loader.times_read == 2
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


def test_what_cannot_be_read_again_is_refused(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(ValueError, match=r"memory of one before it \(5 were read\).*yield copies"):
        bnlab.population_statistics(model, iter(Loader(refill_one)))
    with pytest.raises(ValueError, match="recalibrate: the loader writes a batch into the memory"):
        bnlab.recalibrate(model, iter(Loader(refill_ring)))

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_batch_again_is_no_refill(model: nn.Module) -> None:
    loader = Loader(lambda batches: iter([batches[0]] * 3))

    bnlab.population_statistics(model, loader)

    assert loader.times_read == 1


def test_images_with_black_borders_differ_in_what_is_compared() -> None:
    """Of 393,216 values 1,024 are compared: at equal distances all of them would lie in the first, black column."""
    first, second = torch.zeros(2, 128, 3, 32, 32)
    first[..., 1:] = torch.rand(128, 3, 32, 31)
    second[..., 1:] = torch.rand(128, 3, 32, 31)

    (of_first,) = source._take_values(first)
    (of_second,) = source._take_values(second)

    assert len(of_first) == 1024
    assert 0.95 < (of_first != of_second).double().mean() < 0.99  # 31 of 32 columns


PARTS: dict[str, Any] = {
    "no values": torch.tensor([], dtype=torch.float32),
    "truth values": torch.tensor([True, False]),
    "eight bits": torch.ones(3).to(torch.float8_e4m3fn),
    "complex numbers": torch.ones(3, dtype=torch.complex64),
    "a view": torch.ones(4, 4).t()[1:],
    "NaN": torch.tensor(float("nan")),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "an array of words": np.array(["a", "b"]),
    "an array of objects": np.array([None, 1]),
    "a view of an array": np.arange(6.0)[::-2],
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_anything_may_be_in_a_batch(part: Any) -> None:
    """What is not refilled is not said to be, whatever it is."""
    values = source._take_values({"part": part, "name": "x"})

    assert not source._compare(values, source._take_values({"part": part, "name": "x"}))


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


def test_a_batch_that_is_written_into_while_it_is_measured(model: nn.Module) -> None:
    batches = [batch.clone() for batch in BATCHES]

    def write(model: nn.Module, batch: Tensor) -> Tensor:
        batches[0].add_(1)  # as a thread that prefetches would
        return model(batch)

    with pytest.raises(ValueError, match="batch 1 of 5 has been written into while it was measured"):
        bnlab.population_statistics(model, batches, forward=write)


def test_a_forward_that_writes_into_what_is_not_copied(model: nn.Module) -> None:
    """Objects in objects are not copied; that they were written into is said, and that they stay so."""

    def hold(batch: Tensor) -> Any:
        return SimpleNamespace(inner=SimpleNamespace(images=batch.clone()))

    def write(model: nn.Module, batch: Any) -> Tensor:
        return model(batch.inner.images.mul_(2))

    with pytest.raises(ValueError, match="has been written into while it was measured, and is not put back"):
        bnlab.population_statistics(model, [hold(batch) for batch in BATCHES], forward=write)
