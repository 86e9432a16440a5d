"""Table `clients`: how averaged weights predict of clients that train on classes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.dataset import Split
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import Batches, TrainingState, train
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import measure_statistics, seed_by
from bnlab.harness.measurements.tables.evaluations import compare_statistics
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact
from bnlab.model.layers import batch_norm_layers
from bnlab.statistics.network import Statistics

CLIENTS = 6
TRAININGS = ((36, "batch"), (6, "batch"), (6, "fixed"))  # classes of a client, mode
LOCAL_STEPS = (1, 100)
_OTHER_ORDER = 1000  # between the seeds of two clients' epochs

_ABOUT = f"""\
How networks predict whose weights {CLIENTS} clients average (McMahan et al. 2017, federated averaging). All begin with
the initial weights of the network and make as many updates as it, with its optimizer and learning rates, on training
images of their own. Every `local_steps` updates parameters and running averages of all clients are replaced by their
means; optimizers keep theirs. Client k of {CLIENTS} has `classes` classes from class k/{CLIENTS} of all on; the images
of a class are dealt out in turn to the clients that have it."""


class Clients(Measurement):
    """Table `clients`."""

    about_batches: ClassVar[bool] = True
    at_last_step: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "clients"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "classes": integer("classes of each client, all of them where there are no more"),
            "local_steps": integer("updates between two averages"),
            "mode": text(
                "batch: batch norm in train mode; fixed: in eval mode with averaged statistics, from the first average "
                "after half of the updates on"
            ),
            "statistics": text(
                "what the averaged weights predict with: local, the running averages of a client after its last "
                "update, mean over clients; averaged, the mean of these running averages; exact, of all training images"
            ),
        },
        others={
            **common("epoch"),
            "accuracy": real("share of test images that are predicted right"),
            "accuracy_lost": real("the same under exact statistics, minus that"),
            "mean_gap": real("as in `gaps`; root mean square over the deeper layers"),
        },
    )

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Train the clients in every way: a row for each kind of statistics of their averaged weights."""
        (step,) = steps
        rows = []
        for (classes, mode), local_steps in product(TRAININGS, LOCAL_STEPS):
            # A new generator with the same seed each time: both modes and both numbers of local steps get the
            # same parts.
            parts = divide(run.dataset.train, run.dataset.classes, classes, seed_by(f"{run.id} clients"))
            model, local = train_clients(run, parts, local_steps, until=step, fixed=mode == "fixed")
            for row in _measure_model(run, model, local):
                rows.append({"step": step, "classes": classes, "local_steps": local_steps, "mode": mode, **row})
        return pd.DataFrame(rows)


def divide(split: Split, classes: int, classes_each: int, generator: torch.Generator) -> list[Tensor]:
    """Divide the images of so many classes among the clients, in an order that is drawn; see the table.

    Returns:
        for each client the numbers of its images in the split.
    """
    order = torch.randperm(len(split.labels), generator=generator)
    numbers: list[list[int]] = [[] for _ in range(CLIENTS)]
    # By class, the images that have been dealt out so far: they tell whose turn it is.
    dealt = [0] * classes
    for number in order.tolist():
        label = int(split.labels[number])
        owners = list_owners(label, classes, classes_each)
        owner = owners[dealt[label] % len(owners)]
        numbers[owner].append(number)
        dealt[label] += 1

    return [torch.tensor(chosen, device=split.labels.device) for chosen in numbers]


def take_part(split: Split, part: Tensor) -> Split:
    """Take the images of these numbers as a split of their own."""
    images = split.images[part].contiguous(memory_format=torch.channels_last)
    return Split(images, split.labels[part])


def list_owners(label: int, classes: int, classes_each: int) -> list[int]:
    """List the clients that have a class.

    >>> [list_owners(label, classes=12, classes_each=4) for label in (0, 1, 2)]
    [[0, 5], [0, 5], [0, 1]]
    """
    owners = []
    for client in range(CLIENTS):
        first = client * classes // CLIENTS
        # Counted in a circle, where class 0 follows the last one: the last clients have as many classes as
        # the first.
        if (label - first) % classes < classes_each:
            owners.append(client)
    return owners


def train_clients(
    run: Run, parts: Sequence[Tensor], local_steps: int, until: int, fixed: bool
) -> tuple[nn.Module, list[Statistics]]:
    """Train a client on each part up to a step, and average them every so many updates and at the end.

    Returns:
        the averaged network, and the running averages of each client before they were averaged the last time.
    """
    # The initial weights are drawn from the seed of the run, and so are the same in all clients.
    clients = [_start_client(run) for _ in parts]
    batches = [_draw_batches(run, part, client) for client, part in enumerate(parts, start=1)]
    local: list[Statistics] = []
    # The last average is taken at the end, also after fewer updates than the others.
    for end in [*range(local_steps, until, local_steps), until]:
        for client, client_batches in zip(clients, batches, strict=True):
            for _ in train(client, client_batches, run.config.optimizer, run.steps, until=end):
                pass
        models = [client.model for client in clients]

        # These are copies, taken before the buffers are averaged in place.
        local = [bnlab.running_statistics(model) for model in models]
        average_models(models)
        if fixed and 2 * end >= run.steps:
            for model in models:
                for layer in batch_norm_layers(model, caller="clients").values():
                    # `train` leaves layers in the mode that they are in, so that this holds to the end.
                    layer.eval()
    # After the last average, the parameters and running averages of all clients are the same.
    return clients[0].model, local


def _start_client(run: Run) -> TrainingState:
    model = run.new_model()
    optimizer = run.config.optimizer.build(model.parameters(), run.config.batch_size)
    return TrainingState(model, optimizer, run.objective, step=0, precision=run.config.precision)


def _draw_batches(run: Run, part: Tensor, client: int) -> Batches:
    """Make the batches of a client, 1 and up, in orders of its own."""
    # An epoch's order is drawn from this seed plus the number of the epoch: no two clients share an order in
    # fewer than a thousand epochs.
    seeds = replace(run.batches.seeds, order=run.batches.seeds.order + client * _OTHER_ORDER)
    split = take_part(run.dataset.train, part)
    augmented = run.dataset.augmented

    def draw(numbers: Tensor, seed: int) -> Tensor:
        # Batches count within the client's part, and random transforms within the training split.
        assert augmented is not None
        return augmented(part[numbers], seed)

    return replace(run.batches, split=split, seeds=seeds, augmented=None if augmented is None else draw)


def average_models(models: Sequence[nn.Module]) -> None:
    """Replace the parameters and running averages of all models by their means, in place."""
    # A state dict holds the tensors of its model: copying into them changes the model.
    states = [model.state_dict() for model in models]
    for name, first in states[0].items():
        # Counts of batches are whole numbers, and the same in all clients.
        if first.is_floating_point():
            mean = torch.stack([state[name] for state in states]).mean(0)
            for state in states:
                state[name].copy_(mean)


def _measure_model(run: Run, model: nn.Module, local: Sequence[Statistics]) -> Iterator[dict[str, Any]]:
    """Evaluate averaged weights under exact, averaged and local statistics; of local ones the mean over clients."""
    exact = measure_statistics(run, Exact(), model, run.dataset.train.images)
    # `compare_statistics` takes the first one as the reference for the gaps and losses of the others.
    candidates = [exact, bnlab.running_statistics(model), *local]
    compared = pd.DataFrame(compare_statistics(model, run.dataset.test, candidates)).drop(columns="var_gap")
    yield {"statistics": "exact", **compared.iloc[0]}
    yield {"statistics": "averaged", **compared.iloc[1]}
    yield {"statistics": "local", **compared[2:].mean()}
