"""Batches by step, and trainings that diverge or wait. The updates themselves: `test_plain_loop`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice

import pytest
import torch

from bnlab.harness.artifacts import training
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.tasks import Classification
from bnlab.harness.artifacts.training import Batches, Diverged, Seeds, TrainingState
from bnlab.harness.updates import ORDERS
from tests.helpers import plain, plan_network, without_dropout
from tests.waits import Waits


def split(images: int) -> Split:
    pixels = torch.arange(images, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Split(pixels.contiguous(memory_format=torch.channels_last), torch.arange(images) % 10)


@pytest.mark.parametrize(
    ("images", "last_batch", "expected"),
    [(10, "keep", [4, 4, 2]), (9, "keep", [4, 4]), (8, "keep", [4, 4]), (10, "drop", [4, 4]), (8, "drop", [4, 4])],
)
def test_an_uneven_last_batch_is_kept_or_dropped_and_one_of_one_dropped(
    images: int, last_batch: str, expected: list[int]
) -> None:
    batches = Batches(split(images), 4, Seeds.of(0), last_batch=last_batch)
    assert batches.per_epoch == len(expected)

    epoch = [x.flatten(1)[:, 0] for x, _ in islice(batches.from_step(0), len(expected))]

    assert [len(batch) for batch in epoch] == expected
    different_images = torch.cat(epoch).unique()
    assert len(different_images) == sum(expected)


def test_order_depends_on_the_seed_alone() -> None:
    batches = Batches(split(40), 8, Seeds.of(1))
    smaller_and_shifted = Batches(split(40), 4, Seeds.of(1), shift=1)
    of_another_seed = Batches(split(40), 8, Seeds.of(2))

    order = batches.epoch_order(0)

    assert torch.equal(order, smaller_and_shifted.epoch_order(0))
    assert not torch.equal(order, of_another_seed.epoch_order(0))
    assert not torch.equal(order, batches.epoch_order(1))


def test_classes_one_after_the_other() -> None:
    batches = Batches(split(53), 8, Seeds.of(0), order="sorted")

    orders_of_class_0 = set()
    for epoch in range(50):
        images = batches.epoch_order(epoch)
        assert sorted(images.tolist()) == list(range(53))
        labels = batches.split.labels[images]
        assert labels.tolist() == sorted(labels.tolist())
        orders_of_class_0.add(tuple(images[labels == 0].tolist()))

    assert len(orders_of_class_0) > 40


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blocks_of_so_many_images(size: int) -> None:
    """Each class has whole blocks and one of the rest; all come in random order."""
    batches = Batches(split(53), 8, Seeds.of(0), order=f"blocks:{size}")
    labels = batches.split.labels
    blocks = sum(-(-count // size) for count in labels.bincount().tolist())
    for epoch in range(50):
        order = batches.epoch_order(epoch)
        assert sorted(order.tolist()) == list(range(53))
        runs = [len(list(run)) for _, run in groupby(labels[order].tolist())]
        assert 10 <= len(runs) <= blocks
        assert max(runs) >= size
        assert sum(run % size > 0 for run in runs) <= 10


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_batches_from_any_step(order: str) -> None:
    batches = Batches(split(21), 4, Seeds.of(3), shift=2, flip=True, order=order)
    whole = list(islice(batches.from_step(0), 12))
    for step in range(12):
        rest = islice(batches.from_step(step), 12 - step)
        for found, expected in zip(rest, whole[step:], strict=True):
            assert all(map(torch.equal, found, expected))


class Trial:
    """A small network, its optimizer with these settings, and batches of 8 of 24 images."""

    def __init__(self, *words: str) -> None:
        self.settings = plan_network("optimizer.lr_scaling=none", *words).config.optimizer
        self.batches = Batches(split(24), 8, Seeds.of(0), shift=1, flip=True)
        torch.manual_seed(0)
        task = Classification().build(self.settings.label_smoothing)
        model = without_dropout(torch.nn.Sequential(plain(channels=1), torch.nn.Linear(4, 10)))
        self.progress = TrainingState(model, self.settings.build(model.parameters(), 8), task, step=0)

    def train(self, steps: int) -> Iterator[int]:
        return training.train(self.progress, self.batches, self.settings, steps)


def read_late(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let losses be read after so many updates, as on an accelerator."""
    monkeypatch.setattr(training, "_UPDATES_BETWEEN_READINGS", {"cpu": updates})


@pytest.mark.parametrize(("lr", "steps"), [("1e8", 50), ("1e38", 50), ("inf", 1)])
def test_divergence_is_noticed(lr: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last update too, whose weights no further batch sees; where losses are read late, at the same update."""
    ends = []
    for between_readings in (1, 20):
        read_late(between_readings, monkeypatch)
        trial = Trial(f"optimizer.lr={lr}", "optimizer.schedule=constant")
        with pytest.raises(Diverged) as caught:
            list(trial.train(steps))
        ends.append((str(caught.value), trial.progress.step, trial.progress.log))

    assert ends[0] == ends[1]
    assert ends[0][1] < 50


def test_a_variance_that_is_not_finite_is_noticed_at_once() -> None:
    """Its layer gives zeros, so that the loss is finite."""
    trial = Trial("optimizer.lr=0.0001")
    convolution = next(each for each in trial.progress.model.modules() if isinstance(each, torch.nn.Conv2d))
    convolution.weight.data.mul_(1e25)
    assert trial.progress.model(split(24).images).isfinite().all()

    with pytest.raises(Diverged):
        list(trial.train(6))

    assert trial.progress.log == []


def test_updates_do_not_wait_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Trial("optimizer.lr=0.05")
    list(expected.train(20))
    read_late(50, monkeypatch)

    trial = Trial("optimizer.lr=0.05")
    with Waits() as waits:
        waits_at = [sum(waits.counts.values()) for _ in trial.train(20)]

    assert waits_at[:-1] == [0] * 19  # all are read after the last
    assert trial.progress.log == expected.progress.log
    assert [step for step, _, _ in trial.progress.log] == list(range(1, 21))
