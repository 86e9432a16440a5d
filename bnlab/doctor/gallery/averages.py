"""Faults of the averaging: buffers that were never filled, filled wrongly, or that are another network's."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from bnlab.doctor.gallery.network import build_network, train
from bnlab.doctor.gallery.patterns import CLASSES
from bnlab.doctor.gallery.specimen import (
    Healthy,
    Specimen,
    Wrapped,
    average,
    fault,
    list_averages,
    list_norms,
    make_other,
    measure_accuracy,
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

    def cast(model: Wrapped, images: Tensor) -> Tensor:
        return model.network(images.bfloat16()).float()

    model = Wrapped(healthy.copy_model().bfloat16(), cast)
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
    average(model, [images for images, _ in healthy.training_batches[: int(updates)]])
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
def buffers_of_another_network(healthy: Healthy) -> Specimen:
    """Loaded with the buffers of a network that was trained from other initial weights."""
    model = deepcopy(make_other())
    model.load_state_dict(dict(healthy.model.named_parameters()), strict=False)
    return healthy.show(model, before=make_other())


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
    model = healthy.copy_model()
    set_momentum(model, 0.4)
    batches = split(healthy.images, healthy.labels, 16)
    average(model, [images for images, _ in batches])
    return healthy.show(model, training_batches=batches)


@fault("BN110", "not needed")
def small_last_batch(healthy: Healthy) -> Specimen:
    """Its averages were computed again in batches of 64 images, the last of which has 4."""
    model = healthy.copy_model()
    batches = split(healthy.images[:1028], healthy.labels[:1028])
    with record(model) as trace:
        average(model, [images for images, _ in batches])
    return healthy.show(model, trace=trace, training_batches=batches)


@fault("BN203", "repairs")
def tiny_batches(healthy: Healthy) -> Specimen:
    """Trained on small images, and its averages computed anew in batches of one image."""
    model = build_network()
    small = healthy.images[:, :, 3:9, 3:9]
    train(model, small, healthy.labels)
    batches = [(images[:, :, 3:9, 3:9], labels) for images, labels in healthy.batches]
    unspoiled = measure_accuracy(model, batches)
    training_batches = split(small[:256], healthy.labels[:256], 1)
    average(model, [images for images, _ in training_batches])
    return Specimen(model, batches, unspoiled, {"training_batches": training_batches})


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
    generator = torch.Generator().manual_seed(0)
    shape = (2, *healthy.images.shape[1:])
    average(model, [torch.randn(shape, generator=generator) for _ in range(int(times))])
    return healthy.show(model, before=healthy.model)


@fault("BN001", "repairs")
def sums_in_float16(healthy: Healthy) -> Specimen:
    """Mean and variance were computed anew from sums of values and of squares in float16, which overflow or stall."""
    model = healthy.copy_model()
    values: dict[nn.Module, list[Tensor]] = {norm: [] for norm in list_norms(model)}

    def add(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        values[norm] += arguments[0].half()

    hooks = [norm.register_forward_pre_hook(add) for norm in values]
    measure_accuracy(model, healthy.training_batches)
    for hook in hooks:
        hook.remove()
    for norm, (running_mean, running_var) in zip(values, list_averages(model), strict=True):
        total = torch.zeros(2, len(running_mean), dtype=torch.float16)
        for image in values[norm]:
            total += torch.stack([image.sum((1, 2)), image.square().sum((1, 2))])
        mean, mean_square = total / (len(healthy.images) * image[0].numel())
        running_mean.copy_(mean)
        running_var.copy_(mean_square - mean.square())
    return healthy.show(model)


@fault("BN103", "repairs")
def updated_twice_a_step(healthy: Healthy) -> Specimen:
    """Fine-tuned with activation checkpointing, which runs each layer a second time in the backward pass."""

    def run_twice(model: Wrapped, images: Tensor) -> Tensor:
        if not model.training:
            return model.network(images)
        return checkpoint(model.network, images, use_reentrant=False)

    model = Wrapped(healthy.copy_model(), run_twice)
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
