"""Slow, obvious float64 twins of the library, which imports nothing of it.

Every function reads straight off its definition: the whole data at once, one plain loop over batches or
channels. The tests hold the fast code to these.

Statistics are float64 tensors on the CPU with one entry per channel (axis 1). `var` has divisor n (ddof 0).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Array = Tensor | np.ndarray
Pair = tuple[Tensor, Tensor]  # (mean, variance)


class Moments(NamedTuple):
    count: int  # type: ignore[assignment]  # values per channel; hides the method of tuple
    mean: Tensor
    var: Tensor  # ddof 0


def float64(x: Array | float) -> Tensor:
    return torch.as_tensor(x).detach().to("cpu", torch.float64)


def moments(x: Array) -> Moments:
    """Count, mean and variance (ddof 0) of each channel, over all axes but 1."""
    channels = float64(x).transpose(0, 1).flatten(1)  # [C, n]
    mean = channels.mean(1)
    return Moments(channels.shape[1], mean, ((channels - mean[:, None]) ** 2).mean(1))


def merge(arrays: Sequence[Array]) -> Moments:
    """The moments of all arrays put together; their shapes may differ in all but the channels."""
    return moments(torch.cat([float64(x).transpose(0, 1).flatten(1) for x in arrays], dim=1).T)


def unbiased(batch: Array) -> Pair:
    """Mean and unbiased variance (ddof 1) of one batch: what torch's BatchNorm records."""
    count, mean, var = moments(batch)
    return mean, var * count / (count - 1)


def running_ema(
    batches: Sequence[Array],
    momentum: float,
    start_mean: Array | float = 0.0,
    start_var: Array | float = 1.0,
    *,
    biased: bool = False,
    weighted: bool = False,
) -> list[Pair]:
    """torch's running statistics after each batch: new = (1-momentum)*old + momentum*batch.

    `biased`: of variances with divisor n, as Keras and flax have them. `weighted`: the momentum is multiplied by the
    batch's share of the largest batch so far.
    """
    history = []
    mean, var = float64(start_mean), float64(start_var)
    for t, batch in enumerate(batches):
        largest = max(len(earlier) for earlier in batches[: t + 1])
        weight = momentum * len(batch) / largest if weighted else momentum
        batch_mean, batch_var = moments(batch)[1:] if biased else unbiased(batch)
        mean = (1 - weight) * mean + weight * batch_mean
        var = (1 - weight) * var + weight * batch_var
        history.append((mean, var))
    return history


def running_ema_debiased(
    batches: Sequence[Array], momentum: float, start_mean: Array | float = 0.0, start_var: Array | float = 1.0
) -> list[Pair]:
    """`running_ema` with its start divided out: (E - (1-m)^t*start) / (1 - (1-m)^t)."""
    history = []
    for t, (mean, var) in enumerate(running_ema(batches, momentum, start_mean, start_var), start=1):
        residue = (1 - momentum) ** t
        mean = (mean - residue * float64(start_mean)) / (1 - residue)
        var = (var - residue * float64(start_var)) / (1 - residue)
        history.append((mean, var))
    return history


def running_last_full_batch(batches: Sequence[Array]) -> list[Pair]:
    """Mean and unbiased variance of the latest batch that no earlier one is larger than."""
    history: list[Pair] = []
    for t, batch in enumerate(batches):
        largest = max(len(earlier) for earlier in batches[: t + 1])
        history.append(unbiased(batch) if len(batch) == largest else history[-1])
    return history


def running_ema_pooled(batches: Sequence[Array], momentum: float, start: Pair | None = None) -> list[Pair]:
    """Law of total variance, from `start` or the first batch: var = (1-m)(var + m*delta^2) + m*var_b."""
    history: list[Pair] = []
    for batch in batches:
        _, batch_mean, batch_var = moments(batch)
        old = history[-1] if history else start
        if old is None:
            history.append((batch_mean, batch_var))
            continue
        mean, var = map(float64, old)
        delta = batch_mean - mean
        var = (1 - momentum) * (var + momentum * delta**2) + momentum * batch_var
        history.append((mean + momentum * delta, var))
    return history


