"""Batches by step, schedule, scaling and seeds against their closed forms."""

from __future__ import annotations

from itertools import groupby, islice

import pytest
import torch

from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.models import ModelConfig, build_model
from bnlab.harness.artifacts.training import (
    ORDERS,
    Batches,
    Diverged,
    OptimizerConfig,
    Progress,
    Seeds,
    build_optimizer,
    steps_per_epoch,
    train,
)
from bnlab.harness.schedule import lr_factor


def split(images: int) -> Split:
    pixels = torch.arange(images, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Split(pixels.contiguous(memory_format=torch.channels_last), torch.arange(images) % 10)


def test_seeds_differ() -> None:
    found = [Seeds.of(seed) for seed in range(50)]
    values = [v for s in found for v in (s.initialization, s.order, s.augmentation)]
    assert len(set(values)) == 150 and found[3] == Seeds.of(3)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 2, [2]), (5, 5, [5]), (6, 5, [5])],
)
def test_an_uneven_last_batch_is_kept_and_one_of_one_dropped(images: int, size: int, expected: list[int]) -> None:
    batches = Batches(split(images), size, Seeds.of(0))
    assert batches.per_epoch == steps_per_epoch(images, size) == len(expected)
    two_epochs = [x.flatten(1)[:, 0].tolist() for x, _ in islice(batches.from_step(0), 2 * len(expected))]
    assert [len(x) for x in two_epochs] == 2 * expected
    first, second = ([x for batch in two_epochs[i : i + len(expected)] for x in batch] for i in (0, len(expected)))
    assert len(set(first)) == len(first) == sum(expected) and first != second


def test_order_depends_on_the_seed_alone() -> None:
    a, other = (Batches(split(40), 8, Seeds.of(seed)) for seed in (1, 2))
    torch.manual_seed(5)
    first = a.epoch_order(0)
    torch.manual_seed(6)
    b = Batches(split(40), 4, Seeds.of(1), shift=1)
    assert torch.equal(first, b.epoch_order(0))
    assert not torch.equal(first, other.epoch_order(0)) and not torch.equal(first, a.epoch_order(1))


def test_an_epoch_drawn_with_replacement() -> None:
    """As many images, each with probability 1/N at each place: a share (1 − 1/N)^N is missing."""
    batches = Batches(split(500), 8, Seeds.of(0), order="replacement")
    epochs = [batches.epoch_order(epoch) for epoch in range(20)]
    assert all(len(order) == 500 and order.min() >= 0 and order.max() < 500 for order in epochs)
    missing = sum(500 - len(order.unique()) for order in epochs) / (20 * 500)
    deviation = (0.233 * 0.768 / 10_000) ** 0.5  # at most: places of one epoch are negatively correlated
    assert missing == pytest.approx((1 - 1 / 500) ** 500, abs=4 * deviation)
    assert batches.per_epoch == Batches(split(500), 8, Seeds.of(0)).per_epoch


def test_classes_one_after_the_other() -> None:
    batches = Batches(split(53), 8, Seeds.of(0), order="sorted")
    labels, epochs = batches.split.labels, [batches.epoch_order(epoch).tolist() for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(53)) and labels[order].tolist() == sorted(labels.tolist())
        assert order != sorted(range(53), key=lambda image: (image % 10, image))  # shuffled within
    assert epochs[0] != epochs[1] != epochs[2]


def test_classes_in_blocks() -> None:
    batches = Batches(split(53), 8, Seeds.of(0), order="blocks")
    labels, firsts = batches.split.labels, []
    for epoch in range(50):
        order = batches.epoch_order(epoch)
        assert sorted(order.tolist()) == list(range(53))
        classes, counts = labels[order].unique_consecutive(return_counts=True)
        assert sorted(classes.tolist()) == list(range(10)) and torch.equal(counts, labels.bincount()[classes])
        firsts.append(int(classes[0]))
    assert set(firsts) == set(range(10))  # but for a chance of 10·0.9⁵⁰ = 5%, and the seed is fixed
    own = [order[labels[order] == 0].tolist() for order in map(batches.epoch_order, range(2))]
    assert own[0] != own[1] and sorted(own[0]) == sorted(own[1])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blocks_of_so_many_images(size: int) -> None:
    """Each class has whole blocks and one of the rest; all come in random order."""
    batches = Batches(split(53), 8, Seeds.of(0), order=f"blocks:{size}")
    labels, firsts = batches.split.labels, set()
    rests = [min(size, count - at) for count in labels.bincount().tolist() for at in range(0, count, size)]
    for epoch in range(50):
        order = batches.epoch_order(epoch)
        assert sorted(order.tolist()) == list(range(53))
        runs = [len(list(run)) for _, run in groupby(labels[order].tolist())]
        assert 10 <= len(runs) <= len(rests) and max(runs) >= size
        firsts.add(int(labels[order][0]))
    assert firsts == set(range(10)), "in random order"


