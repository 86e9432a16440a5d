"""Breadth-first evaluation on architectures as they come: torchvision's, timm's, small ones with one hard thing each.

Two twins hold it. In float32 an ordinary hooked evaluation under the result has to see the result again. In float64 the
layer-by-layer strategy has to agree: in float32 it does so only to some 4e-4 of the variance, because the two pool in
another order, so that a buffer's last bit may differ (sums of float32 values often lie half way between two float32
numbers), and 50 to 150 layers that divide by their σ amplify this 2⁻²⁴ up to 7000-fold (levit_128s).
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnlab import Moments, Statistics, population_statistics, running_statistics, self_consistency
from bnlab.batches import call, copy_batch
from bnlab.exact.checking import MOST_CHECKED
from bnlab.exact.layouts import set_weights_channels_last
from bnlab.harness.artifacts.vision import torchvision
from bnlab.layers import batch_norm_layers
from bnlab.memory import LiveBytes
from tests import references
from tests.helpers import images, randomized, unchanged

slow = pytest.mark.slow

# A plain read of float32 values is off by up to some 1e-7 of |mean|, and it is shifted only past |mean| = 16 σ: 2e-6 σ.
SELF = 5e-6
TWIN = 1e-9  # 2⁻⁵³, amplified 10⁷-fold: more than any network here does, less than any mistake would make
FLOAT64 = 1e-3  # float32 against float64: every operation rounds, not only the buffers; 2⁻²⁴ amplified 10⁴-fold


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with batch norms away from their start, but so little that the deepest stays finite."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),  # zero_init_last would take the blocks out
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.8, 1.2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model


def difference(a: Statistics, b: Statistics) -> float:
    """The largest of the means in σ and of the variances relative, with σ² = var + eps, by which a layer divides.

    (Of a dead channel, whose variance is rounding noise, nothing is known to a share of that noise.)
    """
    assert list(a) == list(b) and a.unseen == b.unseen
    assert all(a[name].count == b[name].count for name in a)
    worst = 0.0
    for name, eps in a.eps.items():
        scale = b[name].var + eps
        mean, var = (a[name].mean - b[name].mean).abs() / scale.sqrt(), (a[name].var - b[name].var).abs() / scale
        worst = max(worst, float(mean.max()), float(var.max()))
    return worst


def double(batch: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.double, batch)


def examine(model: nn.Module, batches: Sequence[Any], small: Sequence[Any], **options: Any) -> Statistics:
    """The result on `batches`, after it has been held to both twins (layer by layer on the `small` ones)."""
    with unchanged(model):
        found = population_statistics(model, batches, **options)
    # In the memory layouts of that evaluation: others round otherwise, which depth amplifies.
    set_weights_channels_last(model, sys.maxsize)
    alike = [copy_batch(batch, torch.device("cpu"), channels_last=True) for batch in batches]
    with unchanged(model):
        mean, var = self_consistency(model, found, alike, **options)
    assert mean <= SELF and var <= SELF
    own = running_statistics(model)
    assert all(not torch.equal(found[name].mean, own[name].mean) for name in found)
    model.double()
    with unchanged(model):
        breadth, layerwise = (
            population_statistics(model, double(small), strategy=strategy, **options)
            for strategy in ("breadth", "layerwise")
        )
    assert difference(breadth, layerwise) <= TWIN
    assert found.unseen == breadth.unseen and set(found) == set(breadth)
    assert found.cost.passes == 1 and found.cost.forwards == len(batches)
    return found


# -- the zoo ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """side: of the images in float32; small: in float64. unseen: how the names of layers begin that no data reaches."""

    build: Callable[[], nn.Module]
    side: int = 64
    small: int = 32
    unseen: tuple[str, ...] = ()
    forward: Callable[[nn.Module, Any], Any] = call

    def model(self) -> nn.Module:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return lively(self.build())

    def check(self) -> Statistics:
        model = self.model()
        names = list(batch_norm_layers(model, caller="test"))
        batches = images(3, 2, 4, side=self.side) if self.side < 200 else images(2, 1, 1, side=self.side)
        found = examine(model, batches, images(3, 2, side=self.small), forward=self.forward)
        assert found.unseen == tuple(name for name in names if name.startswith(self.unseen or ("-",)))
        assert len(found) + len(found.unseen) == len(names) > 0
        return found


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = torchvision().models
        backbone = {"weights_backbone": None} if hasattr(models.segmentation, name) or "ssd" in name else {}
        return models.get_model(name, weights=None, **backbone, **({"num_classes": 5} | options))

    return build


def zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torchvision()  # timm imports it, which fails beside a CPU build of torch if it comes first
        timm = pytest.importorskip("timm")
        return timm.create_model(name, pretrained=False, **({"num_classes": 5} | options))

    return build


TORCHVISION = {
    name: Case(vision(name))
    for name in (
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
        "regnet_x_400mf",
        "regnet_y_400mf",
    )
} | {
    # The classifier's 100 million weights have nothing to do with it.
    "vgg11_bn": Case(lambda: vision("vgg11_bn")().features),
    "googlenet": Case(vision("googlenet", aux_logits=False, init_weights=True)),
    "googlenet with aux": Case(vision("googlenet", aux_logits=True, init_weights=True), unseen=("aux1.", "aux2.")),
    "inception_v3": Case(vision("inception_v3", init_weights=True), side=80, small=75, unseen=("AuxLogits.",)),
    # Segmentation models give dictionaries; their auxiliary heads run in eval mode too.
    "fcn_resnet50": Case(vision("fcn_resnet50", aux_loss=True)),
    "deeplabv3_mobilenet_v3_large": Case(vision("deeplabv3_mobilenet_v3_large", aux_loss=True)),
    "lraspp_mobilenet_v3_large": Case(vision("lraspp_mobilenet_v3_large")),
    "ssdlite's backbone": Case(
        vision("ssdlite320_mobilenet_v3_large"), unseen=("head.",), forward=lambda model, batch: model.backbone(batch)
    ),
}

TIMM = {
    name: Case(zoo(name))
    for name in (
        "resnet26d",
        "seresnet18",
        "resnext26ts",
        "efficientnet_lite0",
        "tf_efficientnet_b0",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "densenet121",
        "dla34",
        "hardcorenas_a",
        "regnety_002",
        "res2net50_14w_8s",
        "skresnet18",
        "ghostnet_050",
        "repvgg_a0",
        "fbnetc_100",
        "dpn68b",
        "cspresnet50",
        "hrnet_w18_small",
        "resnest14d",
        "mixnet_s",
        "rexnet_100",
        "selecsls42b",
        "fastvit_t8",
    )
} | {
    "levit_128s": Case(zoo("levit_128s"), side=224, small=224),  # keeps attention biases on itself in eval mode
    "resnet26d with checkpoints": Case(lambda: checkpointing(zoo("resnet26d")())),
    "features of regnetx_002": Case(zoo("regnetx_002", features_only=True, num_classes=1000)),
}


def checkpointing(model: Any) -> nn.Module:
    model.set_grad_checkpointing(True)
    return model


@slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    TORCHVISION[name].check()


@slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    TIMM[name].check()


@slow
def test_video() -> None:
    model = lively(torchvision().models.video.r2plus1d_18(num_classes=5))
    clips = [torch.stack(images(*[n] * 4, side=24, seed=n), dim=2) for n in (2, 1, 3)]
    assert clips[0].shape == (2, 3, 4, 24, 24)
    assert len(examine(model, clips, clips)) == 37


@slow
def test_no_batch_norm() -> None:
    for model, message in (
        (vision("squeezenet1_0")(), "no BatchNorm layer with running statistics in SqueezeNet$"),
        (vision("convnext_tiny")(), "no BatchNorm layer with running statistics in ConvNeXt$"),
    ):
        with unchanged(model), pytest.raises(ValueError, match=message):
            population_statistics(model, images(2, side=32))


# -- the same under less memory, in another layout, against float64 --------------------------------------------------

SEVERAL = {name: TORCHVISION[name] for name in ("resnet18", "densenet121", "mobilenet_v2", "googlenet")} | {
    name: TIMM[name] for name in ("seresnet18", "skresnet18", "ghostnet_050", "resnet26d with checkpoints")
}


@slow
@pytest.mark.parametrize("name", SEVERAL)
def test_a_third_of_the_memory(name: str) -> None:
    model, batches = SEVERAL[name].model().double(), double(images(*[2] * 6, 1, 2, 1, *[2] * 6, side=64))
    set_weights_channels_last(model, sys.maxsize)  # so that only activations are followed
    with LiveBytes() as unlimited:
        expected = population_statistics(model, batches)
    weights = sum(p.nbytes for p in model.parameters())  # copied, to be put back
    # Buffers set aside and copied to be put back; moments of all images, and of those that are looked at again.
    beside = 2 * sum(b.nbytes for b in model.buffers())
    beside += 2 * (1 + MOST_CHECKED) * sum(16 * m.mean.numel() for m in expected.values())
    limit = weights + beside + (unlimited.peak - weights) // 3
    with unchanged(model), LiveBytes() as live:
        found = population_statistics(model, batches, memory=limit)
    assert live.peak <= limit
    assert found.cost.forwards > len(batches) == expected.cost.forwards
    assert difference(found, expected) <= TWIN


@slow
@pytest.mark.parametrize("name", SEVERAL)
def test_channels_last(name: str) -> None:
    model, batches = SEVERAL[name].model(), images(3, 2, 4, side=64)
    expected = population_statistics(model, batches)
    model = model.to(memory_format=torch.channels_last)
    batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    with unchanged(model):
        found = population_statistics(model, batches)
    assert max(self_consistency(model, found, batches)) <= SELF
    assert difference(found, expected) <= FLOAT64


@slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "seresnet18"])
def test_against_the_full_batch_in_float64(name: str) -> None:
    case = (TORCHVISION | TIMM)[name]
    model, batches = case.model(), images(7, 4, 5, side=32)
    expected = references.full_batch_population(model, torch.cat(batches))
    for precision, tolerance in ((torch.float32, FLOAT64), (torch.float64, TWIN)):
        model, batches = model.to(precision), [batch.to(precision) for batch in batches]
        found = population_statistics(model, batches)
        assert list(found) == list(expected)
        reference = Statistics({name: Moments(*moments) for name, moments in expected.items()}, found.eps)
        assert difference(found, reference) <= tolerance


# -- small networks with one hard thing each -------------------------------------------------------------------------


def conv(inside: int, outside: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, **options), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class UShaped(nn.Module):
    """The way up reads what the way down has left; some layers see two resolutions' features at once."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 4), conv(4, 6), conv(6, 8)])
        self.up = nn.ModuleList([conv(14, 6), conv(10, 4)])

    def forward(self, x: Tensor) -> Tensor:
        left = []
        for block in self.down:
            left.append(x := block(x))
            x = nn.functional.max_pool2d(x, 2)
        x = left.pop()
        for block in self.up:
            x = block(torch.cat((nn.functional.interpolate(x, size=left[-1].shape[2:]), left.pop()), 1))
        return x


