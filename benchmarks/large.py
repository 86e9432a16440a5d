"""Exact statistics of many random images, as many as fit into memory and 45,000, which do not: time and memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from benchmarks.networks import build_resnet, draw_images, evaluate
from benchmarks.timing import Result, Timed, alternate, time_once
from bnlab import population_statistics

ROUNDS = 3
_BATCH = 500


def measure() -> Iterator[Result]:
    yield _compare(5_000)
    yield _compare(15_000)
    yield from _compare_with_others(45_000, "4GiB")


def _compare(images: int) -> Result:
    model, batches = _build(images)
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "one forward": lambda: evaluate(model, batches),
    }
    timed = alternate(f"resnet-20, 32×32, {images:,} images in batches of {_BATCH}", ROUNDS, sides)

    forwards = _count_forwards(model, batches)
    held = _measure_peak("exact", images) - _measure_peak("forward", images)
    note = f"{forwards:.2f} forwards a batch, {held / images / 1e6:.2f} MB an image held"
    return timed.compare("exact", "one forward", 1.3, note)


def _compare_with_others(images: int, memory: str) -> Iterator[Result]:
    """One round, which takes minutes: at a limit with which not all may wait, layer by layer, and precise BN."""
    model, batches = _build(images)
    forwards: list[float] = []  # of the two sides, in order
    sides: dict[str, Callable[[], object]] = {
        "one forward": lambda: evaluate(model, batches),
        "exact": lambda: forwards.append(_count_forwards(model, batches, memory=memory)),
        "layer by layer": lambda: forwards.append(_count_forwards(model, batches, strategy="layerwise")),
        "fvcore": lambda: update_bn_stats(model.train(), batches, len(batches), progress=None),
    }
    seconds = {name: time_once(run) for name, run in sides.items()}

    timed = Timed(f"resnet-20, 32×32, {images:,} images, {memory}", seconds)
    exact, layerwise = forwards
    note = f"one round; {exact:.1f} forwards a batch"
    yield timed.compare("exact", "one forward", note=note)
    yield timed.compare("exact", "fvcore", note=note)
    yield timed.compare("exact", "layer by layer", note=f"one round; there {layerwise:.1f} forwards a batch")


def _count_forwards(model: nn.Module, batches: list[Tensor], **how: str) -> float:
    """Measure exact statistics; return how many forwards of each batch they took."""
    cost = population_statistics(model, batches, **how).cost  # type: ignore[arg-type]
    assert cost is not None
    return cost.forwards / cost.batches


def _build(images: int) -> tuple[nn.Module, list[Tensor]]:
    return build_resnet(), list(draw_images(images, 32).split(_BATCH))


def _measure_peak(side: str, images: int) -> int:
    """Measure the most memory in bytes that a process of its own has had, with what it imports."""
    command = [sys.executable, "-m", "benchmarks.large", side, str(images)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _main(side: str, images: int) -> None:
    model, batches = _build(images)
    if side == "exact":
        population_statistics(model, batches)
    else:
        evaluate(model, batches)
    status = Path("/proc/self/status").read_text()  # not getrusage, which counts what the parent had
    print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024)  # type: ignore[index]


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
