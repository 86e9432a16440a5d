"""Training one network: batches by step, schedule, loop. Callbacks add what else happens at a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.artifacts.data import Augmented, Split, augment
from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.artifacts.progress import Diverged, Progress
from bnlab.harness.errors import UserError
from bnlab.harness.schedule import lr_factor


def check_order(order: str) -> None:
    """Raise UserError for an order that there is not."""
    if order not in ORDERS and block_size(order) is None:
        raise UserError(f"order={order}: must be one of {', '.join(ORDERS)}, or blocks:16 for blocks of so many images")


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


ORDERS = ("shuffled", "replacement", "sorted", "blocks")


def block_size(order: str) -> int | None:
    """Read 16 from `blocks:16`; None from other orders."""
    found = re.fullmatch(r"blocks:([1-9]\d*)", order)
    return int(found[1]) if found else None


def _number_blocks(labels: Tensor, size: int) -> Tensor:
    """Number the blocks of ascending labels [N]: each block has `size` images of a class, its last one the rest."""
    _, counts = labels.unique_consecutive(return_counts=True)
    places = torch.cat([torch.arange(count) for count in counts.tolist()])
    return (places % size == 0).cumsum(0) - 1


@dataclass(frozen=True)
class Batches:
    """The training batches by step: each epoch in another order, an uneven last batch kept, a last one of 1 dropped.

    Each epoch's order and each step's augmentation have seeds of their own, so that training can go on from any step
    without a random state to restore.

    The order changes which images meet in a batch. Statistics of frozen weights, such as exact ones, are of the whole
    training split all the same: every image once.

    Attributes:
        order: of an epoch's N images. `shuffled`: every image once. `replacement`: N images that are drawn with
            replacement, so that some are missing. `sorted`: every image once, class after class by the classes'
            numbers, shuffled within each class. `blocks`: the same with the classes in an order that is drawn for each
            epoch. `blocks:16`: each class is cut into blocks of 16 images, the last one of the rest, and the blocks of
            all classes come in an order that is drawn.
        augmented: the split with random transforms of the user's own, from which images are drawn; None: as they are.
    """

    split: Split
    batch_size: int
    seeds: Seeds
    shift: int = 0
    flip: bool = False
    order: str = "shuffled"
    augmented: Augmented | None = None

    @property
    def augments(self) -> bool:
        """True if images are trained on that are not in the split."""
        return bool(self.shift) or self.flip or self.augmented is not None

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.split.labels), self.batch_size)

    def epoch_order(self, epoch: int) -> Tensor:
        """Draw the order of the epoch's images, int64 [N] on the CPU."""
        generator = torch.Generator().manual_seed(self.seeds.order + epoch)
        images = len(self.split.labels)
        if self.order == "replacement":
            return torch.randint(images, (images,), generator=generator)
        shuffled = torch.randperm(images, generator=generator)
        if self.order == "shuffled":
            return shuffled

        labels = self.split.labels.cpu()
        places_by_class = labels[shuffled].argsort(stable=True)
        by_class = shuffled[places_by_class]
        if self.order == "sorted":
            return by_class

        size = block_size(self.order) or images
        blocks = _number_blocks(labels[by_class], size)
        order_of_blocks = torch.randperm(int(blocks[-1]) + 1, generator=generator)
        places = order_of_blocks[blocks]
        return by_class[places.argsort(stable=True)]

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
            images = self.augmented.draw(index, seed)
        generator = torch.Generator().manual_seed(seed)
        return augment(images, generator, shift=self.shift, flip=self.flip)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Count the batches in an epoch; a last batch of one image has no variance and is dropped."""
    full, rest = divmod(images, batch_size)
    return full + 1 if rest > 1 else full


Callback = Callable[[Progress], None]


def train(
    progress: Progress,
    batches: Batches,
    config: Optimizer,
    steps: int,
    callbacks: list[Callback],
    until: int | None = None,
) -> None:
    """Train from `progress.step` to `until` (default: the end) of `steps`; every callback is called at each update.

    The model's layers are trained in the mode that they are in, which a callback may change. On an accelerator the loop
    does not wait for the loss of each update; a callback that writes something reads the log first.

    Raises:
        Diverged: the loss, a weight or a running statistic is not finite. The weights after `progress.step` updates
            may not be finite; those before were.
    """
    model = progress.model
    optimizer = progress.optimizer
    state = model.state_dict()
    # Non-finite weights surface in the next batch's variances, which are few numbers. The loss alone may stay finite,
    # because x/∞ is 0.
    variances = [state[name] for name in state if name.endswith("running_var")]
    peak = [group.setdefault("peak_lr", group["lr"]) for group in optimizer.param_groups]
    for images, labels in batches.from_step(progress.step):
        if progress.step >= (until or steps):
            progress.read_log()
            if not _are_finite(state.values()):  # no further batch would show it
                raise Diverged(progress.describe_divergence())
            return

        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * lr_factor(config.schedule, progress.step, steps)
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        is_finite = _are_finite([loss.detach(), *variances])
        optimizer.step()

        is_right = logits.detach().argmax(1) == labels
        progress.add_update(loss.detach(), is_right.double().mean(), is_finite)
        for callback in callbacks:
            callback(progress)


def _are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Find out whether all numbers are finite, a truth value on their device."""
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    return torch.stack(sums).isfinite().all()
