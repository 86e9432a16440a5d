"""Faults of the averaging: buffers that were never filled, filled wrongly, or that are another network's."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from bnlab.doctor.gallery.network import build_network, train
from bnlab.doctor.gallery.patterns import CLASSES, SIZE
from bnlab.doctor.gallery.specimen import (
    Healthy,
    Specimen,
    average,
    fault,
    list_norms,
    make_other,
    measure_accuracy,
    split,
)
from bnlab.layers import get_running_buffers
from bnlab.recording.block import record


@fault(
    "momentum reversed",
    "BN102",
    "repairs",
    "Trained with momentum=0.9, as frameworks write it that mean what is kept of the past.",
)
def reverse_momentum(healthy: Healthy) -> Specimen:
    model = build_network()
    for norm in list_norms(model):
        norm.momentum = 0.9
    train(model, healthy.images, healthy.labels)
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault(
    "momentum of 0",
    "BN109",
    "repairs",
    "Trained on with momentum=0, as a network has it that was ported from another library.",
)
def hold_averages(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model):
        norm.momentum = 0.0
    train(model, healthy.images, healthy.labels, steps=48, rate=0.05)
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault(
    "variances not copied",
    "BN214",
    "repairs",
    "Written anew by a tool that copied its weights and running means, but no running variances.",
)
def copy_means_alone(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model):
        _, var = get_running_buffers(norm)
        var.fill_(1)
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault(
    "averages times a factor",
    "BN215",
    "repairs",
    "Converted from Caffe, whose averages are stored times a factor, without dividing them by it.",
)
def leave_out_factor(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model):
        for average_of_both in get_running_buffers(norm):
            average_of_both.mul_(200)
    return Specimen(model, healthy.batches, healthy.accuracy)


class InLowPrecision(nn.Module):
    """Classifies in bfloat16, batch norm too: images [B, 3, 12, 12] of float32 to logits [B, classes] of float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float()


@fault("averages in bfloat16", "BN004", "not needed", "Fine-tuned in bfloat16, with its batch norms in bfloat16 too.")
def tune_in_low_precision(healthy: Healthy) -> Specimen:
    model = InLowPrecision(healthy.copy_model())
    train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault("eval forgotten", "BN402", "not needed", "Evaluated without model.eval(): still in train mode.")
def forget_eval(healthy: Healthy) -> Specimen:
    model = healthy.copy_model().train()
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault("never updated", "BN002", "repairs", "Its parameters alone were saved, and loaded into a new network.")
def lose_buffers(healthy: Healthy) -> Specimen:
    model = build_network()
    model.load_state_dict(dict(healthy.model.named_parameters()), strict=False)
    return Specimen(model.eval(), healthy.batches, healthy.accuracy)


@fault(
    "ten updates only",
    "BN101",
    "repairs",
    "Its parameters were loaded into a new network, and then ten batches averaged.",
)
def update_ten_times(healthy: Healthy) -> Specimen:
    model = lose_buffers(healthy).model
    average(model, [images for images, _ in healthy.training_batches[:10]])
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault("zeroed buffers", "BN003", "repairs", "A tool set mean and variance to 0 before it averaged, and met no batch.")
def zero_buffers(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model):
        mean, var = get_running_buffers(norm)
        mean.zero_()
        var.zero_()
    return Specimen(model, healthy.batches, healthy.accuracy)


@fault(
    "buffers of another network",
    "BN107",
    "repairs",
    "Loaded with the buffers of a network that was trained from other initial weights.",
)
def take_other_buffers(healthy: Healthy) -> Specimen:
    other = make_other()
    model = deepcopy(other)
    model.load_state_dict(dict(healthy.model.named_parameters()), strict=False)
    return Specimen(model, healthy.batches, healthy.accuracy, {"before": other})


