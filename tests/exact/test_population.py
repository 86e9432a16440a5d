"""Population statistics against float64, breadth first against layer by layer, and what may go wrong."""

import contextlib
import contextvars
import re
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab import Moments, Statistics, population_statistics, record_frozen, running_statistics, self_consistency, using
from bnlab.exact.layouts import set_weights_channels_last
from bnlab.layers import batch_norm_layers
from tests import references
from tests.helpers import Block, assert_moments, images, plain, randomized, residual, unchanged

STRATEGIES = ("breadth", "layerwise")
both = pytest.mark.parametrize("strategy", STRATEGIES)


def assert_same(a: Statistics, b: Statistics, tolerance: float = 1e-6) -> None:
    assert set(a) == set(b) and a.unseen == b.unseen
    for name in a:
        assert_moments(a[name], b[name], mean=tolerance, var=tolerance)


def twins(model: nn.Module, batches: Any, **options: Any) -> Statistics:
    """Both strategies, which have to agree; the model comes back as it was."""
    with unchanged(model):
        breadth, layerwise = (population_statistics(model, batches, strategy=s, **options) for s in STRATEGIES)
    assert_same(breadth, layerwise)
    return breadth


def eval_inputs(model: nn.Module, batches: Any, forward: Callable[..., Any] = lambda m, x: m(x)) -> dict[str, Moments]:
    """What each layer is given in an ordinary eval forward with hooks."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0].clone()))
        for name, layer in batch_norm_layers(model, caller="test").items()
    ]
    with torch.no_grad():
        for batch in batches:
            forward(model, batch)
    for handle in handles:
        handle.remove()
    return {name: references.merge(inputs) for name, inputs in seen.items()}


# Values


@both
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("build", [plain, residual])
def test_against_the_full_batch_in_float64(build: Callable[[], nn.Module], channels_last: bool, strategy: str) -> None:
    model, batches = build(), images(7, 5, 1, 7)
    expected = references.full_batch_population(model, torch.cat(batches))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    with unchanged(model):
        found = population_statistics(model, batches, strategy=strategy)
    assert list(found) == list(expected) and found.unseen == ()
    assert found.eps == {name: layer.eps for name, layer in batch_norm_layers(model, caller="test").items()}
    for name, moments in expected.items():
        assert_moments(found[name], moments)


@pytest.mark.parametrize("build", [plain, residual])
def test_batches_of_other_sizes_and_image_sizes(build: Callable[[], nn.Module]) -> None:
    model = build()
    batches = [*images(3, 1), *images(4, side=11), *images(2, side=6)]
    found = twins(model, batches)
    with using(model, found):
        for name, moments in eval_inputs(model, batches).items():
            assert_moments(found[name], moments)


@both
def test_inputs_far_from_zero(strategy: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), *plain())
    batches = [1000 + 0.01 * batch for batch in images(6, 6)]
    assert_moments(population_statistics(model, batches, strategy=strategy)["0"], references.merge(batches))


@pytest.mark.parametrize("build", [plain, residual])
def test_batch_statistics_upstream(build: Callable[[], nn.Module]) -> None:
    model, batches = build(), images(7, 5, 2)
    with unchanged(model):
        found = population_statistics(model, batches, upstream="batch")
    for name, moments in references.batch_upstream_population(model, batches).items():
        assert_moments(found[name], moments)
    assert_same(found, population_statistics(model, batches, upstream="batch", strategy="layerwise"))


def test_measuring_again_under_the_result_gives_it_back() -> None:
    model, batches = residual(), images(6, 6, 5)
    found = population_statistics(model, batches)
    with using(model, found):
        for name, moments in eval_inputs(model, batches).items():
            assert_moments(found[name], moments)
        assert_same(population_statistics(model, batches), found)


@pytest.mark.parametrize("upstream", ["population", "batch"])
def test_some_layers_while_the_others_keep_their_own_buffers(upstream: str) -> None:
    model, batches = residual(), images(4, 4)
    found = population_statistics(model, batches, layers=["4.bn1", "3.bn1"], upstream=upstream)
    assert list(found) == ["3.bn1", "4.bn1"]
    own = running_statistics(model)
    assert_same(
        population_statistics(model, batches, layers=["3.bn1", "4.bn1"], upstream=upstream, strategy="layerwise"), found
    )
    if upstream == "population":
        with using(model, found):
            inputs = eval_inputs(model, batches)
        assert_moments(found["4.bn1"], inputs["4.bn1"])
        model.eval()
        assert_moments(found["3.bn1"], eval_inputs(model, batches)["3.bn1"])
    assert torch.equal(running_statistics(model)["1"].mean, own["1"].mean)


@both
def test_layers_that_no_data_reaches(strategy: str) -> None:
    model = nn.Sequential(*plain())
    model.add_module("head", nn.Sequential(nn.BatchNorm2d(3)))
    forward = lambda m, x: m[:10](x)  # noqa: E731
    with unchanged(model):
        found = population_statistics(model, images(4, 4), forward=forward, strategy=strategy)
    assert found.unseen == ("head.0",) and list(found) == ["1", "4"]
    with unchanged(model), pytest.raises(ValueError, match=r"reached none of 1 .* in this thread; .* another thread"):
        population_statistics(model, images(4), forward=forward, layers=["head.0"], strategy=strategy)


class OtherOrder(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_layers_come_in_the_order_of_their_calls() -> None:
    assert list(twins(randomized(OtherOrder()), images(4, 3))) == ["first", "last"]


# Data


def test_generators_are_read_once() -> None:
    model, batches = plain(), images(4, 3)
    expected = population_statistics(model, batches)
    for strategy in STRATEGIES:
        assert_same(population_statistics(model, iter(batches), strategy=strategy), expected)


@pytest.mark.parametrize(("limit", "used"), [(1, 1), (4, 1), (5, 2), (100, 3)])
def test_max_images(limit: int, used: int) -> None:
    model, batches = plain(), images(4, 3, 2)
    read = []

    def reading() -> Iterator[Any]:
        for batch in batches:
            read.append(batch)
            yield batch, torch.zeros(9)

    found = population_statistics(model, reading(), max_images=limit)
    assert len(read) == used and found["1"].count == 64 * sum(map(len, batches[:used]))
    assert_same(found, population_statistics(model, batches[:used]))


def test_images_are_counted_by_the_tensor_with_the_most_dimensions() -> None:
    batches = [{"id": torch.zeros(1), "image": x} for x in images(4, 4, 4)]
    found = population_statistics(plain(), batches, forward=lambda m, batch: m(batch["image"]), max_images=5)
    assert found.cost.images == 8 and found["1"].count == 64 * 8


def test_labelled_batches_and_other_structures() -> None:
    model, batches = plain(), images(4, 3)
    expected = population_statistics(model, batches)
    assert_same(twins(model, [(x, torch.zeros(len(x))) for x in batches]), expected)
    assert_same(twins(model, [[x, "label"] for x in batches], device="cpu"), expected)
    dictionaries = [{"label": torch.zeros(3), "inner": {"image": x}} for x in batches]
    assert_same(twins(model, dictionaries, forward=lambda m, batch: m(batch["inner"]["image"])), expected)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return self.both(torch.cat((self.a(x), self.b(input=y)), 1).relu())


def test_several_inputs_and_keywords() -> None:
    batches = list(zip(images(4, 3), images(4, 3, seed=5), strict=True))
    found = twins(randomized(TwoInputs()), batches, forward=lambda m, batch: m(batch[0], y=batch[1]))
    assert_moments(found["b"], references.merge([y for _, y in batches]))


@both
def test_the_users_inputs_stay(strategy: str) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *plain())
    batches = images(4, 3)
    kept = [batch.clone() for batch in batches]
    for upstream in ("population", "batch"):
        population_statistics(model, [{"x": x} for x in batches], forward=lambda m, b: m(b["x"]), upstream=upstream)
        assert all(map(torch.equal, batches, kept))
    twins(model, batches)


class Attributes(dict[str, Any]):
    """A dictionary whose entries are its attributes too."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.__dict__ = self


