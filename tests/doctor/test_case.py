"""Figures that causes read from a case, against what they are by definition and in simulations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.causes.bn303 import UnusedWeights
from bnlab.doctor.evidence.case import Case
from bnlab.model.layers import get_running_buffers

CHANNELS = 300


def make_rows(count: int, size: int, seed: int) -> list[Tensor]:
    """Make batches of independent standard normal rows [size, 300]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, CHANNELS, generator=generator) for _ in range(count)]


def make_layer(count: int, size: int) -> nn.BatchNorm1d:
    """Make a layer of momentum .1 that has averaged so many batches."""
    layer = nn.BatchNorm1d(CHANNELS)
    for batch in make_rows(count, size, seed=0):
        layer(batch)
    return layer


def make_case(layer: nn.BatchNorm1d, batches: Sequence[Tensor], **arguments: object) -> Case:
    return diagnose(layer.eval(), batches, progress=False, **arguments).case  # type: ignore[arg-type]


# Noise


@pytest.mark.parametrize("has_training", [False, True])
def test_noise_of_a_mean_by_definition(has_training: bool) -> None:
    """The variance of batch means, times what is left of it in a running mean and in the mean of all batches.

    The training batches tell it where there are some.
    """
    layer = nn.BatchNorm1d(CHANNELS, momentum=0.2)
    batches = make_rows(3, 8, seed=0)
    training = make_rows(5, 16, seed=2)

    case = make_case(layer, batches, **({"training_batches": training} if has_training else {}))

    rows = training if has_training else batches
    means = torch.stack([batch.double().mean(0) for batch in rows])
    noise = case.estimate_noise("")
    assert noise is not None
    assert torch.allclose(noise, (means.var(0) * (0.2 / 1.8 + 1 / len(rows))).sqrt())
    scale = torch.cat(rows).double().var(0, correction=0) + layer.eps
    assert case.estimate_expected_gap("") == pytest.approx(float((noise.square() / scale).mean().sqrt()))


@pytest.mark.parametrize(("momentum", "count"), [(0.1, 2), (0.0, 4)])
def test_two_batches_and_averages_held_still_have_no_noise_ratio(momentum: float, count: int) -> None:
    """Converters of weights write momentum 0; how many batches were averaged is unknown."""
    layer = nn.BatchNorm1d(CHANNELS, momentum=momentum)
    layer.get_buffer("running_mean").fill_(1)

    case = make_case(layer, make_rows(count, 8, seed=0))

    assert case.estimate_noise("") is None
    assert math.isnan(case.noise_ratio(""))
    assert case.estimate_expected_gap("") == 0


def test_sampling_error_is_that_of_images() -> None:
    """Of 256 standard normal values: 1/16, up to the spread of 300 estimated variances."""
    case = make_case(nn.BatchNorm1d(CHANNELS), make_rows(8, 32, seed=0))

    assert case.estimate_sampling_error("") == pytest.approx(1 / 16, rel=0.02)


@pytest.mark.parametrize(("sigmas", "is_off"), [(0.0, False), (0.02, False), (1.0, True)])
def test_averages_are_off_by_more_than_noise_explains(sigmas: float, is_off: bool) -> None:
    layer = make_layer(100, 64)
    layer.get_buffer("running_mean").add_(sigmas)

    assert make_case(layer, make_rows(40, 64, seed=1)).clearly_differs("") == is_off


# The start


@pytest.mark.parametrize(
    ("momentum", "count", "mean", "remembers"),
    [
        (0.1, 43, 2.0, True),  # .9⁴³ = .0108
        (0.1, 44, 2.0, False),  # .0097
        (None, 1, 2.0, False),
        (0.1, 0, 2.0, False),  # the buffers have come from elsewhere
        (0.1, 0, 0.0, True),
    ],
)
def test_the_start_is_forgotten_at_one_percent(
    momentum: float | None, count: int, mean: float, remembers: bool
) -> None:
    layer = nn.BatchNorm1d(CHANNELS, momentum=momentum)
    layer.get_buffer("running_mean").fill_(mean)
    layer.get_buffer("num_batches_tracked").fill_(count)

    assert diagnose(layer.eval()).case.remembers_start("") is remembers


# Gaps, and what explains them