def test_a_block_is_of_one_class() -> None:
    batches = Batches(split(60), 8, Seeds.of(0), order="blocks:3")  # 10 classes of 6
    for epoch in range(5):
        order = batches.epoch_order(epoch)
        assert all(len(set(block)) == 1 for block in batches.split.labels[order].view(-1, 3).tolist())


@pytest.mark.parametrize("order", [*ORDERS, "blocks:3"])
def test_the_same_batches_from_any_step(order: str) -> None:
    batches = Batches(split(21), 4, Seeds.of(3), shift=2, flip=True, order=order)
    torch.manual_seed(len(order))  # of no account
    whole = list(islice(batches.from_step(0), 17))
    for step in range(17):
        for (images, labels), (expected, theirs) in zip(batches.from_step(step), whole[step:], strict=False):
            assert torch.equal(images, expected) and torch.equal(labels, theirs)


def test_learning_rate_schedules() -> None:
    assert [lr_factor("constant", k, 10) for k in range(10)] == [1.0] * 10
    assert [lr_factor("step", k, 8) for k in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    cycle = [lr_factor("onecycle", k, 10) for k in range(11)]
    rise = [0.05, 0.05 + 0.95 / 2]
    assert cycle == pytest.approx([*rise, *((10 - k) / 8 for k in range(2, 11))])


@pytest.mark.parametrize(("scaling", "factor"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)])
def test_learning_rate_scaling(scaling: str, factor: float) -> None:
    model = torch.nn.Linear(2, 2)
    for name in ("sgd", "adamw"):
        config = OptimizerConfig(name=name, lr=0.1, lr_scaling=scaling)
        assert build_optimizer(config, model, 512).param_groups[0]["lr"] == pytest.approx(0.1 * factor)
        assert build_optimizer(config, model, 128).param_groups[0]["lr"] == pytest.approx(0.1)


def started(config: OptimizerConfig) -> Progress:
    model = build_model(ModelConfig(width=4, depth=1), channels=1, image_size=8, classes=10, seed=0)
    return Progress(model, build_optimizer(config, model, 8), step=0)


def test_a_loop_by_hand_gives_the_same_weights() -> None:
    config, batches = OptimizerConfig(lr=0.05), Batches(split(24), 8, Seeds.of(0))
    progress, twin, seen = started(config), started(config), []
    train(progress, batches, config, 6, [lambda p: seen.append((p.step, p.optimizer.param_groups[0]["lr"]))])
    peak = twin.optimizer.param_groups[0]["lr"]
    for step, (images, labels) in enumerate(islice(batches.from_step(0), 6)):
        twin.optimizer.param_groups[0]["lr"] = peak * lr_factor("onecycle", step, 6)
        assert seen[step] == (step + 1, twin.optimizer.param_groups[0]["lr"])
        twin.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin.model(images), labels).backward()
        twin.optimizer.step()
    for mine, theirs in zip(progress.model.state_dict().values(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("lr", [1e8, 1e20, 1e38])
def test_divergence_is_noticed(lr: float) -> None:
    config = OptimizerConfig(lr=lr, schedule="constant")
    progress, batches, steps = started(config), Batches(split(24), 8, Seeds.of(0)), []
    with pytest.raises(Diverged):
        train(progress, batches, config, 50, [lambda p: steps.append(p.step)])
    assert progress.step < 50 and steps == list(range(1, progress.step + 1))


def test_divergence_in_the_last_update_is_noticed() -> None:
    config = OptimizerConfig(lr=1e38, lr_scaling="none", schedule="constant")
    progress = started(config)
    for group in progress.optimizer.param_groups:
        group["lr"] = float("inf")
    with pytest.raises(Diverged, match="step 1"):
        train(progress, Batches(split(24), 8, Seeds.of(0)), config, 1, [])
