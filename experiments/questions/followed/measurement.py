"""Table `followed`: predictions under statistics that follow the weights without a forward pass.

Let m be the mean and M the second moments of the patches that a convolution is given. With weights W, what it gives the
batch norm after it has the mean W m and the variance diag(W M Wᵀ) − (W m)², whatever W is: the newest weights, or
averaged ones with which no forward was ever made. So a slow average of m and M does not lag behind the layer's own
weights, only behind those of the layers before it.

No training keeps such averages. They are made here of what training saw: the batch of update k + 1 is drawn again and
shown, in train mode, to the checkpoint of k updates, so that convolutions are given what they were given in training.
One batch in four is taken in, as a training could do that wants to save time, and of each of them 1,000 patches of a
convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import draw_population, measure_at, seed_by
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import compare_statistics
from bnlab.harness.schema import Table, common, integer, real, text
from bnlab.harness.statistic_kinds import Exact
from bnlab.model.layers import batch_norm_layers
from bnlab.statistics.network import Statistics

MOMENTUM = 0.1  # of an update
EVERY = 4  # updates from one batch that is taken in to the next
BATCHES = 11  # that are taken in: all older ones together would have 1% of the weight
PATCHES = 1000  # of each batch, for each convolution
_TRAINED = 0.0  # the decay of an average that has the newest weights alone
_AUGMENTED = Subject(Exact(), "train_augmented")


class Followed(Measurement):
    """Table `followed`."""

    of_plain_norms: ClassVar[bool] = True
    name: ClassVar[str] = "followed"
    table: ClassVar[Table] = Table(
        about="How trained weights, and the averages of the weights that `weight_averages` kept, predict test images "
        "under statistics that follow the weights: a slow average of the moments of what each convolution is given, "
        f"put through its weights. Of one batch in {EVERY} {PATCHES:,} patches are taken in, with momentum {MOMENTUM} "
        "for each update.",
        key={
            **common("run step"),
            "decay": real("of the average of the weights; 0: the trained weights"),
            "statistics": text(
                "followed, as above; exact, of augmented training images; of averaged weights also copied, the trained "
                "network's running averages (momentum 0.1), and averaged, these averaged as the weights"
            ),
        },
        others={
            **common("epoch"),
            "images": integer("test images that are predicted"),
            "accuracy": real("share of them that are predicted right"),
            "mean_gap": real("as in `gaps`, to the exact statistics; root mean square over the deeper layers"),
            "var_gap": real("likewise"),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[None, list[int]]:
        """Choose all measured steps of networks that have kept averages."""
        return {None: run.measured_steps} if run.config.decays else {}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the measured steps, and those before them whose batches are taken in."""
        earlier = {step for measured in run.measured_steps for step in list_taken_in(measured)}
        return sorted({*run.measured_steps, *earlier} - {0})

    def measure(self, run: Run, subjects: list[None], steps: list[int]) -> pd.DataFrame:
        """Predict the test images: a row for each step, kind of weights and kind of statistics."""
        every = run.images_of("test", "none")
        rows = []
        for step in steps:
            images = every.sample(run.limit_at(step))
            moments = average_moments(run, step)
            for decay in (_TRAINED, *run.config.decays):
                model = run.average_at(decay, step) if decay else run.model_at(step)
                statistics = _list_statistics(run, step, decay, model)
                statistics["followed"] = follow(model, moments)
                compared = compare_statistics(model.eval(), images, [*statistics.values()])
                for name, scores in zip(statistics, compared, strict=True):
                    del scores["accuracy_lost"]
                    place = {"step": step, "decay": decay, "statistics": name}
                    rows.append({**place, "images": len(images.labels), **scores})
        return pd.DataFrame(rows)


def _list_statistics(run: Run, step: int, decay: float, model: nn.Module) -> dict[str, Statistics]:
    """List what else weights are evaluated under, exact statistics first."""
    if not decay:
        return {"exact": measure_at(run, step, _AUGMENTED)}
    shown = draw_population(run, step, _AUGMENTED, batch_size=256)
    return {
        "exact": bnlab.population_statistics(model, shown),
        "copied": bnlab.running_statistics(run.model_at(step)),
        "averaged": bnlab.running_statistics(model),
    }


def list_taken_in(step: int) -> list[int]:
    """List the steps on whose weights the batches are seen that are taken in, the newest first.

    >>> list_taken_in(10)
    [9, 5, 1]
    """
    newest = step - 1  # the batch of an update is seen on the weights before it
    return [earlier for earlier in range(newest, newest - EVERY * BATCHES, -EVERY) if earlier >= 0]


