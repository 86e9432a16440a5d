"""Small models of every kind that people measure, each with a batch or more, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from tests.helpers import images, plain, randomized, residual


@dataclass
class Case:
    """A model, its batches, how it is called, and a word of the warning that is expected."""

    model: nn.Module
    batches: list[Any]
    forward: Callable[[nn.Module, Any], Any] | None = None
    warns: str = ""


class Net(nn.Module):
    """Parts by name, and a function of them and of the input."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)
        randomized(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(inside: int, outside: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, **options), nn.BatchNorm2d(outside), nn.ReLU())


class OwnForward(nn.BatchNorm2d):
    """Norm and activation in one, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training or self.running_mean is None,
            momentum=0.0 if self.momentum is None else self.momentum,
            eps=self.eps,
        )
        return F.relu(x)


class Pair(NamedTuple):
    image: Tensor
    scale: Tensor


def _skip_connection(net: Any, x: Tensor) -> Tensor:
    net.skip = net.a(x)  # state between layers
    y = net.b(net.skip)
    return net.c(torch.cat((net.skip, y), 1))


def _kept_features(net: Any, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    return net.c(y + net.a.kept)


def _make_kept_features() -> nn.Module:
    net = Net(_kept_features, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4))
    net.get_submodule("a").register_forward_hook(lambda module, args, output: setattr(module, "kept", output))
    return net


def _count_calls(net: Any, x: Tensor) -> Tensor:
    net.calls = net.calls + 1  # another tensor in a buffer's place
    net.sum += x.mean()
    return net.a(x)


def _make_counting() -> nn.Module:
    net = Net(_count_calls, a=plain())
    net.register_buffer("calls", torch.zeros(()))
    net.register_buffer("sum", torch.zeros(()))
    return net


def _loop(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    for _ in range(3):
        x = x + 0.3 * net.again(x)
    return x


def _by_content(net: Any, x: Tensor) -> Tensor:
    """Dark batches go past a part, and meet the others in another order."""
    x = net.first(x)
    return net.a(net.b(x)) if x.mean() < 0.9 else net.b(net.a(net.c(x)))


def _under_autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
        return net.a(x.float() if x.dtype == torch.float32 else x)


def _other_weights(net: Any, x: Tensor) -> Any:
    weights = {name: 2 * value for name, value in net.a.named_parameters()}
    return functional_call(net.a, weights, (x,))


def _in_place(net: Any, x: Tensor) -> Any:
    return net.a(x.mul_(2).add_(1))


def _inference_mode(net: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return net.a(x)


def make_cases() -> dict[str, Case]:
    data = images(8, 8, 5)
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    text = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
    sound = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5))
    solid = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    deep = nn.Sequential(conv(3, 4, groups=1), conv(4, 4, groups=4), conv(4, 6))
    frozen = plain()
    frozen[1].eval().requires_grad_(False)
    ignored = Net(lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=conv(4, 4), unused=nn.BatchNorm2d(3))
    return {
        "sequential": Case(plain(), data),
        "residual": Case(residual(), data),
        "in train mode": Case(residual().train(), data),
        "partly frozen": Case(frozen, data),
        "branches": Case(Net(lambda n, x: torch.cat((n.a(x), n.b(x)), 1), a=conv(3, 4), b=conv(3, 5)), data),
        "concatenation": Case(Net(lambda n, x: n.b(torch.cat((x, n.a(x)), 1)), a=conv(3, 4), b=conv(7, 5)), data),
        "squeeze-excitation": Case(
            Net(lambda n, x: n.b(n.a(x) * n.s(n.a(x))), a=conv(3, 4), b=conv(4, 4), s=squeeze), data
        ),
        "depthwise": Case(randomized(deep), data),
        "features": Case(randomized(text), [torch.randn(n, 6) + n for n in (9, 7)]),
        "sound": Case(randomized(sound), [torch.randn(n, 3, 12) for n in (9, 7)]),
        "volumes": Case(randomized(solid), [torch.randn(n, 2, 5, 5, 5) for n in (4, 7)]),
        "several sizes": Case(plain(), [*images(4, 4, side=8), *images(4, 6, side=12)]),
        "one batch": Case(residual(), data[:1]),
        "single images": Case(residual(), images(1, 1, 1, 1)),
        "not affine": Case(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, momentum=None)), data),
        "labelled": Case(plain(), [(x, torch.zeros(len(x))) for x in data]),
        "dictionaries": Case(plain(), [{"x": x} for x in data], lambda model, batch: model(batch["x"])),
        "named tuples": Case(
            plain(), [Pair(x, x[:, :1]) for x in data], lambda model, b: model(b.image * b.scale.sign())
        ),
        "keywords": Case(Net(lambda n, x: n.b(input=n.c(x)), c=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4)), data),
        "own forward": Case(Net(lambda n, x: n.b(n.c(x)), c=nn.Conv2d(3, 4, 1), b=OwnForward(4)), data),
        "synchronized": Case(nn.SyncBatchNorm.convert_sync_batchnorm(residual()), data),
        "data parallel": Case(nn.DataParallel(residual()), data),
        "strides": Case(
            Net(lambda n, x: n.b(n.l(n.a(x).view(len(x), -1))), a=conv(3, 4), l=nn.Linear(256, 5), b=nn.BatchNorm1d(5)),
            data,
        ),
        "checkpointed": Case(Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False), a=plain()), data),
        "parametrized": Case(nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), conv(4, 4)), data),
        "writes its input": Case(Net(_in_place, a=plain()), data),
        "writes buffers": Case(_make_counting(), data),
        "not reached": Case(ignored, data),
        "siamese": Case(Net(lambda n, x: n.a(x) - n.a(1 - 2 * x), a=residual()), data),
        "in a loop": Case(Net(_loop, first=conv(3, 4), again=conv(4, 4)), data),
        "by content": Case(Net(_by_content, first=conv(3, 4), a=conv(4, 4), b=conv(4, 4), c=conv(4, 4)), data),
        "other weights": Case(Net(_other_weights, a=plain()), data, warns="layer by layer"),
        "compiled": Case(torch.compile(residual(), backend="eager"), data),  # type: ignore[arg-type]
        "state between layers": Case(Net(_skip_connection, a=conv(3, 4), b=conv(4, 4), c=conv(8, 4)), data),
        "features in a hook": Case(_make_kept_features(), data, warns="layer by layer"),
        "autocast": Case(Net(_under_autocast, a=plain()), data),
        "inference mode": Case(Net(_inference_mode, a=plain()), data, warns="setting of torch's"),
    }
