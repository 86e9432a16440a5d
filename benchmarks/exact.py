"""Exact population statistics against one-pass tools and one plain forward, on a CPU or an accelerator."""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from benchmarks.networks import (
    LAYOUTS,
    build_imagenet_resnet,
    build_narrow_resnet,
    build_resnet,
    draw_images,
    evaluate,
    warm_up,
)
from benchmarks.timing import Result, Timed, alternate, time_once
from bnlab import Statistics, population_statistics, running_statistics
from bnlab.gaps.gap import gap
from bnlab.harness.artifacts.run import describe_environment
from bnlab.memory import LiveBytes, read_free_bytes
from bnlab.statistics.moments import compare_moments
from bnlab.statistics.provenance import Cost

ROUNDS = 5  # of scaling each has a network of its own
_MOST_IN_DOUBLE = 10_000  # images; more take too long in float64

# Scaling: the cases are depth, images, strategy and share of the memory that breadth first takes by itself.
_SCALING_TABLES = Path(__file__).parents[1] / "results/reference/passes/tables"
_SCALING_BATCH = 32
_ORDERS = ("breadth", "layerwise")
_DEPTHS = [(depth, 256, order, 1.0) for depth in (8, 14, 20, 32, 56) for order in _ORDERS]
_IMAGES = [(20, images, order, 1.0) for images in (512, 1024) for order in _ORDERS]
_MEMORY = [(20, 1024, "breadth", 1 / share) for share in (2, 4, 8, 12)]


@dataclass(frozen=True)
class Workload:
    """A network and the images that it is measured on.

    Attributes:
        name: for the table.
        build: makes the network, with weights as they are drawn.
        size, images, batch: height and width of an image, how many there are, and how many in a batch.
        limit: what the ratio of exact statistics to fvcore's should be at most.
        layout: in memory.
        is_half: whether the forward computes in bfloat16 by autocast.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    images: int = 1000
    batch: int = 64
    limit: float | None = None
    layout: str = "channels_last"
    is_half: bool = False

    @property
    def words(self) -> str:
        precision = ", bfloat16" if self.is_half else ""
        return f"{self.name}, {self.size}×{self.size}, {self.layout}{precision}, {self.images:,} images"

    def prepare(self, device: str) -> tuple[nn.Module, list[Tensor]]:
        """Build the network, with running statistics that are not 0 and 1, and draw its batches."""
        images = draw_images(self.images, self.size, LAYOUTS[self.layout]).to(device)
        model = self.build().to(device).to(memory_format=LAYOUTS[self.layout])  # type: ignore[call-overload]
        model = warm_up(model, images[: self.batch])
        if self.is_half:
            model = HalfPrecision(model, device).eval()
        return model, list(images.split(self.batch))


class HalfPrecision(nn.Module):
    """A network that computes its forward in bfloat16."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.model = model
        self.device = device

    def forward(self, batch: Tensor) -> Any:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model(batch)


