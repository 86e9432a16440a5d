"""Patients: networks with one fault at several strengths, and what the doctor should say of each.

They are what no specimen of the gallery can be: faults of another network or with other arguments, and faults that
share their code with a specimen there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.commands.demo.specimen import list_norms
from bnlab.model.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.digits import NETWORKS, Batches


@dataclass(frozen=True)
class Given:
    """What the doctor is given.

    Attributes:
        model: with its fault.
        batches: labelled images.
        arguments: further ones of `diagnose`.
    """

    model: nn.Module
    batches: Batches = field(default_factory=digits.make_few)
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patient:
    """A fault.

    Attributes:
        make: breaks a network, so strongly.
        strengths: how strongly.
        verdicts: words that are right.
        codes: of the first finding; one that is right.
        says: a phrase that is printed.
    """

    make: Callable[[float], Given]
    strengths: Sequence[float]
    verdicts: tuple[str, ...]
    codes: tuple[str, ...]
    says: str


PATIENTS: dict[str, Patient] = {}


def patient(
    name: str, verdict: str, code: str, strengths: tuple[float, ...] = (1.0,), says: str = ""
) -> Callable[[Callable[[float], Given]], Callable[[float], Given]]:
    """Put a function that breaks a network into the table; alternatives of verdicts and codes are divided by "/"."""

    def register(make: Callable[[float], Given]) -> Callable[[float], Given]:
        PATIENTS[name] = Patient(make, strengths, tuple(verdict.split("/")), tuple(code.split("/")), says)
        return make

    return register


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Draw standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Images of another scale, brightness or order


def rescale(images: Tensor, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    return factor * images + shift


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"times {factor}": partial(rescale, factor=factor) for factor in (0.25, 0.5, 0.8, 1.2, 1.3, 1.6, 2, 4, 8)},
    **{f"plus {shift}": partial(rescale, shift=shift) for shift in (-0.5, 0.25, 1.0)},
    "negative": lambda images: -images,
    "from 0 to 255": lambda images: 127.5 * (images + 1),
    "channels reversed": lambda images: images.flip(1),
    "each colour shifted": lambda images: images + torch.tensor([0.5, -0.5, 1.0]).view(3, 1, 1),
}


# Averages


@patient("means of one layer broken", "averages", "BN108", (1.0, 3.0, 10.0), "not in 4, but after it again; ")
def break_one_layer(sigmas: float) -> Given:
    model = digits.make_healthy()
    mean, var = get_running_buffers(list_norms(model)[1])
    mean += sigmas * var.sqrt() * draw(len(mean))
    return Given(model)


@patient("a variance beyond half precision", "averages", "BN001", says="Keep batch norm in float32")
def cast_to_half(_: float) -> Given:
    """float16 holds up to 65,504, and one layer's largest variance is 100,000."""
    model = digits.make_healthy()
    mean, var = get_running_buffers(list_norms(model)[1])
    scale = 1e5 / float(var.max())
    conv = model.get_submodule("3")
    for values in (conv.get_parameter("weight").data, conv.get_parameter("bias").data, mean):
        values.mul_(scale**0.5)
    var.mul_(scale)
    return Given(model.half(), digits.make_batches(lambda images: images.half(), images=200))


@patient("fine-tuned, with the buffers of before", "averages", "BN106", (24, 48, 96))
def keep_old_buffers(steps: float) -> Given:
    """On negatives, in so many steps."""
    before = digits.make_healthy(1)
    model = copy.deepcopy(before)
    train = partial(digits.fit, model, steps=int(steps), change=CHANGES["negative"])
    NETWORKS.recall(f"negatives {steps:g}", model, train)
    return _take_buffers(model, before)


