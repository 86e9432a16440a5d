"""Faults of the data: batches that are not alike, layers that serve two kinds of images, images of another kind."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.gallery.network import BATCH_SIZE, build_network, train
from bnlab.doctor.gallery.patterns import SIZE
from bnlab.doctor.gallery.specimen import Batches, Healthy, Specimen, Wrapped, average, fault, measure_accuracy, split
from bnlab.exact.population import population_statistics


@fault("BN202", "repairs")
def sorted_batches(healthy: Healthy) -> Specimen:
    """Its averages were computed anew in one pass over images that were sorted by class."""
    model = healthy.copy_model()
    order = healthy.labels.argsort(stable=True)
    images = healthy.images[order]
    average(model, images.split(BATCH_SIZE))
    return healthy.show(model, training_batches=split(images, healthy.labels[order]))


@fault("BN204", "falls short")
def two_domains_through_one_layer(healthy: Healthy) -> Specimen:
    """One network serves clear and foggy photographs, in two calls a forward."""

    def call_twice(model: Wrapped, scenes: Tensor) -> Tensor:
        return torch.stack([model.network(scenes[:, 0]), model.get_submodule("foggy")(scenes[:, 1])], dim=2)

    model = Wrapped(healthy.copy_model(), call_twice)
    model.foggy = model.network
    average(model, _add_fog(healthy.images).split(BATCH_SIZE))
    batches = []
    for images, labels in healthy.batches[:16]:
        twice = torch.stack([labels, labels], dim=1)
        batches.append((_add_fog(images), twice))

    apart = Wrapped(model.network, call_twice)
    apart.foggy = deepcopy(model.network)
    population_statistics(apart, batches, progress=False).write_to(apart)
    return Specimen(model, batches, measure_accuracy(apart, batches))


def _add_fog(images: Tensor) -> Tensor:
    """Put beside each image one of a quarter of its contrast: [N, 2, 3, 12, 12]."""
    return torch.stack([images, 0.25 + 0.25 * images], dim=1)


@fault("BN205", "repairs")
def padding_counted(healthy: Healthy) -> Specimen:
    """Its averages were computed anew on images of several widths, with the padding that makes them equally wide."""
    model = Wrapped(healthy.copy_model(), _call_padded)
    batches = _pad(healthy.batches, seed=0)
    unspoiled = measure_accuracy(model.eval(), batches)
    average(model, [images for images, _ in _pad(healthy.training_batches, seed=1)])
    return Specimen(model, batches, unspoiled, {"inputs": {nn.BatchNorm2d: list_inside}})


def _call_padded(model: Wrapped, padded: Tensor) -> Tensor:
    """Classify images of several widths: [B, 4, 12, 12], of which the last channel is 1 inside, to [B, classes]."""
    values = padded[:, :3]
    inside = padded[:, 3:]
    *blocks, _, _, head = model.network
    for layer in blocks:
        values = layer(values)
        if isinstance(layer, nn.Conv2d):
            step = layer.stride[0]
            inside = inside[:, :, ::step, ::step]
        values = values * inside
    means = values.sum((2, 3)) / inside.sum((2, 3))
    return head(means)


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


@fault("BN207", "falls short", strengths=(0.2, 0.3, 0.5))
def noisy_images(healthy: Healthy, sigma: float = 0.3) -> Specimen:
    """Given images with more noise than those that it was trained on."""
    generator = torch.Generator().manual_seed(0)

    def add_noise(images: Tensor) -> Tensor:
        return images + sigma * torch.randn(images.shape, generator=generator)

    return healthy.show_images(add_noise, training_batches=healthy.training_batches)


@fault("BN209", "hides", strengths=(0.2, 0.5, 1))
def brighter_images(healthy: Healthy, shift: float = 0.5) -> Specimen:
    """Given images that are brighter than those that it was trained on."""
    return healthy.show_images(lambda images: images + shift, training_batches=healthy.training_batches)


@fault("BN209", "hides", strengths=(3, 5, 255))
def images_not_scaled(healthy: Healthy, scale: float = 255) -> Specimen:
    """Given images from 0 to 255, where it was trained on 0 to 1."""
    return healthy.show_images(lambda images: scale * images)


@fault("BN209", "falls short")
def channels_reversed(healthy: Healthy) -> Specimen:
    """Given images as blue, green, red."""
    return healthy.show_images(lambda images: images.flip(1))


@fault("BN210", "repairs")
def an_image_not_scaled(healthy: Healthy) -> Specimen:
    """Its averages were computed anew on images of which one was left at forty times the scale."""
    model = healthy.copy_model()
    images = healthy.images.clone()
    images[-100] *= 40
    average(model, images.split(BATCH_SIZE))
    return healthy.show(model, training_batches=split(images, healthy.labels))


@fault("BN301", "not needed")
def eps_above_the_variance(healthy: Healthy) -> Specimen:
    """Trained on images that were divided by 1,000, so that eps outweighs the variances of its first batch norm."""
    model = build_network()
    train(model, healthy.images / 1000, healthy.labels)
    batches = [(images / 1000, labels) for images, labels in healthy.batches]
    return Specimen(model, batches, healthy.accuracy)


@fault("BN206", "repairs")
def dropout_before_batch_norm(healthy: Healthy) -> Specimen:
    """Fine-tuned with dropout in front of the convolutions."""
    model = build_network(dropout=0.3)
    model.load_state_dict(healthy.model.state_dict())
    train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return healthy.show(model)