class Dense(nn.Module):
    """Norms of concatenations: every layer is seen again by all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(3 + 2 * i) for i in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(norm(torch.cat(features, 1)).relu()))
        return torch.cat(features, 1)


class MultiBranch(nn.Module):
    """Branches of unequal depth, registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = conv(9, 4)
        self.branches = nn.ModuleList([nn.Sequential(*[conv(3, 3) for _ in range(n)]) for n in (3, 1, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([branch(x) for branch in reversed(self.branches)], 1))


class SqueezeExcite(nn.Module):
    """A gate with a norm of its own, on one value for each image and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.tail = conv(3, 6), conv(6, 4)
        self.gate = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 6), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.tail(x * self.gate(x.mean((2, 3)))[:, :, None, None])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.both = conv(3, 4), nn.BatchNorm1d(5), nn.BatchNorm1d(9)

    def forward(self, image: Tensor, *, table: Tensor) -> dict[str, Tensor]:
        image = self.image(image).mean((2, 3))
        return {"both": self.both(torch.cat((image, self.table(input=table).relu()), 1))}


class StochasticDepth(nn.Module):
    """Skips blocks at random in training, and none of them in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(3, 3) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                x = x + block(x)
        return x


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, grad: bool) -> None:
        super().__init__()
        self.reentrant, self.grad = reentrant, grad
        self.blocks = nn.ModuleList([conv(3, 4), conv(4, 5), conv(5, 3)])

    def forward(self, x: Tensor) -> Any:
        with torch.set_grad_enabled(self.grad):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Gradients(nn.Module):
    """Takes a gradient in its forward, as energy-based and physics-informed networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.tail = nn.Sequential(conv(3, 4), nn.Conv2d(4, 1, 1)), conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).square().sum(), x)
        return self.tail(force)


class Dimensions(nn.Module):
    """BatchNorm3d, then 2d, then 1d on [N, C, L] and on [N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.two, self.one = nn.BatchNorm3d(3), nn.BatchNorm2d(3), nn.BatchNorm1d(3)
        self.last, self.scale = nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.three(x).relu().amax(2)).sin()
        return self.scale(self.last(self.one(x.amax(2)).relu().amax(2)).exp())


class Reparametrized(nn.Module):
    """Weights that are computed in the forward, in the new way and in the old one, which sets them as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 5)
        nn.utils.parametrizations.weight_norm(self.a[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(self.b[0])
            nn.utils.spectral_norm(self.c[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class KeepsInside(nn.Module):
    """Keeps a value of the batch in a container inside of a container, or on an object that is no module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4)
        self.kept = {
            "dictionary": {"x": {"y": None}},
            "list": [[None], None],
            "deque": deque([None], maxlen=1),
            "object": SimpleNamespace(x=SimpleNamespace(y=None)),
            "by device": defaultdict(OrderedDict),
        }[kind]

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        value, kept = x.mean((0, 2, 3), keepdim=True), self.kept
        if self.kind == "dictionary":
            kept["x"]["y"] = value
        elif self.kind == "list":
            kept[0][0] = value
        elif self.kind == "deque":
            kept.append(value)
        elif self.kind == "object":
            kept.x.y = value
        else:
            kept[x.device]["y"] = value
        x = self.b(x)
        value = {
            "dictionary": lambda: kept["x"]["y"],
            "list": lambda: kept[0][0],
            "deque": lambda: kept[-1],
            "object": lambda: kept.x.y,
            "by device": lambda: kept.pop(x.device)["y"],
        }[self.kind]()
        return self.c(x + value)


