"""Training one network: batches by step, schedule, loop. Callbacks add what else happens at a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.artifacts.data import Draw, Split, augment
from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.artifacts.progress import Diverged, Progress
from bnlab.harness.errors import UserError
from bnlab.harness.schedule import lr_factor


@dataclass(frozen=True)
class Seeds:
    """Separate seeds for what is random in training, derived from one."""

    initialization: int
    order: int
    augmentation: int

    @staticmethod
    def of(seed: int) -> Seeds:
        """Derive the seeds from one."""
        generator = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**31, (3,), generator=generator)
        return Seeds(*seeds.tolist())


ORDERS = ("shuffled", "replacement", "sorted", "blocks")  # and blocks:16, see `Batches`


def check_order(order: str) -> None:
    """Raise UserError unless there is such an order."""
    if order not in ORDERS and block_size(order) is None:
        raise UserError(f"order={order}: must be one of {', '.join(ORDERS)}, or blocks:16 for blocks of so many images")


def block_size(order: str) -> int | None:
    """Read 16 from `blocks:16`; None from other orders."""
    match = re.fullmatch(r"blocks:([1-9]\d*)", order)
    return int(match[1]) if match else None


def _number_blocks(labels: Tensor, size: int) -> Tensor:
    """Return the number of each image's block, from 0: `size` images of one class, the rest of a class in its last.

    >>> _number_blocks(torch.tensor([7, 7, 7, 8, 8]), size=2)
    tensor([0, 0, 1, 2, 2])
    """
    _, counts = labels.unique_consecutive(return_counts=True)
    positions = torch.cat([torch.arange(count) for count in counts.tolist()])  # within the class
    begins_block = positions % size == 0
    return begins_block.cumsum(0) - 1


@dataclass(frozen=True)
class Batches:
    """The training batches by step. Each epoch has another order.

    Each epoch's order and each step's augmentation have seeds of their own, so that training can go on from any step
    without a random state to restore.

    The order decides which images share a batch. Statistics of frozen weights, such as exact ones, do not depend on it:
    they are of the whole training split, every image once.

    Attributes:
        split: images [N, C, H, W] and labels [N].
        batch_size: images in a full batch.
        seeds: for the order and the augmentation.
        shift: the largest random shift of an image, in pixels.
        flip: whether images are mirrored at random.
        order: of an epoch's N images. `shuffled`: every image once. `replacement`: N images that are drawn with
            replacement, so that some are missing. `sorted`: every image once, class after class by the classes'
            numbers, shuffled within each class. `blocks`: the same with the classes in an order that is drawn for each
            epoch. `blocks:16`: each class is cut into blocks of 16 images, the last one of the rest, and the blocks of
            all classes come in an order that is drawn.
        last_batch: `keep` or `drop` the images at the end of an epoch that do not fill a batch. One image alone, which
            has no variance, is always dropped.
        augmented: the split with random transforms of the caller's, from which images are drawn; None: as they are.
    """

    split: Split
    batch_size: int
    seeds: Seeds
    shift: int = 0
    flip: bool = False
    order: str = "shuffled"
    last_batch: str = "keep"
    augmented: Draw | None = None

    @property
    def augments(self) -> bool:
        """True if a batch may have images that are not in the split, because they are transformed."""
        return bool(self.shift) or self.flip or self.augmented is not None

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return steps_per_epoch(len(self.split.labels), self.batch_size, self.last_batch)

    def epoch_order(self, epoch: int) -> Tensor:
        """Draw the order of the epoch's images, int64 [N] on the CPU."""
        generator = torch.Generator().manual_seed(self.seeds.order + epoch)
        count = len(self.split.labels)
        if self.order == "replacement":
            return torch.randint(count, (count,), generator=generator)
        shuffled = torch.randperm(count, generator=generator)
        if self.order == "shuffled":
            return shuffled

        labels = self.split.labels.cpu()
        by_label = labels[shuffled].argsort(stable=True)
        by_class = shuffled[by_label]
        if self.order == "sorted":
            return by_class

        size = block_size(self.order) or count  # without a size: each class is one block
        blocks = _number_blocks(labels[by_class], size)
        rank_of_block = torch.randperm(int(blocks[-1]) + 1, generator=generator)
        by_rank = rank_of_block[blocks].argsort(stable=True)
        return by_class[by_rank]

    def from_step(self, step: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of the batch for update `step + 1`, and all after it, without end."""
        while True:
            epoch, first = divmod(step, self.per_epoch)
            order = self.epoch_order(epoch).to(self.split.labels.device)
            for position in range(first, self.per_epoch):
                start = position * self.batch_size
                index = order[start : start + self.batch_size]
                images = self._draw_images(index, self.seeds.augmentation + step)
                yield images, self.split.labels[index]
                step += 1

    def _draw_images(self, index: Tensor, seed: int) -> Tensor:
        """Draw the images of these numbers, augmented."""
        if self.augmented is None:
            images = self.split.images[index].contiguous(memory_format=torch.channels_last)
        else:
            images = self.augmented(index, seed)
        generator = torch.Generator().manual_seed(seed)
        return augment(images, generator, shift=self.shift, flip=self.flip)


def steps_per_epoch(images: int, batch_size: int, last_batch: str = "keep") -> int:
    """Count the batches in an epoch.

    Args:
        images: in the training split.
        batch_size: images in a full batch.
        last_batch: `keep` or `drop` a smaller last batch; one of a single image has no variance and is always dropped.
    """
    full, rest = divmod(images, batch_size)
    is_kept = last_batch == "keep" and rest > 1
    return full + 1 if is_kept else full


Callback = Callable[[Progress], None]


def train(
    progress: Progress,
    batches: Batches,
    config: Optimizer,
    steps: int,
    callbacks: list[Callback],
    until: int | None = None,
) -> None:
    """Train from `progress.step` on, in place.

    The model's layers are trained in the mode that they are in, which a callback may change. On an accelerator the loop
    does not wait for the loss of each update; a callback that writes something reads the log first.

    Args:
        progress: where training stands; its model, optimizer and log change.
        batches: the training batches by step.
        config: the settings of the optimizer that `progress` has, for schedule and label smoothing.
        steps: length of the whole training in updates, which the schedule depends on.
        callbacks: called after each update, in this order.
        until: the number of updates to stop at; None: `steps`.

    Raises:
        Diverged: the loss, a weight or a running statistic is not finite. The weights after `progress.step` updates
            may not be finite; those before were.
    """
    optimizer = progress.optimizer
    state = progress.model.state_dict()
    # Checked at each update instead of all weights: non-finite weights surface in the next batch's variances, which are
    # few numbers. The loss alone may stay finite, because x/∞ is 0.
    variances = [state[name] for name in state if name.endswith("running_var")]
    for group in optimizer.param_groups:
        # A second call finds a rate that the schedule has changed.
        group.setdefault("peak_lr", group["lr"])

    end = steps if until is None else until
    for images, labels in islice(batches.from_step(progress.step), end - progress.step):
        factor = lr_factor(config.schedule, progress.step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

        logits = _compute_logits(progress, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        is_finite = _are_finite([loss.detach(), *variances])
        optimizer.step()

        is_right = logits.detach().argmax(1) == labels
        progress.add_update(loss.detach(), is_right.double().mean(), is_finite)
        for callback in callbacks:
            callback(progress)

    progress.read_log()
    # No further batch would show non-finite weights of the last update.
    if not _are_finite(state.values()):
        raise Diverged(progress.describe_divergence())


def _compute_logits(progress: Progress, images: Tensor) -> Tensor:
    """Call the model; where it raises because training has diverged unread, raise Diverged."""
    try:
        return progress.model(images)  # type: ignore[no-any-return]
    except Exception:
        progress.read_log()
        raise


def _are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Find out whether all numbers are finite; a truth value on their device, for which nothing waits."""
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    return torch.stack(sums).isfinite().all()