class Siamese(nn.Module):
    """One network for an image and its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(x), self.network(x.flip(-1) / 2)


def measure_population(device: str) -> Iterator[Result]:
    """Compare with one-pass tools, where all batches may wait."""
    for case in _list_cases(device):
        yield from _compare(case, device)


def _list_cases(device: str) -> Iterator[Workload]:
    if device != "cpu":
        for layout in LAYOUTS:
            for is_half in (False, True):
                large = partial(build_imagenet_resnet, 50)
                yield Workload("resnet-50", large, 224, 2048, 128, 1.3, layout, is_half)
                yield Workload("resnet-20", build_resnet, 32, 8192, 512, 1.5, layout, is_half)
        return

    for depth in (20, 56, 110):
        yield Workload(f"resnet-{depth}", partial(build_resnet, depth), 32, limit=1.15)
        yield Workload(f"resnet-{depth}", partial(build_resnet, depth), 32, limit=0.85, layout="contiguous")
    for depth in (20, 56):
        build = partial(build_resnet, depth)
        yield Workload(f"resnet-{depth}, batches of 128", build, 32, batch=128, limit=0.85, layout="contiguous")
    for layout in LAYOUTS:
        yield Workload("resnet-18", partial(build_imagenet_resnet, 18), 64, limit=1.05, layout=layout)


def measure_visits(device: str) -> Iterator[Result]:
    """Measure the processor's time for one batch at one layer, beyond a plain forward: on tiny images.

    Of many batches less few, so that what a call takes whatever the batches are does not count.
    """
    case = Workload("resnet-50 of a quarter's width", build_narrow_resnet, 32, 96, 2)
    model, batches = case.prepare(device)
    few = batches[:16]
    sides: dict[str, Callable[[], object]] = {
        "exact, few": lambda: population_statistics(model, few),
        "exact, many": lambda: population_statistics(model, batches),
        "forward, few": lambda: evaluate(model, few),
        "forward, many": lambda: evaluate(model, batches),
    }
    seconds = alternate(case.words, ROUNDS, sides, time.process_time).seconds

    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    visits = layers * (len(batches) - len(few))
    exact = (seconds["exact, many"] - seconds["exact, few"]) / visits
    forward = (seconds["forward, many"] - seconds["forward, few"]) / visits
    note = f"the processor's time, beyond {1e6 * forward:.0f} µs of the forward"
    yield Result(case.words, "a batch at a layer", exact - forward, "60 µs", 60e-6, 1.0, note)


def measure_shared(device: str) -> Iterator[Result]:
    """Compare where layers are called twice in a forward."""
    yield from _compare(Workload("Siamese resnet-18", lambda: Siamese(build_imagenet_resnet(18)), 32, 256, 32), device)


def measure_large(device: str) -> Iterator[Result]:
    """Compare where memory is short: 45,000 images, one round; not all batches may wait."""
    yield from _compare(Workload("resnet-20", build_resnet, 32, 15_000, 500), device)

    case = Workload("resnet-20", build_resnet, 32, 45_000, 500)
    model, batches = case.prepare(device)
    costs: list[Cost | None] = []
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: costs.append(population_statistics(model, batches).cost),
        "layer by layer": lambda: costs.append(population_statistics(model, batches, strategy="layerwise").cost),
        "one forward": lambda: evaluate(model, batches),
    }
    timed = Timed(f"{case.words}, 4 GiB", {name: time_once(run) for name, run in sides.items()})
    notes = [_describe_cost(cost) for cost in costs]
    yield timed.compare("exact", "one forward", note=f"one round; {notes[0]}")
    yield timed.compare("layer by layer", "one forward", note=f"one round; {notes[1]}")


def _compare(case: Workload, device: str) -> Iterator[Result]:
    model, batches = case.prepare(device)
    # fvcore updates only layers that are in train mode.
    of_fvcore = copy.deepcopy(model).train()
    of_torch = copy.deepcopy(model).train()
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "fvcore": lambda: update_bn_stats(of_fvcore, batches, len(batches), progress=None),
        "update_bn": lambda: torch.optim.swa_utils.update_bn(batches, of_torch),
        "one forward": lambda: evaluate(model, batches),
    }
    turned = "fvcore, images turned to channels_last"
    if device == "cpu" and case.layout == "contiguous":  # as exact statistics turn them
        sides[turned] = partial(_update_in_channels_last, copy.deepcopy(of_fvcore), batches)
    # On a CPU other programs do not change the processor's time. The work of an accelerator is no part of it,
    # and needs the wall clock.
    clock = time.process_time if device == "cpu" else time.perf_counter
    timed = alternate(case.words, ROUNDS, sides, clock)

    measured = population_statistics(model, batches)
    notes = {"exact": "", "fvcore": "", "update_bn": ""}
    if not case.is_half and case.images <= _MOST_IN_DOUBLE:
        # Tests hold float64 to a forward pass of all images.
        reference = population_statistics(copy.deepcopy(model).double(), [batch.double() for batch in batches])
        notes["exact"] = f", error {_describe_error(reference, measured)}"
        notes["fvcore"] = f"fvcore's error {_describe_error(reference, running_statistics(of_fvcore))}"
        notes["update_bn"] = f"torch's error {_describe_error(reference, running_statistics(of_torch))}"
    yield timed.compare("exact", "one forward", note=_describe_cost(measured.cost) + notes["exact"])
    yield timed.compare("exact", "fvcore", case.limit, notes["fvcore"])
    if turned in sides:
        yield timed.compare("exact", turned)
    yield timed.compare("exact", "update_bn", note=notes["update_bn"])


def _update_in_channels_last(model: nn.Module, batches: list[Tensor]) -> None:
    """Run fvcore on images that are laid out as the CPU is fastest, which takes its time too."""
    # A generator: images are turned one batch at a time, within what is timed.
    turned = (batch.contiguous(memory_format=torch.channels_last) for batch in batches)
    update_bn_stats(model, turned, len(batches), progress=None)


def _describe_cost(cost: Cost | None) -> str:
    assert cost is not None
    megabytes = cost.peak_bytes / 1e6
    return f"{cost.forwards / cost.batches:.2f} forwards a batch, {cost.passes} passes, {megabytes:,.0f} MB"


def _describe_error(reference: Statistics, measured: Statistics) -> str:
    """Describe the largest error over layers and channels: of the mean in σ, of the variance relative."""
    errors = [compare_moments(moments, measured[name]) for name, moments in reference.items()]
    of_mean, of_variance = (max(column) for column in zip(*errors, strict=True))
    return f"{of_mean:.0e} σ, {of_variance:.0e} var"


def measure_scaling(device: str) -> Iterator[Result]:
    """Compare by depth, images and memory limit, and write the tables of the experiment `passes`."""
    _measure_case(*_DEPTHS[0], seed=0)  # the first call of a process takes longer
    rows = []
    for seed in range(ROUNDS):
        for case in (*_DEPTHS, *_IMAGES, *_MEMORY):
            rows.append(_measure_case(*case, seed))
    frame = pd.DataFrame(rows)
    _write_scaling_tables(frame)

    cases = frame.groupby(["depth", "images", "memory", "strategy"], sort=False)
    for row in cases.median(numeric_only=True).reset_index().to_dict("records"):
        side = row["strategy"]
        what = f"resnet-{row['depth']}, {row['images']:,} images, {row['memory']:.2g} of the memory"
        timed = Timed(what, {side: row["seconds"], "one forward": row["forward_seconds"]})
        yield timed.compare(side, "one forward", note=f"{row['layers']:.0f} layers, {row['passes']:.3g} passes")


def _measure_case(depth: int, images: int, order: str, memory: float, seed: int) -> dict[str, Any]:
    """Time, passes and memory of exact statistics, and those of one forward, of a network with these random weights."""
    model, batches = _build_case(depth, images, seed)
    # Counting bytes takes longer than measuring, so only the depth is counted whose memory is varied.
    whole = _count_bytes(images, order) if depth == 20 else math.nan
    # Forwards that wait may take half of what is free.
    free = int(2 * whole * memory) if memory < 1 else read_free_bytes(torch.device("cpu"))
    measured: list[Any] = []
    evaluate(model, batches)
    with patch("bnlab.memory.read_free_bytes", lambda device: free):
        seconds = time_once(lambda: measured.append(population_statistics(model, batches, strategy=order)))
    forward_seconds = time_once(lambda: evaluate(model, batches))

    (exact,) = measured
    # Both orders have to give the same statistics; the table says how far they are apart.
    other = population_statistics(model, batches) if order == "layerwise" else exact
    return {
        "run": f"resnet-{depth}-{seed}",
        "depth": depth,
        "seed": seed,
        "strategy": order,
        "images": images,
        "memory": memory,
        "layers": depth - 1,
        "seconds": seconds,
        "forward_seconds": forward_seconds,
        "passes": exact.cost.forwards / exact.cost.batches,
        "peak_bytes": exact.cost.peak_bytes if memory < 1 else whole,
        "difference": gap(exact, other)["mean_gap"].max(),
    }


def _build_case(depth: int, images: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    return build_resnet(depth, seed=seed), list(draw_images(images, 32, seed=seed).split(_SCALING_BATCH))


@cache
def _count_bytes(images: int, order: str) -> int:
    """Count the most bytes alive at once in exact statistics of a ResNet-20, whatever its weights."""
    model, batches = _build_case(20, images, seed=0)
    with LiveBytes() as live:
        population_statistics(model, batches, strategy=order)
    return live.peak


def _write_scaling_tables(frame: pd.DataFrame) -> None:
    """Write the tables of the experiment `passes` among the reference results; reports draw its figures from them."""
    versions = describe_environment(torch.device("cpu"))["versions"]
    runs = frame[["run", "seed", "depth"]].drop_duplicates()
    runs = runs.rename(columns={"depth": "model.depth"})
    runs = runs.assign(
        data="random numbers",
        model="resnet",
        batch_size=_SCALING_BATCH,
        versions=json.dumps(versions),
        device=platform.machine(),
        threads=torch.get_num_threads(),
    )
    tables = {"runs": runs, "passes": frame.drop(columns=["seed", "depth"])}
    for name, table in tables.items():
        table.to_parquet(_SCALING_TABLES / f"{name}.parquet", index=False, compression="zstd")
