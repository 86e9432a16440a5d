"""Figures that causes read from a case, against what they are by definition and in simulations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose, population_statistics
from bnlab.doctor.case import Case
from bnlab.layers import get_running_buffers

CHANNELS = 300


def make_rows(count: int, size: int, seed: int) -> list[Tensor]:
    """Make batches of independent standard normal rows [size, 300]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, CHANNELS, generator=generator) for _ in range(count)]


def make_case(layer: nn.BatchNorm1d, batches: Sequence[Tensor], **arguments: object) -> Case:
    return diagnose(layer.eval(), batches, progress=False, **arguments).case  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "size", "median"), [(40, 8, 0.674), (4, 32, 0.765)])
def test_noise_ratio_of_averages_of_independent_batches(count: int, size: int, median: float) -> None:
    """|T| is that of a normal distribution, or of Student's with 3 degrees of freedom where 4 batches tell the noise.

    The median of 300 channels has a standard error of 1 / (2 · .636 · sqrt(300)) = .045.
    """
    layer = nn.BatchNorm1d(CHANNELS, momentum=0.1)
    for batch in make_rows(100, size, seed=0):
        layer(batch)

    case = make_case(layer, make_rows(count, size, seed=1))

    assert case.noise_ratio("") == pytest.approx(median, abs=3 * 0.045)


def test_noise_of_a_mean_by_definition() -> None:
    """The variance of batch means, times what is left of it in a running mean and in the mean of all 3 batches."""
    layer = nn.BatchNorm1d(CHANNELS, momentum=0.2)
    batches = [*make_rows(2, 8, seed=0), *make_rows(1, 8, seed=1)]

    case = make_case(layer, batches)

    means = torch.stack([batch.double().mean(0) for batch in batches])
    noise = case.find_noise("")
    assert noise is not None
    assert torch.allclose(noise, (means.var(0) * (0.2 / 1.8 + 1 / 3)).sqrt())
    scale = torch.cat(batches).double().var(0, correction=0) + layer.eps
    assert case.find_expected_gap("") == pytest.approx(float((noise.square() / scale).mean().sqrt()))


def test_two_batches_have_no_noise_ratio() -> None:
    case = make_case(nn.BatchNorm1d(CHANNELS), make_rows(2, 8, seed=0))

    assert case.find_noise("") is None
    assert math.isnan(case.noise_ratio(""))
    assert math.isnan(case.find_expected_gap(""))


def test_averages_held_still_have_no_noise_ratio() -> None:
    """Momentum 0, as converters of weights write it; how many batches were averaged is unknown."""
    layer = nn.BatchNorm1d(CHANNELS, momentum=0.0)
    mean, _ = get_running_buffers(layer)
    mean.fill_(1)

    diagnosis = diagnose(layer.eval(), make_rows(4, 8, seed=0), progress=False)

    assert math.isnan(diagnosis.case.noise_ratio(""))
    assert "BN201" not in set(diagnosis.findings["code"])


def test_noise_is_that_of_the_training_batches_where_there_are_some() -> None:
    layer = nn.BatchNorm1d(CHANNELS)
    training = make_rows(5, 16, seed=2)

    case = make_case(layer, make_rows(3, 8, seed=0), training_batches=training)

    means = torch.stack([batch.double().mean(0) for batch in training])
    noise = case.find_noise("")
    assert noise is not None
    assert torch.allclose(noise, (means.var(0) * (0.1 / 1.9 + 1 / 5)).sqrt())


def test_sampling_error_is_that_of_images() -> None:
    """Of 256 standard normal values: 1/16, up to the spread of 300 estimated variances."""
    case = make_case(nn.BatchNorm1d(CHANNELS), make_rows(8, 32, seed=0))

    assert case.find_sampling_error("") == pytest.approx(1 / 16, rel=0.02)


