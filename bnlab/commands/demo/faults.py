"""Five ways to break a network: in a file, in fine-tuning, by averaging, in deployment and in preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bnlab.commands.demo.network import train
from bnlab.commands.demo.patterns import CLASSES
from bnlab.commands.demo.specimen import NETWORKS, Healthy, Specimen, Spoil, average, reset, split


@dataclass(frozen=True)
class Fault:
    """One way to break a network.

    Attributes:
        name: a few words.
        code: under which the doctor finds it.
        recalibration: what new statistics do: "repairs" (as good as unspoiled, within half a point), "falls short" (not
            as good), "hides" (as good, and the mistake stays), "not needed" (the old ones were right).
        verdicts: those that are right.
        strengths: a weak, a medium and a strong one.
        is_portable: whether it is a function of any trained network of convolutions; the others take a training of
            their own, or the layers of the demo's network.
        done: one sentence on what was done.
        make: makes the specimen.
    """

    name: str
    code: str
    recalibration: str
    verdicts: Sequence[str]
    strengths: Sequence[float]
    is_portable: bool
    done: str
    make: Spoil

    def spoil(self, healthy: Healthy, strength: float | None = None) -> Specimen:
        """Make the specimen, at the largest strength if none is given."""
        if not self.strengths:
            return self.make(healthy)
        return self.make(healthy, self.strengths[-1] if strength is None else strength)


def never_updated(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    reset(model)
    return healthy.show(model)


def moved_while_frozen(healthy: Healthy) -> Specimen:
    model = healthy.copy_model().requires_grad_(False)
    # The doctor takes layers for frozen only where other parameters still take a gradient.
    _, head = find_last(model, nn.Linear)
    head.requires_grad_(True)
    # `draw_patterns` gives the first tint to the lower half of the labels.
    is_warm = healthy.labels < CLASSES // 2
    average(model, split(healthy.images[is_warm], healthy.labels[is_warm]))
    return healthy.show(model, before=healthy.model)


def find_last(model: nn.Module, kind: type[nn.Module]) -> tuple[str, Any]:
    """Find the last layer of a kind that a model lists, with its name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)][-1]


def average_of_weights_without_buffers(healthy: Healthy) -> Specimen:
    model, averaged = train_on_and_average(healthy)
    return healthy.show(averaged, before=model)


def train_on_and_average(healthy: Healthy) -> tuple[Any, Any]:
    """Train the network on at a constant rate, and beside it average its weights: both networks."""
    model = healthy.copy_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def train_both() -> Mapping[str, Tensor]:
        train(
            model,
            healthy.images,
            healthy.labels,
            steps=100,
            rate=0.05,
            is_constant=True,
            after_step=lambda step: averaged.update_parameters(model),
        )
        return model.state_dict()

    # The file's network is the average of the weights; the one that was trained is kept as its history.
    before = NETWORKS.recall("weights averaged", averaged.module, train_both)
    model.load_state_dict(before)
    return model.eval(), averaged.module


def folded_twice(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    last = ""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            last = name
        elif isinstance(module, nn.BatchNorm2d):  # the convolution before it is the last one that was listed
            model.set_submodule(last, fuse_conv_bn_eval(model.get_submodule(last), module))
    return healthy.show(model)


def images_not_scaled(healthy: Healthy, scale: float) -> Specimen:
    return healthy.show_changed(lambda images: scale * images)


FAULTS = (
    Fault(
        name="never updated",
        code="BN002",
        recalibration="repairs",
        verdicts=["averages"],
        strengths=[],
        is_portable=True,
        done="Its parameters alone were saved, and loaded into a new network.",
        make=never_updated,
    ),
    Fault(
        name="moved while frozen",
        code="BN104",
        recalibration="repairs",
        verdicts=["averages"],
        strengths=[],
        is_portable=True,
        done="All but the last layer was frozen, and images of warm tint were sent through the network in train mode.",
        make=moved_while_frozen,
    ),
    Fault(
        name="average of weights without buffers",
        code="BN106",
        recalibration="repairs",
        verdicts=["averages"],
        strengths=[],
        is_portable=False,
        done="An exponential moving average of the weights, beside the buffers of the network that was trained.",
        make=average_of_weights_without_buffers,
    ),
    Fault(
        name="folded twice",
        code="BN302",
        recalibration="hides",
        verdicts=["network"],
        strengths=[],
        is_portable=True,
        done="Each batch norm was folded into the convolution before it, and left in its place.",
        make=folded_twice,
    ),
    Fault(
        name="images not scaled",
        code="BN209",
        recalibration="hides",
        verdicts=["averages or images"],
        strengths=[3, 5, 255],
        is_portable=True,
        done="Given images from 0 to 255, where it was trained on 0 to 1.",
        make=images_not_scaled,
    ),
)
"""Those that `bnlab doctor --demo` shows, in this order; `benchmarks/gallery` has more."""
