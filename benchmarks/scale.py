"""The model of docs/scale.md, and its tables: python -m benchmarks.scale writes them into the page.

Exact statistics: how much of a network's forwards is run where a limit of memory lets some batches wait and others not.
Its inputs are read off one forward, and factors that `benchmarks/README.md` has measured. A folder of results: a
line through the times of each command with 1,000 and 3,000 networks, from the same file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import build_imagenet_resnet, build_resnet, draw_images
from bnlab.memory import LiveBytes

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
MEASURED = Path(__file__).with_name("README.md")
_STORE_ROW = re.compile(r"\| ([\d,]+) networks \| ([^|]+) \| ([\d.]+) \|")
FACTOR = 1.2  # exact statistics where all batches wait, in plain forwards: README.md, `large`
GPU_FACTOR = 3.0  # the same on an H200, of ResNet-50 in float32, channels_last: README.md, `gpu`
GPU_RATE = 9_000  # images that it evaluates a second, from the same row
FACTOR_AGAIN = 1.3  # the same of forwards that are run again up to a layer: README.md, `scaling`, layer by layer
CHECKED = 12  # images that are evaluated once more, to profile and to check: four, and four of two batches
IMAGENET = 1_281_167  # training images
GPU_BYTES = 0.4 * 141e9  # what `population_statistics` takes of an H200's memory


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
        first: what batches that wait have run of their forwards, in plain forwards.
        again: what others have run again, in plain forwards.
        checked: the profile and the check, in plain forwards.
        factor: what a forward takes of which the moments are read, in plain ones, where all batches wait.
    """

    begun: float
    first: float
    again: float
    checked: float
    factor: float

    @property
    def forwards(self) -> float:
        """The time, in plain forwards."""
        return self.factor * self.first + FACTOR_AGAIN * self.again + self.checked


def describe(model: nn.Module, size: int) -> Network:
    """Read off one forward what it holds at each layer, and how much of it has been computed by then."""
    image = draw_images(1, size)
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
        model(image.clone())

    layers = []
    for place, before in enumerate(computed):
        layers.append(Layer(max(held[place:]), before / multiplications, channels[place]))
    return Network(layers, live.peak, image.numel() * image.element_size())


def compute_cost(network: Network, images: int, batch: int, memory: float, factor: float = FACTOR) -> Cost:
    """Compute what exact statistics take of one device.

    A batch that does not wait at a layer is run again from the input to the next one.

    Args:
        network: that is measured.
        images: of this device.
        batch: images in a batch.
        memory: bytes that batches which wait and one that runs may hold.
        factor: of the device.
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
    return Cost(begun, first, again, CHECKED / images, factor)


def write_imagenet() -> Iterator[str]:
    """Write what exact statistics of ResNet-50 take, by images of a GPU."""
    network = describe(build_imagenet_resnet(50), 224)
    yield "| images of a GPU | input kept (GB) | waiting (GB) | forwards begun | plain forwards | time |"
    yield "|---|--:|--:|--:|--:|--:|"
    most = max(layer.held for layer in network.layers)
    rows = {f"{images:,}": images for images in (2_048, 6_400, 10_000, 50_000)}
    rows |= {"all, one GPU": IMAGENET, "all, shared by 64 GPUs": IMAGENET // 64}
    for name, images in rows.items():
        cost = compute_cost(network, images, 128, GPU_BYTES, GPU_FACTOR)
        kept = images * network.image / 1e9
        held = images * most + 128 * network.running
        waiting = held / 1e9
        seconds = images / GPU_RATE * cost.forwards
        time = _write_time(seconds)
        yield f"| {name} | {kept:,.1f} | {waiting:,.0f} | {cost.begun:.1f} | {cost.forwards:.1f} | {time} |"


def _write_time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6_000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h"


def write_checks() -> Iterator[str]:
    """Write what the model says of points that have been measured, and what was measured."""
    yield "| network | images | memory | forwards begun | measured | plain forwards | measured |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    resnet50 = build_imagenet_resnet(50)
    large = describe(resnet50, 224)
    points = (
        ("ResNet-50, 64²", describe(resnet50, 64), 64, 8, 16e6, "16 MB", 36.375, 14.4),
        ("ResNet-50, 224²", large, 16, 4, 120e6, "120 MB", 13.0, 5.8),
        ("ResNet-50, 224²", large, 16, 4, 1e12, "all", 1.0, 2.2),
        ("ResNet-20, 32²", describe(build_resnet(), 32), 4_500, 50, 0.4 * 2**30, "410 MiB", 6.344, 3.2),
    )
    for name, network, images, batch, memory, words, begun, time in points:
        cost = compute_cost(network, images, batch, memory)
        what = f"{images:,} in batches of {batch}"
        yield f"| {name} | {what} | {words} | {cost.begun:.2f} | {begun:.2f} | {cost.forwards:.1f} | {time:.1f} |"


def write_store() -> Iterator[str]:
    """Write the line through the times of each command, and what it says of more networks."""
    seconds: dict[str, dict[int, float]] = {}
    for networks, command, time in _STORE_ROW.findall(MEASURED.read_text(encoding="utf-8")):
        seconds.setdefault(command, {})[int(networks.replace(",", ""))] = float(time)

    yield "| command | fixed (s) | each network (ms) | 10,000 predicted (s) | measured (s) | 100,000 predicted (s) |"
    yield "|---|--:|--:|--:|--:|--:|"
    for command, points in seconds.items():
        slope = (points[3_000] - points[1_000]) / 2_000
        fixed = points[1_000] - 1_000 * slope
        milliseconds = 1e3 * slope
        tenfold = fixed + 10_000 * slope
        hundredfold = fixed + 100_000 * slope
        measured = points[10_000]
        yield f"| {command} | {fixed:.1f} | {milliseconds:.2f} | {tenfold:.1f} | {measured:.1f} | {hundredfold:.0f} |"


TABLES = {"imagenet": write_imagenet, "checks": write_checks, "store": write_store}


def replace_table(page: str, name: str, lines: Sequence[str]) -> str:
    """Put lines in the place of a table of the page, between its two comments."""
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, behind = rest.partition(f"<!-- end of {name} -->")
    return "".join([before, begin, "\n".join(lines), "\n", end, behind])


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, write in TABLES.items():
        page = replace_table(page, name, list(write()))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