def make_gap() -> Case:
    """Averages that are off by some tenths of σ in all channels of two layers."""
    layers = [nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)]
    generator = torch.Generator().manual_seed(5)
    for layer in layers:
        mean, var = get_running_buffers(layer)
        mean.add_(0.3 * torch.randn(CHANNELS, generator=generator))
        var.mul_((0.3 * torch.randn(CHANNELS, generator=generator)).exp())
    return diagnose(nn.Sequential(*layers).eval(), make_rows(8, 32, seed=0), progress=False).case


def test_a_gap_is_in_sigma_and_in_log_variance() -> None:
    """To exact statistics, or to others in their place."""
    batches = make_rows(4, 32, seed=0)
    layer = nn.BatchNorm1d(CHANNELS, eps=1e-12)
    mean, var = get_running_buffers(layer)
    mean.fill_(1)
    var.fill_(4)
    case = make_case(layer, batches)
    other = population_statistics(layer, [1 + 2 * batch for batch in batches], progress=False)

    rows = torch.cat(batches).double()
    exact_mean = rows.mean(0)
    exact_var = rows.var(0, correction=0)
    of_mean = ((1 - exact_mean).square() / exact_var).mean().sqrt()
    of_var = (4 / exact_var).log().square().mean().sqrt()
    assert case.measure_gap("") == pytest.approx((float(of_mean), float(of_var)))
    to_other = (exact_mean.square() / exact_var).mean().sqrt(), exact_var.log().square().mean().sqrt()
    assert case.measure_gap("", other) == pytest.approx(tuple(map(float, to_other)), rel=1e-4)


def test_what_is_predicted_explains_its_share_of_the_gap() -> None:
    """Half of the way are the mean of both means, and the geometric mean of both variances."""
    case = make_gap()
    names = ["0", "1"]
    exact = case.read_exact(names)
    eps = case.exact.eps["0"]
    mean = (case.buffers["0"][0] + exact["0"][0]) / 2
    var = ((case.buffers["0"][1] + eps) * (exact["0"][1] + eps)).sqrt() - eps
    away = case.buffers["0"] + torch.tensor([[3.0], [0.0]])

    assert case.explain(case.buffers, names) == pytest.approx(1)
    assert case.explain({}, names) == case.explain({}, []) == 0
    assert case.explain(exact, names) == pytest.approx(0)
    assert case.explain({"0": torch.stack((mean, var))}, ["0"]) == pytest.approx(0.5)
    assert case.explain({"0": away}, ["0"]) < 0


def test_a_layer_that_is_not_predicted_counts_as_not_explained() -> None:
    """Of two layers with gaps g and h, h is left: 1 − h / sqrt(g² + h²)."""
    case = make_gap()
    first, second = (case.measure_distance(name, case.exact) for name in ("0", "1"))

    explained = case.explain({"0": case.buffers["0"]}, ["0", "1"])

    assert explained == pytest.approx(1 - second / math.hypot(first, second))


def test_noise_of_the_averages_is_no_gap() -> None:
    """Averages of 100 batches of momentum .1 are off by their noise; one more σ is more than that."""
    layer = make_layer(100, 8)
    rows = make_rows(40, 8, seed=1)
    noisy = make_case(layer, rows)
    layer.get_buffer("running_mean").add_(1)
    off = make_case(layer, rows)

    assert noisy.explain(noisy.read_exact([""]), [""], with_noise=True) > 0.9
    assert off.explain(off.read_exact([""]), [""], with_noise=True) < 0.3


@torch.no_grad()
def test_weights_of_0_at_the_end_of_a_branch_are_those_of_a_new_network() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[2].weight.zero_()
    model(torch.randn(8, 3))

    assert diagnose(model.eval()).case.is_unloaded

    model[2].weight[0] = 1
    assert not diagnose(model).case.is_unloaded


@torch.no_grad()
def test_the_only_weights_that_are_not_1_are_tried_at_1() -> None:
    """They need not be those of the last layer whose averages fit."""
    generator = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    model[0].weight.fill_(2)
    batches = [torch.randn(200, 3, generator=generator)]
    population_statistics(model, batches, progress=False).write_to(model)
    model[2].running_mean += 1

    case = diagnose(model, batches, progress=False).case
    (undo,) = UnusedWeights().propose(replace(case, fold_statistics=case.exact))

    assert undo.layers == ("0",)
