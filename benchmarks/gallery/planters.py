"""How healthy networks are broken: a function for each row of `faults.csv`, and what several of them share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from bnlab.commands.demo.faults import find_last, train_on_and_average
from bnlab.commands.demo.network import build_network, train
from bnlab.commands.demo.specimen import (
    Batches,
    Healthy,
    Specimen,
    Spoil,
    average,
    list_norms,
    measure_accuracy,
    reset,
    split,
)
from bnlab.commands.demo.store import Networks
from bnlab.model.borrow import keep_random_state
from bnlab.model.layers import get_running_buffers

NETWORKS = Networks(Path(__file__).with_name("networks"))
"""Trained networks that specimens are, or are made of; `make networks` trains those that are missing."""

# Ways of breaking that several faults share.


def change_averages(change: Callable[..., object]) -> Spoil:
    """Change each running mean and variance in place, by a strength if there is one."""

    def spoil(healthy: Healthy, *strength: float) -> Specimen:
        model = healthy.copy_model()
        for mean, var in list_averages(model):
            change(mean, var, *strength)
        return healthy.show(model)

    return spoil


def average_again(choose: Callable[[Tensor, Tensor], Batches], momentum: float = 0.1) -> Spoil:
    """Average again, over batches that are chosen from the training images, which the doctor is given too."""

    def spoil(healthy: Healthy) -> Specimen:
        batches = choose(healthy.images, healthy.labels)
        model = healthy.copy_model()
        set_momentum(model, momentum)
        average(model, batches)
        return healthy.show(model, training_batches=batches)

    return spoil


def change_images(change: Callable[..., Tensor], has_training: bool = False) -> Spoil:
    """Leave the model as it is and change the images that it is given, by a strength if there is one."""

    def spoil(healthy: Healthy, *strength: float) -> Specimen:
        arguments = {"training_batches": healthy.training_batches} if has_training else {}
        return healthy.show_changed(lambda images: change(images, *strength), **arguments)

    return spoil


class Wrapped(nn.Module):
    """A network that is called otherwise than by its own forward: by `call`, with the network and a batch."""

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, batch: Tensor) -> Tensor:
        return self.call(self.network, batch)


def list_averages(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """List running mean and variance of the batch norms of a model."""
    return [get_running_buffers(norm) for norm in list_norms(model)]


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms of a model."""
    for norm in list_norms(model):
        norm.momentum = momentum


# Faults by the names that the table has, with _ for a space.


def momentum_reversed(healthy: Healthy) -> Specimen:
    model = build_network()
    set_momentum(model, 0.9)
    NETWORKS.recall("momentum reversed", model, partial(train, model, healthy.images, healthy.labels))
    return healthy.show(model)


def momentum_of_0(healthy: Healthy) -> Specimen:
    # Averages do not influence training. The old ones, put back, are what momentum 0 would have left.
    model, _ = train_on_and_average(healthy)
    unspoiled = measure_accuracy(model, healthy.batches)
    for (mean, var), (old_mean, old_var) in zip(list_averages(model), list_averages(healthy.model), strict=True):
        mean.copy_(old_mean)
        var.copy_(old_var)
    set_momentum(model, 0.0)
    return Specimen(model, healthy.batches, unspoiled)


def averages_in_bfloat16(healthy: Healthy) -> Specimen:
    network = healthy.copy_model().bfloat16()
    # Only the network is cast. The doctor's images and the outputs stay in float32.
    return healthy.show(Wrapped(network, lambda network, images: network(images.bfloat16()).float()))


def updated_twice_a_step(healthy: Healthy) -> Specimen:
    # Checkpointing runs the forward again in the backward pass, and each run updates the averages.
    model = Wrapped(healthy.copy_model(), lambda network, images: checkpoint(network, images, use_reentrant=False))

    train_on = partial(train, model, healthy.images, healthy.labels, steps=32, rate=0.01)
    NETWORKS.recall("updated twice a step", model, train_on)
    return healthy.show(model)


