"""Faults of the forward: what it computes besides batch norm, and what the doctor does not see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.doctor.gallery.specimen import Healthy, Specimen, fault, list_norms


class AlwaysDrops(nn.Module):
    """Classifies with dropout in any mode: images [B, 3, 12, 12] to logits [B, classes]."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.features = network[:-1]
        self.head = network[-1]

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return self.head(F.dropout(features))


@fault("dropout in eval mode", "BN211", "falls short", "Its forward calls F.dropout without training=self.training.")
def drop_always(healthy: Healthy) -> Specimen:
    model = AlwaysDrops(healthy.copy_model()).eval()
    return Specimen(model, healthy.batches, healthy.accuracy)


class SubtractsMean(nn.Module):
    """Classifies with logits [B, classes] from which their mean over the batch is subtracted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits - logits.mean(0)


@fault(
    "mean over the batch",
    "BN212",
    "falls short",
    "Its forward subtracts from the logits their mean over the batch, and it is evaluated in batches of eight.",
)
def subtract_mean(healthy: Healthy) -> Specimen:
    model = SubtractsMean(healthy.copy_model()).eval()
    images, labels = map(torch.cat, zip(*healthy.batches[:8], strict=True))
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    return Specimen(model, batches, healthy.accuracy)


class Observed(nn.Module):
    """Divides images by a scale before it classifies them; each forward, in any mode, makes the scale 2% larger."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        scale = self.get_buffer("scale").mul_(1.02)
        return self.network(images / scale)


@fault(
    "observer in eval mode",
    "BN216",
    "falls short",
    "Each forward changes the scale that images are divided by, in eval mode too, as observers of quantization do.",
)
def observe_in_eval(healthy: Healthy) -> Specimen:
    model = Observed(healthy.copy_model()).eval()
    return Specimen(model, healthy.batches, healthy.accuracy)


class OwnNorm(nn.Module):
    """Normalizes [B, C, ...] with averages, as batch norm in eval mode does; no class of torch's.

    Args:
        norm: whose weight and bias it takes.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.register_buffer("running_mean", torch.zeros(norm.num_features))
        self.register_buffer("running_var", torch.ones(norm.num_features))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.get_buffer("running_mean")
        var = self.get_buffer("running_var")
        return F.batch_norm(x, mean, var, self.weight, self.bias)


@fault(
    "a norm of its own",
    "BN901",
    "falls short",
    "Its last batch norm is a class of its own, which bnlab does not read, and whose averages were never filled.",
)
def write_own_norm(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    model.norm4 = OwnNorm(list_norms(model)[-1])
    return Specimen(model, healthy.batches, healthy.accuracy, {"expected": 0.95})
