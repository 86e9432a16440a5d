"""The model of docs/scale.md, and its tables: python -m benchmarks.scale writes them into the page.

Exact statistics: how much of a network's forwards is run where a limit of memory lets some batches wait and others not.
Its inputs are read off one forward, and two factors that `benchmarks/README.md` has measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.models.resnet import Resnet
from bnlab.memory import LiveBytes
from bnlab.vision import torchvision

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
FACTOR = 1.2  # seconds of exact statistics where all batches wait, in plain forwards: README.md, `large`
FACTOR_RERUN = 1.3  # the same of forwards that are run again up to a layer: README.md, `scaling`, layer by layer
IMAGENET = 1_281_167  # training images
SHARE = 0.4  # of free memory that `population_statistics` takes


@dataclass(frozen=True)
class Layer:
    """A batch-norm layer in a forward of one image.

    Attributes:
        held: bytes that the forward holds while it waits here, or at a later layer if that is more.
        before: share of the forward's multiplications that come before it.
        channels: of its input.
    """

    held: int
    before: float
    channels: int


@dataclass(frozen=True)
class Network:
    """What a forward of one image takes.

    Attributes:
        layers: in the order of the forward.
        running: bytes that it holds at its peak.
        image: bytes of the image itself, in float32.
    """

    layers: list[Layer]
    running: int
    image: int


@dataclass(frozen=True)
class Cost:
    """What exact statistics take of one device, for each image that it measures.

    Attributes:
        begun: forwards that are begun.
        first: forwards that are run once, in plain forwards.
        again: forwards that are run again, as far as they are, in plain forwards.
    """

    begun: float
    first: float
    again: float

    @property
    def forwards(self) -> float:
        """The time, in plain forwards."""
        return FACTOR * self.first + FACTOR_RERUN * self.again


def build_resnet50() -> nn.Module:
    return torchvision().models.resnet50()  # type: ignore[no-any-return]


def build_resnet20() -> nn.Module:
    return build_model(Resnet(), channels=3, image_size=32, classes=10, seed=0)


def describe(model: nn.Module, size: int) -> Network:
    """Read off one forward what it holds at each layer, and how much of it has been computed by then."""
    image = torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    live = LiveBytes([*model.parameters(), *model.buffers()])
    held: list[int] = []
    channels: list[int] = []
    computed: list[int] = []
    multiplications = 0

    def stop(layer: nn.Module, args: tuple[Tensor]) -> None:
        held.append(live.now())
        channels.append(args[0].shape[1])
        computed.append(multiplications)

    def count(layer: Any, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal multiplications
        multiplications += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(stop)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with live, torch.no_grad():
        model.eval()(image.clone())

    layers = []
    for place, before in enumerate(computed):
        layers.append(Layer(max(held[place:]), before / multiplications, channels[place]))
    return Network(layers, live.peak, image.numel() * image.element_size())


def compute_cost(network: Network, images: int, batch: int, memory: float) -> Cost:
    """Compute what exact statistics take of one device.

    A batch that does not wait at a layer is run again from the input to the next one.

    Args:
        network: that is measured.
        images: of this device.
        batch: images in a batch.
        memory: bytes that batches which wait and one that runs may hold.
    """
    batches = images / batch
    ends = [layer.before for layer in network.layers[1:]] + [1.0]
    begun = 1.0
    first = network.layers[0].before
    again = 0.0
    for layer, end in zip(network.layers, ends, strict=True):
        free = memory - network.running * batch
        waiting = min(batches, free // (layer.held * batch)) / batches
        first += waiting * (end - layer.before)
        again += (1 - waiting) * end
        begun += 1 - waiting
    return Cost(begun, first, again)
