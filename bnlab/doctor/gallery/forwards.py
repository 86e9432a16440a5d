"""Faults of the forward: what it computes besides batch norm, leaves out of it, and what the doctor does not see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.doctor.gallery.network import BATCH_SIZE
from bnlab.doctor.gallery.specimen import Healthy, Specimen, Wrapped, fault, list_norms, split


@fault("BN211", "falls short")
def dropout_in_eval_mode(healthy: Healthy) -> Specimen:
    """Its forward calls F.dropout without training=self.training."""
    model = healthy.copy_model()
    model.head = Wrapped(model.head, lambda head, features: head(F.dropout(features)))
    return healthy.show(model)


@fault("BN212", "falls short")
def mean_over_the_batch(healthy: Healthy) -> Specimen:
    """Its forward subtracts from the logits their mean over the batch, and it is evaluated in batches of eight."""

    def subtract_mean(network: nn.Module, images: Tensor) -> Tensor:
        logits = network(images)
        return logits - logits.mean(0)

    model = Wrapped(healthy.copy_model(), subtract_mean).eval()
    batches = []
    for images, labels in healthy.batches[: 512 // BATCH_SIZE]:
        batches += split(images, labels, 8)
    return Specimen(model, batches, healthy.accuracy)


@fault("BN216", "falls short")
def observer_in_eval_mode(healthy: Healthy) -> Specimen:
    """Each forward changes the scale that images are divided by, in eval mode too, as observers of quantization do."""

    def observe(network: Any, images: Tensor) -> Tensor:
        return network(images / network.scale.mul_(1.02))

    network = healthy.copy_model()
    network.register_buffer("scale", torch.ones(()))
    return healthy.show(Wrapped(network, observe))


class OtherNorm(nn.Module):
    """Normalizes [B, C, ...] with averages, as batch norm in eval mode does; no class of torch's."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.register_buffer("running_mean", torch.zeros(norm.num_features))
        self.register_buffer("running_var", torch.ones(norm.num_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


@fault("BN901", "falls short")
def a_norm_of_its_own(healthy: Healthy) -> Specimen:
    """Its last batch norm is a class of its own, which bnlab does not read, and whose averages were never filled."""
    model = healthy.copy_model()
    model.norm4 = OtherNorm(model.norm4)
    return healthy.show(model, expected=0.95)


class DividesOnly(nn.BatchNorm2d):
    """Batch norm that in eval mode divides by the running standard deviation, and subtracts no mean."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return F.batch_norm(input, torch.zeros_like(self.bias), self.running_var, self.weight, self.bias, eps=self.eps)


@fault("BN304", "falls short", strengths=(2, 3, 4))
def mean_left_out(healthy: Healthy, layers: float = 4) -> Specimen:
    """Written anew for deployment with a batch norm that divides by the standard deviation, and subtracts no mean."""
    model = healthy.copy_model()
    for norm in list_norms(model)[: int(layers)]:
        norm.__class__ = DividesOnly
    return healthy.show(model)
