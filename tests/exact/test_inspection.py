"""What a measurement cannot see is said: layers past their hooks, layers that depend on their batch, shared state."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import Statistics, population_statistics, running_statistics, self_consistency
from tests.helpers import FrozenNorm, OwnNorm, images, plain, randomized, residual, unchanged

STRATEGIES = ("breadth", "layerwise")


def measured(model: nn.Module, batches: Any, **options: Any) -> tuple[Statistics, str]:
    """The result and the text of its one warning, empty if there is none."""
    with warnings.catch_warnings(record=True) as caught, unchanged(model):
        warnings.simplefilter("always")
        found = population_statistics(model, batches, **options)
    told = [warning for warning in caught if warning.category is RuntimeWarning]
    assert len(told) <= 1
    assert not told or told[0].filename.endswith("test_inspection.py"), "the caller's own line is named"
    return found, str(told[0].message) if told else ""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("build", [plain, residual])
def test_nothing_is_said_where_nothing_is_wrong(build: Any, strategy: str) -> None:
    found, told = measured(build(), images(5, 4), strategy=strategy)
    assert told == "" and found.check.held
    assert found.check.mean < 1e-5 and found.check.var < 1e-5 and found.check.layer is None
    assert re.fullmatch(r"Statistics\(\d layers; \d+ channels; 9 images; check held\)", repr(found))


def test_no_check_is_claimed_where_nothing_was_compared() -> None:
    """Layers see other inputs in an evaluation than where each batch is normalized with its own statistics."""
    found, told = measured(residual(), images(4, 3), upstream="batch")
    assert told == "" and found.check.compared == 0
    assert re.fullmatch(r"Statistics\(\d layers; \d+ channels; 7 images\)", repr(found))
    assert measured(residual(), images(4, 3))[0].check.compared == 2 * len(found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_in_a_wrapper_is_checked_too(strategy: str) -> None:
    found, told = measured(nn.DataParallel(plain()), images(4, 3), strategy=strategy)
    assert told == "" and found.check.compared == len(found) * (1 if strategy == "layerwise" else 2)
    found, told = measured(nn.DataParallel(Bypassing("forward")), images(4, 3), strategy=strategy)
    assert "layer 'module.b': called past its hooks" in told and found.check.bypassed == ("module.b",)


class Bypassing(nn.Module):
    """The second of three layers is called past its hooks."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        x, b = self.a(x).relu(), self.b
        if self.how == "forward":
            x = b.forward(x)
        elif self.how == "functional":
            x = F.batch_norm(x, b.running_mean, b.running_var, b.weight, b.bias, training=b.training, eps=b.eps)
        elif self.how == "copies":
            mean, var, weight, bias = (t.clone() for t in (b.running_mean, b.running_var, b.weight, b.bias))
            x = F.batch_norm(x, mean, var, weight, bias, eps=b.eps)
        else:
            with ThreadPoolExecutor(1) as pool:
                x = pool.submit(b, x).result()
        return self.c(x.relu())


