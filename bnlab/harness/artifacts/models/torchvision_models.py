"""model=torchvision"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bnlab.common.vision import torchvision
from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.components import add_choice, require_one_of


@dataclass(unsafe_hash=True)
class Torchvision(Model):
    """An untrained classifier of torchvision.models, chosen by `model.name`."""

    has_any_name: ClassVar[bool] = True
    name: str = "resnet18"

    def check(self, norm: Norm) -> None:
        models = torchvision().models
        require_one_of("model.name", self.name, models.list_models(module=models))
        super().check(norm)

    def build(self, inputs: InputShape, norm: NormBuilder) -> nn.Module:
        model: nn.Module = torchvision().models.get_model(self.name, weights=None, num_classes=inputs.classes)
        if inputs.channels == 1:
            _take_gray_images(model)
        return model


def _take_gray_images(model: nn.Module) -> None:
    """Sum the first kernels over the colours: the same as showing the gray image in all three."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    first.in_channels = 1


add_choice("torchvision", Torchvision())
