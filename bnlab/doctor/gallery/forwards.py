"""Faults of the forward: what it computes besides batch norm, leaves out of it, and what the doctor does not see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.doctor.gallery.specimen import Healthy, Specimen, Wrapped, fault, list_norms


@fault("BN211", "falls short")
def dropout_in_eval_mode(healthy: Healthy) -> Specimen:
    """Its forward calls F.dropout without training=self.training."""

    def drop(model: Wrapped, images: Tensor) -> Tensor:
        *features, head = model.network
        return head(F.dropout(nn.Sequential(*features)(images)))

    return healthy.show(Wrapped(healthy.copy_model(), drop))


@fault("BN212", "falls short")
def mean_over_the_batch(healthy: Healthy) -> Specimen:
    """Its forward subtracts from the logits their mean over the batch, and it is evaluated in batches of eight."""

    def subtract_mean(model: Wrapped, images: Tensor) -> Tensor:
        logits = model.network(images)
        return logits - logits.mean(0)

    model = Wrapped(healthy.copy_model(), subtract_mean).eval()
    images, labels = map(torch.cat, zip(*healthy.batches[:8], strict=True))
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    return Specimen(model, batches, healthy.accuracy)


@fault("BN216", "falls short")
def observer_in_eval_mode(healthy: Healthy) -> Specimen:
    """Each forward changes the scale that images are divided by, in eval mode too, as observers of quantization do."""

    def observe(model: Wrapped, images: Tensor) -> Tensor:
        scale = model.get_buffer("scale").mul_(1.02)
        return model.network(images / scale)

    model = Wrapped(healthy.copy_model(), observe)
    model.register_buffer("scale", torch.ones(()))
    return healthy.show(model)


class OtherNorm(nn.Module):
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


@fault("BN901", "falls short")
def a_norm_of_its_own(healthy: Healthy) -> Specimen:
    """Its last batch norm is a class of its own, which bnlab does not read, and whose averages were never filled."""
    model = healthy.copy_model()
    model.norm4 = OtherNorm(list_norms(model)[-1])
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
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in names[: int(layers)]:
        norm = model.get_submodule(name)
        divides = DividesOnly(norm.num_features, norm.eps)
        divides.load_state_dict(norm.state_dict())
        model.set_submodule(name, divides)
    return healthy.show(model)