@both
def test_a_batch_that_is_written_through_its_attributes(strategy: str) -> None:
    model, data = plain(), images(4, 3)
    batches = [Attributes({"x": x.clone()}) for x in data]
    found = population_statistics(model, batches, forward=lambda m, b: m(b.x.sub_(1)), strategy=strategy)
    assert all(torch.equal(b["x"], x) and b.x is b["x"] for b, x in zip(batches, data, strict=True))
    assert_same(found, population_statistics(model, [x - 1 for x in data], strategy=strategy))


@both
@pytest.mark.parametrize("kind", [UserDict, type("Named", (dict,), {})])
def test_dictionaries_of_other_classes(strategy: str, kind: type[Any]) -> None:
    """As transformers' processors make them; what a forward writes into is a copy, and their images count."""
    model, data = plain(), images(4, 3, 4)
    batches = [kind({"x": x.clone()}) for x in data]
    found = population_statistics(
        model, batches, forward=lambda m, b: m(b["x"].sub_(1)), max_images=7, strategy=strategy
    )
    assert found.cost.images == 7 and all(torch.equal(b["x"], x) for b, x in zip(batches, data, strict=True))
    assert_same(found, population_statistics(model, [x - 1 for x in data[:2]], strategy=strategy))


@both
def test_a_forward_that_sets_attributes_of_its_batch(strategy: str) -> None:
    """As networks on graphs do; each forward begins with the batch as it was."""

    class OnGraphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = randomized(nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(3))))

        def forward(self, graph: SimpleNamespace) -> None:
            for layer in self.layers:
                graph.x = layer(graph.x).relu()

    model, batches = OnGraphs().double(), [x.double() for x in images(4, 3)]
    graphs = [SimpleNamespace(x=x) for x in batches]
    expected = population_statistics(model, batches, forward=lambda m, x: m(SimpleNamespace(x=x)))
    for upstream in ("population", "batch"):
        found = population_statistics(model, graphs, strategy=strategy, upstream=upstream)
        assert all(graph.x is x for graph, x in zip(graphs, batches, strict=True))
        if upstream == "population":
            assert_same(found, expected)


def test_batches_are_advanced_in_the_callers_own_state() -> None:
    """Modes, hooks and random state: a loader that augments draws the same, whatever the forwards draw."""
    model = nn.Sequential(Noisy(), *plain())
    modes, drawn = [], []

    def reading() -> Iterator[Tensor]:
        for batch in images(4, 3, 2):
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
            drawn.append(torch.rand(1).item())
            yield batch

    for strategy, upstream in (("breadth", "population"), ("layerwise", "population"), ("breadth", "batch")):
        torch.manual_seed(3)
        with unchanged(model):
            population_statistics(model, reading(), strategy=strategy, upstream=upstream)
    torch.manual_seed(3)
    assert drawn == [torch.rand(1).item() for _ in range(3)] * 3
    with torch.inference_mode(), unchanged(model):
        assert_same(population_statistics(model, reading()), population_statistics(model, images(4, 3, 2)))
    assert modes == [(True, False, False)] * 9 + [(False, True, False)] * 3


