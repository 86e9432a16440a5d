"""Exact statistics of many random images, as many as fit into memory and 45,000, which do not: time and memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from benchmarks.timing import Result, alternate, evaluate, time_once
from bnlab import population_statistics
from bnlab.harness.artifacts.models import Resnet, build_model

ROUNDS = 3
_BATCH = 500


def results() -> list[Result]:
    return [_compare(5_000), _compare(15_000), *_compare_with_others(45_000, "4GiB")]


def _compare(images: int) -> Result:
    model, batches = _build(images)
    sides: dict[str, Callable[[], object]] = {
        "exact": lambda: population_statistics(model, batches),
        "forward": lambda: evaluate(model, batches),
    }
    median = alternate(sides, ROUNDS)

    cost = population_statistics(model, batches).cost
    assert cost is not None
    forwards = cost.forwards / cost.batches
    held = _measure_peak("exact", images) - _measure_peak("forward", images)
    megabytes = held / images / 1e6
    note = f"{forwards:.2f} forwards a batch, {megabytes:.2f} MB an image held"
    what = f"resnet-20, 32×32, {images:,} images in batches of {_BATCH}"
    return Result(what, "exact", median["exact"], "one forward", median["forward"], 1.3, note)


def _compare_with_others(images: int, memory: str) -> list[Result]:
    """One round, which takes minutes: at a limit with which not all may wait, layer by layer, and precise BN."""
    model, batches = _build(images)
    notes: dict[str, str] = {}

    def measure(side: str, **how: str) -> None:
        cost = population_statistics(model, batches, **how).cost  # type: ignore[arg-type]
        assert cost is not None
        forwards = cost.forwards / cost.batches
        notes[side] = f"one round; {forwards:.1f} forwards a batch"

    sides: dict[str, Callable[[], object]] = {
        "forward": lambda: evaluate(model, batches),
        "exact": lambda: measure("exact", memory=memory),
        "layer by layer": lambda: measure("layer by layer", strategy="layerwise"),
        "fvcore": lambda: update_bn_stats(model.train(), batches, len(batches), progress=None),
    }
    seconds = {name: time_once(run) for name, run in sides.items()}

    what = f"resnet-20, 32×32, {images:,} images, {memory}"
    rows = []
    for name in ("forward", "fvcore", "layer by layer"):
        note = notes.get(name, notes["exact"])
        rows.append(Result(what, "exact", seconds["exact"], name, seconds[name], None, note))
    return rows


def _build(images: int) -> tuple[nn.Module, list[Tensor]]:
    model = build_model(Resnet(), channels=3, image_size=32, classes=10, seed=0).eval()
    data = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, list(data.contiguous(memory_format=torch.channels_last).split(_BATCH))


def _measure_peak(side: str, images: int) -> int:
    """The most memory in bytes that a process of its own has had, with what it is imported with."""
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
