"""What a diagnosis takes: without data in milliseconds, and with data in plain forwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bnlab
from benchmarks.timing import Result, alternate, evaluate
from bnlab.harness.artifacts.models import Resnet, build_model
from bnlab.vision import torchvision

ROUNDS, THREADS = 5, 1
_IMAGES, _BATCH = 2000, 64
_MOST = 6.0  # plain forwards, single layers' costs apart
_SAMPLE = 512  # images of a forward for each layer's cost
_SMALL = 1e-4  # difference of scores that matters: so small that no layer may be taken to be harmless


def results() -> list[Result]:
    return [_time_without_data(), *_time_with_data()]


def _time_without_data() -> Result:
    model = torchvision().models.resnet50().eval()
    median = alternate({"diagnosis": lambda: bnlab.diagnose(model)}, 20)
    return Result("resnet-50 without data", "diagnose", median["diagnosis"], "20 ms", 0.02, 1.0)


def _time_with_data() -> list[Result]:
    """Compare with one plain forward: with a metric of the caller's, with labels, and with single layers' costs too.

    The metric takes a forward, and is called three times: under running, exact and each batch's own statistics.
    """
    model = build_model(Resnet(depth=20), channels=3, image_size=32, classes=10, seed=0)
    images = torch.randn(_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (_IMAGES,), generator=torch.Generator().manual_seed(1))
    batches = list(images.split(_BATCH))
    labelled = list(zip(batches, labels.split(_BATCH), strict=True))
    evaluate(model.train(), batches[:3])
    model.eval()

    def score(network: nn.Module) -> Tensor:
        logits = torch.cat([network(batch) for batch in batches])
        return logits.argmax(1) == labels

    median = alternate(
        {
            "forward": lambda: evaluate(model, batches),
            "metric": lambda: bnlab.diagnose(model, batches, evaluate=score),
            "labels": lambda: bnlab.diagnose(model, labelled),
            "costs": lambda: bnlab.diagnose(model, labelled, worth=_SMALL),
        },
        ROUNDS,
    )
    what = f"resnet-20, 32×32, {_IMAGES:,} images"
    layers = len(bnlab.running_statistics(model))
    most_with_costs = _MOST + (1 + layers) * _SAMPLE / _IMAGES

    def compare(side: str, limit: float, note: str) -> Result:
        return Result(what, f"diagnose, {side}", median[side], "one forward", median["forward"], limit, note)

    return [
        compare("metric", _MOST, "statistics and accuracies"),
        compare("labels", _MOST, "statistics and accuracies"),
        compare("costs", most_with_costs, f"the same and the costs of {layers} layers"),
    ]