# Models whose forward leaves something outside of its own frame


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_noise_is_the_same_for_any_schedule() -> None:
    model = nn.Sequential(Noisy(), nn.BatchNorm2d(3), Noisy(), *plain(), Noisy(), nn.BatchNorm1d(4))
    # Noise is drawn in the order of memory.
    batches = [x.contiguous(memory_format=torch.channels_last) for x in images(5, 4, 3)]
    torch.manual_seed(1)
    found = twins(model, batches)
    assert_same(population_statistics(model, batches), found, tolerance=0)
    state = torch.get_rng_state()
    assert max(self_consistency(model, found, batches)) < 1e-6  # each batch draws what it has drawn
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = population_statistics(model, batches)
    assert not torch.equal(other["1"].mean, found["1"].mean)
    assert max(self_consistency(model, found, batches)) > 1e-3


class NeedsLayout(nn.Module):
    """Takes the memory layout for granted, with which the caller's images came."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":
            return x.view(len(x), -1).view(x.shape)
        if self.how == "late":  # not before the last layer has been measured
            return x.view(len(x), -1)
        assert x.is_contiguous()
        return x


@pytest.mark.parametrize("memory", [None, 60_000])
@pytest.mark.parametrize("how", ["view", "assert", "late"])
def test_a_forward_that_needs_its_memory_layout(how: str, memory: int | None) -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    inner = [] if how == "late" else [NeedsLayout(how), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)]
    last = [NeedsLayout(how)] if how == "late" else []
    model = randomized(nn.Sequential(*conv, nn.ReLU(), *inner, *last))
    batches = images(5, 4, 3, 6)
    expected = population_statistics(model, batches, strategy="layerwise")
    with unchanged(model):
        found = population_statistics(model, batches, memory=memory)
    assert_same(found, expected)


class ReadsWeights(nn.Module):
    """Shares a convolution's weights and takes their layout for granted."""

    def __init__(self, shared: nn.Conv2d) -> None:
        super().__init__()
        self.shared = shared.weight
        self.conv, self.bn = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x * self.shared.view(-1).norm()))


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("memory", [None, 100_000])
def test_a_forward_that_needs_the_layout_of_weights(memory: int | None, raises: bool) -> None:
    first = nn.Conv2d(3, 6, 3)
    model = randomized(nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), ReadsWeights(first), nn.Identity()))
    batches = images(5, 4, 3, 6)
    expected = population_statistics(model, batches, strategy="layerwise")
    if raises:
        model[4].forward = lambda x: x.view(0)
    with unchanged(model), pytest.raises(RuntimeError) if raises else nullcontext():
        assert_same(population_statistics(model, batches, memory=memory), expected)
    assert model[0].weight is model[3].shared


def test_shared_weights_are_laid_out_once_and_within_the_limit() -> None:
    first, other = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
    other.weight = first.weight
    model = nn.Sequential(first, other, nn.Conv2d(6, 6, 1))
    own = dict(model.named_parameters(remove_duplicate=False))
    assert set_weights_channels_last(model, first.weight.nbytes - 1) == []
    assert all(new is own[name] for name, new in model.named_parameters(remove_duplicate=False))
    replaced = set_weights_channels_last(model, first.weight.nbytes)
    assert [(key, weight) for _, key, weight in replaced] == 2 * [("weight", own["0.weight"])]
    assert first.weight is other.weight is not own["0.weight"] and torch.equal(first.weight, own["0.weight"])
    assert first.weight.is_contiguous(memory_format=torch.channels_last) and own["0.weight"].is_contiguous()
    assert model[2].weight is own["2.weight"]  # one pixel: both layouts at once


