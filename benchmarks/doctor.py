"""What a diagnosis takes: without data in milliseconds, and with data in plain forwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import bnlab
from benchmarks.timing import Result, alternate, evaluate
from bnlab.doctor.trials import MOST_IMAGES
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.vision import torchvision

ROUNDS, THREADS = 5, 1
_IMAGES, _BATCH = 2000, 64
_MOST = 6.0  # plain forwards of a network whose averages fit
_TRIED = 2.0 * MOST_IMAGES / _IMAGES  # plain forwards for each undo


def results() -> list[Result]:
    return [_time_without_data(), *_time_with_data()]


def _time_without_data() -> Result:
    model = torchvision().models.resnet50().eval()
    median = alternate({"diagnosis": lambda: bnlab.diagnose(model)}, 20)
    return Result("resnet-50 without data", "diagnose", median["diagnosis"], "20 ms", 0.02, 1.0)


def _time_with_data() -> list[Result]:
    """Compare with one plain forward: with a metric of the caller's, with labels, and of averages that do not fit.

    The metric takes a forward, and is called three times: under running, exact and each batch's own statistics.
    """
    model = build_model(Resnet(depth=20), channels=3, image_size=32, classes=10, seed=0)
    images = torch.randn(_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (_IMAGES,), generator=torch.Generator().manual_seed(1))
    batches = list(images.split(_BATCH))
    labelled = list(zip(batches, labels.split(_BATCH), strict=True))
    model.eval()
    bnlab.population_statistics(model, batches).write_to(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("num_batches_tracked").fill_(1000)

    def score(network: nn.Module) -> Tensor:
        logits = torch.cat([network(batch) for batch in batches])
        return logits.argmax(1) == labels

    spoiled = copy.deepcopy(model)
    for module in spoiled.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    tried = len(bnlab.diagnose(spoiled, labelled).trials)

    median = alternate(
        {
            "forward": lambda: evaluate(model, batches),
            "metric": lambda: bnlab.diagnose(model, batches, evaluate=score),
            "labels": lambda: bnlab.diagnose(model, labelled),
            "spoiled": lambda: bnlab.diagnose(spoiled, labelled),
        },
        ROUNDS,
    )
    what = f"resnet-20, 32×32, {_IMAGES:,} images"

    def compare(side: str, limit: float, note: str) -> Result:
        return Result(what, f"diagnose, {side}", median[side], "one forward", median["forward"], limit, note)

    return [
        compare("metric", _MOST, "statistics and accuracies"),
        compare("labels", _MOST, "statistics and accuracies"),
        compare("spoiled", _MOST + _TRIED * tried, f"the same, and {tried} undos that were tried"),
    ]