def running_averages(
    batches: Sequence[Array],
    *,
    weighted: bool = False,
    pooled: bool = False,
    last: int | None = None,
    start: tuple[Array | float, Array | float] = (0.0, 1.0),
    updates: int = 0,
) -> list[Pair]:
    """Averages of all batches so far or of the `last` ones; the start stands for `updates` batches before them.

    `weighted` by their number of values (the start's batches have the first one's). Not `pooled`: of means and
    unbiased variances. `pooled`: mean and variance, divisor n, of all values together (the start's variance as is).
    """
    first = moments(batches[0]).count if batches else 0
    parts = [Moments(first, float64(start[0]), float64(start[1]))] * updates
    history = []
    for batch in batches:
        count, mean, var = moments(batch)
        parts.append(Moments(count, mean, var if pooled else var * count / (count - 1)))
        taken = parts if last is None else parts[-last:]
        weights = [part.count if weighted or pooled else 1 for part in taken]
        total = sum(weights)
        mean = torch.zeros_like(mean)
        for weight, part in zip(weights, taken, strict=True):
            mean = mean + weight * part.mean / total
        var = torch.zeros_like(var)
        for weight, part in zip(weights, taken, strict=True):
            spread = (part.mean - mean) ** 2 if pooled else 0
            var = var + weight * (part.var + spread) / total
        history.append((mean, var))
    return history


def running_kalman(
    batches: Sequence[Array], layers: Sequence[int], shared: bool, eps: float, fits: dict[int, slice]
) -> list[Pair]:
    """Kalman filter of a random walk plus noise; before batch t (from 0) drift/noise is fitted to batches fits[t].

    `shared`: one ratio for all channels of a layer. Means, and variances with the gains that suit their logarithms.
    """
    pairs = torch.stack([torch.stack(unbiased(batch)) for batch in batches]).numpy()  # [T, 2, C]
    series = np.stack([pairs[:, 0], np.log(pairs[:, 1] + eps)], axis=1)
    results = np.empty_like(pairs)
    layer_of = [layer for layer, channels in enumerate(layers) for _ in range(channels)]
    for part in range(2):
        for channel, layer in enumerate(layer_of):
            fitted_on = [c for c, other in enumerate(layer_of) if other == layer] if shared else [channel]
            ratio = 0.0
            gain = math.inf
            state = 0.0
            for t in range(len(pairs)):
                if t in fits:
                    ratio = likeliest_ratio(series[fits[t], part][:, fitted_on])
                gain = 1.0 if t == 0 else (gain + ratio) / (gain + ratio + 1)
                gain = max(gain, 2 / (t + 2))
                state += gain * (pairs[t, part, channel] - state)
                results[t, part, channel] = state
    return [tuple(pair) for pair in torch.from_numpy(results)]


def likeliest_ratio(series: np.ndarray) -> float:
    """drift/noise of [T, channels] by the Kalman filter's innovations, the best of a grid of ninths."""
    steps = len(series)
    ratios = np.exp2(np.arange(math.log2(0.01 / steps**2), math.log2(1e4), 1 / 8))
    losses = np.zeros_like(ratios)
    for channel in series.T:
        level = np.full_like(ratios, channel[0])
        variance = np.ones_like(ratios)
        squares, logs = np.zeros_like(ratios), np.zeros_like(ratios)
        for value in channel[1:]:
            variance = variance + ratios
            innovation = value - level
            spread = variance + 1
            squares = squares + innovation**2 / spread
            logs = logs + np.log(spread)
            level = level + variance / spread * innovation
            variance = variance / spread
        losses += (steps - 1) * np.log(squares / (steps - 1)) + logs
    return float(ratios[np.argmin(losses)])


def running_predictive(
    batches: Sequence[Array], layers: Sequence[int], eps: float, start: Pair | None = None
) -> list[Pair]:
    """Of 50 EMAs the one whose forecasts of the latest batches had the smallest squared error, layer by layer.

    Debiased ones, or plain ones from `start`. Instead of the variances the averages of log(variance + eps) are scored;
    means are scored in units of the exponential of the chosen one after 1, 2, 4, ..., 64, 128, 192, ... batches. A
    batch that is not finite is left out in that layer.
    """
    pairs = torch.stack([torch.stack(unbiased(batch)) for batch in batches]).numpy()  # [T, 2, C]
    given = np.empty_like(pairs)
    ends = np.cumsum(layers)
    for begin, end in zip(ends - layers, ends, strict=True):
        of_layer = pairs[:, :, begin:end]
        first = None if start is None else torch.stack(start).numpy()[:, begin:end]
        finite = np.isfinite(of_layer).all((1, 2))
        states = iter(_predictive_of_a_layer(of_layer[finite], eps, first))

        state = np.full((2, end - begin), np.nan) if first is None else first
        for t in range(len(pairs)):
            if finite[t]:
                state = next(states)
            given[t, :, begin:end] = state
    return [tuple(pair) for pair in torch.from_numpy(given)]