class Skipping(nn.Module):
    """Keeps things of the batch on itself between its layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.bn2, self.bn3 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.features: dict[str, Tensor] = {}
        self.history: list[Tensor] = []
        self.skip: Any = None
        self.calls = 0
        self.register_buffer("memory", torch.zeros(3, 1, 1))

    def keep(self, x: Tensor) -> None:
        self.calls += 1
        if self.kind == "attribute":
            self.skip = x
        elif self.kind == "new attribute":
            self.new = x
        elif self.kind == "deleted attribute":
            del self.skip
            self.__dict__["other"] = x
        elif self.kind == "dictionary":
            self.features["x"] = x
        elif self.kind == "list":
            self.history.append(x)
        else:
            self.memory = x.mean((0, 2, 3))[:, None, None]

    def kept(self) -> Tensor:
        assert self.kind != "deleted attribute" or not hasattr(self, "skip")
        return {
            "attribute": lambda: self.skip,
            "new attribute": lambda: self.new,
            "deleted attribute": lambda: self.__dict__["other"],
            "dictionary": lambda: self.features["x"],
            "list": lambda: self.history[-1],
            "buffer": lambda: self.memory,
        }[self.kind]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        self.keep(x.relu())
        x = self.bn2(x.sin() + self.kept())
        assert self.calls == 1 and len(self.history) < 2
        return self.bn3(x.relu() + self.kept())


KEPT = ["attribute", "new attribute", "deleted attribute", "dictionary", "list", "buffer"]


@pytest.mark.parametrize("kind", KEPT)
def test_modules_that_keep_state(kind: str) -> None:
    model = randomized(Skipping(kind))
    batches = images(4, 4, 4)
    found = twins(model, batches)
    one_by_one = randomized(Skipping(kind))  # freshly made for each batch: what each forward means by itself

    def alone(_: nn.Module, x: Tensor) -> Tensor:
        one_by_one.calls, one_by_one.skip = 0, None
        one_by_one.history.clear()
        return one_by_one(x)

    with using(one_by_one, found):
        for name, moments in eval_inputs(one_by_one, batches, alone).items():
            assert_moments(found[name], moments)
    with unchanged(model):
        population_statistics(model, batches, upstream="batch")


def test_features_that_hooks_leave_on_torchs_own_modules() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.conv.register_forward_hook(lambda module, args, output: setattr(module, "out", output))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.bn1(self.conv(x)).relu() + self.conv.out)

    model = randomized(Reading())
    first = twins(model, images(4, 4, 4))
    model(images(4)[0])  # now there is one from before
    assert_same(twins(model, images(4, 4, 4)), first)


class WritesInPlace(nn.Module):
    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        if buffer:
            self.register_buffer("memory", torch.zeros(3, 1, 1))
        else:
            self.memory = torch.zeros(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.memory.copy_(x.mean((0, 2, 3))[:, None, None])
        return self.bn2(self.bn1(x).relu() + self.memory)


def test_writing_in_place_is_refused_with_the_way_out() -> None:
    model = nn.Sequential(WritesInPlace(buffer=True))
    with unchanged(model), pytest.raises(ValueError, match=r"writes into '0\.memory' in place.* use strategy='layerw"):
        population_statistics(model, images(4, 3))
    with unchanged(model):
        population_statistics(model, images(4, 3), strategy="layerwise")
    with pytest.raises(ValueError, match=r"writes into 'memory' in place"):
        population_statistics(WritesInPlace(buffer=False), images(4, 3))


class ActingNorm(nn.BatchNorm2d):
    """With a forward of its own, as timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_norms_with_a_forward_of_their_own() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), ActingNorm(4), nn.Conv2d(4, 4, 3), ActingNorm(4)))
    expected = references.full_batch_population(model, torch.cat(images(5, 4, 3)))
    for name, moments in twins(model, images(5, 4, 3)).items():
        assert_moments(moments, expected[name])


class Doubling(TorchFunctionMode):
    """Makes every relu twice what it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func in (torch.relu, nn.functional.relu, Tensor.relu) else result


class Entering(nn.Module):
    """Passes layers inside of a context and others outside of it."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.context = context
        self.inner, self.outer = plain()[:6], nn.Sequential(nn.Conv2d(12, 5, 1), nn.BatchNorm2d(5))
        self.modes: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            x = torch.relu(self.inner(x))
            inside = self.seen()
        y = torch.relu(self.outer(x.float()))
        assert (inside, self.seen()) == self.expected(), "another batch's modes leaked in"
        return y

    def seen(self) -> tuple[Any, ...]:
        functions = len(torch.overrides._get_current_function_mode_stack())
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, functions

    def expected(self) -> tuple[Any, Any]:
        before = self.seen()
        with self.context():
            return self.seen(), before


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "no inference_mode": lambda: torch.inference_mode(False),
    "autocast": lambda: torch.autocast("cpu", torch.float16),
    "function mode": Doubling,
}


@pytest.mark.parametrize("around", CONTEXTS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_modes_that_a_forward_enters(context: str, around: str) -> None:
    if (context, around) == ("no inference_mode", "inference_mode"):
        pytest.skip("torch itself does not let weights that need gradients meet an inference tensor there")
    model = randomized(Entering(CONTEXTS[context]))
    with CONTEXTS[around]():
        # In float16 another memory layout would round otherwise.
        twins(model, [x.contiguous(memory_format=torch.channels_last) for x in images(3, 4, 2)])
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)


def test_modes_after_an_error_half_way() -> None:
    for context in CONTEXTS.values():
        model = Entering(context)
        model.inner = nn.Sequential(*model.inner[:3], Failing(at=1), *model.inner[3:])
        with unchanged(model), pytest.raises(ArithmeticError):
            population_statistics(model, images(3, 4, 2))
        torch.ones(1, requires_grad=True).sum().backward()


SETTING: contextvars.ContextVar[int] = contextvars.ContextVar("SETTING")


def test_context_variables_reach_the_forward() -> None:
    SETTING.set(3)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x * SETTING.get())

    twins(plain(), images(3, 4), forward=forward)


