"""Faults of the weights: changed, while the buffers stayed as they were or were changed in the same way."""

from __future__ import annotations

import torch
from torch.nn.utils import fuse_conv_bn_eval, prune

from bnlab.doctor.gallery.network import build_network, train
from bnlab.doctor.gallery.specimen import Healthy, Specimen, fault, list_norms, measure_accuracy


@fault("BN106", "repairs", strengths=(0.5, 0.6, 0.7))
def weights_pruned(healthy: Healthy, share: float = 0.5) -> Specimen:
    """Half of the weights of its last two convolutions, the smallest ones, were set to 0."""
    model = healthy.copy_model()
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    for convolution in convolutions[-2:]:
        convolution.weight.data = convolution.weight.data.contiguous()  # which torch's pruning asks for
        prune.l1_unstructured(convolution, "weight", share)
        prune.remove(convolution, "weight")
    return healthy.show(model, before=healthy.model)


@fault("BN208", "falls short")
def two_networks_averaged(healthy: Healthy) -> Specimen:
    """Weights and buffers are the average of two networks, which were trained from different initial weights."""
    model = build_network(seed=1)
    train(model, healthy.images, healthy.labels, seed=1)
    averaged = healthy.model.state_dict()
    for name, value in model.state_dict().items():
        averaged[name] = (averaged[name] + value) / 2
    model.load_state_dict(averaged)
    return healthy.show(model)


@fault("BN302", "hides")
def folded_twice(healthy: Healthy) -> Specimen:
    """Each batch norm was folded into the convolution before it, and left in its place."""
    model = healthy.copy_model()
    for number, norm in enumerate(list_norms(model), start=1):
        name = f"conv{number}"
        setattr(model, name, fuse_conv_bn_eval(model.get_submodule(name), norm))
    return healthy.show(model)


@fault("BN303", "falls short")
def weights_brought_back(healthy: Healthy) -> Specimen:
    """Trained without weights (γ), and converted with those that its file had stored nevertheless."""
    model = build_network()
    for norm in list_norms(model):
        norm.weight.requires_grad_(False)
    train(model, healthy.images, healthy.labels)
    unspoiled = measure_accuracy(model, healthy.batches)
    generator = torch.Generator().manual_seed(0)
    for norm in list_norms(model):
        norm.weight.copy_(torch.randn(norm.num_features, generator=generator).exp())
    return Specimen(model, healthy.batches, unspoiled)


@fault("BN305", "falls short")
def trained_on_in_tiny_batches(healthy: Healthy) -> Specimen:
    """Trained on in batches of two images, at a tenth of the rate of large ones."""
    model = healthy.copy_model()
    train(model, healthy.images, healthy.labels, steps=100, rate=0.01, batch_size=2, is_constant=True)
    return healthy.show(model, before=healthy.model)
