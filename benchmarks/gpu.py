"""Statistics, training, a diagnosis and a sweep on an accelerator: python -m benchmarks.gpu

One call of a few minutes; prints a table for benchmarks/README.md. Without an accelerator it says so.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import training
from benchmarks.timing import HEADING, Result, time_once
from bnlab import diagnose, population_statistics, record
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.moments import compare_moments
from bnlab.nn import SelfTuned
from bnlab.vision import torchvision

_ROUNDS = 5
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Network:
    """A network with the images that it is measured on.

    Attributes:
        name: for the table.
        size, batch, batches: of the images.
        exact, recording, tuned: what the ratios should be at most.
    """

    name: str
    size: int
    batch: int
    batches: int
    exact: float
    recording: float
    tuned: float

    def build(self, layout: torch.memory_format) -> nn.Module:
        """The network on the device, with running statistics that are not 0 and 1."""
        if self.name == "resnet-50":
            model = torchvision().models.resnet50()
        else:
            model = build_model(Resnet(), channels=3, image_size=self.size, classes=10, seed=0)
        model = model.cuda().to(memory_format=layout)
        with torch.no_grad():
            for _ in range(3):
                model.train()(self.draw(layout))
        return model.eval()

    def draw(self, layout: torch.memory_format) -> Tensor:
        """A batch of random images on the device."""
        images = torch.randn(self.batch, 3, self.size, self.size, device="cuda")
        return images.contiguous(memory_format=layout)


MEASURED = (
    Network("resnet-50", 224, 128, 16, exact=1.3, recording=1.01, tuned=1.02),
    Network("resnet-20", 32, 512, 16, exact=1.5, recording=1.05, tuned=1.15),
)
TRAINED_BATCH = 128
_PROCESSES = (1, 4, 8)
_SWEPT = 8  # networks


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu: there is no accelerator here, so that nothing was measured")
        return 0
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; medians of {_ROUNDS} rounds in alternation\n")
    print(HEADING)
    for result in _list_results():
        print(result.write_row(), flush=True)
    return 0


def _list_results() -> Iterator[Result]:
    for network in MEASURED:
        for kind, layout in _LAYOUTS.items():
            for is_half in (False, True):
                yield from _compare_exact(network, kind, layout, is_half)
        yield from _compare_training(network)
        yield _compare_diagnosis(network)
    yield from training.compare(steps=500)
    yield from _compare_processes()


def _compare_exact(network: Network, kind: str, layout: torch.memory_format, is_half: bool) -> Iterator[Result]:
    model = network.build(layout)
    batches = [network.draw(layout) for _ in range(network.batches)]
    peer = copy.deepcopy(model)

    def forward(of: nn.Module, batch: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=is_half):
            return of(batch)

    def evaluate() -> None:
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)

    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches, forward=forward),
        "forward": evaluate,
    }
    if find_spec("fvcore"):
        from fvcore.nn.precise_bn import update_bn_stats

        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = peer

            def forward(self, batch: Tensor) -> Any:
                return forward(self.model, batch)

        wrapped = Wrapped().train()
        sides["fvcore"] = lambda: update_bn_stats(wrapped, batches, len(batches), progress=None)
    median = _alternate(sides)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cost = population_statistics(model, batches, forward=forward).cost
    assert cost is not None
    note = f"{cost.forwards} forwards of {len(batches)} batches, {_read_peak(before):.1f} GB"
    if not is_half:
        error = _measure_error(model, batches[:2])
        note = f"{note}, off by {error:.0e}"

    precision = "bfloat16" if is_half else "float32"
    what = f"{network.name}, {network.size}², {precision}, {kind}"
    if "fvcore" in median:
        yield Result(what, "exact", median["exact"], "fvcore", median["fvcore"], network.exact, note)
    yield Result(what, "exact", median["exact"], "one forward", median["forward"], None, note)


def _read_peak(before: int) -> float:
    """Read how many gigabytes more than before were allocated at most."""
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def _measure_error(model: nn.Module, batches: list[Tensor]) -> float:
    """Measure the largest error of exact statistics against float64."""
    in_double = [batch.double() for batch in batches]
    reference = population_statistics(copy.deepcopy(model).double(), in_double)
    measured = population_statistics(model, batches)

    largest = 0.0
    for name in reference:
        errors = compare_moments(reference[name], measured[name])
        largest = max(largest, *errors)
    return largest


def _compare_training(network: Network) -> Iterator[Result]:
    layout = torch.channels_last
    plain = network.build(layout).train()
    own = SelfTuned.convert(network.build(layout)).train()
    images = network.draw(layout)[:TRAINED_BATCH]
    labels = torch.randint(10, (len(images),), device="cuda")
    steps = 100 if network.size < 100 else 20

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(steps):
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
        "tuned": lambda: train(own),
    }
    median = _alternate(sides)
    what = f"{steps} steps of {network.name}, batch {TRAINED_BATCH}"
    yield Result(what, "recorded", median["recorded"], "plain", median["plain"], network.recording)
    yield Result(what, "self-tuned", median["tuned"], "plain", median["plain"], network.tuned)


def _compare_diagnosis(network: Network) -> Result:
    """Compare a diagnosis by labels with one plain forward; the note says how many undos were tried."""
    layout = torch.channels_last
    model = network.build(layout)
    batches = []
    for _ in range(network.batches):
        labels = torch.randint(10, (network.batch,), device="cuda")
        batches.append((network.draw(layout), labels))

    @torch.no_grad()
    def evaluate() -> None:
        for images, _ in batches:
            model(images)

    median = _alternate({"diagnosis": lambda: diagnose(model, batches), "forward": evaluate})
    images = network.batch * network.batches
    what = f"diagnose {network.name} with labels, {images:,} images of {network.size}²"
    tried = len(diagnose(model, batches).trials)
    note = f"and {tried} undos that were tried"
    return Result(what, "diagnose", median["diagnosis"], "one forward", median["forward"], note=note)


def _compare_processes() -> Iterator[Result]:
    """Compare a sweep of eight ResNet-20, trained and measured one after the other, with several at once."""
    seconds = {count: time_once(partial(_sweep, count)) for count in _PROCESSES}
    for count in _PROCESSES[1:]:
        what = f"a sweep of {_SWEPT} resnet-20, 300 steps of 128"
        yield Result(what, f"{count} at once", seconds[count], "one by one", seconds[1], note="one round")


def _sweep(processes: int) -> None:
    """Run a sweep in so many processes, in a folder of its own."""
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes}"] if processes > 1 else []
    words = ["data=benchmarks.training.make_images", "data.shift=4", "data.flip=true", "model=resnet"]
    length = ["batch_size=128", "steps=300", f"seed=range({_SWEPT})", "threads=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bnlab", "sweep", "-m", *words, *length, *launcher, f"results={folder}"]
        subprocess.run(command, check=True, capture_output=True)


def _alternate(sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each side, with the device's work done; a round that does not count comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(_ROUNDS + 1):
        for name, run in sides.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            taken = time.perf_counter() - started
            if number > 0:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