def test_wrapped_models() -> None:
    model, batches = plain(), images(4, 3)
    expected = population_statistics(model, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = {"module.": nn.DataParallel(model), "_orig_mod.": torch.compile(model)}
        wrapped["module._orig_mod."] = nn.DataParallel(wrapped["_orig_mod."])  # type: ignore[arg-type]
        wrapped["0._orig_mod."] = nn.Sequential(wrapped["_orig_mod."])  # type: ignore[arg-type]
    for prefix, wrapper in wrapped.items():
        found = twins(wrapper, batches)
        assert list(found) == [prefix + name for name in expected]
        assert_same(Statistics({n.removeprefix(prefix): m for n, m in found.items()}, expected.eps), expected)
        population_statistics(wrapper, batches, upstream="batch")


def test_the_models_own_modes_and_dropout() -> None:
    model = plain()
    model[4].eval()
    expected = population_statistics(plain().eval(), images(4, 3))
    assert_same(twins(model, images(4, 3)), expected, tolerance=0)


def test_double_precision() -> None:
    model, batches = residual().double(), [x.double() for x in images(4, 3)]
    for name, moments in references.full_batch_population(model, torch.cat(batches)).items():
        assert_moments(twins(model, batches)[name], moments, mean=1e-11, var=1e-11)


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    population_statistics(plain(), images(4, 3))
    assert capsys.readouterr().err == ""
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        population_statistics(plain(), images(4, 3), progress=True)
        assert "2/2" in capsys.readouterr().err


class Failing(nn.Module):
    """Raises in the forward of the batch `at`, after it has left something on itself."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        self.left = x
        if len(x) == (3, 4, 2)[self.at]:
            raise ArithmeticError("of the model's own")
        return x


class CallsTwice(nn.Module):
    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.bn, self.other = nn.BatchNorm2d(3), nn.Identity() if last else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.bn(self.bn(x).relu()))


class Branching(nn.Module):
    """Small batches take b first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) if len(x) > 3 else self.a(self.b(x).relu())


def with_nan() -> list[Tensor]:
    batches = images(4, 3)
    batches[1][2, 1, 0, 0] = torch.nan
    return batches


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


