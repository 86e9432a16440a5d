"""The exponential moving average as an estimator: closed forms for noise, lag, bias and the best momentum.

`momentum` m is PyTorch's, the weight of the new batch: `new = (1-m)*old + m*batch`. Arguments are numbers or arrays,
which broadcast. Noise, error and variance are in the squared unit of the batch statistic, lag is in steps. Where no
source is named, it is a geometric series summed by us.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LocalLevel",
    "ema_noise",
    "epoch_noise",
    "local_level",
    "optimal_momentum",
    "random_walk_error",
    "random_walk_gap",
    "start_residue",
]

Values = float | NDArray[np.float64]


def start_residue(momentum: Values, t: Values) -> Values:
    """Compute the weight (1-m)^t that the start (0 and 1 in torch) still has after `t` steps.

    A batch of that age has weight m(1-m)^t.

    >>> round(start_residue(0.1, 44), 4)
    0.0097
    """
    _require_momentum(momentum)
    return (1 - momentum) ** t


def ema_noise(momentum: Values, variance: Values = 1.0) -> Values:
    """Compute the variance v*m/(2-m) of a long-run EMA of batch statistics with variance v.

    Assumes frozen weights and independent batches (Roberts 1959, geometric moving averages).

    >>> round(ema_noise(0.1), 4)
    0.0526
    """
    _require_momentum(momentum)
    return variance * momentum / (2 - momentum)


def random_walk_error(momentum: Values, drift: Values, noise: Values) -> Values:
    """Compute the mean squared error of the long-run EMA on a random walk: r*m/(2-m) + q(1-m)^2/(m(2-m)).

    The target moves by independent increments of variance q (`drift`) and is recorded with independent noise
    of variance r (`noise`). The error is the one right after recording. For the weights after the optimizer's
    update, which moves the target once more, it is larger by q; the best momentum is the same.

    >>> random_walk_error(0.5, drift=0.5, noise=1.0)
    0.5
    """
    sampling = ema_noise(momentum, noise)
    lag = drift * (1 - momentum) ** 2 / (momentum * (2 - momentum))
    return sampling + lag


def random_walk_gap(momentum: Values, t: Values, drift: Values, noise: Values, level: Values) -> Values:
    """Compute the root-mean-square error, for the weights after the last update, of an EMA started at 0 t steps ago.

    The rest of the start (`level` is the squared distance of the target from 0) gives way to `random_walk_error`. The
    last update moved the target once more. The square is too large by drift*(1 - momentum)^(2t).

    >>> float(random_walk_gap(0.5, t=1000, drift=0.5, noise=1.0, level=9.0))
    1.0
    """
    left = np.square(start_residue(momentum, t))
    error = random_walk_error(momentum, drift, noise)
    square = error * (1 - left) + drift + level * left
    return square**0.5


def optimal_momentum(drift: Values, noise: Values) -> Values:
    """Compute the momentum in [0, 1] that minimizes `random_walk_error`; 0 without drift, 1 without noise.

    With λ = drift/noise it is (-λ + sqrt(λ^2+4λ))/2, the steady-state gain of the Kalman filter for a random
    walk plus noise (Muth 1960; Harvey 1989), and the error is m*noise. Written so that nothing cancels.

    >>> float(optimal_momentum(drift=0.5, noise=1.0))
    0.5
    """
    q = np.asarray(drift, np.float64)
    r = np.asarray(noise, np.float64)
    # One may be a number and the other an array.
    q, r = np.broadcast_arrays(q, r)

    # The product q(q + 4r) could underflow where both are tiny, the product of the roots does not.
    root = np.sqrt(q) * np.sqrt(q + 4 * r)
    denominator = q + root
    # Where both are 0 the momentum is 1, as it is wherever there is no noise.
    without_drift = np.where(r > 0, 0.0, 1.0)
    momentum = np.divide(2 * q, denominator, out=without_drift, where=denominator > 0)
    return momentum[()]  # a number for two numbers


def epoch_noise(
    momentum: Values, position: Values, steps_per_epoch: Values, variance: Values = 1.0, last: Values = 1.0
) -> Values:
    """Compute the variance of the long-run EMA of frozen weights `position` = j batches into an epoch.

    Positions 0 and K are an epoch's ends.

    Every epoch cuts the same data into K other batches: their statistics always have the same average, so the noise
    cancels in part, most of all at an epoch's end (sampling without replacement), where it is v*[m/(2-m) -
    (1-ρ)/(K(1+ρ))] for batches of one size. A smaller last batch is noisier:

        v*[m/(2-m) - ((1-q)^2 + q^2*(1-ρ)/(1+ρ))/R + (1/last - 1)*m^2*q^2/(1-ρ^2)], q = (1-m)^j, ρ = (1-m)^K,

    where R = K-1+last, and q = 1 in the last term at j = K. v is the variance of a batch's statistic with replacement:
    the spread (ddof 1) of an epoch's full batches. `last` is the size of the last batch relative to the others.

    >>> round(epoch_noise(0.1, 0, 20), 4), round(epoch_noise(0.1, 6, 20), 4)
    (0.0135, 0.0306)
    """
    is_inside = np.greater_equal(position, 0) & np.less_equal(position, steps_per_epoch)
    _require("position", position, is_inside, "0 to steps_per_epoch")

    residue = start_residue(momentum, steps_per_epoch)
    left = start_residue(momentum, position)

    # The sum is over all past epochs, each of which has ρ times the weight of the one after it.
    past_epochs = left**2 * (1 - residue) / (1 + residue)
    size = steps_per_epoch - 1 + last  # R
    shared = ((1 - left) ** 2 + past_epochs) / size

    # At both ends of an epoch the smaller batch is the latest one, and the remainder is 0.
    since_last = start_residue(momentum, position % steps_per_epoch)
    smaller = (1 / last - 1) * (momentum * since_last) ** 2 / (1 - residue**2)

    independent = ema_noise(momentum, variance)
    return independent + variance * (smaller - shared)


NO_NOISE = 1e4
"""Drift over noise at the end of the grid of `local_level`: no noise shows beside the drift, however much there is."""


@dataclass(frozen=True)
class LocalLevel:
    """Random walk plus noise: variance of the walk's steps and of the noise, one entry per channel.

    >>> LocalLevel(drift=np.array([0.5]), noise=np.array([1.0])).momentum
    array([0.5])
    """

    drift: NDArray[np.float64]
    noise: NDArray[np.float64]

    @property
    def momentum(self) -> NDArray[np.float64]:
        """The momentum for this drift and noise, not floored; from few steps it may be far too near to 0."""
        return np.asarray(optimal_momentum(self.drift, self.noise))


def local_level(series: ArrayLike, pooled: bool = True) -> LocalLevel:
    """Estimate drift and noise of batch statistics recorded over T steps, `series` [T] or [T, channels].

    Maximum likelihood of the local-level model (Harvey 1989), its first level unknown: only differences
    count. Their covariance is tridiagonal: noise*(λ+2), beside it -noise, with λ = drift/noise. A sine transform makes
    them independent with variances noise*(λ + 4 sin^2(πk/2T)), k = 1..T-1, which gives the likelihood of the Kalman
    filter's innovations without its recursion. `pooled`: all channels share λ, each has its own scale.

    λ is the best point on a grid from 0.01/T^2, where no drift shows, to `NO_NOISE`, 10^4. Its steps
    of 9% cost less than 0.1% of error. A channel that never changes has drift and noise 0, and momentum 1.

    Where the drift is autocorrelated (an optimizer with momentum) λ is the drift over the EMA's memory. The momentum
    still minimizes the error for the weights after the optimizer's step; right after recording it is too large.

    >>> rng = np.random.default_rng(0)
    >>> walk = rng.normal(0, 0.1, (2000, 8)).cumsum(axis=0)
    >>> estimate = local_level(walk + rng.normal(size=walk.shape))  # drift 0.01, noise 1
    >>> float(estimate.drift.mean().round(4)), float(estimate.noise.mean().round(2))
    (0.0113, 0.99)
    """
    y = _read_series(series)
    steps = len(y)
    # Index 0 is where every sine of the transform is 0, so that the differences stand at 1 to T − 1.
    differences = np.diff(y, axis=0, prepend=y[:1])
    differences = differences.reshape(steps, -1).T  # [channels, T]

    drift = np.zeros(len(differences))
    noise = np.zeros(len(differences))
    # A channel that never changes has an infinite likelihood for every λ. In a pooled fit no other channel
    # would count.
    moving = differences.any(axis=1)
    if moving.any():
        power = _transform(differences[moving])
        drift[moving], noise[moving] = _fit(power, pooled)

    channels = y.shape[1:]
    return LocalLevel(
        drift=drift.reshape(channels),
        noise=noise.reshape(channels),
    )


def _read_series(series: ArrayLike) -> NDArray[np.float64]:
    """Convert the series to float64; ValueError unless it has three steps or more, all finite."""
    y = np.asarray(series, np.float64)
    if y.ndim not in (1, 2) or len(y) < 3:
        raise ValueError(f"series: found shape {y.shape}; allowed are [T] and [T, channels] with T of 3 or more")

    wrong = ~np.isfinite(y)
    if wrong.any():
        count = np.sum(wrong)
        raise ValueError(f"series: found {count} NaN or infinite values; allowed are none")
    return y


def _transform(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square the sine transform (type I) of differences [channels, T], of which the first is 0: [channels, T-1]."""
    steps = differences.shape[1]
    power = []
    for channel in differences:  # one at a time to save memory
        # With as many zeros behind the values, the imaginary part of a Fourier transform is the sine transform.
        transform = np.fft.rfft(channel, 2 * steps)
        power.append(transform.imag[1:steps] ** 2)
    return np.array(power)