class Position:
    """A data set that the model knows too."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches, self.at = batches, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < len(self.batches):
            self.at += 1
            yield self.batches[self.at - 1]


def chain() -> nn.Sequential:
    return nn.Sequential(conv(3, 4), conv(4, 5), conv(5, 6))


def traced() -> nn.Module:
    return torch.fx.symbolic_trace(UShaped())


def synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(chain())


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d()
        )


def built() -> nn.Module:
    model = lazy()
    model(images(2)[0])
    return model


def compiled(*, inside: bool = False, in_place: bool = False, run: bool = False) -> nn.Module:
    model: nn.Module = chain()
    if in_place:
        model.compile(backend="eager")
    elif inside:
        model = nn.Sequential(conv(3, 3), torch.compile(model, backend="eager"))
    else:
        model = torch.compile(model, backend="eager")
    if run:
        model.eval()
        with torch.no_grad():
            model(images(3)[0])
    return model


def called_by_forward() -> nn.Module:
    """The last block is called past its hooks."""

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm = chain(), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm.forward(self.body(x))

    return Direct()


def pairs(*sizes: int) -> list[Any]:
    tables = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in sizes]
    return list(zip(images(*sizes, side=6), tables, strict=True))


def dictionaries(*sizes: int) -> list[Any]:
    return [{"table": t, "inputs": [{"image": x}], "label": torch.arange(len(x)), "id": "x"} for x, t in pairs(*sizes)]


class Small(NamedTuple):
    build: Callable[[], nn.Module]
    batches: Callable[..., Sequence[Any]] = images
    forward: Callable[[nn.Module, Any], Any] = call
    unseen: tuple[str, ...] = ()


KEPT = ("dictionary", "list", "deque", "object", "by device")
SMALL = {
    "U-shaped": Small(UShaped),
    "dense": Small(Dense),
    "several branches": Small(MultiBranch),
    "squeeze and excitation": Small(SqueezeExcite),
    "several inputs": Small(TwoInputs, pairs, lambda model, batch: model(batch[0], table=batch[1])),
    "dictionaries": Small(
        TwoInputs, dictionaries, lambda model, batch: model(batch["inputs"][0]["image"], table=batch["table"])
    ),
    "stochastic depth": Small(StochasticDepth),
    "checkpointed": Small(lambda: Checkpointed(reentrant=False, grad=False)),
    "checkpointed with grad": Small(lambda: Checkpointed(reentrant=False, grad=True)),
    "checkpointed, reentrant": Small(lambda: Checkpointed(reentrant=True, grad=False)),
    "checkpointed, reentrant, with grad": Small(lambda: Checkpointed(reentrant=True, grad=True)),
    "gradients": Small(Gradients),
    "reparametrized": Small(Reparametrized),
    "traced by fx": Small(traced),
    "all dimensions": Small(Dimensions, lambda *sizes: [torch.stack((x, x.cos(), -x), 2) for x in images(*sizes)]),
    "synchronized": Small(synchronized),
    "lazy, built": Small(built),
    **{f"keeps in: {kind}": Small(lambda kind=kind: KeepsInside(kind)) for kind in KEPT},
    "data parallel": Small(lambda: nn.DataParallel(chain())),
    "data parallel inside": Small(lambda: nn.Sequential(conv(3, 3), nn.DataParallel(chain()))),
    "compiled": Small(compiled),
    "compiled inside": Small(lambda: compiled(inside=True)),
    "compiled in place": Small(lambda: compiled(in_place=True)),
    "past the hooks": Small(called_by_forward, unseen=("norm",)),
}
COMPILED = {
    "compiled and run": Small(lambda: compiled(run=True)),
    "compiled inside and run": Small(lambda: compiled(inside=True, run=True)),
    "compiled in place and run": Small(lambda: compiled(in_place=True, run=True)),
}


QUICK = ("U-shaped", "dictionaries", "keeps in: object")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=slow) for n in SMALL | COMPILED])
def test_small(name: str) -> None:
    build, data, forward, unseen = (SMALL | COMPILED)[name]
    batches = data(7, 5, 3, 7)
    found = examine(randomized(build()), batches, batches, forward=forward)
    assert found.unseen == unseen


@slow
@pytest.mark.parametrize("name", SMALL)
def test_small_under_short_memory(name: str) -> None:
    build, data, forward, _ = SMALL[name]
    model, batches = randomized(build()).double(), double(data(*[4] * 12))
    with LiveBytes() as unlimited:
        expected = population_statistics(model, batches, forward=forward)
    with unchanged(model):
        found = population_statistics(model, batches, forward=forward, memory=unlimited.peak // 3)
    assert difference(found, expected) <= TWIN


def test_a_shared_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.tail = conv(3, 4), nn.Conv2d(4, 4, 3, padding=1), conv(4, 5)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(3):
                x = x + self.norm(self.conv(x)).relu()
            return self.tail(x)

    model, batches = randomized(Shared()), images(7, 5, 3, 7)
    with unchanged(model):
        found = population_statistics(model, batches)
    assert found.cost.passes > 1 and found["norm"].count == 3 * found["stem.1"].count
    assert max(self_consistency(model, found, batches)) <= SELF
    with unchanged(model), pytest.raises(ValueError, match=r"'norm' is reached several times .*strategy='breadth'"):
        population_statistics(model, batches, strategy="layerwise")


def test_a_data_set_that_the_model_holds() -> None:
    model, batches = randomized(KeepsInside("object")), images(7, 5, 3, 7)
    expected = population_statistics(model, batches)
    model.data = Position(batches)  # type: ignore[assignment]
    assert difference(population_statistics(model, model.data), expected) == 0  # type: ignore[arg-type]
    assert model.data.at == 4


class Extractor:
    """Takes a layer's output, as the feature extractors of many tutorials do."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.kept["x"] = output

    __call__ = take

    def __getitem__(self, name: str) -> Tensor:
        return self.kept[name]


