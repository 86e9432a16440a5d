"""Every closed form against a simulation, within 4.5 of its own standard errors; the seeds are fixed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bnlab import theory

Array = NDArray[np.float64]


def ema(records: Array, momentum: float, start: Array | float = 0.0) -> Array:
    """The EMA after each of the records [T, ...], which are independent streams side by side."""
    history = np.empty_like(records)
    level = np.broadcast_to(start, records.shape[1:])
    for t, record in enumerate(records):
        level = history[t] = (1 - momentum) * level + momentum * record
    return history


def assert_average(samples: Array, expected: theory.Values) -> None:
    """The average of independent samples is the expected value, up to their standard error."""
    expected = float(expected)
    z = (samples.mean() - expected) / (samples.std(ddof=1) / math.sqrt(samples.size))
    assert abs(z) < 4.5, f"simulated {samples.mean():.5g}, expected {expected:.5g}: z = {z:.1f}"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Weights and noise


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0])
def test_weights_are_what_an_impulse_leaves(momentum: float) -> None:
    ages = np.arange(20.0)
    nothing = np.zeros(20)
    impulse = np.zeros(20)
    impulse[0] = 1

    weights = ema(impulse, momentum)
    residue = ema(nothing, momentum, start=1.0)

    expected = momentum * theory.start_residue(momentum, ages)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    np.testing.assert_allclose(residue, theory.start_residue(momentum, ages + 1), rtol=1e-12)
    np.testing.assert_allclose(np.cumsum(weights) + residue, 1, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.05, 0.3, 1.0])
def test_noise_of_independent_batches(momentum: float, rng: np.random.Generator) -> None:
    records = rng.normal(0, math.sqrt(2), (300, 4000))
    long_run = theory.ema_noise(momentum, 2.0)

    averages = ema(records, momentum)

    assert_average(averages[-1] ** 2, long_run)
    for t in (1, 3, 10):
        residue = theory.start_residue(momentum, t)
        assert_average(averages[t - 1] ** 2, long_run * (1 - residue**2))


# Random walk


def walk(steps: int, drift: float, rng: np.random.Generator) -> Array:
    """5,000 walks: their levels before the first step and after each, [steps + 1, 5000]."""
    return rng.normal(0, math.sqrt(drift), (steps + 1, 5000)).cumsum(axis=0)


def record(level: Array, noise: float, rng: np.random.Generator) -> Array:
    return level + rng.normal(0, math.sqrt(noise), level.shape)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_random_walk_error(momentum: float, rng: np.random.Generator) -> None:
    drift = 0.2
    noise = 0.5
    level = walk(200, drift, rng)
    records = record(level[:200], noise, rng)
    estimate = ema(records, momentum)[-1]

    expected = theory.random_walk_error(momentum, drift, noise)
    assert_average((estimate - level[199]) ** 2, expected)
    assert_average((estimate - level[200]) ** 2, expected + drift)  # after the optimizer's update


@pytest.mark.parametrize("steps", [3, 200])
def test_random_walk_gap(steps: int, rng: np.random.Generator) -> None:
    drift = 0.02
    noise = 0.5
    level = 2 + walk(steps, drift, rng)
    records = record(level[:steps], noise, rng)
    estimate = ema(records, 0.1)[-1]

    gap = theory.random_walk_gap(0.1, steps, drift, noise, level=4.0 + drift)

    too_large = drift * 0.9 ** (2 * steps)  # as the docstring of the closed form says
    assert_average((estimate - level[steps]) ** 2, gap**2 - too_large)


def test_optimal_momentum_is_the_kalman_gain() -> None:
    ratio = np.logspace(-6, 4, 41)
    best = theory.optimal_momentum(ratio * 3, 3.0)
    gain = np.ones_like(ratio)
    for _ in range(10_000):  # the filter's own recursion: posterior variance in units of the noise
        gain = (gain + ratio) / (gain + ratio + 1)
    np.testing.assert_allclose(best, gain, rtol=1e-6)
    np.testing.assert_allclose(theory.random_walk_error(best, ratio * 3, 3.0), best * 3.0, rtol=1e-10)
    for other in (0.9 * best, np.minimum(1.1 * best, 1)):
        least = theory.random_walk_error(best, ratio * 3, 3.0)
        assert np.all(theory.random_walk_error(other, ratio * 3, 3.0) >= least * (1 - 1e-12))


# Epochs


@pytest.mark.parametrize(("full", "last"), [(4, 1.0), (5, 0.25), (1, 0.8), (1, 1.0)])
@pytest.mark.parametrize("momentum", [0.05, 0.4, 1.0])
def test_noise_within_an_epoch(momentum: float, full: int, last: float) -> None:
    """The EMA's weights over hundreds of epochs, and the covariance of batch means of one finite population."""
    images = 20 * (full + last * (last != 1))
    variance = 3.0
    sizes = np.array([20.0] * full + [20 * last] * (last != 1))
    steps = len(sizes)
    covariance = variance * 20 * (np.diag(1 / sizes) - 1 / images)  # of an image's value: 20 times that of a batch
    epochs = 400 // steps + 1
    for position in range(steps + 1):
        ages = np.arange(epochs * steps)[::-1] + position - steps
        weights = np.where(ages >= 0, momentum * theory.start_residue(momentum, np.maximum(ages, 0)), 0).reshape(
            epochs, steps
        )
        expected = np.einsum("ei,ij,ej->", weights, covariance, weights)
        found = theory.epoch_noise(momentum, position, steps, variance, last)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