def _fit(power: NDArray[np.float64], pooled: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate the most likely drift and noise, [channels] each, of the transformed differences [channels, T-1]."""
    steps = power.shape[1] + 1

    least = math.log2(0.01 / steps**2)
    most = math.log2(NO_NOISE)
    # An eighth of a power of two is a step of 9%.
    ratios = np.exp2(np.arange(least, most, 1 / 8))  # λ

    angles = np.pi * np.arange(1, steps) / (2 * steps)
    spectrum = 4 * np.sin(angles) ** 2
    shape = ratios[:, None] + spectrum  # variances in units of the noise, [λ, T-1]
    # 2/T makes the transform orthonormal, and T − 1 values are averaged.
    noises = power @ (1 / shape).T * (2 / steps / (steps - 1))  # the most likely ones, [channels, λ]

    # With the most likely noise put in, the likelihood is a function of λ alone.
    loss = np.log(noises) + np.log(shape).mean(axis=1)  # -2/(T-1) * log likelihood
    if pooled:
        loss = np.broadcast_to(loss.mean(axis=0), loss.shape)
    best = np.argmin(loss, axis=1)

    noise = noises[np.arange(len(best)), best]
    drift = ratios[best] * noise
    return drift, noise


def _require_momentum(momentum: Values) -> None:
    _require("momentum", momentum, np.greater(momentum, 0) & np.less_equal(momentum, 1), "above 0, up to 1")


def _require(name: str, value: Values, fine: ArrayLike, allowed: str) -> None:
    wrong = ~np.asarray(fine)
    if wrong.any():
        found = np.broadcast_to(value, wrong.shape)[wrong][0]
        raise ValueError(f"{name}: found {found}; allowed is {allowed}")
