"""Faults of the averaging: buffers that were never filled, filled wrongly, or that are another network's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from bnlab.doctor.gallery.network import BATCH_SIZE, build_network, train
from bnlab.doctor.gallery.patterns import CLASSES
from bnlab.doctor.gallery.specimen import (
    Healthy,
    Specimen,
    Wrapped,
    average,
    fault,
    list_averages,
    list_norms,
    set_momentum,
    split,
)
from bnlab.recording.block import record


@fault("BN102", "repairs")
def momentum_reversed(healthy: Healthy) -> Specimen:
    """Trained with momentum=0.9, as frameworks write it that mean what is kept of the past."""
    model = build_network()
    set_momentum(model, 0.9)
    train(model, healthy.images, healthy.labels)
    return healthy.show(model)


@fault("BN109", "repairs")
def momentum_of_0(healthy: Healthy) -> Specimen:
    """Trained on with momentum=0, as a network has it that was ported from another library."""
    model = healthy.copy_model()
    set_momentum(model, 0.0)
    train(model, healthy.images, healthy.labels, steps=48, rate=0.05)
    return healthy.show(model)


@fault("BN214", "repairs")
def variances_not_copied(healthy: Healthy) -> Specimen:
    """Written anew by a tool that copied its weights and running means, but no running variances."""
    model = healthy.copy_model()
    for _, var in list_averages(model):
        var.fill_(1)
    return healthy.show(model)


@fault("BN215", "repairs", strengths=(1.5, 3, 200))
def averages_times_a_factor(healthy: Healthy, factor: float = 200) -> Specimen:
    """Converted from Caffe, whose averages are stored times a factor, without dividing them by it."""
    model = healthy.copy_model()
    for mean, var in list_averages(model):
        mean.mul_(factor)
        var.mul_(factor)
    return healthy.show(model)


@fault("BN004", "not needed")
def averages_in_bfloat16(healthy: Healthy) -> Specimen:
    """Fine-tuned in bfloat16, with its batch norms in bfloat16 too."""
    network = healthy.copy_model().bfloat16()
    model = Wrapped(network, lambda network, images: network(images.bfloat16()).float())
    train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return healthy.show(model)


@fault("BN402", "not needed")
def eval_forgotten(healthy: Healthy) -> Specimen:
    """Evaluated without model.eval(): still in train mode."""
    return Specimen(healthy.copy_model().train(), healthy.batches, healthy.accuracy)


@fault("BN002", "repairs")
def never_updated(healthy: Healthy) -> Specimen:
    """Its parameters alone were saved, and loaded into a new network."""
    model = healthy.copy_model()
    for norm in list_norms(model):
        norm.reset_running_stats()
    return healthy.show(model)


@fault("BN101", "repairs", strengths=(15, 10, 3))
def ten_updates_only(healthy: Healthy, updates: float = 10) -> Specimen:
    """Its parameters were loaded into a new network, and then ten batches averaged."""
    model = healthy.copy_model()
    for norm in list_norms(model):
        norm.reset_running_stats()
    average(model, healthy.training_batches[: int(updates)])
    return healthy.show(model)


@fault("BN003", "repairs")
def zeroed_buffers(healthy: Healthy) -> Specimen:
    """A tool set mean and variance to 0 before it averaged, and met no batch."""
    model = healthy.copy_model()
    for mean, var in list_averages(model):
        mean.zero_()
        var.zero_()
    return healthy.show(model)


@fault("BN107", "repairs")
def average_of_weights_without_buffers(healthy: Healthy) -> Specimen:
    """An exponential moving average of the weights, beside the buffers of the network that was trained."""
    model = healthy.copy_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def follow(step: int) -> None:
        averaged.update_parameters(model)

    train(model, healthy.images, healthy.labels, steps=100, rate=0.05, is_constant=True, after_step=follow)
    return healthy.show(averaged.module, before=model)


@fault("BN201", "repairs")
def few_images_remembered(healthy: Healthy) -> Specimen:
    """Its averages were computed anew in batches of 16 with momentum=0.4, and remember four of these."""
    return healthy.show_averaged(split(healthy.images, healthy.labels, 16), momentum=0.4)


@fault("BN110", "not needed")
def small_last_batch(healthy: Healthy) -> Specimen:
    """Its averages were computed again in batches of 64 images, the last of which has 4."""
    images = 16 * BATCH_SIZE + 4
    return healthy.show_averaged(split(healthy.images[:images], healthy.labels[:images]))


@fault("BN203", "repairs")
def tiny_batches(healthy: Healthy) -> Specimen:
    """Its averages were computed anew in batches of one image."""
    return healthy.show_averaged(split(healthy.images[:256], healthy.labels[:256], 1))


@fault("BN104", "repairs")
def moved_while_frozen(healthy: Healthy) -> Specimen:
    """All but the last layer was frozen, and that one trained on images of warm tint, in train mode."""
    model = healthy.copy_model().requires_grad_(False)
    model.head.requires_grad_(True)
    is_warm = healthy.labels < CLASSES // 2
    train(model, healthy.images[is_warm], healthy.labels[is_warm], steps=40, rate=0.001)
    return healthy.show(model, before=healthy.model)


@fault("BN105", "repairs", strengths=(3, 5, 20))
def summary_in_train_mode(healthy: Healthy, times: float = 5) -> Specimen:
    """Random numbers were sent through it in train mode five times, as a model summary does to find shapes."""
    model = healthy.copy_model()
    labels = healthy.labels[: 2 * int(times)]
    noise = torch.randn(len(labels), *healthy.images.shape[1:], generator=torch.Generator().manual_seed(0))
    average(model, split(noise, labels, 2))
    return healthy.show(model, before=healthy.model)


@fault("BN001", "repairs")
def sums_in_float16(healthy: Healthy) -> Specimen:
    """Mean and variance were computed anew from sums of values and of squares in float16, which overflow."""
    model = healthy.copy_model()
    values = 2**16  # that are added in each channel

    def round_sum(mean: Tensor) -> Tensor:
        return (values * mean).half().float() / values

    for mean, var in list_averages(model):
        mean_square = round_sum(var + mean.square())
        mean.copy_(round_sum(mean))
        var.copy_(mean_square - mean.square())
    return healthy.show(model)


@fault("BN103", "repairs")
def updated_twice_a_step(healthy: Healthy) -> Specimen:
    """Fine-tuned with activation checkpointing, which runs each layer a second time in the backward pass."""
    network = healthy.copy_model()
    model = Wrapped(network, lambda network, images: checkpoint(network, images, use_reentrant=False))
    with record(model) as trace:
        train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return healthy.show(model, trace=trace)


@fault("BN108", "falls short")
def stopped_in_the_middle(healthy: Healthy) -> Specimen:
    """Trained in large batches at a constant rate, and evaluated after 48 steps."""
    model = build_network()
    with record(model) as trace:
        train(model, healthy.images, healthy.labels, steps=48, batch_size=256, is_constant=True)
    return healthy.show(model, trace=trace)
