"""Small models of every kind that people measure, each with a batch or more, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.helpers import images, plain, randomized, residual


@dataclass
class Case:
    """A model, its batches, how it is called, a word of the warning that is expected, and how many images there are."""

    model: nn.Module
    batches: list[Any]
    forward: Callable[[nn.Module, Any], Any] | None = None
    warns: str = ""
    images: int | None = None


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


@dataclass(frozen=True)
class Batch:
    x: Tensor
    y: Tensor


def _skip_connection(net: Any, x: Tensor) -> Tensor:
    net.skip = net.a(x)  # state between layers
    y = net.b(net.skip)
    return net.c(torch.cat((net.skip, y), 1))


def _kept_features(net: Any, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    return net.c(y + net.a.kept)


def make_kept_features() -> nn.Module:
    """A network whose forward reads what a hook has kept, of whichever batch came last."""
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
    is_dark = x.mean() < 0.3
    x = net.first(x)
    return net.a(x + 0.3 * net.b(x)) if is_dark else net.b(x + 0.3 * net.a(net.c(x)))


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


def _move_a_queue(net: Any, x: Tensor) -> None:
    """The queue's place moves with each batch; a few images leave a place where all do not fit."""
    rows = net.a(x.repeat_interleave(2, 0)).mean((2, 3))[::2]
    place = int(net.place)
    net.queue[place : place + len(x)] = rows
    net.place[0] = (place + len(x)) % 32


def _make_queue() -> nn.Module:
    net = Net(_move_a_queue, a=OwnForward(3))
    net.register_buffer("queue", torch.zeros(32, 3))
    net.register_buffer("place", torch.zeros(1, dtype=torch.long))
    return net


def _observe(net: Any, x: Tensor) -> Tensor:
    """As observers of quantization: a buffer gets its size in the first forward."""
    if not net.least.numel():
        net.least.resize_(3)
    net.least.copy_(x.amin((0, 2, 3)))
    return net.a(x)


def _make_observed() -> nn.Module:
    net = Net(_observe, a=plain())
    net.register_buffer("least", torch.tensor([]))
    return net


def _choose_by_pixel(net: Any, x: Tensor) -> Tensor:
    y = net.a(x) if x[0, 0, 0, 0] > 0 else net.b(x)
    return net.c(y * x)


def _leave_early(net: Any, x: Tensor) -> Tensor:
    """Small batches do without a block."""
    x = net.a(x)
    if len(x) > 6:
        x = net.b(x)
    return net.c(x)


def _choose_by_kind(net: Any, x: Tensor, kind: Tensor) -> list[Tensor]:
    return [norm(x[kind == number]) for number, norm in enumerate((net.a, net.b))]


def _send(net: Any, nodes: Tensor, edges: Tensor) -> Tensor:
    assert int(edges.max()) < len(nodes)
    return net.b(net.a(nodes)[edges[0]])


