"""The exponential moving average as an estimator: closed forms for noise, lag, bias and the best momentum.

`momentum` m is PyTorch's, the weight of the new batch: `new = (1-m)*old + m*batch`. Arguments are numbers
or arrays, which broadcast. Noise, error and variance are in the squared unit of the batch statistic, a slope
is in its unit per step, lag and age are in steps. Where no source is named, it is a geometric series summed by us.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = float | NDArray[np.float64]


def ema_weight(momentum: Values, age: Values) -> Values:
    """Weight m(1-m)^age that the EMA gives to the statistic recorded `age` steps ago (0: the last one).

    >>> ema_weight(0.5, 2)
    0.125
    """
    _check_momentum(momentum)
    _check("age", age, np.greater_equal(age, 0), "0 or more steps")
    return momentum * (1 - momentum) ** age


def start_residue(momentum: Values, t: Values) -> Values:
    """Weight (1-m)^t that the start (0 and 1 in torch) still has after `t` steps.

    `ema_weight` over the ages 0 to t-1 sums to the rest.

    >>> round(start_residue(0.1, 44), 4)
    0.0097
    """
    _check_momentum(momentum)
    _check("t", t, np.greater_equal(t, 0), "0 or more steps")
    return (1 - momentum) ** t


def ema_noise(momentum: Values, variance: Values = 1.0) -> Values:
    """Variance v*m/(2-m) of a long-run EMA of batch statistics with variance v.

    Assumes frozen weights and independent batches (Roberts 1959, geometric moving averages).

    >>> round(ema_noise(0.1), 4)
    0.0526
    """
    _check_momentum(momentum)
    _check("variance", variance, np.greater_equal(variance, 0), "0 or more")
    return variance * momentum / (2 - momentum)


def ema_noise_transient(momentum: Values, t: Values, variance: Values = 1.0) -> Values:
    """Variance v*m/(2-m) * (1-(1-m)^2t) of the EMA after `t` steps from a fixed start (Roberts 1959).

    Small at first, because most of the estimate is still the start. Assumptions as in `ema_noise`.

    >>> ema_noise_transient(0.5, 1)
    0.25
    """
    return ema_noise(momentum, variance) * (1 - start_residue(momentum, t) ** 2)


def ema_noise_debiased(momentum: Values, t: Values, variance: Values = 1.0) -> Values:
    """Variance v*m/(2-m) * (1+(1-m)^t)/(1-(1-m)^t) of the EMA with its start divided out.

    From v after one step down to `ema_noise`. The division is Adam's bias correction (Kingma & Ba 2015);
    assumptions as in `ema_noise`.

    >>> ema_noise_debiased(0.5, 1)
    1.0
    """
    _check("t", t, np.greater_equal(t, 1), "1 or more steps")
    residue = start_residue(momentum, t)
    return ema_noise(momentum, variance) * (1 + residue) / (1 - residue)


def ema_lag(momentum: Values) -> Values:
    """Mean age (1-m)/m of the EMA: how many steps it trails the last statistic recorded on a steady ramp.

    PyTorch records before the optimizer steps: the weights after it are one step on, 1/m ahead of the EMA.

    >>> ema_lag(0.25)
    3.0
    """
    _check_momentum(momentum)
    return (1 - momentum) / momentum


def ramp_error(momentum: Values, slope: Values, variance: Values, after_step: bool = True) -> Values:
    """Mean squared error of the long-run EMA on a ramp: v*m/(2-m) + (slope*lag)^2.

    The target is the expected statistic of the weights after the optimizer step, lag 1/m, or (with
    `after_step=False`) of the weights last recorded, lag (1-m)/m. Independent noise of variance v.

    >>> round(ramp_error(0.5, slope=0.1, variance=1.0), 4)
    0.3733
    """
    return ema_noise(momentum, variance) + (slope * (ema_lag(momentum) + after_step)) ** 2


def optimal_momentum_ramp(slope: Values, variance: Values, after_step: bool = True) -> Values:
    """The momentum in [0, 1] that minimizes `ramp_error`; 0 without slope, 1 without noise.

    The error's derivative in m has the sign of v*m^3 - slope^2*(2-m)^2, before the step of
    v*m^3 - slope^2*(2-m)^2*(1-m). Both rise with m, so bisection finds the one minimum. The closed form
    (4*slope^2/v)^(1/3) holds for small slopes only.

    >>> round(float(optimal_momentum_ramp(0.4, 1.0, after_step=False)), 2)
    0.54
    """
    _check("slope", slope, ~np.isnan(slope), "a number")
    _check("variance", variance, np.greater_equal(variance, 0), "0 or more")
    squared, variance = np.broadcast_arrays(np.square(slope), variance)
    low, high = np.zeros(squared.shape), np.ones(squared.shape)
    for _ in range(60):
        m = (low + high) / 2
        too_small = variance * m**3 <= squared * (2 - m) ** 2 * (1 if after_step else 1 - m)
        low, high = np.where(too_small, m, low), np.where(too_small, high, m)
    return np.where(variance > 0, low, 1.0)[()]


def random_walk_error(momentum: Values, drift: Values, noise: Values) -> Values:
    """Mean squared error of the long-run EMA on a random walk: r*m/(2-m) + q(1-m)^2/(m(2-m)).

    The target moves by independent increments of variance q (`drift`) and is recorded with independent noise
    of variance r (`noise`). The error is the one right after recording. For the weights after the optimizer's
    update, which moves the target once more, it is larger by q; the best momentum is the same.

    >>> random_walk_error(0.5, drift=0.5, noise=1.0)
    0.5
    """
    _check("drift", drift, np.greater_equal(drift, 0), "0 or more")
    return ema_noise(momentum, noise) + drift * (1 - momentum) ** 2 / (momentum * (2 - momentum))


def random_walk_gap(momentum: Values, t: Values, drift: Values, noise: Values, level: Values) -> Values:
    """Root-mean-square error of an EMA that started at 0, t steps ago, for the weights after the last update.

    What is left of the start (`level` is the squared distance of the target from 0) gives way to the long-run error
    of `random_walk_error`; the last update moved the target by `drift` once more. The square is too large by `drift`
    times what is left of the start, (1 - momentum)^(2t).

    >>> float(random_walk_gap(0.5, t=1000, drift=0.5, noise=1.0, level=9.0))
    1.0
    >>> float(random_walk_gap(0.5, t=0, drift=0.0, noise=1.0, level=9.0))
    3.0
    """
    _check("level", level, np.greater_equal(level, 0), "0 or more")
    left = np.square(start_residue(momentum, t))
    return (random_walk_error(momentum, drift, noise) * (1 - left) + drift + level * left) ** 0.5


def optimal_momentum(drift: Values, noise: Values) -> Values:
    """The momentum in [0, 1] that minimizes `random_walk_error`; 0 without drift, 1 without noise.

    With λ = drift/noise it is (-λ + sqrt(λ^2+4λ))/2, the steady-state gain of the Kalman filter for a random
    walk plus noise (Muth 1960; Harvey 1989), and the error is m*noise. Written so that nothing cancels.

    >>> float(optimal_momentum(drift=0.5, noise=1.0))
    0.5
    """
    _check("drift", drift, np.greater_equal(drift, 0), "0 or more")
    _check("noise", noise, np.greater_equal(noise, 0), "0 or more")
    q, r = np.broadcast_arrays(np.asarray(drift, np.float64), np.asarray(noise, np.float64))
    denominator = q + np.sqrt(q) * np.sqrt(q + 4 * r)
    return np.divide(2 * q, denominator, out=np.where(r > 0, 0.0, 1.0), where=denominator > 0)[()]


def epoch_noise(
    momentum: Values, position: Values, steps_per_epoch: Values, variance: Values = 1.0, last: Values = 1.0
) -> Values:
    """Variance of the long-run EMA of frozen weights `position` = j batches into an epoch; 0 and K are its ends.

    Every epoch cuts the same data into K other batches: their statistics always have the same average, so the noise
    cancels in part, most of all at an epoch's end (sampling without replacement). A smaller last batch is noisier:

        v*[m/(2-m) - ((1-q)^2 + q^2*(1-ρ)/(1+ρ))/R + (1/last - 1)*m^2*q^2/(1-ρ^2)], q = (1-m)^j, ρ = (1-m)^K,

    where R = K-1+last, and q = 1 in the last term at j = K. v is the variance of a batch's statistic with replacement:
    the spread (ddof 1) of an epoch's full batches. `last` is the size of the last batch relative to the others.

    >>> round(epoch_noise(0.1, 0, 20), 4), round(epoch_noise(0.1, 6, 20), 4)
    (0.0135, 0.0306)
    """
    _check("steps_per_epoch", steps_per_epoch, np.greater_equal(steps_per_epoch, 1), "1 or more")
    inside = np.greater_equal(position, 0) & np.less_equal(position, steps_per_epoch)
    _check("position", position, inside, "0 to steps_per_epoch")
    _check("last", last, np.greater(last, 0), "above 0")
    residue, left = start_residue(momentum, steps_per_epoch), start_residue(momentum, position)
    since_last = start_residue(momentum, position % steps_per_epoch)
    shared = ((1 - left) ** 2 + left**2 * (1 - residue) / (1 + residue)) / (steps_per_epoch - 1 + last)
    smaller = (1 / last - 1) * (momentum * since_last) ** 2 / (1 - residue**2)
    return ema_noise(momentum, variance) + variance * (smaller - shared)


def epoch_end_noise(momentum: Values, steps_per_epoch: Values, variance: Values = 1.0) -> Values:
    """Variance v*[m/(2-m) - (1-ρ)/(K(1+ρ))], ρ = (1-m)^K, of the long-run EMA at the end of an epoch.

    That of `epoch_noise` for batches of one size.

    >>> round(epoch_end_noise(0.1, 20), 4)
    0.0135
    """
    return epoch_noise(momentum, 0, steps_per_epoch, variance)


def rescale_momentum(momentum: Values, factor: Values) -> Values:
    """The momentum 1-(1-m)^factor that keeps the memory in samples when batches grow by `factor`.

    >>> round(rescale_momentum(0.1, 2), 4)
    0.19
    """
    _check_momentum(momentum)
    _check("factor", factor, np.greater(factor, 0), "more than 0")
    return 1 - (1 - momentum) ** factor


def effective_count(count: Values, spatial: Values, correlation: Values) -> Values:
    """Number n/(1+(S-1)*correlation) of independent values that determine the mean as well as `count` = n do.

    Any two of an image's S = `spatial` positions have this correlation, images are independent (the design
    effect of Kish 1965).

    >>> round(effective_count(count=64, spatial=16, correlation=0.9), 3)
    4.414
    """
    _check("count", count, np.greater_equal(count, 1), "1 or more values")
    _check("spatial", spatial, np.greater_equal(spatial, 1), "1 or more positions")
    inflation = 1 + (spatial - 1) * correlation
    possible = np.less_equal(correlation, 1) & np.greater(inflation, 0)
    _check("correlation", correlation, possible, "above -1/(spatial-1), up to 1")
    return count / inflation


def batch_variance_bias(n_eff: Values) -> Values:
    """Relative bias E[var_b]/sigma^2 - 1 = -1/n_eff of a batch's variance (ddof 0).

    Deviations from the batch's own mean leave out its variance sigma^2/n_eff; see `effective_count`.

    >>> batch_variance_bias(4)
    -0.25
    """
    _check("n_eff", n_eff, np.greater_equal(n_eff, 1), "1 or more")
    return -1 / n_eff


def running_variance_bias(n_eff: Values, count: Values) -> Values:
    """Relative bias (1-1/n_eff)*n/(n-1) - 1 of torch's running variance from batches of n = `count` values.

    Zero for independent values only; about -1/B where the positions of each of B images are alike.

    >>> n_eff = effective_count(count=64, spatial=16, correlation=0.9)
    >>> round(running_variance_bias(n_eff, count=64), 3)
    -0.214
    """
    _check("count", count, np.greater_equal(count, 2), "2 or more values")
    return (1 + batch_variance_bias(n_eff)) * count / (count - 1) - 1


def pooled_variance_bias(n_eff: Values, momentum: Values) -> Values:
    """Relative bias -(1/n_eff)*m/(2-m) of the pooled EMA, which adds the variance between batch means.

    Pooled: E[x^2] - E[x]^2 of EMAs. What is missing is the noise of the EMA of the mean. Frozen weights,
    independent batches, long run.

    >>> round(pooled_variance_bias(4, momentum=0.3), 4)
    -0.0441
    """
    return batch_variance_bias(n_eff) * ema_noise(momentum)


def pooled_ramp_inflation(momentum: Values, slope: Values) -> Values:
    """Amount slope^2*(1-m)/m^2 by which a ramp in the mean inflates the pooled EMA of the variance.

    It is the variance of the age under the EMA's weights, times slope^2.

    >>> pooled_ramp_inflation(0.5, slope=0.5)
    0.5
    """
    return slope**2 * ema_lag(momentum) / momentum


NO_NOISE = 1e4
"""Drift over noise at the end of the grid of `local_level`: no noise shows beside the drift, however much there is."""


@dataclass(frozen=True)
class LocalLevel:
    """Random walk plus noise: variance of the walk's steps and of the noise, one entry per channel."""

    drift: NDArray[np.float64]
    noise: NDArray[np.float64]

    @property
    def momentum(self) -> Values:
        """The momentum for this drift and noise, not floored: from few steps it may be far too near to 0."""
        return optimal_momentum(self.drift, self.noise)