def _predictive_of_a_layer(pairs: np.ndarray, eps: float, start: np.ndarray | None) -> np.ndarray:
    scored = np.stack([pairs[:, 0], np.log(pairs[:, 1] + eps)], axis=1)
    given, units = np.empty_like(pairs), np.empty_like(pairs[:, 1])
    for part in (1, 0):  # the variances' forecasts are the means' units
        scores = np.zeros(50)
        averages = [np.zeros(pairs.shape[2]) if start is None else start[part]] * 50
        forecasts = averages if part == 0 or start is None else [np.log(start[1] + eps)] * 50
        averages, forecasts = list(averages), list(forecasts)
        unit = np.ones(pairs.shape[2]) if start is None or part == 1 else start[1] + eps
        for t in range(len(pairs)):  # batches seen
            if part == 0 and (t in (1, 2, 4, 8, 16, 32) or (t and t % 64 == 0)):
                unit = units[t - 1]
            for i in range(50):
                momentum = 10 ** (-3 + 3 * i / 49)
                error = np.mean((forecasts[i] - scored[t, part]) ** 2 / unit)
                discount = 1 - 1 / max(4, (t + 1) / 10)
                scores[i] = discount * scores[i] + (error if t > 1 else 0)
                gain = momentum / (1 - (1 - momentum) ** (t + 1)) if start is None else momentum
                forecasts[i] = forecasts[i] + gain * (scored[t, part] - forecasts[i])
                averages[i] = averages[i] + gain * (pairs[t, part] - averages[i])
            best = int(np.argmin(scores))
            given[t, part] = averages[best]
            if part == 1:
                units[t] = np.exp(forecasts[best])
    return given


def full_batch_population(model: nn.Module, x: Tensor) -> dict[str, Moments]:
    """The statistics every BN layer sees in the inference network on all of `x` (`statistic="exact"`).

    Layer after layer, in the order of their first call: run all of `x` through a float64 copy in eval mode,
    take the moments of the layer's input, load them, go on to the next. The model is left as it was. Exact
    where such an order exists: a feed-forward network that calls each of its BN layers once.
    """
    model = float64_copy(model)
    x = as_input(x)
    results: dict[str, Moments] = {}
    for name in call_order(model, x):
        layer = model.get_submodule(name)
        results[name] = merge(inputs_of(layer, lambda: model(x)))
        model.get_buffer(f"{name}.running_mean").copy_(results[name].mean)
        model.get_buffer(f"{name}.running_var").copy_(results[name].var)
    return results


def batch_upstream_population(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Moments]:
    """Moments of every BN layer's input, pooled over batches that are each normalized by themselves.

    `statistic="precise"`: all BN layers of a float64 copy are in train mode; everything else is in eval mode, so
    that dropout is off. The model is left as it was.
    """
    model = float64_copy(model)
    batches = [as_input(batch) for batch in batches]
    names = call_order(model, batches[0])
    for layer in batch_norms(model).values():
        layer.train()
    results = {}
    for name in names:
        seen = []
        for batch in batches:
            seen += inputs_of(model.get_submodule(name), partial(model, batch))
        results[name] = merge(seen)
    return results


def gap(reference: Pair, estimate: Pair, eps: float) -> dict[str, float]:
    """Distance of one layer's estimated (mean, variance) from the reference, by a loop over channels.

    mean_gap: rms of (mean_e - mean_r)/sqrt(var_r+eps). var_gap: rms of log((var_e+eps)/(var_r+eps)).
    kl: average of KL(N(mean_r, var_r+eps) || N(mean_e, var_e+eps)), in nats.
    """
    means = []
    logs = []
    kls = []
    for mean_r, var_r, mean_e, var_e in zip(*(float64(s).tolist() for s in (*reference, *estimate)), strict=True):
        v_r = var_r + eps
        v_e = var_e + eps
        means.append((mean_e - mean_r) / math.sqrt(v_r))
        logs.append(math.log(v_e / v_r))
        kls.append(0.5 * (math.log(v_e / v_r) + (v_r + (mean_r - mean_e) ** 2) / v_e - 1))
    c = len(means)
    return {
        "mean_gap": math.sqrt(sum(z * z for z in means) / c),
        "var_gap": math.sqrt(sum(z * z for z in logs) / c),
        "kl": sum(kls) / c,
    }


def float64_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("cpu", torch.float64).eval()


