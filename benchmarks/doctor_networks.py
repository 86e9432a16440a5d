"""Networks that `doctor_rates` asks the doctor about: how they are trained, and what their running averages cost."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gallery import Healthy, Specimen
from benchmarks.gallery.planters import set_momentum
from bnlab import MomentTrace, Statistics, population_statistics, record, replay, using
from bnlab.commands.demo.network import build_network, choose_images, train
from bnlab.commands.demo.patterns import draw_patterns
from bnlab.commands.demo.specimen import Batches, list_norms, measure_accuracy, split
from bnlab.common.scores import Difference, compare_scores
from bnlab.common.vision import torchvision
from bnlab.estimators import DebiasedEMA
from bnlab.harness.artifacts.data.images.rendering import glyphs
from bnlab.harness.artifacts.models import Cnn, Resnet
from bnlab.harness.artifacts.network import build_model
from bnlab.model.borrow import keep_random_state

_CLASSES = 10
_TRAINING_IMAGES = 4096
_SEEN_IMAGES = 1024  # by the doctor
_OTHER_IMAGES = 3072
_AWAY_FROM_CHANCE = 2  # times the share of the commonest class
_RATE = 0.05
# Of networks that a fault is put into.
_USUAL_MOMENTUM = 0.1
_MANY_UPDATES = 1000

_STEPS = {8: 400, 16: 300, 32: 250, 64: 200, 128: 120, 256: 80}  # by batch size
_MOMENTA = (0.01, 0.03, 0.1, 0.3)
_SMALL = {"cnn": Cnn(depth=3, width=16), "resnet": Resnet(depth=8, width=8)}
_TORCHVISION = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5")
_ARCHITECTURES = ("patterns", "cnn", "patterns", "resnet", *(f"torchvision {name}" for name in _TORCHVISION))


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training, which its seed chooses.

    Attributes:
        seed: of the settings, of the weights, and of the order of images.
        architecture: one of `_ARCHITECTURES`.
        momentum: of batch norm.
        batch_size: images in a batch.
        is_constant: whether the learning rate stays; else it rises and falls (one-cycle).
    """

    seed: int
    architecture: str
    momentum: float
    batch_size: int
    is_constant: bool

    @staticmethod
    def choose(seed: int) -> TrainingSettings:
        """Choose settings: architectures in turn, the rest by chance."""
        chance = random.Random(seed)
        return TrainingSettings(
            seed,
            _ARCHITECTURES[seed % len(_ARCHITECTURES)],
            chance.choice(_MOMENTA),
            chance.choice(list(_STEPS)),
            chance.random() < 0.5,
        )

    @property
    def steps(self) -> int:
        """Number of updates."""
        return _STEPS[self.batch_size]


@dataclass(frozen=True)
class Trained:
    """A trained network and what its training leaves.

    Attributes:
        training: its settings.
        model: in eval mode.
        before: its state after four fifths of the steps.
        trace: what was recorded of all of them.
        images: that it was trained on, [N, C, H, W].
        labels: of these, [N].
        batches: images that the doctor sees, in batches as large as those of training.
        other_batches: images that it does not see.
    """

    training: TrainingSettings
    model: nn.Module
    before: Mapping[str, Tensor]
    trace: MomentTrace
    images: Tensor
    labels: Tensor
    batches: Batches
    other_batches: Batches

    @property
    def training_batches(self) -> list[Tensor]:
        """As many of the images that it was trained on as the doctor sees others, in batches as large."""
        return list(self.images[:_SEEN_IMAGES].split(self.training.batch_size))

    @property
    def is_near_chance(self) -> bool:
        """Whether it names other images hardly better than by always naming the commonest class."""
        labels = torch.cat([labels for _, labels in self.other_batches])
        commonest = float(labels.bincount().max()) / len(labels)
        return make_healthy(self, self.other_batches).accuracy < _AWAY_FROM_CHANCE * commonest


def train_network(training: TrainingSettings) -> Trained:
    """Train a network; up to half a minute on one core."""
    images, labels, test_images, test_labels = _load_images(training.architecture)
    model = _build(training, images)
    set_momentum(model, training.momentum)

    before: dict[str, Tensor] = {}

    def keep_state(step: int) -> None:
        if step == training.steps * 4 // 5:
            # A state dict refers to the model's tensors, which training goes on to change.
            before.update(copy.deepcopy(model.state_dict()))

    with record(model) as trace:
        train(
            model,
            images,
            labels,
            steps=training.steps,
            rate=_RATE,
            batch_size=training.batch_size,
            is_constant=training.is_constant,
            seed=training.seed,
            after_step=keep_state,
        )
    seen = split(test_images[:_SEEN_IMAGES], test_labels[:_SEEN_IMAGES], training.batch_size)
    others = split(test_images[_SEEN_IMAGES:], test_labels[_SEEN_IMAGES:], training.batch_size)
    return Trained(training, model, before, trace, images, labels, seen, others)


