"""Variants of predictive momentum: the one that changes nothing is `predictive`, and what the others change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnlab.estimators import DebiasedEMA, Predictive, Stream
from bnlab.estimators.base import fold
from experiments import variants
from experiments.variants import Best, Few, Followed, Qlike, Short, Softmax, Square, Variant

ALL = (Best, Qlike, Square, Short, Few, Softmax, Followed)


def drifting(steps: int, channels: int, layers: tuple[int, ...]) -> Stream:
    """Batches of a random walk that stops halfway."""
    generator = torch.Generator().manual_seed(3)
    walk = torch.randn(steps, 2, channels, generator=generator, dtype=torch.float64)
    walk[steps // 2 :] = 0
    noise = torch.randn(steps, 2, channels, generator=generator, dtype=torch.float64)
    values = walk.cumsum(0) + noise
    batches = torch.stack((values[:, 0], (values[:, 1] / 10).exp()), dim=1)
    start = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, channels)
    eps = torch.full((channels,), 1e-5, dtype=torch.float64)
    return Stream(start, batches, torch.full((steps, channels), 64.0, dtype=torch.float64), eps=eps, layers=layers)


def test_the_plain_loop_chooses_as_predictive_does() -> None:
    # Of the variance: in the mean's scores the unit is another one.
    stream, at = drifting(300, 3, (1, 2)), [0, 1, 2, 3, 100, 300]
    found, expected = fold([Best(), Predictive()], stream, at)[:, :, 1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    found, expected = (estimator.gains(stream)[:, 1] for estimator in (Best(), Predictive()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("variant", ALL)
def test_weights_add_up_to_one_and_give_a_bank_of_equal_averages_back(variant: type[Variant]) -> None:
    stream = drifting(40, 3, (1, 2))
    weights = variant()._weights(stream)
    torch.testing.assert_close(weights.sum(1), torch.ones(40, 2, 2, dtype=torch.float64))
    assert (weights >= 0).all()
    still = Stream(stream.start, stream.batches[:1].repeat(40, 1, 1), stream.counts, eps=stream.eps, layers=(1, 2))
    torch.testing.assert_close(fold([variant()], still, [40])[0, 0], stream.batches[0])


def test_five_averages_are_those_with_the_smallest_scores() -> None:
    errors = torch.arange(50, dtype=torch.float64).flip(0).repeat(3, 1)[:, :, None]
    weights = Few().weigh(errors)
    assert weights[2, :, 0].nonzero().flatten().tolist() == [45, 46, 47, 48, 49]


def test_the_softmax_has_the_weights_of_its_formula() -> None:
    errors = torch.tensor([2.0, 1.0], dtype=torch.float64).repeat(6, 1)[:, :, None]
    weights = Softmax().weigh(errors)[5, :, 0]
    score = sum(0.75**k for k in range(6))  # the memory is of four batches: the discount is 3/4
    expected = math.exp(-10 * score / (score / 4))
    torch.testing.assert_close(weights[0] / weights[1], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("share", "remembered"), [(0.1, 10.0), (0.02, 4.0)])
def test_a_score_remembers_its_share_of_the_past(share: float, remembered: float) -> None:
    scores = variants.discount(torch.ones(100, 1, dtype=torch.float64), share)
    assert scores[99, 0] == 1 + (1 - 1 / remembered) * scores[98, 0]


def test_the_memory_whose_choices_forecast_best_is_followed() -> None:
    # Of two averages the first is better until batch 900, then the second: the shortest memory sees it first.
    errors = torch.ones(1000, 2, 1, dtype=torch.float64)
    errors[:900, 1], errors[900:, 0] = 3.0, 3.0
    followed, tenth = Followed().weigh(errors)[:, 1, 0], Best().weigh(errors)[:, 1, 0]
    assert first_one(followed) < first_one(tenth) < 1000
    assert not followed[:900].any()


def first_one(weights: Tensor) -> int:
    return int(weights.nonzero()[0])


def test_errors_are_those_of_each_forecast() -> None:
    stream = drifting(6, 2, (2,))
    found = variants.find_errors(stream)
    for index in range(2, 6):
        forecasts = fold([DebiasedEMA(m) for m in variants.MOMENTA.tolist()], stream, [index])[:, 0]
        mean, var = forecasts[:, 0], forecasts[:, 1] + 1e-5
        x, ratio = stream.batches[index, 1] + 1e-5, (stream.batches[index, 1] + 1e-5) / var
        unit = var.median(0).values
        expected = {
            "mean": (stream.batches[index, 0] - mean).square() / unit,
            "square": (x - var).square() / unit.square(),
            "qlike": ratio - ratio.log() - 1,
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name][index, :, 0], value.mean(1))
    assert not found["mean"][:2].any()
