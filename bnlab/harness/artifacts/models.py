"""Networks: a small conv net, CIFAR ResNets, an MLP, torchvision's classifiers, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.artifacts.norms.batch import Batch
from bnlab.harness.artifacts.own import add_arguments, find_arguments, import_object, list_names
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.checks import require_one_of, require_within
from bnlab.harness.components import check_settings
from bnlab.harness.errors import UserError, where_raised


@dataclass(unsafe_hash=True)
class ModelConfig:
    """Which network."""

    name: str = "???"


@dataclass(unsafe_hash=True)
class Layered(ModelConfig):
    """A network of ours, whose norm can be chosen."""

    depth: int = 3
    width: int = 32


@dataclass(unsafe_hash=True)
class Cnn(Layered):
    """Blocks conv3×3-norm-ReLU."""

    name: str = "cnn"
    depth: int = 3  # blocks
    width: int = 32  # channels of the first block
    pool_every: int = 1  # pool and double the width after so many blocks, while 4 pixels are left


@dataclass(unsafe_hash=True)
class Resnet(Layered):
    """A ResNet for small images (He et al. 2015, section 4.2)."""

    name: str = "resnet"
    depth: int = 20  # 6n+2 layers
    width: int = 16  # channels of the first stage


@dataclass(unsafe_hash=True)
class Mlp(Layered):
    """Hidden layers linear-norm-ReLU."""

    name: str = "mlp"
    depth: int = 2  # hidden layers
    width: int = 256  # hidden units


@dataclass(unsafe_hash=True)
class Torchvision(ModelConfig):
    """An untrained classifier of torchvision.models."""

    name: str = "resnet18"


@dataclass(unsafe_hash=True)
class OwnModel(ModelConfig):
    """The user's own: `name` is the import path of a function of channels, image_size, classes that gives a module.

    Its further arguments are settings, see `describe_own`.
    """


CHOICES: dict[str, ModelConfig] = {
    "cnn": Cnn(),
    "plain": Cnn(depth=16, width=16, pool_every=6),
    "resnet": Resnet(),
    "mlp": Mlp(),
    "torchvision": Torchvision(),
}
"""What `model=` chooses from, beside functions of the user's own."""


_GIVEN = 3  # arguments of a user's function, which bnlab gives it: channels, image_size, classes


def describe_own(path: str) -> OwnModel:
    """Make the configuration of a user's function: all arguments but the first three are settings.

    Raises:
        UserError: it cannot be imported, or an argument has the name of a setting of bnlab's.
    """
    return add_arguments(OwnModel, path, list_names(path)[:_GIVEN])(name=path)


def check(config: ModelConfig, norm: Norm) -> None:
    """Raise UserError for an unknown name, a value out of range or a norm that the network cannot have."""
    check_settings(norm)
    if isinstance(config, Torchvision):
        require_one_of("model.name", config.name, torchvision().models.list_models(module=torchvision().models))
    if isinstance(config, OwnModel):
        import_object(config.name)
    if isinstance(config, Layered):
        _check_layers(config, norm)
    elif norm != Batch():
        raise UserError(f"norm={norm.name}: {config.name} has normalization of its own; use model=cnn, resnet or mlp")


def _check_layers(config: Layered, norm: Norm) -> None:
    require_within("model.depth", config.depth, 1)
    require_within("model.width", config.width, 1)
    if isinstance(config, Cnn):
        require_within("model.pool_every", config.pool_every, 1)
    if isinstance(config, Resnet) and (config.depth < 8 or config.depth % 6 != 2):
        raise UserError(f"model.depth={config.depth}: a resnet has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110")
    if isinstance(config, Mlp) and norm.needs_maps:
        raise UserError(f"norm={norm.name}: a unit of an mlp has one value, not a map; use model=cnn or resnet")
    if config.width % norm.divisor:
        raise UserError(f"norm.groups={norm.divisor}: must divide model.width={config.width}")


def build_model(
    config: ModelConfig,
    norm: Norm | None = None,
    *,
    channels: int,
    image_size: int,
    classes: int,
    seed: int,
    steps: int = 1,
) -> nn.Module:
    """The network for images [N, channels, image_size, image_size], in channels_last and train mode.

    Args:
        config: which network, as `check` accepts it.
        norm: its norm; batch norm by default.
        channels, image_size, classes: what the images have.
        seed: what the weights depend on, alone; the caller's random state is left as it was.
        steps: updates of its training, for norms that change over it.
    """
    layers = NormBuilder(norm or Batch(), of_images=not isinstance(config, Mlp), steps=steps)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        if isinstance(config, Layered):
            model = _BUILDERS[config.name](config, layers, channels, image_size, classes)
        elif isinstance(config, OwnModel):
            model = _own_model(config, channels, image_size, classes)
        else:
            model = _torchvision_model(config.name, channels, classes)
    return model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # missing in torch


