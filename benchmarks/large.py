"""Exact statistics of as many images as fit, against a plain forward pass: time, and the memory that waiting takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.timing import Result, alternate, evaluate
from bnlab import population_statistics
from bnlab.harness.artifacts.models import Resnet, build_model

ROUNDS = 3
_BATCH = 500


def results() -> list[Result]:
    return [_compare(images) for images in (5_000, 15_000)]


def _compare(images: int) -> Result:
    model = build_model(Resnet(), channels=3, image_size=32, classes=10, seed=0).eval()
    model = model.to(memory_format=torch.channels_last)
    data = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = list(data.contiguous(memory_format=torch.channels_last).split(_BATCH))
    sides = {"exact": lambda: population_statistics(model, batches), "forward": lambda: evaluate(model, batches)}
    median = alternate(sides, ROUNDS)
    cost = population_statistics(model, batches).cost
    assert cost is not None
    held = (_measure_peak("exact", images) - _measure_peak("forward", images)) / images / 1e6
    note = f"{cost.forwards / cost.batches:.2f} forwards a batch, {held:.2f} MB an image held"
    what = f"resnet-20, 32×32, {images:,} images in batches of {_BATCH}"
    return Result(what, "exact", median["exact"], "one forward", median["forward"], 1.3, note)


def _measure_peak(side: str, images: int) -> int:
    """The most memory in bytes that a process of its own has had, with what it is imported with."""
    command = [sys.executable, "-m", "benchmarks.large", side, str(images)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _main(side: str, images: int) -> None:
    model = build_model(Resnet(), channels=3, image_size=32, classes=10, seed=0).eval()
    data = torch.randn(images, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batches = list(data.split(_BATCH))
    _ = population_statistics(model, batches) if side == "exact" else evaluate(model, batches)
    status = Path("/proc/self/status").read_text()  # not getrusage, which counts what the parent had
    print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024)  # type: ignore[index]


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
