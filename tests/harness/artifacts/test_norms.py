"""Every norm against its formula in float64, in training and after it, and what is recorded and measured of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.models import Model
from bnlab.harness.artifacts.network import build_model
from bnlab.harness.artifacts.norms import Norm, NormBuilder
from bnlab.harness.settings import COMPONENTS
from tests import references as ref

IMAGES = (7, 4, 3, 5)
ROWS = (7, 4)


def choose(name: str, **settings: Any) -> Norm:
    """Choose a norm by name, with other settings than the usual ones."""
    return replace(COMPONENTS["norm"][name], **settings)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal values in float64, each channel with a mean and a scale of its own."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.arange(1, shape[1] + 1, dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    return x * scale + scale.square()


def build(config: Norm, channels: int = 4, of_images: bool = True, steps: int = 1) -> Any:
    """A norm in float64 with drawn weights."""
    layer = NormBuilder(config, of_images, steps).build(channels).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = draw(1, parameter.numel(), seed=seed)[0]
    return layer


def test_gain_control() -> None:
    layer = build(choose("gain_control"))
    x = draw(*IMAGES)
    expected = ref.control_gain(x, layer.share, layer.gain, layer.shift)
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(layer(x), expected)

    alone = layer(x[:1])
    torch.testing.assert_close(alone, expected[:1])


@pytest.mark.parametrize(("images", "count"), [(2, 1), (5, 1), (8, 2), (11, 2)])
def test_a_ghost_norm_normalizes_each_part_in_training_and_all_by_its_averages_after_it(
    images: int, count: int
) -> None:
    layer = build(choose("ghost", batch_size=4))
    x = draw(images, 4, 3, 5).requires_grad_()
    parts = ref.split_ghosts(x, 4)
    weight = layer.norm.weight
    bias = layer.norm.bias

    assert len(parts) == count

    expected = torch.cat([ref.scale_channels(ref.batch_normalize(part), weight, bias) for part in parts])
    found = layer(x)
    torch.testing.assert_close(found, expected)
    found[:1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[: len(parts[0])].any()
    assert not x.grad[len(parts[0]) :].any()

    mean, var = ref.running_ema([part.detach() for part in parts], 0.1)[-1]
    torch.testing.assert_close(layer.norm.running_mean, mean)
    torch.testing.assert_close(layer.norm.running_var, var)
    normalized = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(layer.eval()(x), ref.scale_channels(normalized, weight, bias))


class TwoNorms(nn.Sequential):
    """Two norms with a convolution between them."""

    def __init__(self, config: Norm) -> None:
        conv = nn.Conv2d(3, 4, 3, bias=False).double()
        conv.weight.data = draw(4, 3, 3, 3, seed=2)
        super().__init__(build(config, 3), conv, nn.ReLU(), build(config, 4))


def compare(found: Any, expected: Any) -> None:
    """Statistics by layer, whatever wraps the layers."""
    assert [name.removesuffix(".norm") for name in found] == list(expected)
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mine.var, theirs.var, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ghost", "renorm"])
def test_statistics_of_frozen_weights_are_those_of_the_batch_norm_inside(name: str) -> None:
    plain = TwoNorms(choose("batch"))
    batches = [draw(9, 3, 5, 5, seed=1), draw(8, 3, 5, 5, seed=2), draw(3, 3, 5, 5, seed=3)]
    normalized = batches
    settings = {}
    if name == "ghost":
        normalized = [part for batch in batches for part in ref.split_ghosts(batch, 4)]
        settings = {"batch_size": 4}

    model = TwoNorms(choose(name, **settings))

    compare(bnlab.population_statistics(model, batches), ref.full_batch_population(plain, torch.cat(batches)))
    precise = bnlab.population_statistics(model, batches, statistic="precise")
    compare(precise, ref.batch_upstream_population(plain, normalized))


@pytest.mark.parametrize("of_images", [True, False])
@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0)])
def test_batch_renorm(of_images: bool, r_max: float, d_max: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, gradients and averages of four batches, each channel's r and d by a loop."""
    limits = tuple(torch.tensor(value, dtype=torch.float64) for value in (r_max, d_max))
    layer = build(choose("renorm", momentum=0.3), of_images=of_images)
    monkeypatch.setattr(layer, "limits", lambda: limits)
    weight, bias = layer.norm.weight, layer.norm.bias
    batches = [draw(*(IMAGES if of_images else ROWS), seed=seed) for seed in range(4)]
    running = torch.zeros(4).double(), torch.ones(4).double()
    for number, batch in enumerate(batches):
        r, d = torch.tensor(ref.renorm_corrections(batch, running, r_max, d_max), dtype=torch.float64).T
        x = batch.clone().requires_grad_()
        twin = batch.clone().requires_grad_()
        dims = [0, *range(2, batch.dim())]
        mean = twin.mean(dims, keepdim=True)
        var = twin.var(dims, correction=0, keepdim=True)
        expected = ref.scale_channels(ref.scale_channels((twin - mean) / (var + 1e-5).sqrt(), r, d), weight, bias)
        y = layer(x)
        towards = draw(*batch.shape, seed=9)
        torch.testing.assert_close(y, expected)
        found = torch.autograd.grad((y * towards).sum(), [x, weight, bias])
        gradients = torch.autograd.grad((expected * towards).sum(), [twin, weight, bias])
        torch.testing.assert_close(found, gradients)
        running = ref.running_ema(batches[: number + 1], 0.3)[-1]
        torch.testing.assert_close(layer.norm.running_mean, running[0])
        torch.testing.assert_close(layer.norm.running_var, running[1])
    torch.testing.assert_close(layer.eval()(batches[0]), layer.norm(batches[0]))


