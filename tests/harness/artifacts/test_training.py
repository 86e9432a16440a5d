"""Batches by step, schedule, scaling and seeds against their closed forms."""

from __future__ import annotations

from itertools import groupby, islice

import pytest
import torch

from bnlab.harness.artifacts import progress as progress_module
from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.models import Cnn, build_model
from bnlab.harness.artifacts.optimizers import AdamW, Optimizer, Sgd
from bnlab.harness.artifacts.progress import Diverged, Progress
from bnlab.harness.artifacts.training import ORDERS, Batches, Seeds, steps_per_epoch, train
from bnlab.harness.schedule import lr_factor
from tests.waits import Waits


def split(images: int) -> Split:
    pixels = torch.arange(images, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Split(pixels.contiguous(memory_format=torch.channels_last), torch.arange(images) % 10)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 2, [2]), (5, 5, [5]), (6, 5, [5]), (3, 1, [1, 1, 1])],
)
def test_an_uneven_last_batch_is_kept_and_one_of_one_dropped(images: int, size: int, expected: list[int]) -> None:
    batches = Batches(split(images), size, Seeds.of(0))
    assert batches.per_epoch == steps_per_epoch(images, size) == len(expected)

    epoch = [x.flatten(1)[:, 0] for x, _ in islice(batches.from_step(0), len(expected))]

    assert [len(batch) for batch in epoch] == expected
    different_images = torch.cat(epoch).unique()
    assert len(different_images) == sum(expected)


@pytest.mark.parametrize(("images", "size", "expected"), [(10, 4, 2), (9, 4, 2), (8, 4, 2), (5, 5, 1)])
def test_a_smaller_last_batch_is_dropped_on_request(images: int, size: int, expected: int) -> None:
    """The images that are left over are others in each epoch."""
    batches = Batches(split(images), size, Seeds.of(0), last_batch="drop")
    assert batches.per_epoch == steps_per_epoch(images, size, "drop") == expected

    sizes = [len(x) for x, _ in islice(batches.from_step(0), 3 * expected)]

    assert sizes == [size] * 3 * expected
    both = [batches.epoch_order(epoch)[: expected * size].sort().values for epoch in (0, 1)]
    assert torch.equal(*both) == (images % size == 0)


def test_order_depends_on_the_seed_alone() -> None:
    batches = Batches(split(40), 8, Seeds.of(1))
    smaller_and_shifted = Batches(split(40), 4, Seeds.of(1), shift=1)
    of_another_seed = Batches(split(40), 8, Seeds.of(2))

    order = batches.epoch_order(0)

    assert torch.equal(order, smaller_and_shifted.epoch_order(0))
    assert not torch.equal(order, of_another_seed.epoch_order(0))
    assert not torch.equal(order, batches.epoch_order(1))


def test_an_epoch_drawn_with_replacement() -> None:
    """As many images, each with probability 1/N at each place: a share (1 − 1/N)^N is missing."""
    batches = Batches(split(500), 8, Seeds.of(0), order="replacement")
    missing = sum(500 - len(batches.epoch_order(epoch).unique()) for epoch in range(20)) / (20 * 500)
    deviation = (0.233 * 0.768 / 10_000) ** 0.5  # at most: places of one epoch are negatively correlated

    assert missing == pytest.approx((1 - 1 / 500) ** 500, abs=4 * deviation)


@pytest.mark.parametrize("order", ["sorted", "blocks"])
def test_classes_one_after_the_other(order: str) -> None:
    batches = Batches(split(53), 8, Seeds.of(0), order=order)

    epochs = [batches.epoch_order(epoch) for epoch in range(50)]

    first_classes = set()
    orders_of_class_0 = set()
    for images in epochs:
        assert sorted(images.tolist()) == list(range(53))
        labels = batches.split.labels[images]
        assert len(labels.unique_consecutive()) == 10
        first_classes.add(int(labels[0]))
        orders_of_class_0.add(tuple(images[labels == 0].tolist()))

    assert first_classes == ({0} if order == "sorted" else set(range(10)))
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


@pytest.mark.parametrize("order", [*ORDERS, "blocks:3"])
def test_the_same_batches_from_any_step(order: str) -> None:
    batches = Batches(split(21), 4, Seeds.of(3), shift=2, flip=True, order=order)
    whole = list(islice(batches.from_step(0), 12))
    for step in range(12):
        rest = islice(batches.from_step(step), 12 - step)
        for found, expected in zip(rest, whole[step:], strict=True):
            assert all(map(torch.equal, found, expected))