def test_gaps_may_be_to_other_statistics() -> None:
    batches = make_rows(4, 32, seed=0)
    layer = nn.BatchNorm1d(CHANNELS)
    mean, var = get_running_buffers(layer)
    mean.fill_(1)
    var.fill_(4)
    case = make_case(layer, batches)
    other = population_statistics(layer, [1 + 2 * batch for batch in batches], progress=False)

    mean_gap, var_gap = case.find_gap("", other)

    exact = case.data.exact[""]
    assert mean_gap == pytest.approx(float((exact.mean.square() / exact.var).mean().sqrt()), rel=1e-4)
    assert var_gap == pytest.approx(float(exact.var.log().square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(
    ("momentum", "count", "remembers"),
    [
        (0.1, 43, True),  # .9⁴³ = .0108
        (0.1, 44, False),  # .0097
        (None, 1, False),
        (0.1, 0, False),  # the buffers have come from elsewhere
    ],
)
def test_the_start_is_forgotten_at_one_percent(momentum: float | None, count: int, remembers: bool) -> None:
    layer = nn.BatchNorm1d(CHANNELS, momentum=momentum)
    mean, _ = get_running_buffers(layer)
    mean.fill_(2)
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.fill_(count)

    assert diagnose(layer.eval()).case.remembers_start("") is remembers


def test_the_start_is_remembered_where_nothing_was_averaged() -> None:
    assert diagnose(nn.BatchNorm1d(CHANNELS)).case.remembers_start("")


def test_a_case_without_data_says_so() -> None:
    with pytest.raises(ValueError, match="there is no data; a cause that asks for it needs 'data'"):
        diagnose(nn.BatchNorm1d(CHANNELS)).case.find_gap("")


# What explains a gap


def make_gap() -> Case:
    """Averages that are off by some tenths of σ in all channels of two layers."""
    layers = [nn.BatchNorm1d(CHANNELS), nn.BatchNorm1d(CHANNELS)]
    model = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(5)
    for layer in layers:
        mean, var = get_running_buffers(layer)
        mean.add_(0.3 * torch.randn(CHANNELS, generator=generator))
        var.mul_((0.3 * torch.randn(CHANNELS, generator=generator)).exp())
    return diagnose(model, make_rows(8, 32, seed=0), progress=False).case


def test_what_is_predicted_exactly_is_explained_and_nothing_is_not() -> None:
    case = make_gap()
    names = ["0", "1"]

    assert case.explain(case.buffers, names) == pytest.approx(1)
    assert case.explain({}, names) == 0
    assert case.explain(case.read_exact(names), names) == pytest.approx(0)
    assert case.explain({}, []) == 0


def test_half_of_the_way_explains_half() -> None:
    """Distances are in σ and log variance; so the mean of both means, and the geometric mean of both variances."""
    case = make_gap()
    exact = case.read_exact(["0"])["0"]
    mean = (case.buffers["0"][0] + exact[0]) / 2
    eps = case.data.exact.eps["0"]
    var = ((case.buffers["0"][1] + eps) * (exact[1] + eps)).sqrt() - eps

    assert case.explain({"0": torch.stack((mean, var))}, ["0"]) == pytest.approx(0.5)


def test_a_layer_that_is_not_predicted_counts_as_not_explained() -> None:
    """Of two layers with gaps g and h, h is left: 1 − h / sqrt(g² + h²)."""
    case = make_gap()
    exact = case.data.exact
    first, second = (case.find_distance(name, exact) for name in ("0", "1"))

    explained = case.explain({"0": case.buffers["0"]}, ["0", "1"])

    assert explained == pytest.approx(1 - second / math.hypot(first, second))


def test_a_worse_prediction_explains_less_than_nothing() -> None:
    case = make_gap()
    away = {"0": case.buffers["0"] + torch.tensor([[3.0], [0.0]])}

    assert case.explain(away, ["0"]) < 0


def test_noise_of_the_averages_is_no_gap() -> None:
    """Averages of 100 batches of momentum .1 are off by their noise; one more σ is more than that."""
    layer = nn.BatchNorm1d(CHANNELS)
    for batch in make_rows(100, 8, seed=0):
        layer(batch)
    rows = make_rows(40, 8, seed=1)
    noisy = make_case(layer, rows)
    get_running_buffers(layer)[0].add_(1)
    off = make_case(layer, rows)

    assert noisy.explain(noisy.read_exact([""]), [""], with_noise=True) > 0.9
    assert off.explain(off.read_exact([""]), [""], with_noise=True) < 0.3


@pytest.mark.parametrize(("sigmas", "is_off"), [(0.0, False), (0.02, False), (1.0, True)])
def test_averages_are_off_by_more_than_noise_explains(sigmas: float, is_off: bool) -> None:
    layer = nn.BatchNorm1d(CHANNELS, momentum=0.1)
    for batch in make_rows(100, 64, seed=0):
        layer(batch)
    get_running_buffers(layer)[0].add_(sigmas)

    assert make_case(layer, make_rows(40, 64, seed=1)).is_off_surely("") == is_off