def as_input(x: Tensor) -> Tensor:
    """Images in float64; token indices as they are."""
    return float64(x) if x.is_floating_point() else x.cpu()


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BN layers that keep running statistics, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def accuracy_under(model: nn.Module, statistics: Mapping[str, Any], images: Tensor, labels: Tensor) -> float:
    """The share of images that a float64 copy predicts right, see `logits_under`."""
    hits = logits_under(model, statistics, images).argmax(1) == labels
    return hits.double().mean().item()


@torch.no_grad()
def logits_under(model: nn.Module, statistics: Mapping[str, Any], images: Tensor) -> Tensor:
    """Predict with a float64 copy under the means and variances of these, by layer."""
    wide = float64_copy(model)
    for name, layer in batch_norms(wide).items():
        layer.running_mean = statistics[name].mean
        layer.running_var = statistics[name].var
    logits: Tensor = wide(images.double())
    return logits


class Descent:
    """SGD on a float64 model, one weight after the other: momentum 0.9, as it is trained Nesterov's, and decay."""

    def __init__(self, model: nn.Module, decay: float = 5e-4, is_nesterov: bool = True) -> None:
        self.weights = list(model.parameters())
        self.velocities = [torch.zeros_like(weight) for weight in self.weights]
        self.decay = decay
        self.is_nesterov = is_nesterov

    def step(self, loss: Tensor, rate: float) -> None:
        gradients = torch.autograd.grad(loss, self.weights)
        for weight, gradient, velocity in zip(self.weights, gradients, self.velocities, strict=True):
            slope = gradient + self.decay * weight.detach()
            velocity.mul_(0.9).add_(slope)
            weight.data -= rate * (slope + 0.9 * velocity if self.is_nesterov else velocity)