def test_the_limits_of_batch_renorm_rise_at_the_shares_of_the_paper() -> None:
    layer = build(choose("renorm"), steps=260)
    assert layer.norm.momentum == 0.01
    for update in range(100):
        limits = tuple(float(limit) for limit in layer.limits())
        assert limits == pytest.approx(ref.renorm_limits(update, 260))
        assert limits == {0: (1, 0), 10: (1, 0), 50: (pytest.approx(15 / 7), 5), 80: (3, 5)}.get(update, limits)
        layer(draw(3, 4, 1, 1))


@pytest.mark.parametrize(("name", "groups"), [("group", 2), ("layer", 1), ("instance", 4)])
def test_norms_of_each_image(name: str, groups: int) -> None:
    layer = build(choose(name, **({"groups": groups} if name == "group" else {})))
    x = draw(*IMAGES)
    expected = ref.scale_channels(ref.group_normalize(x, groups), layer.weight, layer.bias)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), expected)


@pytest.mark.parametrize("name", COMPONENTS["norm"])
def test_a_norm_is_what_its_class_says(name: str) -> None:
    """What models, checks and measurements rely on, of the layer that it builds, in training."""
    norm = choose(name)
    x = draw(64, 8, 3, 5)
    x = x - x.mean((0, 2, 3), keepdim=True)
    with_another_last = torch.cat((x[:-1], 5 * x[-1:]))

    def apply(x: Tensor) -> Tensor:
        return build(norm, channels=8)(x)  # type: ignore[no-any-return]

    def differ(found: Tensor, expected: Tensor) -> bool:
        return not torch.allclose(found, expected, rtol=1e-2, atol=1e-2)

    of_nothing = build(norm, channels=8)(torch.zeros_like(x))
    assert norm.has_shift == differ(of_nothing, torch.zeros_like(x))
    assert norm.sets_scale != differ(apply(10 * x), apply(x))
    assert norm.uses_batch == differ(apply(x[:2])[0], apply(x)[0])
    assert norm.takes_batch_whole == differ(apply(with_another_last)[0], apply(x)[0])
    if norm.needs_maps:
        with pytest.raises((ValueError, IndexError)):
            build(norm, channels=8, of_images=False)(x[:, :, 0, 0])
    else:
        build(norm, channels=8, of_images=False)(x[:, :, 0, 0])


def choose_model(name: str, **settings: int) -> Model:
    """Choose a model by name, with other settings than the usual ones."""
    return replace(COMPONENTS["model"][name], **settings)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model_name", "settings"),
    [("cnn", {"depth": 2, "width": 8}), ("mlp", {"width": 16}), ("resnet", {"depth": 8, "width": 8})],
)
@pytest.mark.parametrize("norm_name", COMPONENTS["norm"])
def test_every_weight_of_every_network_is_trained(model_name: str, settings: dict[str, int], norm_name: str) -> None:
    network, norm = choose_model(model_name, **settings), choose(norm_name)
    if norm.needs_maps and not network.has_maps:
        return
    model = build_model(network, norm, channels=1, image_size=8, classes=10, seed=0)
    model(draw(12, 1, 8, 8).float()).square().sum().backward()

    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "kinds"),
    [
        ("cnn", {"depth": 5, "width": 8, "pool_every": 5}, "bgbgb"),
        ("mlp", {"depth": 4}, "bgbg"),
        ("resnet", {"depth": 14}, "b" + "bg" * 6),
    ],
)
def test_every_second_norm(name: str, settings: dict[str, int], kinds: str) -> None:
    network = choose_model(name, **settings)
    inputs = {"channels": 1, "image_size": 8, "classes": 10}
    known = {nn.BatchNorm1d: "b", nn.BatchNorm2d: "b", nn.GroupNorm: "g"}

    model = build_model(network, choose("batch", groups=4, every_second="group"), **inputs, seed=0)

    layers = [module for module in model.modules() if type(module) in known]
    assert "".join(known[type(layer)] for layer in layers) == kinds
    assert all(layer.num_groups == 4 for layer in layers if isinstance(layer, nn.GroupNorm))
    usual = build_model(network, choose("batch"), **inputs, seed=0)
    assert all(map(torch.equal, model.parameters(), usual.parameters())), "both norms start at 1 and 0"
