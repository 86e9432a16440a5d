"""Faults of the weights: changed, while the buffers stayed as they were or were changed in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, prune

from bnlab.doctor.gallery.network import train
from bnlab.doctor.gallery.specimen import Healthy, Specimen, fault, list_norms, make_other


@fault(
    "weights pruned",
    "BN106",
    "repairs",
    "Half of the weights of its last two convolutions, the smallest ones, were set to 0.",
)
def prune_weights(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions[-2:]:
        prune.l1_unstructured(convolution, "weight", 0.5)
        prune.remove(convolution, "weight")
    return Specimen(model, healthy.batches, healthy.accuracy, {"before": healthy.model})


@fault(
    "two networks averaged",
    "BN208",
    "falls short",
    "Weights and buffers are the average of two networks, which were trained from different initial weights.",
)
def average_networks(healthy: Healthy) -> Specimen:
    model = _average([healthy.model, make_other()])
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault(
    "clients averaged",
    "BN106",
    "repairs",
    "Two clients trained it on mostly different classes, and a server averaged their weights and buffers.",
)
def average_clients(healthy: Healthy) -> Specimen:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(len(healthy.labels), generator=generator)
    clients = []
    for number in range(2):
        shares = torch.where(healthy.labels % 2 == number, 0.8, 0.3)
        own = chances < shares
        images = healthy.images[own]
        labels = healthy.labels[own]
        client = healthy.copy_model()
        train(client, images, labels, steps=128, is_constant=True, seed=number)
        clients.append(client)
    return Specimen(_average(clients), healthy.batches, healthy.accuracy, {"before": clients[0]})


def _average(models: Sequence[nn.Module]) -> nn.Module:
    """Average weights and buffers of models; counts of updates are the first one's."""
    states = [model.state_dict() for model in models]
    averaged = dict(states[0])
    for name, value in averaged.items():
        if value.is_floating_point():
            averaged[name] = torch.stack([state[name] for state in states]).mean(0)
    model = deepcopy(models[0])
    model.load_state_dict(averaged)
    return model


@fault(
    "folded twice",
    "BN302",
    "hides",
    "Each batch norm was folded into the convolution before it, and left in its place.",
)
def fold_twice(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    convolutions = {}
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d):
            convolutions[name] = module
    for (name, convolution), norm in zip(convolutions.items(), list_norms(model), strict=True):
        fused = fuse_conv_bn_eval(convolution, norm)
        setattr(model, name, fused)
    return Specimen(model, healthy.batches, healthy.accuracy)