def call_order(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the BN layers in the order of their first call; those that are never called are left out."""
    calls: list[str] = []
    layers = batch_norms(model).items()
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, m in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(calls))


def inputs_of(layer: nn.Module, forward: Callable[[], object]) -> list[Tensor]:
    """What `layer` is given during `forward()`, one tensor per call, copied before anyone writes into it."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        forward()
    hook.remove()
    return seen


def sampling_errors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standard errors of the mean and of the variance (ddof 0) of `x` [N, C, H, W], with images as the units."""
    x = x.double()
    channels = x.shape[1]
    mean_error = torch.empty(channels).double()
    var_error = torch.empty(channels).double()
    for c in range(channels):
        images = x[:, c]
        squares = (images - images.mean()) ** 2
        mean_error[c] = error_of_mean(images)
        var_error[c] = error_of_mean(squares)
    return mean_error, var_error


def error_of_mean(images: Tensor) -> Tensor:
    """The standard error of the mean over the images [N, H, W]."""
    n = len(images)
    means = torch.stack([image.mean() for image in images])
    variance = ((means - means.mean()) ** 2).sum() / (n - 1)
    return (variance / n) ** 0.5


def chance_of_no_change(share: float, images: int) -> float:
    """Chance that none of some images changes where a share of all images does: one factor for each image."""
    chance = 1.0
    for _ in range(images):
        chance *= 1 - share
    return chance


def mean_by_class(values: Array, labels: Array) -> list[float]:
    """Average values of positions [N, ...] over each class in an image, then over the classes in it; 0 without any."""
    averages = []
    for of_image, named in zip(values, labels, strict=True):
        classes = {label for label in named.flatten().tolist() if 0 <= label != 255}
        means = [float(of_image[named == label].mean(dtype=np.float64)) for label in sorted(classes)]
        averages.append(sum(means) / len(means) if means else 0.0)
    return averages


def noisy(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Each pixel of an image [C, H, W] plus its own normal number times `deviation`."""
    return float64(image) + deviation * torch.randn(image.shape, generator=generator).double()


def blurred(image: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Means weighted by exp(−distance²/2σ²) up to 3σ, σ a share of the shorter side; outside, the nearest pixel."""
    pixels = float64(image)
    (channels, height, across) = image.shape
    sigma = width * min(height, across)
    result = torch.empty(image.shape).double()
    steps = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    for c, i, j in np.ndindex(channels, height, across):
        total = weight = 0.0
        for down in steps:
            for right in steps:
                w = math.exp(-(down**2 + right**2) / (2 * sigma**2))
                nearest = min(max(i + down, 0), height - 1), min(max(j + right, 0), across - 1)
                total = total + w * pixels[c, *nearest].item()
                weight = weight + w
        result[c, i, j] = total / weight
    return result


def low_contrast(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each channel as (1 − share) times its mean plus `share` times itself."""
    return torch.stack([(1 - share) * channel.mean() + share * channel for channel in float64(image)])


def translated(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """By a share of the shorter side down, left, up or right; 0 where there was no pixel."""
    distance = math.floor(share * min(image.shape[1:]))
    down, right = ((1, 0), (0, -1), (-1, 0), (0, 1))[int(torch.randint(4, (), generator=generator))]
    result = torch.zeros(image.shape).double()
    for c, i, j in np.ndindex(*image.shape):
        row = i - distance * down
        column = j - distance * right
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            result[c, i, j] = image[c, row, column]
    return result


def occluded(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """0 in a square with a share of the shorter side as its own, at one of the places where it fits."""
    side = math.floor(share * min(image.shape[1:]))
    down, right = torch.rand(2, generator=generator).tolist()
    top = math.floor(down * (image.shape[1] - side + 1))
    left = math.floor(right * (image.shape[2] - side + 1))
    result = float64(image).clone()
    for c, i, j in np.ndindex(*image.shape):
        if top <= i < top + side and left <= j < left + side:
            result[c, i, j] = 0
    return result


def split_ghosts(batch: Tensor, size: int) -> list[Tensor]:
    """Consecutive parts of `size` images or more, as many as there can be; the first ones have one more if need be."""
    count = max(1, len(batch) // size)
    parts = []
    begin = 0
    for number in range(count):
        end = begin + len(batch) // count + (number < len(batch) % count)
        parts.append(batch[begin:end])
        begin = end
    return parts


def batch_normalize(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel by its own mean and variance (ddof 0), in float64."""
    _, mean, var = moments(x)
    return torch.stack([(float64(x)[:, c] - mean[c]) / (var[c] + eps).sqrt() for c in range(x.shape[1])], dim=1)


def group_normalize(x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Each group of channels of each image by its own mean and variance, in float64: one is layer norm, C instance."""
    size = x.shape[1] // groups
    out = float64(x).clone()
    for image in out:
        for group in range(groups):
            values = image[group * size : (group + 1) * size]
            mean = values.sum() / values.numel()
            var = ((values - mean) ** 2).sum() / values.numel()
            image[group * size : (group + 1) * size] = (values - mean) / (var + eps).sqrt()
    return out


def scale_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight·x + bias with one of each for a channel."""
    return torch.stack([weight[c] * x[:, c] + bias[c] for c in range(x.shape[1])], dim=1)


def renorm_corrections(
    batch: Tensor, running: Pair, r_max: float, d_max: float, eps: float = 1e-5
) -> list[tuple[float, float]]:
    """r and d of each channel in Batch Renormalization (Ioffe 2017, algorithm 1)."""
    _, mean, var = moments(batch)
    found = []
    for c in range(batch.shape[1]):
        sigma = math.sqrt(float(running[1][c]) + eps)
        r = math.sqrt(float(var[c]) + eps) / sigma
        d = float(mean[c] - running[0][c]) / sigma
        found.append((max(1 / r_max, min(r_max, r)), max(-d_max, min(d_max, d))))
    return found


def renorm_limits(update: int, updates: int) -> tuple[float, float]:
    """r_max (1 until 5/130 of the training, 3 from 40/130 on) and d_max (0, 5 from 25/130 on) at an update, from 0."""

    def rise(low: float, high: float, end: float) -> float:
        return float(np.interp(update, [5 / 130 * updates, end / 130 * updates], [low, high]))

    return rise(1, 3, 40), rise(0, 5, 25)


def control_gain(x: Tensor, share: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """gain·(x − share·m) + shift, m the mean over pixels of each image's channel."""
    out = torch.empty_like(x)
    for n in range(len(x)):
        for c in range(x.shape[1]):
            mean = x[n, c].sum() / x[n, c].numel()
            centered = x[n, c] - share[c] * mean
            out[n, c] = gain[c] * centered + shift[c]
    return out


def moments_of_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], forward: Callable[[nn.Module, Any], Any] | None
) -> dict[str, Moments]:
    """Of what layers are given in ordinary forwards, batch after batch, each with a copy of it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append([*args, *kwargs.values()][0].clone()), with_kwargs=True
        )
        for name in names
    ]
    for batch in copy.deepcopy(list(batches)):
        image = batch[0] if isinstance(batch, (list, tuple)) else batch
        forward(model, batch) if forward else model(image)
    for hook in hooks:
        hook.remove()
    return {name: merge(inputs) for name, inputs in seen.items()}