def local_level(series: ArrayLike, pooled: bool = True) -> LocalLevel:
    """Drift and noise of batch statistics recorded over T steps, `series` [T] or [T, channels].

    Maximum likelihood of the local-level model (Harvey 1989), its first level unknown: only differences
    count. Their covariance is tridiagonal: noise*(λ+2), beside it -noise, with λ = drift/noise. A sine
    transform makes them independent with variances noise*(λ + 4 sin^2(πk/2T)), k = 1..T-1, which gives the
    likelihood of the Kalman filter's innovations without its recursion. `pooled`: all channels share λ, each
    has its own scale.

    λ is the best point on a grid from 0.01/T^2, where no drift shows, to `NO_NOISE`, 10^4. Its steps
    of 9% cost less than 0.1% of error. A channel that never changes has drift and noise 0, and momentum 1.

    Where the drift is autocorrelated (an optimizer with momentum) the model is wrong, and λ is the drift over
    the EMA's memory. The momentum still minimizes the error in predicting the next record, that is, for the
    weights after the optimizer's step; for the error right after recording it is then too large.

    >>> rng = np.random.default_rng(0)
    >>> walk = rng.normal(0, 0.1, (2000, 8)).cumsum(axis=0)
    >>> estimate = local_level(walk + rng.normal(size=walk.shape))  # drift 0.01, noise 1
    >>> float(estimate.drift.mean().round(4)), float(estimate.noise.mean().round(2))
    (0.0113, 0.99)
    """
    y = np.asarray(series, np.float64)
    if y.ndim not in (1, 2) or len(y) < 3:
        raise ValueError(f"series: found shape {y.shape}; allowed are [T] and [T, channels] with T of 3 or more")
    if not np.isfinite(y).all():
        raise ValueError(f"series: found {np.sum(~np.isfinite(y))} NaN or infinite values; allowed are none")
    steps = len(y)
    differences = np.diff(y, axis=0, prepend=y[:1]).reshape(steps, -1).T  # [channels, T], the first one 0
    moving = differences.any(axis=1)
    drift, noise = np.zeros((2, len(differences)))
    if moving.any():
        # Sine transform of type I, one channel at a time to save memory: [channels, T-1].
        power = np.array([np.fft.rfft(d, 2 * steps).imag[1:steps] ** 2 for d in differences[moving]])
        ratios = np.exp2(np.arange(math.log2(0.01 / steps**2), math.log2(NO_NOISE), 1 / 8))  # λ
        shape = ratios[:, None] + 4 * np.sin(np.pi * np.arange(1, steps) / (2 * steps)) ** 2
        noises = power @ (1 / shape).T * (2 / steps / (steps - 1))  # the most likely ones, [channels, λ]
        loss = np.log(noises) + np.log(shape).mean(axis=1)  # -2/(T-1) * log likelihood
        best = np.argmin(np.broadcast_to(loss.mean(axis=0), loss.shape) if pooled else loss, axis=1)
        noise[moving] = noises[np.arange(len(best)), best]
        drift[moving] = ratios[best] * noise[moving]
    return LocalLevel(drift.reshape(y.shape[1:]), noise.reshape(y.shape[1:]))


def _check_momentum(momentum: Values) -> None:
    _check("momentum", momentum, np.greater(momentum, 0) & np.less_equal(momentum, 1), "above 0, up to 1")


def _check(name: str, value: Values, fine: ArrayLike, allowed: str) -> None:
    wrong = ~np.asarray(fine)
    if wrong.any():
        found = np.broadcast_to(value, wrong.shape)[wrong][0]
        raise ValueError(f"{name}: found {found}; allowed is {allowed}")