FEATURES: dict[str, Tensor] = {}


def extraction(kind: str) -> tuple[Callable[..., None], Callable[[], Tensor]]:
    """A hook that keeps an output outside of the model, and how to get that."""
    extractor, kept, last = Extractor(), dict[str, Tensor](), torch.zeros(1)

    def closure(module: nn.Module, args: object, output: Tensor) -> None:
        kept["x"] = output

    def default(module: nn.Module, args: object, output: Tensor, kept: dict[str, Tensor] = kept) -> None:
        kept["x"] = output

    def named(module: nn.Module, args: object, output: Tensor) -> None:
        FEATURES["x"] = output

    def rebound(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal last
        last = output

    def attribute(module: nn.Module, args: object, output: Tensor) -> None:
        attribute.x = output  # type: ignore[attr-defined]

    def put(kept: dict[str, Tensor], module: nn.Module, args: object, output: Tensor) -> None:
        kept["x"] = output

    return {
        "closure": (closure, lambda: kept["x"]),
        "decorated": (torch.no_grad()(closure), lambda: kept["x"]),
        "partial": (functools.partial(put, kept), lambda: kept["x"]),
        "default argument": (default, lambda: kept["x"]),
        "global": (named, lambda: FEATURES["x"]),
        "rebound": (rebound, lambda: last),
        "attribute": (attribute, lambda: attribute.x),  # type: ignore[attr-defined]
        "method": (extractor.take, lambda: extractor["x"]),
        "object": (extractor, lambda: extractor["x"]),
    }[kind]


KINDS = ["closure", "decorated", "partial", "default argument", "global", "rebound", "attribute", "method", "object"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_a_hook_keeps_outside_of_the_model(kind: str) -> None:
    model, (hook, kept) = randomized(chain()), extraction(kind)
    model[0].register_forward_hook(hook)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model[1](model[0](x))
        return model[2](x + kept().mean())

    batches = images(7, 5, 3, 7)
    found = population_statistics(model, batches, forward=forward)
    assert max(self_consistency(model, found, batches, forward=forward)) <= SELF


def test_a_list_that_a_hook_and_the_callers_batches_share() -> None:
    model, todo, left = randomized(chain()), images(7, 5, 3), list[int]()
    expected = population_statistics(model, todo[::-1])
    model[0].register_forward_hook(lambda module, args, output: left.append(len(todo)))

    def taking() -> Iterator[Tensor]:
        while todo:
            yield todo.pop()

    assert difference(population_statistics(model, taking()), expected) == 0
    assert not todo and not left


def test_memory_of_what_a_model_keeps() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), conv(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.conv(x)
            return self.last(self.bn(self.kept))

    batches = images(*[8] * 40, side=16)
    with LiveBytes() as live:
        population_statistics(Keeping(), batches, memory=1_000_000)
    assert live.peak <= 1_000_000


@pytest.mark.parametrize("errors", [False, True])
def test_memory_of_moments(errors: bool) -> None:
    model, batches = nn.Sequential(nn.Linear(10, 512), nn.BatchNorm1d(512)), [torch.randn(16, 10) for _ in range(60)]
    limit = 9_000_000 if errors else 2_000_000
    with LiveBytes() as live:
        population_statistics(model, batches, memory=limit, standard_errors=errors)
    assert live.peak <= limit


def test_sparse_images() -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_dense()

    model, batches = randomized(nn.Sequential(Dense(), *chain())), images(4, 3)
    found = population_statistics(model, [x.to_sparse() for x in batches])
    assert (
        difference(found, population_statistics(model, [x.to_sparse() for x in batches], strategy="layerwise")) < SELF
    )


@slow
def test_a_decoder_on_features_of_hooks() -> None:
    """timm's feature hooks keep outputs by device on an object of their own."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"features_only": True, "feature_location": "expansion", "out_indices": (1, 2)}
            self.encoder: Any = zoo("mobilenetv3_small_050", num_classes=1000, **options)()
            assert hasattr(self.encoder, "feature_hooks")
            self.head = conv(sum(self.encoder.feature_info.channels()), 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([nn.functional.adaptive_avg_pool2d(y, 4) for y in self.encoder(x)], 1))

    examine(lively(Decoder()), images(3, 2, 4, side=64), images(3, 2, side=32))


def test_a_lazy_layer_that_is_not_built() -> None:
    model = lazy()
    with pytest.raises(ValueError, match="layer '0' is lazy and not built yet; run one forward pass first"):
        population_statistics(model, images(3))
