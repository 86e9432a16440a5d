"""Faults of the data: batches that are not alike, layers that serve two kinds of images, images of another kind."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from bnlab.doctor.gallery.network import BATCH_SIZE, build_network, train
from bnlab.doctor.gallery.specimen import Healthy, Specimen, average, fault, measure_accuracy, split
from bnlab.exact.population import population_statistics


@fault(
    "sorted batches",
    "BN202",
    "repairs",
    "Its averages were computed anew in one pass over images that were sorted by class.",
)
def sort_batches(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    order = healthy.labels.argsort(stable=True)
    images = healthy.images[order]
    batches = split(images, healthy.labels[order])
    average(model, images.split(BATCH_SIZE))
    return Specimen(model, healthy.batches, healthy.accuracy, {"training_batches": batches})


class ClearAndFoggy(nn.Module):
    """Classifies scenes that were photographed twice: images [N, 2, 3, 12, 12] to logits [N, classes, 2]."""

    def __init__(self, clear: nn.Module, foggy: nn.Module) -> None:
        super().__init__()
        self.clear = clear
        self.foggy = foggy

    def forward(self, scenes: Tensor) -> Tensor:
        clear = self.clear(scenes[:, 0])
        foggy = self.foggy(scenes[:, 1])
        return torch.stack([clear, foggy], dim=2)


@fault(
    "two domains through one layer",
    "BN204",
    "falls short",
    "One network serves clear and foggy photographs, in two calls a forward.",
)
def mix_domains(healthy: Healthy) -> Specimen:
    network = healthy.copy_model()
    model = ClearAndFoggy(network, network)
    scenes = _add_fog(healthy.images)
    average(model, scenes.split(BATCH_SIZE))
    batches = []
    for images, labels in healthy.batches[:16]:
        twice = torch.stack([labels, labels], dim=1)
        batches.append((_add_fog(images), twice))

    apart = ClearAndFoggy(network, deepcopy(network))
    population_statistics(apart, batches, progress=False).write_to(apart)
    return Specimen(model, batches, measure_accuracy(apart, batches))


def _add_fog(images: Tensor) -> Tensor:
    """Put beside each image one of a quarter of its contrast: [N, 2, 3, 12, 12]."""
    return torch.stack([images, 0.25 + 0.25 * images], dim=1)


@fault("images not scaled", "BN209", "hides", "Given images from 0 to 255, where it was trained on 0 to 1.")
def leave_scale(healthy: Healthy) -> Specimen:
    batches = [(255 * images, labels) for images, labels in healthy.batches]
    return Specimen(healthy.copy_model(), batches, healthy.accuracy)


@fault("channels reversed", "BN209", "falls short", "Given images as blue, green, red.")
def reverse_channels(healthy: Healthy) -> Specimen:
    batches = [(images.flip(1), labels) for images, labels in healthy.batches]
    return Specimen(healthy.copy_model(), batches, healthy.accuracy)


@fault("dropout before batch norm", "BN206", "repairs", "Fine-tuned with dropout in front of the convolutions.")
def drop_before_norm(healthy: Healthy) -> Specimen:
    model = build_network(dropout=0.3)
    model.load_state_dict(healthy.model.state_dict())
    train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return Specimen(model, healthy.batches, healthy.accuracy)