def make_healthy(trained: Trained, batches: Batches) -> Healthy:
    """Give a copy of a network exact statistics of its training images, and one of two sets of images to test it."""
    model = copy.deepcopy(trained.model)
    training_batches = [images for images, _ in split(trained.images, trained.labels, trained.training.batch_size)]
    population_statistics(model, training_batches, progress=False).write_to(model)
    # Whatever the training had, so that the fault that is planted next is the only one.
    set_momentum(model, _USUAL_MOMENTUM)
    for norm in list_norms(model):
        norm.get_buffer("num_batches_tracked").fill_(_MANY_UPDATES)
    return Healthy(model, trained.images, trained.labels, batches, measure_accuracy(model, batches))


def measure_lost(healthy: Healthy, specimen: Specimen) -> Difference:
    """Measure what a fault costs: accuracy without it less that with it, of the same images."""
    without = _name_rightly(healthy.model, healthy.batches)
    return compare_scores(without, _name_rightly(specimen.model, specimen.batches), are_shares=True)


def _build(training: TrainingSettings, images: Tensor) -> nn.Module:
    """Build a network, its initial weights drawn from the training's seed."""
    kind, _, name = training.architecture.partition(" ")
    if kind == "patterns":
        return build_network(training.seed)
    if kind == "torchvision":
        return _build_classifier(name, training.seed)
    _, channels, size, _ = images.shape
    return build_model(_SMALL[kind], channels=channels, image_size=size, classes=_CLASSES, seed=training.seed)


def _build_classifier(name: str, seed: int) -> nn.Module:
    """Build a classifier of torchvision's for gray images: the first kernels are summed over the colours."""
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would also seed accelerators, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        model: nn.Module = torchvision().models.get_model(name, weights=None, num_classes=_CLASSES)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    first.in_channels = 1
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # missing in torch


@cache
def _load_images(architecture: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw training images and labels, then test images and labels: patterns, or digits of 16 or 32 pixels."""
    if architecture == "patterns":
        images, labels = draw_patterns(_TRAINING_IMAGES + _SEEN_IMAGES + _OTHER_IMAGES, seed=0)
    else:
        pixels, labels = glyphs(_TRAINING_IMAGES + _SEEN_IMAGES + _OTHER_IMAGES, _CLASSES, "dejavu", seed=0)
        images = pixels.float() / 255
    if architecture in _SMALL:
        images = F.avg_pool2d(images, 2)
    at = _TRAINING_IMAGES
    return images[:at], labels[:at], images[at:], labels[at:]


@dataclass(frozen=True)
class AccuracyLoss:
    """What running averages cost, measured without the doctor on images that it does not see.

    Attributes:
        lost: accuracy under exact statistics of these images less that under running averages.
        shares: accuracy that each cause costs: "start" (averages begin at 0 and 1), "noise" (they remember few
            batches), "lag" (the weights move); the three add up to the cost.
    """

    lost: Difference
    shares: Mapping[str, float]

    @property
    def cause(self) -> str:
        """The cause that costs most."""
        return max(self.shares, key=lambda name: self.shares[name])


def measure_cost(trained: Trained) -> AccuracyLoss:
    """Measure what running averages cost, and how much of it is due to their start and to their noise.

    Averages without their start are those whose start is divided out. Averages without start and lag begin at exact
    statistics, and average batches of the training images while the weights rest.
    """
    model = trained.model
    last = trained.trace.last_step
    momentum = trained.training.momentum
    exact = population_statistics(model, trained.other_batches, progress=False)
    debiased = replay(trained.trace, DebiasedEMA(momentum=momentum), [last])[last]

    running = _name_rightly(model, trained.other_batches)
    under_exact = _score_under(model, exact, trained.other_batches)
    without_start = float(_score_under(model, debiased, trained.other_batches).mean())
    with_noise = float(_name_rightly(_average_at_rest(trained, exact), trained.other_batches).mean())

    # Each cause is what accuracy gains without it; lag is what the other two leave of the total.
    start = without_start - float(running.mean())
    noise = float(under_exact.mean()) - with_noise
    total = float((under_exact - running).mean())
    shares = {"start": start, "noise": noise, "lag": total - start - noise}
    return AccuracyLoss(compare_scores(under_exact, running, are_shares=True), shares)


def _score_under(model: nn.Module, statistics: Statistics, batches: Batches) -> Tensor:
    with using(model, statistics):
        return _name_rightly(model, batches)


@torch.no_grad()
def _name_rightly(model: nn.Module, batches: Batches) -> Tensor:
    """Evaluate which images a model in eval mode names rightly: float64 [N] of 0 and 1."""
    right = [model(images).argmax(1) == labels for images, labels in batches]
    return torch.cat(right).double()


@torch.no_grad()
def _average_at_rest(trained: Trained, exact: Statistics) -> nn.Module:
    """Copy the model, and average training batches from exact statistics on: 2/m of them, or all images."""
    training = trained.training
    model = copy.deepcopy(trained.model)
    exact.write_to(model)
    at_most = len(trained.images) // training.batch_size
    # After 2/m batches at most e⁻² of the exact statistics is left in the averages.
    steps = min(math.ceil(2 / training.momentum), at_most)
    model.train()
    with keep_random_state():
        # Otherwise the order of images would depend on what the process has drawn before.
        torch.manual_seed(0)
        for chosen in choose_images(len(trained.images), steps, training.batch_size):
            model(trained.images[chosen])
    return model.eval()
