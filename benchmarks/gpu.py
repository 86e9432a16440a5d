"""Statistics, training and a diagnosis on an accelerator: python -m benchmarks.gpu

One call of a few minutes; prints a table for benchmarks/README.md. Without an accelerator it says so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import LAYOUTS, build_imagenet_resnet, build_resnet, evaluate, warm_up
from benchmarks.timing import HEADING, Result, alternate
from bnlab import diagnose, population_statistics, record
from bnlab.moments import compare_moments
from bnlab.nn import SelfTuned

ROUNDS = 5
_TRAINED_BATCH = 128
_BATCHES = 16


@dataclass(frozen=True)
class Network:
    """A network with the images that it is measured on.

    Attributes:
        model: with weights as they are drawn.
        name: for the table.
        size, batch: of the images.
        steps: of training.
        exact, recording, tuned: what the ratios should be at most.
    """

    model: nn.Module
    name: str
    size: int
    batch: int
    steps: int
    exact: float
    recording: float
    tuned: float

    def prepare(self, layout: str = "channels_last") -> nn.Module:
        """Build the network on the device, with running statistics that are not 0 and 1."""
        model = copy.deepcopy(self.model).cuda().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        return warm_up(model, self.draw(layout))

    def draw(self, layout: str = "channels_last") -> Tensor:
        """Draw a batch of random images on the device."""
        images = torch.randn(self.batch, 3, self.size, self.size, device="cuda")
        return images.contiguous(memory_format=LAYOUTS[layout])

    def draw_labels(self) -> Tensor:
        return torch.randint(10, (self.batch,), device="cuda")


_NETWORKS = (
    Network(build_imagenet_resnet(50), "resnet-50", 224, 128, 20, exact=1.3, recording=1.01, tuned=1.02),
    Network(build_resnet(), "resnet-20", 32, 512, 100, exact=1.5, recording=1.05, tuned=1.15),
)


class HalfPrecision(nn.Module):
    """A network that computes its forward in bfloat16 by autocast, or not."""

    def __init__(self, model: nn.Module, is_half: bool) -> None:
        super().__init__()
        self.model = model
        self.is_half = is_half

    def forward(self, batch: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.is_half):
            return self.model(batch)


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu: there is no accelerator here, so that nothing was measured")
        return 0
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; medians of {ROUNDS} rounds in alternation\n")
    print(HEADING)
    for result in measure():
        print(result.write_row(), flush=True)
    return 0


def measure() -> Iterator[Result]:
    for network in _NETWORKS:
        for layout in LAYOUTS:
            for is_half in (False, True):
                yield from _compare_exact(network, layout, is_half)
        yield from _compare_training(network)
        yield _compare_diagnosis(network)


def _compare_exact(network: Network, layout: str, is_half: bool) -> Iterator[Result]:
    model = HalfPrecision(network.prepare(layout), is_half).eval()
    peer = copy.deepcopy(model).train()
    batches = [network.draw(layout) for _ in range(_BATCHES)]
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "one forward": lambda: evaluate(model, batches),
        "fvcore": lambda: update_bn_stats(peer, batches, len(batches), progress=None),
    }
    precision = "bfloat16" if is_half else "float32"
    timed = alternate(f"{network.name}, {network.size}², {precision}, {layout}", ROUNDS, sides)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cost = population_statistics(model, batches).cost
    assert cost is not None
    gigabytes = (torch.cuda.max_memory_allocated() - before) / 1e9
    note = f"{cost.forwards} forwards of {len(batches)} batches, {gigabytes:.1f} GB"
    if not is_half:
        note = f"{note}, off by {_measure_error(model, batches[:2]):.0e}"
    yield timed.compare("exact", "fvcore", network.exact, note)
    yield timed.compare("exact", "one forward", note=note)


def _measure_error(model: nn.Module, batches: list[Tensor]) -> float:
    """Measure the largest error of exact statistics against float64."""
    in_double = [batch.double() for batch in batches]
    reference = population_statistics(copy.deepcopy(model).double(), in_double)
    measured = population_statistics(model, batches)
    return max(max(compare_moments(moments, measured[name])) for name, moments in reference.items())


def _compare_training(network: Network) -> Iterator[Result]:
    plain = network.prepare().train()
    own = SelfTuned.convert(network.prepare()).train()
    images = network.draw()[:_TRAINED_BATCH]
    labels = network.draw_labels()[:_TRAINED_BATCH]

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(network.steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    def train_recorded() -> None:
        with record(plain):
            train(plain)

    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: train(plain),
        "recorded": train_recorded,
        "self-tuned": lambda: train(own),
    }
    timed = alternate(f"{network.steps} steps of {network.name}, batch {_TRAINED_BATCH}", ROUNDS, sides)
    yield timed.compare("recorded", "plain", network.recording)
    yield timed.compare("self-tuned", "plain", network.tuned)


def _compare_diagnosis(network: Network) -> Result:
    """Compare a diagnosis by labels with one plain forward; the note says how many undos were tried."""
    model = network.prepare()
    batches = [(network.draw(), network.draw_labels()) for _ in range(_BATCHES)]
    sides: dict[str, Callable[[], object]] = {
        "diagnose": lambda: diagnose(model, batches),
        "one forward": lambda: evaluate(model, (images for images, _ in batches)),
    }
    what = f"diagnose {network.name} with labels, {network.batch * _BATCHES:,} images of {network.size}²"
    timed = alternate(what, ROUNDS, sides)
    tried = len(diagnose(model, batches).trials)
    return timed.compare("diagnose", "one forward", note=f"and {tried} undos that were tried")


if __name__ == "__main__":
    sys.exit(main())