def test_learning_rate_schedules() -> None:
    assert [lr_factor("constant", k, 10) for k in range(10)] == [1.0] * 10
    assert [lr_factor("step", k, 8) for k in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])

    cycle = [lr_factor("onecycle", k, 10) for k in range(11)]

    assert cycle == pytest.approx([0.05, 0.05 + 0.95 / 2, *((10 - k) / 8 for k in range(2, 11))])


@pytest.mark.parametrize(("scaling", "factor"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)])
def test_learning_rate_scaling(scaling: str, factor: float) -> None:
    config = AdamW(lr=0.1, lr_scaling=scaling, weight_decay=0.3)
    model = torch.nn.Linear(2, 2)

    optimizer = config.build(model.parameters(), 512)

    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["weight_decay"] == 0.3
    assert optimizer.defaults["lr"] == pytest.approx(0.1 * factor)


def start(config: Optimizer) -> Progress:
    model = build_model(Cnn(depth=1, width=4), channels=1, image_size=8, classes=10, seed=0)
    return Progress(model, config.build(model.parameters(), 8), step=0)


def test_a_loop_by_hand_gives_the_same_weights() -> None:
    config = Sgd(lr=0.05)
    batches = Batches(split(24), 8, Seeds.of(0))
    progress = start(config)
    twin = start(config)
    seen = []
    train(progress, batches, config, 6, [lambda p: seen.append((p.step, p.optimizer.param_groups[0]["lr"]))])
    peak = twin.optimizer.param_groups[0]["lr"]
    for step, (images, labels) in enumerate(islice(batches.from_step(0), 6)):
        twin.optimizer.param_groups[0]["lr"] = peak * lr_factor("onecycle", step, 6)
        assert seen[step] == (step + 1, twin.optimizer.param_groups[0]["lr"])
        twin.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin.model(images), labels).backward()
        twin.optimizer.step()

    assert all(map(torch.equal, progress.model.state_dict().values(), twin.model.state_dict().values()))


@pytest.mark.parametrize(("lr", "steps"), [(1e8, 50), (1e38, 50), (float("inf"), 1)])
def test_divergence_is_noticed(lr: float, steps: int) -> None:
    """In the last update too, whose weights no further batch sees."""
    config = Sgd(lr=lr, lr_scaling="none", schedule="constant")
    progress = start(config)
    seen = []
    batches = Batches(split(24), 8, Seeds.of(0))
    with pytest.raises(Diverged):
        train(progress, batches, config, steps, [lambda p: seen.append(p.step)])

    assert seen == list(range(1, progress.step + 1))
    assert progress.step < 50


def test_updates_do_not_wait_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Sgd(lr=0.05)
    batches = Batches(split(24), 8, Seeds.of(0), shift=1, flip=True)
    expected = start(config)
    train(expected, batches, config, 20, [])
    monkeypatch.setattr(progress_module, "_UPDATES_BETWEEN_READINGS", {"cpu": 50})

    progress = start(config)
    waits_at = []
    with Waits() as waits:
        train(progress, batches, config, 20, [lambda p: waits_at.append(sum(waits.counts.values()))])

    assert waits_at == [0] * 20
    assert progress.log == expected.log
    assert [step for step, _, _ in progress.log] == list(range(1, 21))


def test_divergence_that_is_noticed_late_ends_at_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Sgd(lr=1e8, lr_scaling="none", schedule="constant")
    batches = Batches(split(24), 8, Seeds.of(0))
    expected = start(config)
    with pytest.raises(Diverged) as at_once:
        train(expected, batches, config, 50, [])
    monkeypatch.setattr(progress_module, "_UPDATES_BETWEEN_READINGS", {"cpu": 20})

    progress = start(config)
    with pytest.raises(Diverged) as late:
        train(progress, batches, config, 50, [])

    assert str(late.value) == str(at_once.value)
    assert progress.step == expected.step
    assert progress.log == expected.log


class Watchful(torch.nn.Module):
    """A network that refuses weights that are not finite, as a user's own may."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not all(weights.isfinite().all() for weights in self.parameters()):
            raise ValueError("weights are not finite")
        logits: torch.Tensor = self.model(images)
        return logits


@pytest.mark.parametrize("between_readings", [1, 50])
def test_a_model_that_raises_once_training_has_diverged(between_readings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diverged, as where each loss is read at once."""
    monkeypatch.setattr(progress_module, "_UPDATES_BETWEEN_READINGS", {"cpu": between_readings})
    config = Sgd(lr=1e30, lr_scaling="none", schedule="constant")
    batches = Batches(split(24), 8, Seeds.of(0))
    progress = start(config)
    progress.model = Watchful(progress.model)

    with pytest.raises(Diverged):
        train(progress, batches, config, 50, [])

    assert progress.step == len(progress.log) < 50