def dropout_before_batch_norm(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for name in ("conv2", "conv3", "conv4"):
        model.set_submodule(name, nn.Sequential(nn.Dropout(0.3), model.get_submodule(name)))
    NETWORKS.recall(
        "dropout before batch norm",
        model,
        partial(train, model, healthy.images, healthy.labels, steps=32, rate=0.01),
    )
    return healthy.show(model)


def eval_forgotten(healthy: Healthy) -> Specimen:
    return Specimen(healthy.copy_model().train(), healthy.batches, healthy.accuracy)


def ten_updates_only(healthy: Healthy, updates: float) -> Specimen:
    model = healthy.copy_model()
    reset(model)
    average(model, healthy.training_batches[: int(updates)])
    return healthy.show(model)


def summary_in_train_mode(healthy: Healthy, times: float) -> Specimen:
    model = healthy.copy_model()
    # Two images a forward. Labels are not read: `split` wants as many of them as there are images.
    labels = healthy.labels[: 2 * int(times)]
    noise = torch.randn(len(labels), *healthy.images.shape[1:], generator=torch.Generator().manual_seed(0))
    average(model, split(noise, labels, 2))
    return healthy.show(model, before=healthy.model)


def sum_in_float16(mean: Tensor, var: Tensor) -> None:
    # So many squares overflow float16 where their mean is 1 or more, and so many values where theirs is.
    values = 2**16  # that are added in each channel
    mean_square = (values * (var + mean.square())).half().float() / values
    mean.copy_((values * mean).half().float() / values)
    var.copy_(mean_square - mean.square())


def multiply_both(mean: Tensor, var: Tensor, factor: float) -> None:
    mean.mul_(factor)
    var.mul_(factor)


def zero_both(mean: Tensor, var: Tensor) -> None:
    mean.zero_()
    var.zero_()


def stopped_in_the_middle(healthy: Healthy) -> Specimen:
    model = build_network()
    train_briefly = partial(train, model, healthy.images, healthy.labels, steps=48, batch_size=256, is_constant=True)
    NETWORKS.recall("stopped in the middle", model, train_briefly)
    return healthy.show(model)


def dropout_in_eval_mode(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    # `F.dropout` drops unless it is given training=self.training.
    name, head = find_last(model, nn.Linear)
    model.set_submodule(name, Wrapped(head, lambda head, features: head(F.dropout(features))))
    return healthy.show(model)


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


def a_norm_of_its_own(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    name, norm = find_last(model, nn.BatchNorm2d)
    model.set_submodule(name, OtherNorm(norm))
    # bnlab cannot measure this norm. Only a score that falls short of what is expected shows the fault.
    return healthy.show(model, expected=0.95)


class DividesOnly(nn.BatchNorm2d):
    """Batch norm that in eval mode divides by the running standard deviation, and subtracts no mean."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return F.batch_norm(input, torch.zeros_like(self.bias), self.running_var, self.weight, self.bias, eps=self.eps)


def mean_left_out(healthy: Healthy, layers: float) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model)[: int(layers)]:
        # Another class, and not another module, so that name, weights and buffers stay as they are.
        norm.__class__ = DividesOnly
    return healthy.show(model)


def sort_by_class(images: Tensor, labels: Tensor) -> Batches:
    order = labels.argsort(stable=True)
    return split(images[order], labels[order])


def two_domains_through_one_layer(healthy: Healthy) -> Specimen:
    def call_twice(networks: Any, scenes: Tensor) -> Tensor:
        clear, foggy = networks
        return torch.stack([clear(scenes[:, 0]), foggy(scenes[:, 1])], dim=2)

    def add_fog(images: Tensor) -> Tensor:
        """Put beside each image one of a quarter of its contrast: [N, 2, 3, 12, 12]."""
        return torch.stack([images, 0.25 + 0.25 * images], dim=1)

    network = healthy.copy_model()
    # The same network twice: its norms are called once for each domain, and average both.
    model = Wrapped(nn.ModuleList([network, network]), call_twice)
    average(model, split(add_fog(healthy.images), healthy.labels))
    batches = [(images, torch.stack([labels, labels], dim=1)) for images, labels in healthy.change_batches(add_fog)]
    return Specimen(model, batches[:16], healthy.accuracy)


def noisy_images(healthy: Healthy, sigma: float) -> Specimen:
    generator = torch.Generator().manual_seed(0)

    def add(images: Tensor) -> Tensor:
        return images + sigma * torch.randn(images.shape, generator=generator)

    return change_images(add, has_training=True)(healthy)


def eps_above_the_variance(healthy: Healthy) -> Specimen:
    model = build_network()
    NETWORKS.recall(
        "eps above the variance",
        model,
        partial(train, model, healthy.images / 1000, healthy.labels),
    )
    return Specimen(model, healthy.change_batches(lambda images: images / 1000), healthy.accuracy)


def weights_pruned(healthy: Healthy, share: float) -> Specimen:
    model = healthy.copy_model()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions[-2:]:
        convolution.weight.data = convolution.weight.data.contiguous()  # which torch's pruning asks for
        prune.l1_unstructured(convolution, "weight", share)
        prune.remove(convolution, "weight")
    return healthy.show(model, before=healthy.model)


def two_networks_averaged(healthy: Healthy) -> Specimen:
    model = build_network(seed=1)
    NETWORKS.recall("another seed", model, partial(train, model, healthy.images, healthy.labels, seed=1))
    other = model.state_dict()
    model.load_state_dict({name: (value + other[name]) / 2 for name, value in healthy.model.state_dict().items()})
    return healthy.show(model)


def weights_brought_back(healthy: Healthy) -> Specimen:
    model = build_network()
    for norm in list_norms(model):
        norm.weight.requires_grad_(False)
    NETWORKS.recall("weights of norms fixed", model, partial(train, model, healthy.images, healthy.labels))
    unspoiled = measure_accuracy(model, healthy.batches)
    generator = torch.Generator().manual_seed(0)
    for norm in list_norms(model):
        norm.weight.copy_(torch.randn(norm.num_features, generator=generator).exp())
    return Specimen(model, healthy.batches, unspoiled)


def operations_counted_in_train_mode(healthy: Healthy, times: float) -> Specimen:
    model = healthy.copy_model()
    ones = torch.ones(2, *healthy.images.shape[1:])
    average(model, split(ones.repeat(int(times), 1, 1, 1), healthy.labels[: 2 * int(times)], 2))
    return healthy.show(model)


def eps_of_another_framework(healthy: Healthy) -> Specimen:
    """Images are darker, and the first weights such that an eps of 0.001 would be right."""
    model = healthy.copy_model()
    mean, var = list_averages(model)[0]
    norm = list_norms(model)[0]
    # The buffers change in place below, so that σ has to be computed before.
    sigma = (var + norm.eps).sqrt()
    mean.div_(500)
    var.div_(500**2)
    # The gallery's convolutions have no bias, but tests break networks of other kinds as well.
    bias = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).bias
    if bias is not None:
        bias.data.div_(500)
    norm.weight.data.mul_(500 * (var + 1e-3).sqrt() / sigma)
    return Specimen(model, healthy.change_batches(lambda images: images / 500), healthy.accuracy)


@torch.no_grad()
def channels_removed(healthy: Healthy, channels: float) -> Specimen:
    """First they are made to carry constants: what they carry on average, so that not much is lost."""
    model = healthy.copy_model()
    norm = model.norm3
    chosen = norm.weight.abs().argsort()[: int(channels)]
    norm.weight[chosen] = 0
    # With a weight of 0, a channel is its bias, which passes the ReLU only above 0.
    norm.bias[chosen] = norm.bias[chosen].abs() + 1
    average(model, healthy.training_batches)  # so that those behind it count on that
    unspoiled = measure_accuracy(model, healthy.batches)

    smaller = copy.deepcopy(model)
    kept = [channel for channel in range(norm.num_features) if channel not in chosen]
    smaller.conv3.weight = nn.Parameter(model.conv3.weight[kept])
    smaller.conv4.weight = nn.Parameter(model.conv4.weight[:, kept])
    smaller.norm3 = nn.BatchNorm2d(len(kept))
    smaller.norm3.load_state_dict(
        {name: values[kept] if values.dim() else values for name, values in norm.state_dict().items()}
    )
    return Specimen(smaller.eval(), healthy.batches, unspoiled, {"before": model})


def weights_not_loaded(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    with keep_random_state():
        torch.manual_seed(3)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    # After the weights, because `reset_parameters` of a batch norm resets its buffers as well.
    model.load_state_dict(dict(healthy.model.named_buffers()), strict=False)
    return healthy.show(model)


def trained_on_in_tiny_batches(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    NETWORKS.recall(
        "trained on in tiny batches",
        model,
        partial(train, model, healthy.images, healthy.labels, steps=100, rate=0.01, batch_size=2, is_constant=True),
    )
    return healthy.show(model, before=healthy.model)


variances_not_copied = change_averages(lambda mean, var: var.fill_(1))
averages_times_a_factor = change_averages(multiply_both)
zeroed_buffers = change_averages(zero_both)
few_images_remembered = average_again(lambda images, labels: split(images, labels, 16), momentum=0.4)
# Of 1,028 images, sixteen batches of 64 leave four.
small_last_batch = average_again(lambda images, labels: split(images[:1028], labels[:1028]))
tiny_batches = average_again(lambda images, labels: split(images[:256], labels[:256], 1))
sums_in_float16 = change_averages(sum_in_float16)
sorted_batches = average_again(sort_by_class)
brighter_images = change_images(lambda images, shift: images + shift, has_training=True)
channels_reversed = change_images(lambda images: images.flip(1))