# Local level


def stream(ratio: float, steps: int, channels: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Level and record, noise 1, drift of variance `ratio` per step."""
    level = math.sqrt(ratio) * rng.normal(size=(steps, channels)).cumsum(axis=0)
    noise = rng.normal(size=level.shape)
    return level, level + noise


def kalman_loss(series: Array, ratio: float) -> tuple[float, float]:
    """Noise and -2 log likelihood of one channel, up to a constant, by the Kalman filter step for step."""
    level = series[0]
    variance = 1.0  # of the level given all records so far, in units of the noise
    squares = logs = 0.0
    for value in series[1:]:
        prediction = variance + ratio + 1
        error = value - level
        squares += error**2 / prediction
        logs += math.log(prediction)
        level += (prediction - 1) / prediction * error
        variance = (prediction - 1) / prediction
    n = len(series) - 1
    return squares / n, n * math.log(squares / n) + logs


@pytest.mark.parametrize("ratio", [0.02, 0.2, 5.0])
def test_local_level_maximizes_the_kalman_likelihood(ratio: float, rng: np.random.Generator) -> None:
    _, series = stream(ratio, 301, 3, rng)  # any length, even or odd
    separate = theory.local_level(series, pooled=False)
    for c in range(3):
        best = separate.drift[c] / separate.noise[c]
        noise, loss = kalman_loss(series[:, c], best)
        assert noise == pytest.approx(separate.noise[c], rel=1e-9)
        assert all(kalman_loss(series[:, c], best * step)[1] > loss for step in (1 / 1.1, 1.1))
    pooled = theory.local_level(series)
    best = pooled.drift[0] / pooled.noise[0]
    losses = [sum(kalman_loss(s, best * step)[1] for s in series.T) for step in (1 / 1.1, 1.0, 1.1)]

    assert losses[1] == min(losses)
    np.testing.assert_allclose(pooled.noise, [kalman_loss(s, best)[0] for s in series.T], rtol=1e-9)


def test_local_level_of_channels_that_never_change(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(400, 8))
    estimate = theory.local_level(np.insert(noise, 3, 7.0, axis=1))

    assert (estimate.drift[3], estimate.noise[3], estimate.momentum[3]) == (0, 0, 1)
    others = np.delete(estimate.noise, 3)
    np.testing.assert_allclose(others, theory.local_level(noise).noise)
    assert theory.local_level(np.ones((5, 0))).drift.shape == (0,)


def test_limits() -> None:
    drift = np.array([1.0, 0.0, 0.0])
    noise = np.array([0.0, 1.0, 0.0])
    limits = theory.optimal_momentum(drift, noise)

    np.testing.assert_array_equal(limits, [1, 0, 1])
    assert theory.optimal_momentum(1e-12, 1.0) == pytest.approx(1e-6, rel=1e-5)
    assert theory.epoch_noise(np.array([0.1, 0.7]), 0, 1) == pytest.approx(0, abs=1e-15)
    assert theory.epoch_noise(0.1, 0, 10**6) == pytest.approx(theory.ema_noise(0.1), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        *((lambda m=m: theory.ema_noise(m), "momentum: ") for m in (0.0, 1.1, math.nan, np.array([0.5, 0.0]))),
        (lambda: theory.random_walk_gap(-0.1, 1, 1.0, 1.0, 1.0), r"momentum: .*-0\.1"),
        (lambda: theory.epoch_noise(0.1, 11, 10), r"position: .*\b11\b"),
        (lambda: theory.local_level(np.zeros((2, 3))), r"series: .*\(2, 3\)"),
        (lambda: theory.local_level([1.0, 2.0, math.nan]), "series: .*1 NaN"),
    ],
)
def test_arguments(call: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()
