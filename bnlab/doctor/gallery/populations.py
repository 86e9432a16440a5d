"""Faults of the data: batches that are not alike, layers that serve two kinds of images, images of another kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.gallery.network import build_network, train
from bnlab.doctor.gallery.patterns import SIZE
from bnlab.doctor.gallery.specimen import Healthy, Specimen, Wrapped, average, fault, measure_accuracy, split


@fault("BN202", "repairs")
def sorted_batches(healthy: Healthy) -> Specimen:
    """Its averages were computed anew in one pass over images that were sorted by class."""
    order = healthy.labels.argsort(stable=True)
    return healthy.show_averaged(split(healthy.images[order], healthy.labels[order]))


@fault("BN204", "falls short")
def two_domains_through_one_layer(healthy: Healthy) -> Specimen:
    """One network serves clear and foggy photographs, in two calls a forward."""

    def call_twice(networks: Any, scenes: Tensor) -> Tensor:
        clear, foggy = networks
        return torch.stack([clear(scenes[:, 0]), foggy(scenes[:, 1])], dim=2)

    def add_fog(images: Tensor) -> Tensor:
        """Put beside each image one of a quarter of its contrast: [N, 2, 3, 12, 12]."""
        return torch.stack([images, 0.25 + 0.25 * images], dim=1)

    network = healthy.copy_model()
    model = Wrapped(nn.ModuleList([network, network]), call_twice)
    average(model, split(add_fog(healthy.images), healthy.labels))
    batches = [(images, torch.stack([labels, labels], dim=1)) for images, labels in healthy.change_batches(add_fog)]
    return Specimen(model, batches[:16], healthy.accuracy)


@fault("BN205", "repairs")
def padding_counted(healthy: Healthy) -> Specimen:
    """Its averages were computed anew on images of several widths, with the padding that makes them equally wide."""
    generator = torch.Generator().manual_seed(0)

    def pad(images: Tensor) -> Tensor:
        """Cut images to random widths, from a third of the whole on, and pad them with 0."""
        widths = torch.randint(SIZE // 3, SIZE + 1, (len(images), 1, 1, 1), generator=generator)
        return images * (torch.arange(SIZE) < widths)

    model = Wrapped(healthy.copy_model(), call_padded)
    batches = healthy.change_batches(pad)
    unspoiled = measure_accuracy(model.eval(), batches)
    average(model, split(pad(healthy.images), healthy.labels))
    return Specimen(model, batches, unspoiled, {"inputs": {nn.BatchNorm2d: list_inside}})


def call_padded(network: Any, values: Tensor) -> Tensor:
    """Classify images [B, C, H, W] whose padding is 0 in all channels; padding stays 0 behind each layer."""
    *blocks, _, _, head = network
    inside = (values != 0).any(1, keepdim=True)
    for layer in blocks:
        values = layer(values)
        step = inside.shape[-1] // values.shape[-1]
        inside = inside[:, :, ::step, ::step]
        values = values * inside
    return head(values.sum((2, 3)) / inside.sum((2, 3)))


def list_inside(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """List the positions [M, C] of a batch norm's input [B, C, H, W] that are no padding: not 0 in all channels."""
    positions = args[0].movedim(1, -1).flatten(0, -2)
    return positions[(positions != 0).any(1)]


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
    images = healthy.images.clone()
    images[-100] *= 40
    return healthy.show_averaged(split(images, healthy.labels))


@fault("BN301", "not needed")
def eps_above_the_variance(healthy: Healthy) -> Specimen:
    """Trained on images that were divided by 1,000, so that eps outweighs the variances of its first batch norm."""
    model = build_network()
    train(model, healthy.images / 1000, healthy.labels)
    return Specimen(model, healthy.change_batches(lambda images: images / 1000), healthy.accuracy)


@fault("BN206", "repairs")
def dropout_before_batch_norm(healthy: Healthy) -> Specimen:
    """Fine-tuned with dropout in front of the convolutions."""
    model = healthy.copy_model()
    for name in ("conv2", "conv3", "conv4"):
        model.set_submodule(name, nn.Sequential(nn.Dropout(0.3), model.get_submodule(name)))
    train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return healthy.show(model)
