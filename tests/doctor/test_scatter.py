"""Scatter of rows that come one after the other, against numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlab.doctor.scatter import Scatter
from bnlab.moments import Moments
from tests.helpers import assert_moments


def make_scatter(channels: int = 3) -> Scatter:
    return Scatter.empty(channels, torch.device("cpu"))


def draw_rows(count: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scatter_weighed(rows: Tensor, weights: Sequence[float]) -> Scatter:
    """Add rows one after the other, each with its weight."""
    result = make_scatter(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        result.add(row, weight=weight)
    return result


def test_rows_in_unequal_parts_are_numpys() -> None:
    rows = 1000 + draw_rows(60)

    result = make_scatter()
    for part in rows.split([1, 40, 2, 17]):
        result.add_all(part)

    assert result.count == 60
    assert np.allclose(result.mean, rows.numpy().mean(0), rtol=1e-12)
    assert np.allclose(result.var, rows.numpy().var(0, ddof=1), rtol=1e-9)


def test_weighed_rows_are_numpys() -> None:
    rows = draw_rows(5)
    weights = [64.0, 64.0, 64.0, 64.0, 4.0]

    result = scatter_weighed(rows, weights)

    mean = np.average(rows.numpy(), axis=0, weights=weights)
    squares = np.average((rows.numpy() - mean) ** 2, axis=0, weights=weights)
    assert np.allclose(result.mean, mean)
    assert np.allclose(result.var, squares * 5 / 4)


def test_few_rows_have_no_variance() -> None:
    assert make_scatter().var.isnan().all()
    assert scatter_weighed(torch.ones(1, 2), [1]).var.isnan().all()


def test_moments_of_parts_are_those_of_all_values() -> None:
    values = 1000 + draw_rows(60)

    result = make_scatter()
    for part in values.split([1, 40, 2, 17]):
        result.add_moments(Moments.of(part))

    assert_moments(result.moments, Moments.of(values), mean=1e-9, var=1e-9)


def test_halves_are_the_scatters_of_half_of_the_channels() -> None:
    rows = draw_rows(8, channels=4)
    result = make_scatter(4)
    result.add_all(rows)

    halves = result.fetch().split()

    for half, part in zip(halves, rows.chunk(2, dim=1), strict=True):
        assert half.count == half.weight == 8
        assert torch.allclose(half.mean, part.mean(0))
        assert torch.allclose(half.var, part.var(0))


def test_variance_of_means_does_not_depend_on_a_small_last_part() -> None:
    """Means of 64 and of 4 standard normal values, times 8 and 2, are standard normal: at the average weight of 52
    their variance is 1/52.

    The relative standard deviation of the mean of 2,000 estimates of 4 degrees of freedom is sqrt(2/4/2000) = .016.
    """
    means = draw_rows(5, channels=2000) / torch.tensor([8, 8, 8, 8, 2])[:, None]

    result = scatter_weighed(means, [64, 64, 64, 64, 4])

    assert float(result.var.mean()) == pytest.approx(1 / 52, rel=3 * 0.016)
