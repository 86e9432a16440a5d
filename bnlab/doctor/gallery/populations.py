"""Faults of the data: batches that are not alike, layers that serve two kinds of images, images of another kind."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.gallery.network import BATCH_SIZE, build_network, train
from bnlab.doctor.gallery.patterns import SIZE
from bnlab.doctor.gallery.specimen import Batches, Healthy, Specimen, average, fault, measure_accuracy, split
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


class Padded(nn.Module):
    """Classifies images of several widths: [B, 4, 12, 12], of which the last channel is 1 inside, to [B, classes]."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, padded: Tensor) -> Tensor:
        values = padded[:, :3]
        inside = padded[:, 3:]
        *blocks, _, _, head = self.network
        for layer in blocks:
            values = layer(values)
            if isinstance(layer, nn.Conv2d):
                step = layer.stride[0]
                inside = inside[:, :, ::step, ::step]
            values = values * inside
        means = values.sum((2, 3)) / inside.sum((2, 3))
        return head(means)


@fault(
    "padding counted",
    "BN205",
    "repairs",
    "Its averages were computed anew on images of several widths, with the padding that makes them equally wide.",
)
def count_padding(healthy: Healthy) -> Specimen:
    model = Padded(healthy.copy_model())
    batches = _pad(healthy.batches, seed=0)
    unspoiled = measure_accuracy(model, batches)
    average(model, [images for images, _ in _pad(healthy.training_batches, seed=1)])
    return Specimen(model, batches, unspoiled, {"inputs": {nn.BatchNorm2d: list_inside}})


def list_inside(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """List the positions [M, C] of a batch norm's input [B, C, H, W] that are no padding: not 0 in all channels."""
    positions = args[0].movedim(1, -1).flatten(0, -2)
    return positions[(positions != 0).any(1)]


def _pad(batches: Batches, seed: int) -> Batches:
    """Cut images to random widths, from a third of the whole on, and pad them with 0 to [B, 4, 12, 12]."""
    generator = torch.Generator().manual_seed(seed)
    padded = []
    for images, labels in batches:
        widths = torch.randint(SIZE // 3, SIZE + 1, (len(images), 1, 1, 1), generator=generator)
        is_inside = (torch.arange(SIZE) < widths).expand(-1, 1, SIZE, SIZE)
        inside = is_inside.to(images.dtype)
        padded.append((torch.cat([images * inside, inside], dim=1), labels))
    return padded


@fault("brighter images", "BN207", "repairs", "Given images that are brighter than those that it was trained on.")
def brighten(healthy: Healthy) -> Specimen:
    batches = [(images + 0.5, labels) for images, labels in healthy.batches]
    return Specimen(healthy.copy_model(), batches, healthy.accuracy, {"training_batches": healthy.training_batches})


@fault(
    "darker images",
    "BN213",
    "repairs",
    "Given images that are darker than those that it was trained on, and no training batches to compare with.",
)
def darken(healthy: Healthy) -> Specimen:
    batches = [(images - 0.3, labels) for images, labels in healthy.batches]
    return Specimen(healthy.copy_model(), batches, healthy.accuracy)


@fault(
    "an image not scaled",
    "BN210",
    "repairs",
    "Its averages were computed anew on images of which one was left at forty times the scale.",
)
def leave_one_scale(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    images = healthy.images.clone()
    images[-100] *= 40
    average(model, images.split(BATCH_SIZE))
    batches = split(images, healthy.labels)
    return Specimen(model, healthy.batches, healthy.accuracy, {"training_batches": batches})


@fault(
    "eps above the variance",
    "BN301",
    "not needed",
    "Trained on images that were divided by 1,000, so that eps outweighs the variances of its first batch norm.",
)
def divide_images(healthy: Healthy) -> Specimen:
    model = build_network()
    train(model, healthy.images / 1000, healthy.labels)
    batches = [(images / 1000, labels) for images, labels in healthy.batches]
    return Specimen(model, batches, healthy.accuracy)


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