class Adapted(nn.Module):
    """A convolution and what a low-rank adapter adds to it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(conv.in_channels, 4, 1, conv.stride, bias=False)  # type: ignore[arg-type]
        self.up = nn.Conv2d(4, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.up(self.down(x))


@patient("adapters saved without buffers", "averages", "BN106", says="save adapters with their buffers")
def load_adapters(_: float) -> Given:
    """Adapters were trained on negatives, together with batch norm, and are loaded onto their base."""
    before = digits.make_healthy(2)
    torch.manual_seed(0)
    model = copy.deepcopy(before).requires_grad_(False)
    for place in (0, 3, 6):
        model[place] = Adapted(model[place])  # type: ignore[arg-type]
    NETWORKS.recall("adapters", model, partial(digits.fit, model, steps=48, change=CHANGES["negative"]))
    return _take_buffers(model, before)


def copy_buffers(layer: nn.Module, other: nn.Module) -> None:
    layer.load_state_dict({**layer.state_dict(), **dict(other.named_buffers())})


def _take_buffers(model: nn.Module, before: nn.Module) -> Given:
    """Give a network of negatives the buffers of another one."""
    for now, then in zip(list_norms(model), list_norms(before), strict=True):
        copy_buffers(now, then)
    return Given(model, digits.make_hundreds(CHANGES["negative"]), {"before": before})


@patient("pruned weights", "averages/averages or images", "BN108/BN106", (0.7, 0.8, 0.9))
def prune(share: float) -> Given:
    """So many of the weights of convolutions are 0."""
    model = digits.make_healthy()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            size = module.weight.detach().abs()
            module.weight.data[size <= size.quantile(share)] = 0
    return Given(model, digits.make_few(500))


@patient("another run's averages in one layer", "averages/averages or images", "BN108", (0, 1, 2))
def take_averages_of_another_run(number: float) -> Given:
    model = digits.make_healthy()
    other = digits.make_healthy(1)
    copy_buffers(list_norms(model)[int(number)], list_norms(other)[int(number)])
    return Given(model)


@patient("averages part of the way", "averages or images", "BN108/BN101", (0.1, 0.25, 0.4))
def move_part_of_the_way(share: float) -> Given:
    """From 0 and 1, so much of it, and counts do not tell."""
    model = digits.make_healthy()
    for layer in list_norms(model):
        mean, var = get_running_buffers(layer)
        mean.mul_(share)
        var.mul_(share).add_(1 - share)
    return Given(model)


@patient("constant rate, few steps", "averages/averages or images", "BN108/BN101", (0.1, 0.3))
def lag_behind(rate: float) -> Given:
    """After 15 steps a fifth of the averages is of their start, too."""
    model = digits.build(8)
    NETWORKS.recall(f"lag {rate:g}", model, partial(digits.fit, model, steps=15, rate=rate, is_constant=True))
    return Given(model, digits.make_batches())


@patient("first layer's averages of other images", "images/averages or images", "BN209", (0.5, 3.0, 10.0))
def scale_first_layer(factor: float) -> Given:
    """Images over the factor would look the same, digit for digit: training batches tell."""
    model = digits.make_healthy()
    bias = model.get_submodule("0").get_parameter("bias").detach()
    mean, var = get_running_buffers(list_norms(model)[0])
    mean.copy_(factor * (mean - bias) + bias)
    var.mul_(factor**2)
    return Given(model, digits.make_few(500))


@patient("first layer's averages of other images, and training batches", "averages", "BN108", (0.5, 3.0, 10.0))
def scale_first_layer_and_compare(factor: float) -> Given:
    given = scale_first_layer(factor)
    return Given(given.model, given.batches, {"training_batches": digits.make_training_batches()[:-1]})


# Images


@patient("noisy images", "averages or images/images/undecided", "BN108/BN209", (0.5, 1.0))
def add_noise(sigma: float) -> Given:
    """More than scale and shift: nobody knows whether images or averages are others."""
    return Given(digits.make_healthy(), digits.make_hundreds(lambda images: images + sigma * draw(*images.shape)))


@patient("blurred images", "averages or images/undecided", "BN108")
def blur(_: float) -> Given:
    def average_neighbours(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)

    return Given(digits.make_healthy(), digits.make_hundreds(average_neighbours))


# Network


class WithOwnStatistics(nn.BatchNorm2d):
    """Normalizes by its batch in eval mode too, as an exported graph does whose batch norms stay in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def replace_norms(kind: type[nn.BatchNorm2d]) -> nn.Module:
    model = digits.make_healthy()
    for name in digits.NORMS:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d)
        other = kind(layer.num_features)
        other.load_state_dict(layer.state_dict())
        model[int(name)] = other
    return model.eval()


@patient("a forward of each batch's statistics", "network", "BN304", (1, 4, 8))
def use_own_statistics(size: float) -> Given:
    """Batches of so few images."""
    return Given(replace_norms(WithOwnStatistics), digits.make_batches(size=int(size), images=400))


# Mode and batches


@patient("evaluated in train mode", "mode", "BN402", (2, 4), "Call model.eval().")
def forget_eval(size: float) -> Given:
    """In batches of so few images."""
    return Given(digits.make_healthy().train(), digits.make_batches(size=int(size), images=400))


@patient("windows of one recording", "batches", "BN202", (1.0, 2.0, 4.0), "or a batch norm each")
def offset_batches(size: float) -> Given:
    """Each batch has an offset of its own."""
    offsets = size * draw(50, 1, 1, 1)
    batches = [
        (images + offset, labels)
        for (images, labels), offset in zip(digits.make_batches(size=20), offsets, strict=True)
    ]
    return Given(digits.make_healthy(), batches)
