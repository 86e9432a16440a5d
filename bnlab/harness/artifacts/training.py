"""Training one network in memory: batches by step, the loop, and how far it has come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bnlab.harness.artifacts.dataset import Split, augment
from bnlab.harness.artifacts.objectives import Objective, compute_metric
from bnlab.harness.artifacts.optimizers import Optimizer
from bnlab.harness.updates import lr_factor, steps_per_epoch

if TYPE_CHECKING:
    from bnlab.harness.artifacts.data.parts import Draw

# Reading a loss waits until its device has computed it. A CPU has when a call returns; an accelerator computes behind
# the program, which would stand still at each update.
_UPDATES_BETWEEN_READINGS = {"cpu": 1}  # by type of device
_ON_AN_ACCELERATOR = 50  # of any other type


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


@dataclass(frozen=True)
class Batches:
    """The training batches by step; each epoch has another order.

    Each epoch's order and each step's augmentation have seeds of their own, so that training can go on from any step
    without a random state to restore.

    Orders of an epoch's images: `shuffled`; `sorted`: class after class by their numbers, shuffled within each;
    `blocks:16`: blocks of 16 images of a class, the last one of the rest, in an order that is drawn.
    """

    split: Split
    batch_size: int
    seeds: Seeds
    shift: int = 0
    flip: bool = False
    order: str = "shuffled"
    last_batch: str = "keep"  # or drop
    augmented: Draw | None = None  # draws images with random transforms of the caller's; None: as they are

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
        # A generator of the CPU, so that the order is the same whichever device trains.
        generator = torch.Generator().manual_seed(self.seeds.order + epoch)
        count = len(self.split.labels)
        shuffled = torch.randperm(count, generator=generator)
        if self.order == "shuffled":
            return shuffled

        labels = self.split.labels.cpu()
        # A stable sort leaves the images of a class in the order in which they were shuffled.
        by_label = labels[shuffled].argsort(stable=True)
        by_class = shuffled[by_label]
        if self.order == "sorted":
            return by_class

        size = int(self.order.removeprefix("blocks:"))
        blocks = _number_blocks(labels[by_class], size)
        # Each block gets a random rank. A stable sort keeps the images of a block in their order.
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


def _number_blocks(labels: Tensor, size: int) -> Tensor:
    """Return the number of each image's block, from 0: `size` images of one class, the rest of a class in its last.

    >>> _number_blocks(torch.tensor([7, 7, 7, 8, 8]), size=2)
    tensor([0, 0, 1, 2, 2])
    """
    _, counts = labels.unique_consecutive(return_counts=True)
    positions = torch.cat([torch.arange(count) for count in counts.tolist()])  # within the class
    begins_block = positions % size == 0
    return begins_block.cumsum(0) - 1


class Diverged(Exception):
    """The loss, a weight or a running statistic became NaN or infinite."""


@dataclass
class TrainingState:
    """The state of training after an update. `step` counts the updates that are made, `log` has those that are read."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    step: int
    log: list[tuple[int, float, float]] = field(default_factory=list)  # step; loss and mean metric before it
    average: AveragedModel | None = None  # of weights and buffers
    weight_averages: dict[float, AveragedModel] = field(default_factory=dict)  # likewise, by their decay
    precision: str = "float32"  # of forward passes; or bfloat16
    # [3] of each update that is made and not read: loss, metric, and 1 where all was finite, on the device
    _unread: list[Tensor] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The loss of the last update that has been read; NaN before the first."""
        return self.log[-1][1] if self.log else math.nan

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that checkpoints keep: the average once it has taken weights, before that the model."""
        if self.average is None or not self.average.n_averaged:
            return self.model
        return self.average.module

    def add_update(self, loss: Tensor, metric: Tensor, is_finite: Tensor) -> None:
        """Count an update that was made; its results, a number each, stay on their device until they are read."""
        self.step += 1
        results = torch.stack((loss.double(), metric, is_finite.double()))
        self._unread.append(results)
        most = _UPDATES_BETWEEN_READINGS.get(loss.device.type, _ON_AN_ACCELERATOR)
        if len(self._unread) >= most:
            self.read_log()

    def read_log(self) -> None:
        """Read the results of all updates made so far; waits until the device has computed them.

        Diverged where those of an update are not finite: `step` is the number of updates before it, `log` has these.
        """
        if not self._unread:
            return
        # A single transfer for all of them, which waits for the device once.
        results = torch.stack(self._unread).tolist()
        self._unread.clear()

        self.step -= len(results)  # and each of them again once it is seen to be finite
        for loss, metric, is_finite in results:
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} on the weights of step {self.step}")
            self.require_finite(is_finite)
            self.step += 1
            self.log.append((self.step, loss, metric))

    def require_finite(self, is_finite: float | Tensor) -> None:
        """Raise Diverged, for a divergence that the loss need not show, unless this is true."""
        if not is_finite:
            raise Diverged(f"weights or batch statistics are not finite at step {self.step}")


def compute_output(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Compute a network's output in a precision of `Config.precision`: bfloat16 is autocast, and then float32."""
    if precision == "float32":
        output: Tensor = model(images)
        return output
    with torch.autocast(images.device.type, torch.bfloat16):
        output = model(images)
    return output.float()


def train(
    state: TrainingState, batches: Batches, optimizer: Optimizer, steps: int, until: int | None = None
) -> Iterator[int]:
    """Train from `state.step` on, in place, and yield after each update the number of updates made.

    The model's layers are trained in the mode that they are in, which the caller may change between two updates. On an
    accelerator nothing here waits for the loss of an update: who writes something reads the log first. The schedule is
    one of `steps` updates, also where training stops at `until`.

    Raises:
        Diverged: the loss, a weight or a running statistic is not finite. The weights after `state.step` updates
            may not be finite; those before were.
    """
    # A state dict holds the tensors themselves, which each update changes in place.
    tensors = state.model.state_dict()
    # Checked at each update instead of all weights: non-finite weights surface in the next batch's variances, which are
    # few numbers. The loss alone may stay finite, because x/∞ is 0.
    variances = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    for group in state.optimizer.param_groups:
        # Kept in the group, and so in a saved state: in a second call or a restored training `lr` is a rate
        # that the schedule has scaled.
        group.setdefault("peak_lr", group["lr"])

    end = steps if until is None else until
    for batch in islice(batches.from_step(state.step), end - state.step):
        factor = lr_factor(optimizer.schedule, state.step, steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

        images, _ = batch
        output = compute_output(state.model, images, state.precision)
        loss = state.objective.loss(output, batch)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Before the update, because these variances are of the batch that the loss is of.
        is_finite = _are_finite([loss.detach(), *variances])
        state.optimizer.step()

        metric = compute_metric(state.objective, output.detach(), batch)
        state.add_update(loss.detach(), metric.mean(), is_finite)
        if state.step == end:
            state.read_log()
            # No further batch would show non-finite weights of the last update.
            state.require_finite(_are_finite(tensors.values()))
        yield state.step


def _are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Find out whether all numbers are finite; a truth value on their device, for which nothing waits."""
    # A sum is finite only if all of its terms are. In float64, finite float32 numbers cannot overflow it.
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    return torch.stack(sums).isfinite().all()