# What is called, the error, and what it says; every option is tried with both strategies where it says so.
BAD: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no batches": (plain, list, {}, ValueError, r"batches is empty; pass at least one batch \(is a generator used up"),
    "used up": (plain, lambda: iter(()), {}, ValueError, "batches is empty"),
    "no images": (
        plain,
        lambda: [torch.zeros(0, 3, 8, 8)],
        {},
        ValueError,
        "batch 0 has no images; leave empty batches out",
    ),
    "one value": (
        lambda: nn.Sequential(nn.BatchNorm1d(3)),
        lambda: [torch.zeros(1, 3)],
        {},
        ValueError,
        "layer '0' got one value per channel, which has no variance; pass more images",
    ),
    "NaN": (plain, with_nan, {}, ValueError, "the input of layer '1' has NaN or infinite values; look at data and"),
    "channels": (plain, lambda: images(4, channels=2), {}, RuntimeError, "expected input.* to have 3 channels"),
    "channels of a layer": (
        lambda: nn.Sequential(nn.BatchNorm2d(3)),
        lambda: images(4, channels=2),
        {},
        ValueError,
        r"layer '0' expects 3 channels, its input has shape \(4, 2, 8, 8\)",
    ),
    "no tensor": (
        lambda: nn.Sequential(nn.BatchNorm2d(3)),
        lambda: ["text"],
        {},
        ValueError,
        "layer '0' expects 3 channels, its input has type str",
    ),
    "no layer": (lambda: nn.Linear(2, 2), lambda: images(4), {}, ValueError, "no BatchNorm layer with running stat"),
    "no model": (lambda: len, lambda: images(4), {}, TypeError, "expected a torch.nn.Module, found builtin_function"),
    "scripted": (scripted, lambda: images(4), {}, ValueError, "is TorchScript, whose layers cannot be watched"),
    "a tensor": (plain, lambda: images(4)[0], {}, TypeError, r"batches is a Tensor; pass an iterable .* \[images\]"),
    "a number": (plain, lambda: 3, {}, TypeError, "batches is a int; pass an iterable"),
    "layers": (plain, lambda: images(4), {"layers": ["2"]}, ValueError, "layers has '2', which is no BatchNorm layer"),
    "upstream": (plain, lambda: images(4), {"upstream": "x"}, ValueError, "upstream='x'; choose 'population' or 'bat"),
    "max_images": (
        plain,
        lambda: images(4),
        {"max_images": 0},
        ValueError,
        "max_images=0; pass at least 1, .auto., or N",
    ),
    "max_images word": (plain, lambda: images(4), {"max_images": "all"}, TypeError, "max_images='all'; pass at least"),
    "auto alone": (plain, lambda: images(4), {"max_images": "auto"}, ValueError, "tolerance=None; it goes with max_"),
    "tolerance alone": (plain, lambda: images(4), {"tolerance": 0.1}, ValueError, "tolerance=0.1; it goes with max_"),
    "tolerance": (
        plain,
        lambda: images(4),
        {"max_images": "auto", "tolerance": -1.0},
        ValueError,
        "tolerance=-1.0; pass a positive",
    ),
    "memory": (plain, lambda: images(4), {"memory": "much"}, ValueError, "memory='much'; pass bytes or a text such as"),
    "no memory": (plain, lambda: images(4), {"memory": 0}, ValueError, "memory=0; must be above 0"),
    "own error at first": (
        lambda: nn.Sequential(*plain()[:4], Failing(at=0), *plain()[4:]),
        lambda: images(3, 4, 2),
        {},
        ArithmeticError,
        "of the model's own",
    ),
    "own error later": (
        lambda: nn.Sequential(*plain()[:4], Failing(at=2), *plain()[4:]),
        lambda: images(3, 4, 2),
        {},
        ArithmeticError,
        "of the model's own",
    ),
    "own error of an iterator": (
        lambda: nn.Sequential(Noisy(), *plain()),
        lambda: (x / 0 if len(x) == 1 else [1 // 0] for x in images(1, 4)),
        {},
        ZeroDivisionError,
        "division",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(("upstream", "strategy"), [("population", s) for s in STRATEGIES] + [("batch", "breadth")])
def test_bad_input(case: str, upstream: str, strategy: str) -> None:
    build, data, options, error, message = BAD[case]
    if case == "one value" and upstream == "batch":
        message = "a batch has one value per channel at layer '0' .* use larger batches or upstream='population'"
    model = build()
    options = {"upstream": upstream, "strategy": strategy} | options
    with unchanged(model), pytest.raises(error, match=message) as caught:
        population_statistics(model, data(), **options)
    if error in (ValueError, TypeError):
        assert str(caught.value).startswith("population_statistics: ")


def test_strategy_out_of_its_range() -> None:
    with pytest.raises(ValueError, match="strategy='depth'; choose 'breadth' or 'layerwise'"):
        population_statistics(plain(), images(4), strategy="depth")


def test_an_error_of_the_models_own_tells_the_batch() -> None:
    model = nn.Sequential(*plain()[:2], Failing(at=1), *plain()[2:])
    with pytest.raises(ArithmeticError) as caught:
        population_statistics(model, images(3, 4, 2))
    assert re.search("raised in the forward of batch 1", caught.value.__notes__[0])


def test_shared_and_skipped_layers_need_breadth() -> None:
    shared, skipping = CallsTwice(last=False), Branching()
    with unchanged(shared), pytest.raises(ValueError, match=r"'bn' is reached several times .*only strategy='breadth'"):
        population_statistics(shared, images(4, 3), strategy="layerwise")
    with (
        unchanged(skipping),
        pytest.raises(ValueError, match="reach 'a' and 'b' first; skipped layers need strategy='b"),
    ):
        population_statistics(skipping, images(4, 3), strategy="layerwise")


@both
def test_interrupting(strategy: str) -> None:
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(*plain()[:3], Interrupted(), *plain()[3:])
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        population_statistics(model, images(4, 3), strategy=strategy)


def test_blocks_clean_up_in_their_own_state() -> None:
    """A forward that is given up runs its `finally` with its own attributes and modes."""
    cleaned = []

    class Cleaning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.batch = len(x)
            try:
                with torch.enable_grad():
                    return self.block(x)
            finally:
                cleaned.append((self.batch, len(x), torch.is_grad_enabled()))

    population_statistics(Cleaning(), images(4, 3, 2))
    assert sorted(set(cleaned)) == [(2, 2, False), (3, 3, False), (4, 4, False)]


class Generating(nn.Module):
    """A hypernetwork: a batch's own images make the weights with which its layers compute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, plain()[:6]
        self.make = nn.Linear(3, 6 * 3 * 9)

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.inner[0], self.inner[3]
        weight = self.make(x.mean((0, 2, 3))).view(6, 3, 3, 3)
        gain = 1 + x.std()
        if self.kind == "functional_call":
            exchanged = {"0.weight": weight, "3.weight": last.weight * gain}
            return torch.func.functional_call(self.inner, exchanged, (x,))
        own = first.weight, last.weight
        if self.kind == "parameters":
            first.weight, last.weight = nn.Parameter(weight), nn.Parameter(last.weight * gain)
        elif self.kind == "deleted":
            del first.weight, last.weight
            first.weight, last.weight = weight, own[1] * gain
        try:
            return self.inner(x)
        finally:
            del first.weight, last.weight
            first.weight, last.weight = own


@pytest.mark.parametrize("kind", ["functional_call", "parameters", "deleted"])
def test_weights_that_are_exchanged_in_the_forward(kind: str) -> None:
    twins(randomized(Generating(kind)), images(4, 3, 2))


class Rewriting(nn.Module):
    """Writes a batch's own weights into the ones that it has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, plain()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner[3].weight
        if self.kind == "in place":
            weight.mul_(x.std())
        else:
            weight.data = weight.data * x.std()
        return self.inner(x)


@pytest.mark.parametrize("kind", ["in place", "data"])
def test_weights_that_are_written_into_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"writes into 'inner\.3\.weight' in place.*layerwise"):
        population_statistics(randomized(Rewriting(kind)), images(4, 3, 2))


@pytest.mark.parametrize("kind", ["in place", "data"])
def test_weights_that_are_written_into_are_put_back(kind: str) -> None:
    """Every forward begins with the model's own; `Rewriting` itself would multiply them once more each time."""
    model, batches = randomized(Rewriting(kind)), images(4, 3, 2)
    with unchanged(model), pytest.raises(ValueError, match="writes into"):
        population_statistics(model, batches)
    with unchanged(model):
        found = population_statistics(model, batches, strategy="layerwise")
        pooled = population_statistics(model, batches, upstream="batch")
    inner = model.inner
    weights = [inner[3].weight.detach() * x.std() for x in batches]
    first = population_statistics(inner, batches, layers=["1"])
    with using(inner, first), torch.no_grad():
        inputs = [F.conv2d(inner[:3](x), w, inner[3].bias, 2, 1) for x, w in zip(batches, weights, strict=True)]
    assert_moments(found["inner.4"], references.merge(inputs))
    with torch.no_grad():
        inner[1].train()
        inputs = [F.conv2d(inner[:3](x), w, inner[3].bias, 2, 1) for x, w in zip(batches, weights, strict=True)]
    assert_moments(pooled["inner.4"], references.merge(inputs))


class Tapping(nn.Module):
    """Hooks a layer for the time of a forward: to have its output, or to change its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        taken, scale = list[Tensor](), x.std()
        if self.kind == "all modules":
            hook = nn.modules.module.register_module_forward_hook(lambda m, args, y: taken.append(y * scale))
        elif self.kind == "output":
            hook = self.a.register_forward_hook(lambda m, args, y: taken.append(y * scale))
        else:
            hook = self.a.register_forward_pre_hook(lambda m, args: (args[0] * scale,))
        y = self.a(x)
        hook.remove()
        return self.b(taken[0] if taken else y)


@pytest.mark.parametrize("kind", ["output", "input", "all modules"])
def test_hooks_for_the_time_of_a_forward(kind: str) -> None:
    with pytest.warns(match="'a': normalizes something else") if kind == "input" else contextlib.nullcontext():
        twins(randomized(Tapping(kind)), images(4, 3, 2))


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
@pytest.mark.parametrize("how", ["breadth", "layerwise", "auto"])
def test_a_loader_that_uses_its_memory_again(how: str, kind: str) -> None:
    batches = images(200, 200, 200)
    memory = np.empty(batches[0].shape, dtype=np.float32)

    def loader() -> Iterator[Any]:
        for x in batches:
            memory[:] = x.numpy()
            yield torch.from_numpy(memory) if kind == "tensors" else memory

    def forward(model: nn.Module, batch: Any) -> None:
        model(torch.as_tensor(batch))

    if how == "breadth":  # holds what it is given, and notices
        with pytest.warns(RuntimeWarning, match="evaluated again under the result"):
            population_statistics(plain(), loader(), forward=forward)
        return
    options: Any = {"strategy": how} if how == "layerwise" else {"max_images": "auto", "tolerance": 1e-3}
    found = population_statistics(plain(), loader(), forward=forward, **options)
    assert_same(found, population_statistics(plain(), batches))


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_arrays_that_the_forward_writes_into(options: Any) -> None:
    def forward(model: nn.Module, batch: np.ndarray[Any, Any]) -> None:
        batch *= 2
        model(torch.from_numpy(batch))

    arrays = [x.numpy() for x in images(4, 3)]
    found = population_statistics(plain(), arrays, forward=forward, **options)
    assert_same(found, population_statistics(plain(), [2 * x for x in images(4, 3)], **options))


@pytest.mark.parametrize("memory", [None, "300KB"])
def test_sparse_and_nested_batches(memory: str | None) -> None:
    (x,) = images(4)
    expected = population_statistics(plain(), [x])
    for batch in (x.to_sparse(), torch.nested.nested_tensor(list(x), layout=torch.jagged)):
        forward = (lambda m, b: m(b.to_dense())) if batch.is_sparse else (lambda m, b: m(torch.stack(b.unbind())))
        assert_same(population_statistics(plain(), [batch], forward=forward, memory=memory), expected)


class Moody(nn.Module):
    """Has a mode that depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.training = len(x) > 3
        x = self.a(x)
        return self.b(x * 3 if self.training else x)


def test_modes_that_a_forward_sets() -> None:
    twins(randomized(Moody()), images(4, 3, 5))


class Counting(nn.Module):
    """Counts its calls in place, by which its input is multiplied."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.bn = kind, nn.BatchNorm2d(3)
        if kind == "attribute":
            self.calls = torch.zeros(())
        elif kind == "parameter":
            self.calls = nn.Parameter(torch.zeros(()))
        else:
            (self.bn if kind == "buffer of the layer" else self).register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        calls = self.bn.calls if self.kind == "buffer of the layer" else self.calls
        (calls.data if self.kind == "no trace" else calls).add_(1)
        return self.bn(x * calls)


@pytest.mark.parametrize("context", [nullcontext, torch.inference_mode])
@pytest.mark.parametrize("kind", ["buffer", "attribute", "parameter", "buffer of the layer", "no trace"])
def test_what_is_written_in_place_does_not_reach_the_next_batch(kind: str, context: Any) -> None:
    (x,) = images(4)
    with context():
        model = Counting(kind)
        with unchanged(model):
            found = population_statistics(model, [x, x, x], upstream="batch")
            trace = record_frozen(model, [x, x, x], training=True)
            assert_same(population_statistics(model, [x, x, x], strategy="layerwise"), found)
    assert_moments(found["bn"], references.merge([x, x, x]))
    assert torch.equal(trace.layers["bn"].moments, trace.layers["bn"].moments[:1].expand(3, 2, 3))
    torch.testing.assert_close(trace.layers["bn"].moments[2, 0].double(), found["bn"].mean, rtol=1e-5, atol=1e-6)


class Frozen(nn.BatchNorm2d):
    """Stays in eval mode."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class FrozenStem(nn.Sequential):
    """Keeps its first layer in eval mode, as models of detection and segmentation do."""

    def train(self, mode: bool = True) -> "FrozenStem":
        super().train(mode)
        self[0].eval()
        return self


def test_layers_that_a_model_leaves_in_eval_mode_have_no_batch_statistics() -> None:
    layers, batches = [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)], images(4, 3)
    model = randomized(FrozenStem(*layers)).eval()
    with unchanged(model), pytest.raises(ValueError, match="'0' left in eval mode where the model is put into train"):
        population_statistics(model, batches, upstream="batch")
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"record_frozen: .* of '0' are .* leaves them out"):
        trace = record_frozen(model, batches)
    found = population_statistics(model, batches, upstream="batch", layers=["2"])
    with torch.no_grad():
        seen = [model[:2](x) for x in batches]
    assert list(trace.layers) == ["2"]
    torch.testing.assert_close(trace.layers["2"].moments[:, 0], torch.stack([x.mean((0, 2, 3)) for x in seen]))
    assert_moments(found["2"], references.merge(seen))


class FrozenByFlag(nn.Sequential):
    """The same with another name for the argument."""

    def train(self, is_train: bool = True) -> "FrozenByFlag":  # type: ignore[override]
        super().train(is_train)
        self[0].eval()
        return self


class FrozenWithoutDefault(nn.Sequential):
    """The same with an argument that has to be given."""

    def train(self, training) -> "FrozenWithoutDefault":  # type: ignore[no-untyped-def, override]
        nn.Module.train(self, training)
        self[0].eval()
        return self


class FrozenByState(nn.Sequential):
    """The same by the method of its class, which it names."""

    def train(self, state) -> "FrozenByState":  # type: ignore[no-untyped-def, override]
        nn.Sequential.train(self, state)
        self[0].eval()
        return self


@pytest.mark.parametrize("leave", [lambda _: None, lambda mode=True: None, lambda *args: None])
def test_a_layer_whose_train_has_been_taken_away(leave: Callable[..., object]) -> None:
    """As torch calls it: with the mode, whatever its argument is called."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    model[0].train = leave  # type: ignore[assignment]
    with unchanged(model), pytest.raises(ValueError, match="'0' left in eval mode where the model is put into train"):
        population_statistics(model, images(4, 3), upstream="batch")
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"record_frozen: .* of '0' are .* leaves them out"):
        assert list(record_frozen(model, images(4, 3)).layers) == ["1"]


def leave_alone(model: nn.Module, mode: bool = True) -> nn.Module:
    """What people put in the place of a frozen model's `train`, without binding it."""
    return model


@pytest.mark.parametrize("kind", [FrozenByFlag, FrozenWithoutDefault, FrozenByState])
def test_a_train_with_an_argument_of_another_name(kind: type[nn.Sequential]) -> None:
    model = kind(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    with unchanged(model), pytest.raises(ValueError, match="'0' left in eval mode where the model is put into train"):
        population_statistics(model, images(4, 3), upstream="batch")
    for training in (False, True):
        with unchanged(model), pytest.warns(RuntimeWarning, match=r"record_frozen: .* of '0' are .* leaves them out"):
            assert list(record_frozen(model, images(4, 3), training=training).layers) == ["2"]


def test_a_model_whose_train_has_been_taken_away_stays_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    model.train = leave_alone  # type: ignore[assignment]
    with unchanged(model), pytest.raises(ValueError, match="'0' left in eval mode where the model is put into train"):
        population_statistics(model, images(4, 3), upstream="batch")


class Fitting(nn.Sequential):
    """Trains itself by a method of the usual name."""

    def train(self, epochs: int = 10) -> None:  # type: ignore[override]
        pytest.fail("nobody has asked for it")


class FittingInTrainMode(nn.Sequential):
    """The same, on data, in torch's train mode."""

    def train(self, data: list[torch.Tensor], verbose: bool = True) -> None:  # type: ignore[override]
        super().train()
        pytest.fail("nobody has asked for it")


class FittingAlone(nn.Sequential):
    """Has its own data and takes no argument."""

    data = torch.randn(4, 3, 2, 2)

    def train(self) -> None:  # type: ignore[override]
        super().train()
        self(self.data).square().mean().backward()
        pytest.fail("nobody has asked for it")


class Plain(nn.Sequential):
    """Has one way to be trained, and `eval`."""

    def train(self) -> "Plain":  # type: ignore[override]
        return super().train(True)  # type: ignore[return-value]

    def eval(self) -> "Plain":
        return super().train(False)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [Fitting, FittingInTrainMode, FittingAlone, Plain])
def test_models_with_a_train_of_their_own(kind: type[nn.Sequential]) -> None:
    model, batches = kind(nn.BatchNorm2d(3)), images(4, 3)
    model.eval = lambda: nn.Sequential.train(model, False)  # type: ignore[method-assign]
    assert len(record_frozen(model, batches).layers["0"]) == 2
    assert_moments(population_statistics(model, batches, upstream="batch")["0"], references.merge(batches))


def test_layers_that_stay_in_eval_mode_have_no_batch_statistics() -> None:
    model, batches = randomized(nn.Sequential(Frozen(3), nn.ReLU(), nn.BatchNorm2d(3))).eval(), images(4, 3)
    with unchanged(model), pytest.raises(ValueError, match=r"'0' left in eval mode where.*layers=\[\.\.\.\]"):
        population_statistics(model, batches, upstream="batch")
    with unchanged(model):
        found = population_statistics(model, batches, upstream="batch", layers=["2"])
        with pytest.warns(RuntimeWarning, match=r"record_frozen: .* of '0' are .* leaves them out") as told:
            trace = record_frozen(model, batches)
    assert told[0].filename == __file__
    assert list(trace.layers) == ["2"] and len(trace.layers["2"]) == 2
    with torch.no_grad():
        inputs = [model[0](x).relu() for x in batches]
    assert_moments(found["2"], references.merge(inputs))
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    torch.testing.assert_close(trace.layers["2"].moments[:, 0], means, rtol=1e-5, atol=1e-6)
    alone = nn.Sequential(Frozen(3))
    with unchanged(alone), pytest.raises(ValueError, match=r"record_frozen: '0' stay in eval .* no layer has batch"):
        record_frozen(alone, batches)