@pytest.mark.parametrize("how", ["forward", "functional", "thread"])
@pytest.mark.parametrize("upstream", ["population", "batch"])
def test_layers_that_are_called_past_their_hooks(how: str, upstream: str) -> None:
    found, told = measured(Bypassing(how), images(4, 3), upstream=upstream)
    assert list(found) == ["a", "c"] and found.unseen == ("b",)
    assert "layer 'b': called past its hooks" in told
    assert found.check.bypassed == ("b",) and "bypassed: b" in repr(found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_functional_batch_norm_on_copies_of_buffers(strategy: str) -> None:
    found, told = measured(Bypassing("copies"), images(4, 3), strategy=strategy)
    assert (
        "a functional batch norm outside of all layers, or a layer that is no part of the model: not measured" in told
    )
    assert found.unseen == ("b",) and found.check.bypassed == ("functional batch norm",)
    # What comes after it depends on it, also where every layer that was asked for is reached.
    assert "a functional batch norm" in measured(Bypassing("copies"), images(4, 3), strategy=strategy, layers=["a"])[1]


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
@pytest.mark.parametrize("how", ["functional", "by hand"])
def test_batch_norms_that_are_no_subclass_of_torchs(how: str, options: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4, how), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    found, told = measured(model, images(4, 3), **options)
    assert "layer '1': keeps running statistics and is no subclass of torch's batch norm, so not measured" in told
    assert "outside of all layers" not in told
    assert found.check.lookalikes == ("1",) and found.check.bypassed == () and list(found) == ["3"]
    assert "not torch's batch norm: 1" in repr(found)
    with pytest.raises(ValueError, match=r"\(1 OwnNorm, no subclass of torch's batch norm, skipped\)"):
        population_statistics(model[:3], images(4, 3))


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_frozen_batch_norms_are_constant(options: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenNorm(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    found, told = measured(model, images(4, 3), **options)
    assert told == "" and found.check.lookalikes == ()


class Dependent(nn.Module):
    """A layer in the middle that normalizes with its batch's statistics."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=how != "untracked"), None
        self.c = nn.BatchNorm2d(3)
        randomized(self)

    def train(self, mode: bool = True) -> Dependent:
        super().train(mode)
        if self.how == "train mode":
            self.b.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = F.batch_norm(x, None, None, training=True) if self.how == "functional" else self.b(x)
        return self.c(x.relu())


@pytest.mark.parametrize("how", ["untracked", "train mode", "functional"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_that_depend_on_their_batch(how: str, strategy: str) -> None:
    found, told = measured(Dependent(how), images(4, 3), strategy=strategy)
    name = "functional batch norm" if how == "functional" else "b"
    said = f"a {name} outside of all layers" if how == "functional" else f"layer '{name}'"
    assert f"{said}: normalizes with the statistics of its batch even in evaluation" in told
    assert found.check.dependent == (name,) and found.check.held
    assert f"depending on their batch: {name}" in repr(found)


def test_instance_norm_depends_on_its_image_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.GroupNorm(3, 3), nn.BatchNorm2d(3))
    found, told = measured(model, images(4, 3))
    assert told == "" and found.check.dependent == ()


class Hidden(nn.Module):
    """Keeps something of the batch where nobody looks: on a class."""

    kept: ClassVar[dict[str, Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        Hidden.kept["mean"] = x.mean()
        x = self.a(x)
        return self.b(x * (1 + Hidden.kept["mean"]))


def test_state_that_cannot_be_watched_is_noticed() -> None:
    (first,) = images(4)
    batches = [first, first + 3]
    found, told = measured(Hidden(), batches)
    assert "layer 'b': the first batch, evaluated again under the result" in told and "layerwise" in told
    assert found.check.layer == "b" and not found.check.held and "check failed at b" in repr(found)
    found, told = measured(Hidden(), batches, strategy="layerwise")
    assert told == "" and found.check.held


class SmallBatchesOnly(Hidden):
    """Uses what it keeps for batches of two images only."""

    def forward(self, x: Tensor) -> Tensor:
        Hidden.kept["mean"] = x.mean()
        x = self.a(x)
        return self.b(x + Hidden.kept["mean"] if len(x) == 2 else x)


def test_another_batch_than_the_first_is_checked_too() -> None:
    one, two, small, last = images(4, 4, 2, 4)
    found, told = measured(SmallBatchesOnly(), [one, two, small, last + 3])
    assert "layer 'b': batch 2 (from 0), evaluated again under the result" in told
    assert found.check.layer == "b" and found.check.batch == 2


class LastPastHooks(Bypassing):
    """A layer is called past its hooks for batches of two images only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c((self.b.forward(y) if len(x) == 2 else self.b(y)).relu())


def test_a_layer_that_some_batches_call_past_its_hooks() -> None:
    found, told = measured(LastPastHooks(""), images(4, 4, 4, 2))
    assert "layer 'b': called past its hooks" in told and found.check.bypassed == ("b",)


class OnePastHooks(Bypassing):
    """A layer is called past its hooks for bright batches only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c((self.b.forward(y) if x.max() > 100 else self.b(y)).relu())


def test_a_batch_like_the_others_that_goes_past_a_layers_hooks() -> None:
    batches = images(4, 4, 4, 4)
    batches[2][-1, 0, 0, 0] = 1000.0  # not among the images that are evaluated first
    found, told = measured(OnePastHooks(""), batches)
    assert "layer 'b': called past its hooks" in told and found.check.bypassed == ("b",)


class Folding(nn.Module):
    """Folds a batch norm into a convolution when it is evaluated, as RepVGG does."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.auxiliary, self.critic = nn.BatchNorm2d(4), OwnNorm(4)  # which nobody calls

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.last(self.bn(self.conv(x)))  # type: ignore[no-any-return]
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        mean, var = self.bn.running_mean, self.bn.running_var
        if self.copies:
            mean, var = mean.detach().clone(), var.detach().clone()
        scale = self.bn.weight / (var + self.bn.eps).sqrt()
        weight, bias = self.conv.weight * scale.view(-1, 1, 1, 1), self.bn.bias - mean * scale
        return self.last(F.conv2d(x, weight, bias))  # type: ignore[no-any-return]


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_that_are_folded_into_weights(strategy: str, copies: bool) -> None:
    found, told = measured(Folding(copies), images(4, 3), strategy=strategy)
    assert "layer 'bn': called past its hooks" in told and found.check.bypassed == ("bn",)
    assert found.unseen == ("bn", "auxiliary") and found.check.lookalikes == ()


class SharedPastHooks(Bypassing):
    """So is one of two calls of a shared layer; strides are read, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x * (1 + x.stride(1) / 64)))
        return self.c(self.b.forward(y) if x.max() > 100 else self.b(y))


def test_a_call_of_a_shared_layer_past_its_hooks_beside_other_things() -> None:
    batches = images(4, 4, 4, 4)
    batches[2][-1, 0, 0, 0] = 1e5
    found, told = measured(SharedPastHooks(""), batches)
    assert "layer 'b': called past its hooks" in told and "the forward reads strides" in told
    assert found.check.bypassed == ("b",) and not found.check.held


class OnlyOthersExchanged(nn.Module):
    """One batch, like the others, is normalized with other statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.skipped = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.max() < 20:
            return self.bn(self.skipped(x))
        other = {"running_mean": torch.ones(3), "running_var": torch.ones(3)}
        return torch.func.functional_call(self.bn, other, (x,))  # type: ignore[no-any-return]


def test_a_batch_on_another_path_that_is_normalized_with_other_statistics() -> None:
    batches = images(40, 40, 40, 40)
    batches[2][-1, 0, 0, 0] = 1e4
    found, told = measured(OnlyOthersExchanged(), batches)
    assert "layer 'bn': normalizes with other statistics than were measured" in told
    assert found.check.replaced == ("bn",)


@pytest.mark.parametrize("kind", [torch.from_numpy, lambda array: array])
def test_other_shapes_of_tensors_and_arrays_are_checked(kind: Any) -> None:
    batches = [kind(batch.numpy()) for batch in images(4, 3, 2, 4)]
    batches[3] += 3
    found, told = measured(SmallBatchesOnly(), batches, forward=lambda model, x: model(torch.as_tensor(x)))
    assert "layer 'b': batch 2 (from 0), evaluated again under the result" in told and found.check.batch == 2


class Wrapping(nn.Module):
    """Holds what its batch norm keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.running_mean, self.running_var = self.bn.running_mean, self.bn.running_var

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_what_is_no_lookalike(options: Any) -> None:
    found, told = measured(nn.Sequential(Wrapping(), nn.Conv2d(3, 3, 3)), images(4, 3), **options)
    assert told == "" and found.check.lookalikes == ()


class Undoing(nn.Module):
    """Normalizes, and undoes it with the same statistics under a name of its own."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.bn, self.after = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.bn.running_mean.fill_(5.0)
        if where == "buffer":
            self.register_buffer("shift", self.bn.running_mean)
        self.held = [self.bn.running_mean] if where == "list" else []

    def forward(self, x: Tensor) -> Tensor:
        shift = self.held[0] if self.held else self.shift
        return self.after(self.bn(x) + shift.clone().view(1, -1, 1, 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["buffer", "list"])
@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_running_buffers_that_another_part_of_the_model_uses(options: Any, where: str) -> None:
    found, told = measured(Undoing(where), images(4, 3), **options)
    assert found.check.tied == ("bn",)
    assert "layer 'bn': another part of the model holds its running buffers too, and computes with them" in told


class Masked(nn.BatchNorm1d):
    """Normalizes the rows that are not 0, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x.abs().sum(1) > 0
        out = torch.zeros_like(x)
        mean, var = (x[kept].mean(0), x[kept].var(0)) if self.training else (self.running_mean, self.running_var)
        out[kept] = (x[kept] - mean) / (var + self.eps).sqrt() * self.weight + self.bias
        return out


class Logarithmic(nn.BatchNorm1d):
    """Uses statistics of its own, by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_log_std", torch.full((channels,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) * (-self.running_log_std).exp()  # type: ignore[no-any-return,operator]


class OfTheBatch(nn.BatchNorm1d):
    """Uses those of its batch, always, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.var(0) + self.eps).sqrt()  # type: ignore[no-any-return]


class ByHand(nn.BatchNorm1d):
    """Does what torch does."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / (self.running_var + self.eps).sqrt()  # type: ignore[operator]
        return (x - self.running_mean) * scale + self.bias  # type: ignore[no-any-return,operator]


@pytest.mark.parametrize("kind", [Masked, Logarithmic, OfTheBatch, ByHand])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_that_compute_by_hand(kind: type[nn.BatchNorm1d], strategy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(40, 3, generator=generator) + 2 for _ in range(3)]
    for batch in batches:
        batch[::3] = 0
    model = nn.Sequential(nn.BatchNorm1d(3), kind(3), nn.BatchNorm1d(3))
    model[0].weight.data.copy_(torch.tensor([0.0, 1.0, 3.0]))  # as branches begin that add nothing at first
    model[0].bias.data.copy_(torch.tensor([0.7, 0.0, 0.1]))
    forward = lambda model, x: model[2](model[1](model[0](x) * (x.abs().sum(1, True) > 0)))  # noqa: E731
    found, told = measured(model, batches, strategy=strategy, forward=forward)
    assert found.check.unknown == (("1",) if kind is not ByHand else ())
    assert ("layer '1': computes by hand, and its output is not its input, normalized" in told) == (kind is not ByHand)


class Named(nn.Module):
    """A batch norm by hand whose statistics have other names."""

    def __init__(self, mean: str, var: str, clones: bool) -> None:
        super().__init__()
        self.names, self.clones = (mean, var), clones
        for name in self.names:
            self.register_buffer(name, torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (getattr(self, name).view(1, -1, 1, 1) for name in self.names)
        return (x - (mean.clone() if self.clones else mean)) / (var + 1e-5).sqrt()  # type: ignore[no-any-return]


@pytest.mark.parametrize("clones", [True, False])
@pytest.mark.parametrize(
    "names", [("stored_mean", "stored_var"), ("avg_mean", "avg_var"), ("x_running_mean", "running_var_x"),
              ("mean_ema", "std_ema"), ("moving_average_mean", "moving_average_var")]
)  # fmt: skip
def test_names_of_running_statistics(names: tuple[str, str], clones: bool) -> None:
    found, _ = measured(nn.Sequential(Named(*names, clones), nn.BatchNorm2d(3)), images(4, 3))
    assert found.check.lookalikes == ("0",)


class Harmless(nn.Module):
    """Uses statistics in ways that change nothing of what comes out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.bn, self.auxiliary = how, nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.frozen = FrozenNorm(3)
        self.register_buffer("ema_mean", torch.zeros(()))
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.held = [self.bn.running_mean, self.bn.running_var]
        self.running_avg_loss = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "statistics of statistics":
            self.log = [torch.cat(self.held), torch.cat(self.held).pow(2), *torch._foreach_norm(self.held)]
            self.log += [self.auxiliary.running_var.sort().values, self.auxiliary.running_var.histc(3)]
        if self.how == "meter of several":
            self.running_avg_loss = 0.9 * self.running_avg_loss + 0.1 * x.mean()
        if self.how == "log":
            self.log = [layer.running_var.mean().item() for layer in (self.bn, self.auxiliary)]
        if self.how == "is finite":
            self.log = [bool(buffer.isfinite().all()) for buffer in self.buffers()]
        if self.how == "meter":
            self.ema_mean = 0.9 * self.ema_mean + 0.1 * x.mean()
        if self.how == "constants":
            x = x - self.pixel_mean.view(1, -1, 1, 1)
        if self.how == "frozen in another type":
            mean, var = (buffer.to(torch.bfloat16).float() for buffer in self.frozen.buffers())
            x = F.batch_norm(x, mean, var)
        return self.bn(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "how",
    [
        "log",
        "statistics of statistics",
        "is finite",
        "meter",
        "meter of several",
        "constants",
        "frozen in another type",
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_statistics_that_are_used_without_harm(how: str, strategy: str) -> None:
    found, told = measured(Harmless(how), images(4, 3), strategy=strategy)
    assert told == "" and found.check.held and found.unseen == ("auxiliary",)


def test_what_is_said_of_a_functional_batch_norm_of_the_batch() -> None:
    """It has no statistics that it is given."""
    forward = lambda model, x: model(F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True))  # noqa: E731
    _, told = measured(nn.Sequential(nn.BatchNorm2d(3)), images(4, 3), forward=forward)
    assert "normalizes with the statistics of its batch" in told and "that it is given" not in told


def test_lookalikes_have_the_names_of_the_model_that_is_passed() -> None:
    model = nn.DataParallel(nn.Sequential(OwnNorm(3), nn.BatchNorm2d(3)))
    found, _ = measured(model, images(4, 3))
    assert found.check.lookalikes == ("module.0",) and list(found) == ["module.1"]


def test_nothing_is_said_of_a_compiled_part() -> None:
    """What torch itself changes while one is called is its own business."""
    model = nn.Sequential(torch.compile(plain()[:6], backend="eager"), nn.Conv2d(12, 3, 3), nn.BatchNorm2d(3))
    assert measured(model, images(4, 3, 2))[1] == ""
    assert not torch._dynamo.eval_frame._in_optimized_module  # type: ignore[attr-defined]


class ScaledInPlace(nn.Module):
    """Multiplies its input by another layer's statistics, in an operation that gives nothing back."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.inner = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        scales = [torch.ones(3), torch.ones(3)]
        torch._foreach_mul_(scales, [self.bn.running_mean, self.bn.running_var])
        return self.inner(x * scales[1].view(1, -1, 1, 1))  # type: ignore[no-any-return]


def test_statistics_that_are_used_in_place() -> None:
    found, told = measured(ScaledInPlace(), images(4, 3))
    assert found.check.bypassed == ("bn",) and "called past its hooks" in told


class Spiking(nn.BatchNorm2d):
    """Computes by hand, and gives out truth values."""

    def forward(self, x: Tensor) -> Tensor:
        return x > self.running_mean.view(1, -1, 1, 1)


def test_layers_that_give_out_no_numbers() -> None:
    found, told = measured(nn.Sequential(Spiking(3), Float(), nn.BatchNorm2d(3)), images(4, 3))
    assert found.check.unknown == ("0",) and "computes by hand" in told


class Float(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Doubling(nn.BatchNorm2d):
    """Normalizes twice its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class DoublingInPlace(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class InHalves(nn.BatchNorm2d):
    """Ghost batch norm: all of its input, in parts."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(InHalves, self).forward(part.clone()) for part in x.chunk(2)])


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
@pytest.mark.parametrize("kind", [Doubling, DoublingInPlace, InHalves])
def test_layers_that_normalize_something_else_than_their_input(kind: type[nn.BatchNorm2d], options: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), kind(3))
    found, told = measured(randomized(model), images(4, 3), **options)
    if kind is InHalves:
        assert told == "" and found.check.transformed == ()
    else:
        assert "layer '2': normalizes something else than its input" in told and found.check.transformed == ("2",)


class Mixing(nn.BatchNorm2d):
    """Mixes its statistics with those of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3))
        return F.batch_norm(x, (self.running_mean + mean) / 2, (self.running_var + var) / 2, eps=self.eps)


class InBfloat16(nn.BatchNorm2d):
    """Rounds its statistics to the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        return F.batch_norm(x.bfloat16(), self.running_mean.bfloat16(), self.running_var.bfloat16()).float()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("how", ["functional", "loaded", "set", "mixed"])
def test_layers_that_normalize_with_other_statistics_than_were_measured(how: str, strategy: str) -> None:
    model = plain()
    own = {key: value + 1 for key, value in model.state_dict().items() if "running" in key}
    names = tuple(name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d))

    def forward(model: nn.Module, x: Tensor) -> Any:
        if how == "functional":
            return torch.func.functional_call(model, own, (x,))
        for key, value in own.items() if how != "mixed" else ():
            name, _, buffer = key.rpartition(".")
            layer = model.get_submodule(name)
            if how == "set":
                setattr(layer, buffer, value)
            else:
                layer.load_state_dict({buffer: value}, strict=False)
        return model(x)

    if how == "mixed":
        model, names = nn.Sequential(nn.BatchNorm2d(3), Mixing(3)), ("1",)
    found, told = measured(model, images(4, 3), forward=forward, strategy=strategy)
    assert "normalizes with other statistics than were measured" in told and found.check.replaced == names
    if how != "mixed":
        with pytest.raises(ValueError, match=r"the forward gives layer .* other running buffers"):
            self_consistency(model, found, images(4, 3), forward=forward)
        # Where nothing is measured under them, and where they are the model's own, nothing is said.
        assert "other statistics" not in measured(model, images(4, 3), forward=forward, upstream="batch")[1]
    assert measured(nn.Sequential(nn.BatchNorm2d(3), InBfloat16(3)), images(4, 3))[0].check.replaced == ()


class Overwriting(nn.Module):
    """A hypernetwork that writes into its weights without leaving a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()[:6]
        self.register_buffer("own", self.inner[3].weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        self.inner[3].weight.data.copy_(self.own * x.std())
        return self.inner(x)


def test_weights_that_are_overwritten_without_a_trace() -> None:
    (first,) = images(4)
    found = None
    with pytest.warns(RuntimeWarning, match=r"layer 'inner\.4': the first batch, evaluated again"):
        found = population_statistics(Overwriting(), [first, 5 * first])
    assert found.check.layer == "inner.4"


def test_a_layer_whose_input_depends_on_its_own_statistics() -> None:
    """As in a convolution with a batch norm folded into its quantized weights."""

    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            randomized(self)

        def forward(self, x: Tensor) -> Tensor:
            scale = (self.bn.weight / self.bn.running_var.sqrt())[:, None, None, None]
            weight = (self.conv.weight * scale * 4).round() / 4 / scale
            return self.bn(F.conv2d(x, weight, self.conv.bias))

    found, told = measured(Folding(), images(4, 3))
    assert "a layer's input depends on its own statistics" in told and found.check.layer == "bn"


class FirstImagesOnly(nn.Module):
    """Wants batches of four."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 4:
            raise ArithmeticError
        return self.inner(x)


def test_forwards_that_want_whole_batches() -> None:
    found, told = measured(FirstImagesOnly(), images(4, 4))
    assert told == "" and found.check.held and found.check.images == 8


def test_frames_that_are_no_images() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, clips: Tensor) -> Tensor:
            return self.inner(clips.flatten(0, 1))

    found, told = measured(Frames(), [x.unflatten(0, (2, 2)) for x in images(4, 4)])
    assert told == "" and found.check.held and found.check.images == 4


def test_shared_layers_are_checked_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.conv, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
            randomized(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.bn(self.conv(self.bn(x))))

    found, told = measured(Twice(), images(4, 3))
    assert told == "" and found.check.held and found.check.images == 7 and found.cost.passes > 1


def test_threads_of_the_callers_own_do_not_matter() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert measured(plain(), images(3, 3))[1] == ""
    finally:
        stop.set()
        other.join()


class Copying(nn.Module):
    """Runs a copy of a part, which carries the hooks of a measurement along."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.a, self.b = plain()[:6], nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        copy.deepcopy(self.inner)(y)
        return self.b(y)


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_copies_of_layers_are_other_layers(options: Any) -> None:
    found, _ = measured(Copying(), images(4, 3), **options)
    assert list(found) == ["a", "b"] and found.unseen == ("inner.1", "inner.4") and found.check.held


def test_the_residual_leaves_copies_of_layers_out() -> None:
    model = Copying()
    frame = self_consistency(model, running_statistics(model), images(4, 3), by_layer=True)
    assert list(frame["layer"]) == ["a", "b"]