@dataclass(frozen=True)
class InputMoments:
    """The moments of what a convolution is given, float64.

    Attributes:
        convolution: its name.
        mean: [values], of its patches; channels times pixels of the kernel are so many values.
        second: [values, values], the mean of the products of two values.
    """

    convolution: str
    mean: Tensor
    second: Tensor


def average_moments(run: Run, step: int) -> dict[str, InputMoments]:
    """Average what convolutions are given over the batches before a step; by the name of the batch norm after each."""
    earlier = list_taken_in(step)
    weights = [(1 - MOMENTUM) ** (step - 1 - each) for each in earlier]
    total = sum(weights)  # less than that of an average without a beginning

    averages: dict[str, InputMoments] = {}
    for each, weight in zip(earlier, weights, strict=True):
        model = run.model_at(each) if each else run.new_model()
        images, _ = next(iter(run.batches.from_step(each)))
        generator = seed_by(f"{run.id} {each} patches")
        for norm, (convolution, patches) in read_patches(model.train(), images, generator).items():
            # The root of its weight for each patch: the product of two values then has the weight.
            weighted = (weight / total / len(patches)) ** 0.5 * patches.double()
            mean = weight / total * patches.double().mean(0)
            second = weighted.T @ weighted
            before = averages.get(norm)
            if before is not None:
                mean = before.mean + mean
                second = before.second + second
            averages[norm] = InputMoments(convolution, mean, second)
    return averages


@torch.no_grad()
def read_patches(model: nn.Module, images: Tensor, generator: torch.Generator) -> dict[str, tuple[str, Tensor]]:
    """Draw patches of what each convolution is given in a forward in the model's mode, which may change its buffers.

    Returns:
        by the name of the batch norm after a convolution the name of that, and patches [PATCHES, values].
    """
    names = {module: name for name, module in model.named_modules()}
    patches: dict[str, tuple[str, Tensor]] = {}
    latest: list[tuple[str, Tensor]] = []

    def draw(convolution: nn.Module, args: Any) -> None:
        assert isinstance(convolution, nn.Conv2d)
        # Now, because what a convolution is given may be changed in place afterwards.
        latest[:] = [(names[convolution], draw_patches(convolution, args[0], generator))]

    def keep(norm: nn.Module, args: Any) -> None:
        patches[names[norm]] = latest[0]

    hooks = [module.register_forward_pre_hook(draw) for module in names if isinstance(module, nn.Conv2d)]
    norms = batch_norm_layers(model, caller="followed")
    hooks += [norm.register_forward_pre_hook(keep) for norm in norms.values()]
    model(images)
    for hook in hooks:
        hook.remove()
    return patches


def draw_patches(convolution: nn.Conv2d, given: Tensor, generator: torch.Generator) -> Tensor:
    """Draw patches of a convolution's input, independently of each other: [PATCHES, values]."""
    (high, wide), (down, across) = convolution.kernel_size, convolution.stride
    assert not isinstance(convolution.padding, str)
    above, beside = convolution.padding
    padded = F.pad(given, (beside, beside, above, above))
    # A view of all patches; to copy them all would take longer than the forward.
    windows = padded.unfold(2, high, down).unfold(3, wide, across)  # [N, C, rows, columns, high, wide]
    count, _, rows, columns, _, _ = windows.shape
    chosen = torch.randint(count * rows * columns, (PATCHES,), generator=generator).to(given.device)
    places = chosen % (rows * columns)
    return windows[chosen // (rows * columns), :, places // columns, places % columns].flatten(1)


def follow(model: nn.Module, moments: Mapping[str, InputMoments]) -> Statistics:
    """Compute the statistics of batch norms after convolutions, from what these are given and the model's weights."""
    followed = {}
    for name, given in moments.items():
        kernel = model.get_parameter(f"{given.convolution}.weight")
        weights = kernel.detach().flatten(1).double()
        mean = weights @ given.mean
        covariance = given.second - given.mean.outer(given.mean)
        var = ((weights @ covariance) * weights).sum(1)
        # Rounding may leave a dead channel with less than 0.
        followed[name] = bnlab.Moments(math.nan, mean.cpu(), var.clamp_min(0).cpu())
    eps = {name: layer.eps for name, layer in batch_norm_layers(model, caller="followed").items()}
    return Statistics(followed, eps)
