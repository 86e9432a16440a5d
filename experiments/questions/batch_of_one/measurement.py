"""Table `training_memory`: the memory that an update takes, by the number of images in its batch."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import compute_output
from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, integer

IMAGES = (1, 32)

_ABOUT = """\
The memory that an update of the last step's weights takes, by the number of images in its batch, whatever the network
was trained with. Networks whose norm has statistics of the batch have no row of one image. Buffers that a device needs
while it computes are not counted."""


class TrainingMemory(Measurement):
    """Table `training_memory`."""

    at_last_step: ClassVar[bool] = True
    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "training_memory"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={**common("run step"), "images": integer("images in the batch")},
        others={
            **common("epoch"),
            "saved_bytes": integer(
                "what the forward pass keeps for the backward pass, the images among it, each piece of memory once; "
                "without weights and buffers"
            ),
            "step_bytes": integer("the same with parameters, their gradients, and the optimizer's numbers"),
        },
    )

    def covers(self, norm: Norm) -> bool:
        return True

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Count the bytes of an update: a row for each number of images."""
        (step,) = steps
        train = run.dataset.train
        rows = []
        for images in IMAGES:
            if images == 1 and run.config.norm.uses_batch:
                continue
            # Loaded again each time: the forward pass in train mode changes the running averages.
            model = run.model_at(step)
            # A slice would share the memory of all training images, which would be counted with it.
            batch = train.images[:images].clone(memory_format=torch.channels_last)
            saved_bytes = count_saved_bytes(model, batch, train.labels[:images].clone(), run.config.precision)
            weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
            # These are the weights, their gradients, and what the optimizer keeps of each.
            state_bytes = weight_bytes * (2 + run.config.optimizer.count_moments())
            step_bytes = saved_bytes + state_bytes
            rows.append({"step": step, "images": images, "saved_bytes": saved_bytes, "step_bytes": step_bytes})
        return pd.DataFrame(rows)


def count_saved_bytes(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> int:
    """Count the bytes that the forward pass and the loss keep for the backward pass, each storage once.

    The network is in train mode, and its running averages are updated; the images have memory of their own.
    """
    tensors_of_model = [*model.parameters(), *model.buffers()]
    # Weights and buffers are there in any case, whether or not a backward pass needs them.
    addresses_of_model = {tensor.untyped_storage().data_ptr() for tensor in tensors_of_model}
    storages: dict[int, torch.UntypedStorage] = {}  # by address; held here, so that no other one takes it

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in addresses_of_model:
            storages[address] = storage

    def refuse(_: None) -> Tensor:
        raise RuntimeError("there is no backward pass")

    with saved_tensors_hooks(note, refuse):
        F.cross_entropy(compute_output(model, images, precision), labels)
    return sum(storage.nbytes() for storage in storages.values())
