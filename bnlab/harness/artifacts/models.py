"""Networks by name: a small conv net, CIFAR ResNets, an MLP, and torchvision's classifiers."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.harness.artifacts import norms
from bnlab.harness.artifacts.norms import NormConfig, Norms
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError
from bnlab.memory import memory_limit

_DEEPEST = 1000  # deeper ones only fail later, after minutes of building
_COPIES = 4  # of all parameters that training holds: themselves, gradients, and an optimizer's two


@dataclass
class ModelConfig:
    """Which network; torchvision's names have their own depth and width and read `name` only."""

    name: str = "cnn"  # cnn, resnet, mlp, or a classifier of torchvision.models
    depth: int = 3  # cnn: conv-BN-ReLU blocks; resnet: 6n+2 layers; mlp: hidden layers
    width: int = 32  # channels of the first block; mlp: hidden units
    pool_every: int = 1  # cnn: pool and double the width after so many blocks, while 4 pixels are left


def check(config: ModelConfig, norm: NormConfig) -> None:
    """Raise UserError for an unknown name, a value out of range or a norm that the network cannot have."""
    norms.check(norm)
    if config.name not in _OWN:
        own = ", ".join(_OWN)
        if config.name not in torchvision().models.list_models(module=torchvision().models):
            raise UserError(
                f"model.name={config.name}: unknown; use {own} or a torchvision classifier such as resnet18"
            )
    for key in ("depth", "width", "pool_every"):
        if getattr(config, key) < 1:
            raise UserError(f"model.{key}={getattr(config, key)}: must be 1 or more")
    if config.depth > _DEEPEST:
        raise UserError(f"model.depth={config.depth}: must be {_DEEPEST:,} or less")
    if config.name == "resnet" and (config.depth < 8 or config.depth % 6 != 2):
        raise UserError(f"model.depth={config.depth}: a resnet has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110")
    _check_norm(config, norm)


def _check_norm(config: ModelConfig, norm: NormConfig) -> None:
    if config.name not in _OWN:
        for key, value, usual in (("name", norm.name, "batch"), ("every_second", norm.every_second, "none")):
            if value != usual:
                own = ", ".join(_OWN)
                raise UserError(f"norm.{key}={value}: {config.name} has normalization of its own; use model.name={own}")
        return
    if config.name == "mlp" and norm.name in ("instance", "gain_control"):
        raise UserError(f"norm.name={norm.name}: a unit of an mlp has one value, not a map; use model=cnn or resnet")
    groups = {"layer": 1}.get(norm.name, norm.groups if "groups" in norms.training_settings(norm) else None)
    if groups is None:
        return
    if config.width % groups:
        raise UserError(
            f"norm.groups={groups}: must divide the channels; the first block has model.width={config.width}"
        )
    if config.name == "mlp" and config.width == groups:
        raise UserError(
            f"model.width={groups}: {groups} group{'s' * (groups > 1)} of one unit, which has no variance; take more "
            f"units, or fewer groups (norm.name={norm.name})"
        )


def training_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings that this network reads."""
    return {key: getattr(config, key) for key in ("name", *_READ.get(config.name, ()))}


def build_model(
    config: ModelConfig,
    norm: NormConfig | None = None,
    *,
    channels: int,
    image_size: int,
    classes: int,
    seed: int,
    steps: int = 1,
) -> nn.Module:
    """The network for images [N, channels, image_size, image_size], in channels_last and train mode.

    Without `norm` it has batch norm. The weights depend on `seed` alone; the caller's random state is left as it was.
    `steps` are the updates of its training, for norms that change over it. Raises UserError as `check` does, and if the
    network cannot take images of this size.
    """
    norm = norm or NormConfig()
    check(config, norm)
    layers = Norms(norm, of_images=config.name != "mlp", steps=steps)
    if config.name in _OWN:
        _require_memory(config, layers, channels, image_size, classes)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        if config.name in _OWN:
            model = _OWN[config.name](config, layers, channels, image_size, classes)
        else:
            model = _torchvision_model(config.name, channels, classes)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
        name = f"model.name={config.name}" + (f", norm.name={norm.name}" if norm.name != "batch" else "")
        _try_forward(model, name, (2, channels, image_size, image_size))
    return model


def _require_memory(config: ModelConfig, norm: Norms, channels: int, image_size: int, classes: int) -> None:
    with torch.device("meta"):
        try:
            model = _OWN[config.name](config, norm, channels, image_size, classes)
            needed = _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
        except (RuntimeError, TypeError, OverflowError):  # a size that overflows
            needed = 2**63
    free = memory_limit(None, torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"model.width={config.width}: training it needs {needed / 1e9:,.0f} GB of memory for its parameters "
            f"(model.depth={config.depth}, images of {image_size} pixels), {free / 1e9:,.0f} GB can be used; take less"
        )


def _try_forward(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(shape).contiguous(memory_format=torch.channels_last))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: cannot take {shape[1]}×{shape[2]}×{shape[3]} images ({reason}); "
            "use a smaller network or larger images"
        ) from error
    model.train()


def _cnn(config: ModelConfig, norm: Norms, channels: int, image_size: int, classes: int) -> nn.Module:
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


def _mlp(config: ModelConfig, norm: Norms, channels: int, image_size: int, classes: int) -> nn.Module:
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

    def __init__(self, norm: Norms, channels: int, width: int) -> None:
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


def _resnet(config: ModelConfig, norm: Norms, channels: int, image_size: int, classes: int) -> nn.Module:
    """ResNet of 6n+2 layers for small images (He et al. 2015, section 4.2): three stages of n blocks."""
    width = config.width
    layers: list[nn.Module] = [*_conv(norm, channels, width), nn.ReLU(inplace=True)]
    for stage in range(3):
        for _ in range((config.depth - 2) // 6):
            layers.append(_Residual(norm, width, config.width * 2**stage))
            width = config.width * 2**stage
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return _initialize(model, norm)


def _conv(norm: Norms, channels: int, width: int, stride: int = 1, number: int = 1) -> tuple[nn.Module, nn.Module]:
    """A 3×3 convolution and the norm of this number; where that adds no shift, it has a bias."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=not norm.has_shift)
    return conv, norm.build(width, number)


def _initialize(model: nn.Module, norm: Norms) -> nn.Module:
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


_OWN = {"cnn": _cnn, "resnet": _resnet, "mlp": _mlp}
_READ = {"cnn": ("depth", "width", "pool_every"), "resnet": ("depth", "width"), "mlp": ("depth", "width")}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what a file has of a network; RuntimeError if it is another one's."""
    state = OrderedDict(tensors)
    # Versions of the modules' formats, which files do not keep: a network that is made here has the newest.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)
