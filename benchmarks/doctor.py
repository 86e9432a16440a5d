"""What a diagnosis takes: without data in milliseconds, and with data in plain forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import bnlab
from benchmarks.networks import build_imagenet_resnet, build_resnet, draw_images, evaluate
from benchmarks.timing import Result, alternate

ROUNDS = 5
_IMAGES = 2000
_BATCH = 64
_MOST = 6.0  # plain forwards of a network whose averages fit
_MOST_SPOILED = 4.0  # of one that was never updated


def measure_doctor(device: str) -> Iterator[Result]:
    """Compare with one plain forward: with a metric of the caller's, with labels, and of averages that do not fit.

    The metric takes a forward, and is called three times: under running, exact and each batch's own statistics.
    """
    large = build_imagenet_resnet(50).to(device)
    timed = alternate("resnet-50 without data", 20, {"diagnose": lambda: bnlab.diagnose(large)})
    yield timed.compare("diagnose", 0.02, 1.0)

    model = build_resnet().to(device)
    batches = list(draw_images(_IMAGES, 32, torch.contiguous_format).to(device).split(_BATCH))
    labels = torch.randint(10, (_IMAGES,), generator=torch.Generator().manual_seed(1)).to(device)
    labelled = list(zip(batches, labels.split(_BATCH), strict=True))
    bnlab.population_statistics(model, batches).write_to(model)
    spoiled = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # A count as after a training, by which nothing is left of 0 and 1, where averages start.
            layer.get_buffer("num_batches_tracked").fill_(1000)
    for layer in spoiled.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()

    def score(network: nn.Module) -> Tensor:
        logits = torch.cat([network(batch) for batch in batches])
        return logits.argmax(1) == labels

    sides: dict[str, Callable[[], object]] = {
        "one forward": lambda: evaluate(model, batches),
        "diagnose, metric": lambda: bnlab.diagnose(model, batches, evaluate=score),
        "diagnose, labels": lambda: bnlab.diagnose(model, labelled),
        "diagnose, spoiled": lambda: bnlab.diagnose(spoiled, labelled),
    }
    timed = alternate(f"resnet-20, 32×32, {_IMAGES:,} images", ROUNDS, sides)

    yield timed.compare("diagnose, metric", "one forward", _MOST)
    yield timed.compare("diagnose, labels", "one forward", _MOST)
    yield timed.compare("diagnose, spoiled", "one forward", _MOST_SPOILED)