@fault(
    "average of weights without buffers",
    "BN107",
    "repairs",
    "An exponential moving average of the weights, beside the buffers of the network that was trained.",
)
def average_weights(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def follow(step: int) -> None:
        averaged.update_parameters(model)

    train(
        model,
        healthy.images,
        healthy.labels,
        steps=100,
        rate=0.05,
        is_constant=True,
        after_step=follow,
    )
    return Specimen(averaged.module.eval(), healthy.batches, healthy.accuracy, {"before": model})


@fault(
    "few images remembered",
    "BN201",
    "repairs",
    "Its averages were computed anew in batches of 16 with momentum=0.4, and remember four of these.",
)
def remember_few(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    for norm in list_norms(model):
        norm.momentum = 0.4
    batches = split(healthy.images, healthy.labels, 16)
    average(model, [images for images, _ in batches])
    return Specimen(model, healthy.batches, healthy.accuracy, {"training_batches": batches})


@fault(
    "small last batch",
    "BN110",
    "not needed",
    "Its averages were computed again in batches of 64 images, the last of which has 4.",
)
def average_small_last_batch(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    batches = split(healthy.images[:1028], healthy.labels[:1028])
    with record(model) as trace:
        average(model, [images for images, _ in batches])
    return Specimen(model, healthy.batches, healthy.accuracy, {"trace": trace, "training_batches": batches})


@fault(
    "tiny batches",
    "BN203",
    "repairs",
    "Trained on small images, and its averages computed anew in batches of one image.",
)
def average_tiny_batches(healthy: Healthy) -> Specimen:
    model = build_network()
    train(model, _crop(healthy.images), healthy.labels)
    batches = [(_crop(images), labels) for images, labels in healthy.batches]
    unspoiled = measure_accuracy(model, batches)
    training_batches = split(_crop(healthy.images[:256]), healthy.labels[:256], 1)
    average(model, [images for images, _ in training_batches])
    return Specimen(model, batches, unspoiled, {"training_batches": training_batches})


def _crop(images: Tensor) -> Tensor:
    """Cut the middle of images: [B, 3, 6, 6]."""
    return images[:, :, 3:9, 3:9]


@fault(
    "moved while frozen",
    "BN104",
    "repairs",
    "All but the last layer was frozen, and that one trained on images of warm tint, in train mode.",
)
def move_while_frozen(healthy: Healthy) -> Specimen:
    model = healthy.copy_model().requires_grad_(False)
    model.head.requires_grad_(True)
    is_warm = healthy.labels < CLASSES // 2
    images = healthy.images[is_warm]
    labels = healthy.labels[is_warm]
    train(model, images, labels, steps=40, rate=0.001)
    return Specimen(model, healthy.batches, healthy.accuracy, {"before": healthy.model})


@fault(
    "summary in train mode",
    "BN105",
    "repairs",
    "Random numbers were sent through it in train mode five times, as a model summary does to find shapes.",
)
def summarize_in_train_mode(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        numbers = torch.randn(2, 3, SIZE, SIZE, generator=generator)
        average(model, [numbers])
    return Specimen(model, healthy.batches, healthy.accuracy, {"before": healthy.model})


@fault(
    "sums in float16",
    "BN001",
    "repairs",
    "Mean and variance were computed anew from sums of values and of squares in float16, which overflow or stall.",
)
def sum_in_half(healthy: Healthy) -> Specimen:
    model = healthy.copy_model()
    sums: dict[nn.Module, Tensor] = {}
    for norm in list_norms(model):
        sums[norm] = torch.zeros(2, norm.num_features, dtype=torch.float16)
    pixels: dict[nn.Module, int] = {}

    def add(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        values = arguments[0].half()
        pixels[norm] = values[0, 0].numel()
        for image in values:
            total = image.sum((1, 2))
            squares = image.square().sum((1, 2))
            sums[norm] += torch.stack([total, squares])

    hooks = [norm.register_forward_pre_hook(add) for norm in sums]
    measure_accuracy(model, healthy.training_batches)
    for hook in hooks:
        hook.remove()
    for norm in list_norms(model):
        total, squares = sums[norm]
        count = pixels[norm] * len(healthy.images)
        mean = total / count
        running_mean, running_var = get_running_buffers(norm)
        running_mean.copy_(mean)
        running_var.copy_(squares / count - mean.square())
    return Specimen(model, healthy.batches, healthy.accuracy)


class Checkpointed(nn.Module):
    """A network whose activations are computed again in the backward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.network(images)
        return checkpoint(self.network, images, use_reentrant=False)


@fault(
    "updated twice a step",
    "BN103",
    "repairs",
    "Fine-tuned with activation checkpointing, which runs each layer a second time in the backward pass.",
)
def update_twice(healthy: Healthy) -> Specimen:
    model = Checkpointed(healthy.copy_model())
    with record(model) as trace:
        train(model, healthy.images, healthy.labels, steps=32, rate=0.01)
    return Specimen(model, healthy.batches, healthy.accuracy, {"trace": trace})


@fault(
    "stopped in the middle",
    "BN108",
    "falls short",
    "Trained in large batches at a constant rate, and evaluated after 48 steps.",
)
def stop_in_the_middle(healthy: Healthy) -> Specimen:
    model = build_network()
    with record(model) as trace:
        train(model, healthy.images, healthy.labels, steps=48, batch_size=256, is_constant=True)
    return Specimen(model, healthy.batches, healthy.accuracy, {"trace": trace})
