"""How near statistics of the latest training images are to exact ones: python -m benchmarks.watch_accuracy FOLDER.

A ResNet-20 of half the usual width is trained on CIFAR-10, with crops and flips, and watched. At each of ten
validations its accuracy on 5,000 test images is measured under the statistics of the images that `bnlab.watch` has
kept, and under exact statistics of 5,000 augmented training images. Their difference is printed in points, a row a
seed: its mean and root mean square over the validations. FOLDER has image files in train/<class>/ and test/<class>/.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.networks import build_resnet
from bnlab import Watch, population_statistics, using, watch
from bnlab.harness.artifacts.data.cifar10 import Cifar10
from bnlab.harness.artifacts.dataset import Dataset, augment, load_dataset
from bnlab.harness.updates import lr_factor

_BATCH = 128
_SHIFT = 4  # pixels
_VALIDATIONS = 10
_EXACT_IMAGES = 5000
_TEST_IMAGES = 5000
_RATE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=512, help="how many are kept")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage; usual are 16")
    parser.add_argument("--updates", type=int, default=500, help="of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--schedule", default="constant", help="of the learning rate, which begins with 0.1")
    arguments = parser.parse_args()

    dataset = load_dataset(Cifar10(root=arguments.folder, copies=True))
    everything = []
    for seed in range(arguments.seeds):
        model = build_resnet(width=arguments.width, seed=seed)
        differences = measure_differences(dataset, model, seed, arguments.images, arguments.updates, arguments.schedule)
        print(f"seed {seed}: {describe(differences)}", flush=True)
        everything += differences
    print(f"all: {describe(everything)}")


def describe(differences: list[float]) -> str:
    """Describe differences of accuracy in points."""
    mean = statistics.fmean(differences)
    square = statistics.fmean(difference**2 for difference in differences)
    return f"mean {mean:+.2f} points, root mean square {math.sqrt(square):.2f}, n = {len(differences)}"


def measure_differences(
    dataset: Dataset, model: nn.Module, seed: int, images: int, updates: int, schedule: str
) -> list[float]:
    """Train a network; at each validation, accuracy under the kept images' statistics minus that under exact ones."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), _RATE, 0.9, weight_decay=5e-4, nesterov=True)
    watching = watch(model, images)

    differences = []
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = _RATE * lr_factor(schedule, update, updates)
        drawn = torch.randint(len(dataset.train.labels), (_BATCH,), generator=generator)
        batch = augment(dataset.train.images[drawn], generator, shift=_SHIFT, flip=True)
        # A validation leaves the model in eval mode.
        loss = F.cross_entropy(model.train()(batch), dataset.train.labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (update + 1) % (updates // _VALIDATIONS) == 0:
            differences.append(100 * compare(dataset, model, watching, generator))
    return differences


def compare(dataset: Dataset, model: nn.Module, watching: Watch, generator: torch.Generator) -> float:
    """Compute how much more accurate a network is under the kept images' statistics than under exact ones."""
    drawn = torch.randint(len(dataset.train.labels), (_EXACT_IMAGES,), generator=generator)
    augmented = augment(dataset.train.images[drawn], generator, shift=_SHIFT, flip=True)
    with watching.exact():
        kept = measure_accuracy(dataset, model)
    with using(model, population_statistics(model, augmented.split(_BATCH))):
        return kept - measure_accuracy(dataset, model)


@torch.no_grad()
def measure_accuracy(dataset: Dataset, model: nn.Module) -> float:
    """Measure the share of test images that are recognized."""
    model.eval()
    hits = 0
    for first in range(0, _TEST_IMAGES, 500):
        images = dataset.test.images[first : first + 500]
        labels = dataset.test.labels[first : first + 500]
        hits += int((model(images).argmax(1) == labels).sum())
    return hits / _TEST_IMAGES


if __name__ == "__main__":
    main()
