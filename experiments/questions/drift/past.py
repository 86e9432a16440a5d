"""The weights of earlier steps of a network, by training it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import train
from bnlab.harness.artifacts.training_runner import freeze_and_average, record_moments, start_training
from bnlab.harness.errors import JobError


def past_weights(run: Run, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Compute the weights and buffers after some updates of a finished training by training again; writes nothing.

    Args:
        run: the run, whose log is compared.
        steps: the numbers of updates; 0 gives the weights before training.

    Returns:
        By step, tensors as a checkpoint has them.

    Raises:
        JobError: the losses are not those of the first training.
    """
    weights: dict[int, dict[str, Tensor]] = {}

    def copy_weights() -> None:
        if progress.step in steps:
            # Each update changes these tensors in place, so that they are copied.
            tensors = progress.evaluated_model.state_dict()
            weights[progress.step] = {name: value.clone() for name, value in tensors.items()}

    torch.set_num_threads(run.environment["threads"])  # on which the last bits of sums depend
    progress = start_training(run)
    copy_weights()
    # The loss of an update is of the weights before it: one update more checks the last weights.
    until = min(max(steps) + 1, run.steps)
    # Recording rounds the buffers' last bit as in the first training.
    with record_moments(run, progress):
        for _ in train(progress, run.batches, run.config.optimizer, run.steps, until=until):
            freeze_and_average(run, progress)
            copy_weights()

    # Compared to the last bit: a difference in rounding grows from update to update, and the weights would be
    # those of another training.
    losses = run.read_log().set_index("step")["loss"]
    for step, loss, _ in progress.log:
        if loss != losses[step]:
            difference = f"the loss of step {step} was {losses[step]}, now it is {loss}"
            raise JobError(f"cannot be trained again as it was: {difference}; environment.json has its versions")
    return weights