def _cnn(config: Any, norm: NormBuilder, channels: int, image_size: int, classes: int) -> nn.Module:
    """Blocks conv3×3-norm-ReLU; after each pool the width doubles; the mean over pixels feeds a linear head."""
    layers: list[nn.Module] = []
    width = config.width
    for block in range(1, config.depth + 1):
        layers += [*_conv(norm, channels, width, number=block), nn.ReLU(inplace=True)]
        channels = width
        if block % config.pool_every == 0 and image_size >= 4:
            layers.append(nn.MaxPool2d(2))
            image_size //= 2
            width *= 2
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    return _initialize(model, norm)


def _mlp(config: Layered, norm: NormBuilder, channels: int, image_size: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    features = channels * image_size**2
    for number in range(1, config.depth + 1):
        linear = nn.Linear(features, config.width, bias=not norm.has_shift)
        layers += [linear, norm.build(config.width, number), nn.ReLU(inplace=True)]
        features = config.width
    model = nn.Sequential(*layers, nn.Linear(features, classes))
    return model if norm.sets_scale else _initialize(model, norm)


class _Residual(nn.Module):
    """Two conv3×3-norm around a shortcut without parameters (option A of He et al. 2015, section 4.2).

    Where no norm sets the scale, the convolutions' sum is multiplied by a weight that starts at 0 (SkipInit, De & Smith
    2020): the variance does not double with each block, and a block begins as its shortcut.
    """

    def __init__(self, norm: NormBuilder, channels: int, width: int) -> None:
        super().__init__()
        self.added = width - channels
        self.conv1, self.bn1 = _conv(norm, channels, width, stride=2 if self.added else 1)
        self.conv2, self.bn2 = _conv(norm, width, width, number=2)
        self.weight = None if norm.sets_scale else nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        # In place: less memory, and fewer passes over it.
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.weight is not None:
            out = out * self.weight
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))
        return F.relu(out.add_(x), inplace=True)


def _resnet(config: Layered, norm: NormBuilder, channels: int, image_size: int, classes: int) -> nn.Module:
    """ResNet of 6n+2 layers for small images (He et al. 2015, section 4.2): three stages of n blocks."""
    width = config.width
    layers: list[nn.Module] = [*_conv(norm, channels, width), nn.ReLU(inplace=True)]
    for stage in range(3):
        for _ in range((config.depth - 2) // 6):
            layers.append(_Residual(norm, width, config.width * 2**stage))
            width = config.width * 2**stage
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return _initialize(model, norm)


def _conv(
    norm: NormBuilder, channels: int, width: int, stride: int = 1, number: int = 1
) -> tuple[nn.Module, nn.Module]:
    """A 3×3 convolution and the norm of this number; where that adds no shift, it has a bias."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=not norm.has_shift)
    return conv, norm.build(width, number)


def _initialize(model: nn.Module, norm: NormBuilder) -> nn.Module:
    """Draw the convolutions' weights after He et al. (2015); where no norm sets the scale, the linear layers' too.

    Biases are 0 there. A norm makes up for the scale of the weights before it. Without one it has to be right in every
    layer.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (not norm.sets_scale and isinstance(module, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _torchvision_model(name: str, channels: int, classes: int) -> nn.Module:
    # With auxiliary heads these two return a tuple in train mode.
    single_output = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision().models.get_model(name, weights=None, num_classes=classes, **single_output)
    if channels == 1:
        # Kernels summed over the colours: the same as showing the grey image in all three.
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
        first.in_channels = 1
    return model


def _own_model(config: OwnModel, channels: int, image_size: int, classes: int) -> nn.Module:
    make = import_object(config.name)
    try:
        model = make(channels, image_size, classes, **find_arguments(config, OwnModel))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model={config.name}: {where_raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model={config.name}: has to give a torch.nn.Module, found a {type(model).__name__}")
    _require_built(config.name, model)
    return model


def _require_built(path: str, model: nn.Module) -> None:
    """UserError for layers that take their sizes from the first images."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = dict.fromkeys(name.rpartition(".")[0] for name, tensor in tensors.items() if is_lazy(tensor))
    if lazy:
        names = ", ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in lazy)
        raise UserError(
            f"model={path}: {names} have no sizes yet; give them, or return the model after "
            "model.eval()(torch.zeros(1, channels, image_size, image_size))"
        )


_Builder = Callable[[Any, NormBuilder, int, int, int], nn.Module]
_BUILDERS: dict[str, _Builder] = {"cnn": _cnn, "resnet": _resnet, "mlp": _mlp}
