"""Scatter of rows that come one after the other, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlab.doctor.scatter import Scatter
from bnlab.moments import Moments
from tests.helpers import assert_moments

WEIGHTS = [64.0, 64.0, 64.0, 64.0, 4.0]
PARTS = [1, 40, 2, 17]


def draw_rows(count: int, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scatter(rows: Tensor, weights: list[float] | None = None) -> Scatter:
    """Add rows in unequal parts, or one after the other, each with its weight."""
    result = Scatter.empty(rows.shape[1], torch.device("cpu"))
    if weights is None:
        for part in rows.split(PARTS):
            result.add_all(part)
    else:
        for row, weight in zip(rows, weights, strict=True):
            result.add(row, weight)
    return result


def test_rows_in_unequal_parts_are_numpys() -> None:
    rows = 1000 + draw_rows(60)

    result = scatter(rows)
    halves = result.fetch().split()

    assert result.count == 60
    assert np.allclose(result.mean, rows.mean(0), rtol=1e-12)
    assert np.allclose(result.var, rows.numpy().var(0, ddof=1), rtol=1e-9)
    for half, part in zip(halves, rows.chunk(2, dim=1), strict=True):
        assert half.count == half.weight == 60
        assert np.allclose(half.var, part.numpy().var(0, ddof=1), rtol=1e-9)


def test_weighed_rows_are_numpys() -> None:
    rows = draw_rows(5)

    result = scatter(rows, WEIGHTS)

    mean = np.average(rows.numpy(), axis=0, weights=WEIGHTS)
    squares = np.average((rows.numpy() - mean) ** 2, axis=0, weights=WEIGHTS)
    assert np.allclose(result.mean, mean)
    assert np.allclose(result.var, squares * 5 / 4)


def test_few_rows_have_no_variance() -> None:
    assert scatter(torch.ones(1, 2), [1]).var.isnan().all()


def test_moments_of_parts_are_those_of_all_values() -> None:
    values = 1000 + draw_rows(60)

    result = Scatter.empty(4, torch.device("cpu"))
    for part in values.split(PARTS):
        result.add_moments(Moments.of(part))

    assert_moments(result.moments, Moments.of(values), mean=1e-9, var=1e-9)


def test_variance_of_means_does_not_depend_on_a_small_last_part() -> None:
    """Means of 64 and of 4 standard normal values, times 8 and 2, are standard normal: at the average weight of 52
    their variance is 1/52.

    The relative standard deviation of the mean of 2,000 estimates of 4 degrees of freedom is sqrt(2/4/2000) = .016.
    """
    means = draw_rows(5, channels=2000) / torch.tensor([8, 8, 8, 8, 2])[:, None]

    assert float(scatter(means, WEIGHTS).var.mean()) == pytest.approx(1 / 52, rel=3 * 0.016)