class Domains(nn.Module):
    """A layer for each domain, which is set beside the forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for _ in "ab")
        self.domain = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.domain](x)


def _set_domain(model: nn.Module, batch: Any) -> Any:
    for module in model.modules():
        if isinstance(module, Domains):
            module.domain = batch[1]
    return model(batch[0])


def _call_with_all(model: nn.Module, batch: Any) -> Any:
    return model(*batch)


def _write_into_object(model: nn.Module, batch: Batch) -> Any:
    return model(batch.x.sub_(1))


def _call_with_views(model: nn.Module, batch: Any) -> list[Any]:
    return [model(view) for view in batch[0]]


def _make_averaged_call() -> Callable[[nn.Module, Any], Any]:
    """With a moving average of the weights, say."""
    averaged = {name: 1.5 * value.detach() for name, value in plain().named_parameters()}

    def call(model: nn.Module, batch: Tensor) -> Any:
        weights = {name: value.to(batch.dtype) for name, value in averaged.items()}
        return functional_call(model, weights, (batch,))

    return call


def _draw() -> list[Tensor]:
    return images(8, 8, 5)


def _make_routed() -> list[Tensor]:
    routed = images(2, 2, 2, 2, 2)
    for index, batch in enumerate(routed):
        batch[0, 0, 0, 0] = -1.0 if index in (0, 3) else 1.0
    return routed


def _make_frozen() -> nn.Module:
    frozen = plain()
    frozen[1].eval().requires_grad_(False)
    return frozen


def _make_domains() -> nn.Module:
    return randomized(nn.Sequential(nn.Conv2d(3, 8, 3), Domains(8), nn.ReLU(), nn.Conv2d(8, 8, 3), Domains(8)))


def _make_text() -> nn.Module:
    text = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4))
    return randomized(text)


def _make_sound() -> nn.Module:
    sound = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5))
    return randomized(sound)


def _make_solid() -> nn.Module:
    solid = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    return randomized(solid)


CASES: dict[str, Callable[[], Case]] = {
    "sequential": lambda: Case(plain(), _draw()),
    "residual": lambda: Case(residual(), _draw()),
    "in train mode": lambda: Case(residual().train(), _draw()),
    "partly frozen": lambda: Case(_make_frozen(), _draw()),
    "branches": lambda: Case(Net(lambda n, x: torch.cat((n.a(x), n.b(x)), 1), a=conv(3, 4), b=conv(3, 5)), _draw()),
    "concatenation": lambda: Case(
        Net(lambda n, x: n.b(torch.cat((x, n.a(x)), 1)), a=conv(3, 4), b=conv(7, 5)), _draw()
    ),
    "depthwise": lambda: Case(
        randomized(nn.Sequential(conv(3, 4, groups=1), conv(4, 4, groups=4), conv(4, 6))), _draw()
    ),
    "features": lambda: Case(_make_text(), [torch.randn(n, 6) + n for n in (9, 7)]),
    "sound": lambda: Case(_make_sound(), [torch.randn(n, 3, 12) for n in (9, 7)]),
    "volumes": lambda: Case(_make_solid(), [torch.randn(n, 2, 5, 5, 5) for n in (4, 7)]),
    "several sizes": lambda: Case(plain(), [*images(4, 4, side=8), *images(4, 6, side=12)]),
    "single images": lambda: Case(residual(), images(1, 1, 1, 1)),
    "not affine": lambda: Case(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, momentum=None)), _draw()
    ),
    "labelled": lambda: Case(plain(), [(x, torch.zeros(len(x))) for x in _draw()]),
    "dictionaries": lambda: Case(plain(), [{"x": x} for x in _draw()], lambda model, batch: model(batch["x"])),
    "named tuples": lambda: Case(
        plain(), [Pair(x, x[:, :1]) for x in _draw()], lambda model, b: model(b.image * b.scale.sign())
    ),
    "keywords": lambda: Case(Net(lambda n, x: n.b(input=n.c(x)), c=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4)), _draw()),
    "own forward": lambda: Case(Net(lambda n, x: n.b(n.c(x)), c=nn.Conv2d(3, 4, 1), b=OwnForward(4)), _draw()),
    "synchronized": lambda: Case(nn.SyncBatchNorm.convert_sync_batchnorm(residual()), _draw()),
    "data parallel": lambda: Case(nn.DataParallel(residual()), _draw()),
    "checkpointed": lambda: Case(Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False), a=plain()), _draw()),
    "writes its input": lambda: Case(Net(_in_place, a=plain()), _draw()),
    "writes buffers": lambda: Case(_make_counting(), _draw()),
    "not reached": lambda: Case(
        Net(lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=conv(4, 4), unused=nn.BatchNorm2d(3)), _draw()
    ),
    "siamese": lambda: Case(Net(lambda n, x: n.a(x) - n.a(1 - 2 * x), a=plain()), _draw()),
    "in a loop": lambda: Case(Net(_loop, first=conv(3, 4), again=conv(4, 4)), _draw()),
    "by content": lambda: Case(Net(_by_content, first=conv(3, 4), a=conv(4, 4), b=conv(4, 4), c=conv(4, 4)), _draw()),
    "other weights": lambda: Case(Net(_other_weights, a=plain()), _draw(), warns="layer by layer"),
    "compiled": lambda: Case(torch.compile(residual(), backend="eager"), _draw()),  # type: ignore[arg-type]
    "state between layers": lambda: Case(Net(_skip_connection, a=conv(3, 4), b=conv(4, 4), c=conv(8, 4)), _draw()),
    "features in a hook": lambda: Case(make_kept_features(), _draw(), warns="layer by layer"),
    "autocast": lambda: Case(Net(_under_autocast, a=plain()), _draw()),
    "inference mode": lambda: Case(Net(_inference_mode, a=plain()), _draw()),
    # Batches of other kinds than images, and those that take a way of their own through the model
    "rows of kinds": lambda: Case(
        Net(_choose_by_kind, a=nn.BatchNorm1d(3), b=nn.BatchNorm1d(3)),
        [(torch.randn(50, 3), (torch.rand(50) < share).long()) for share in (0.3, 0.0, 0.1)],
        _call_with_all,
        images=150,
    ),
    "graphs": lambda: Case(
        Net(_send, a=nn.Linear(3, 4), b=nn.BatchNorm1d(4)),
        [(torch.randn(100, 3), torch.randint(0, 100, (2, 300))) for _ in range(3)],
        _call_with_all,
        images=300,
    ),
    "lists of images": lambda: Case(
        Net(lambda n, x: [n.a(image[None]) for image in x], a=nn.BatchNorm2d(3)),
        [([torch.randn(3, 9, 9) for _ in range(8)], None) for _ in range(4)],
        images=32,
    ),
    "objects": lambda: Case(plain(), [Batch(x, torch.zeros(len(x))) for x in _draw()], _write_into_object, images=21),
    "two views": lambda: Case(
        nn.Sequential(nn.BatchNorm1d(3)),
        [([torch.randn(16, 3, 10), torch.randn(16, 3, 10)], torch.zeros(16)) for _ in range(4)],
        _call_with_views,
        images=64,
    ),
    "frames far from zero": lambda: Case(
        Net(lambda n, x: n.a(x.flatten(0, 1)), a=nn.BatchNorm2d(3)),
        [torch.randn(8, 5, 3, 8, 8) + 30_000 for _ in range(3)],
    ),
    "averaged weights": lambda: Case(plain(), _draw(), _make_averaged_call()),
    "queue": lambda: Case(_make_queue(), [torch.randn(32, 3, 4, 4)] * 2, images=64),
    "observed": lambda: Case(_make_observed(), _draw()),
    "routes": lambda: Case(Net(_choose_by_pixel, **{name: nn.BatchNorm2d(3) for name in "abc"}), _make_routed()),
    "exits": lambda: Case(Net(_leave_early, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4)), images(8, 4, 8, 4, 4)),
    "domains": lambda: Case(
        _make_domains(),
        [(torch.randn(16, 3, 10, 10) + 4 * domain, domain) for domain in (0, 0, 1, 0, 1, 1, 0)],
        _set_domain,
    ),
}
"""What makes each model with its batches, by name."""
