"""Rows about averages: what a mistake would have left, and what else shows it. Exact statistics undo them all.

The docstrings of rows' functions are read by users: "How it is looked for" in docs/codes.md and `bnlab explain`.
Thresholds that no comment explains are by convention.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.cause import Left, Trace
from bnlab.doctor.fits import (
    NOISE,
    fit_factor,
    fit_share,
    measure_gap,
    measure_noise,
    measure_residuals,
    mix,
    replay,
    unbias,
)
from bnlab.doctor.history import compare_with_before, is_frozen
from bnlab.doctor.patient import Patient, normalize_by_batch
from bnlab.model.layers import get_batch_count, get_momentum
from bnlab.statistics.moments import Moments

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_OF_FILLS = 0.1  # of the squared gap, which images of zeros or noise may leave unexplained; by convention


def leave_what_no_data_give(patient: Patient) -> Iterator[Left]:
    """Leave some values that are not finite or below 0, and the others exact."""
    spoiled = {}
    count = 0
    for name, averages in patient.averages.items():
        is_spoiled = _find_spoiled(averages)
        if name in patient.exact and is_spoiled.any():
            exact = patient.exact[name]
            count += int(is_spoiled.sum())
            mean = averages.mean.where(is_spoiled, exact.mean)
            spoiled[name] = Moments(math.nan, mean, averages.var.where(is_spoiled, exact.var))
    if spoiled:
        yield Left(spoiled, words=f"{count} channels of {len(spoiled)} layers are not finite, or negative")


def trace_what_no_data_give(patient: Patient) -> Trace | None:
    """See averages that are not finite, or a variance below 0."""
    spoiled = [name for name, averages in patient.averages.items() if bool(_find_spoiled(averages).any())]
    if not spoiled:
        return None
    return Trace(len(spoiled) / len(patient.averages), f"averages of {len(spoiled)} layers are not finite, or negative")


def _find_spoiled(averages: Moments) -> Tensor:
    return ~averages.mean.isfinite() | ~averages.var.isfinite() | (averages.var < 0)


def see_low_precision(patient: Patient) -> str:
    """See averages that are kept in half precision."""
    low = [
        name
        for name, layer in patient.layers.items()
        if layer.running_var is not None and layer.running_var.dtype in (torch.float16, torch.bfloat16)
    ]
    return f"the averages of {len(low)} layers are kept in half precision" if low else ""


def leave_the_start(patient: Patient) -> Iterator[Left]:
    """Leave mean, variance or both at initial values of a layer or a tool, which no data give."""
    averages = {}
    for name, exact in patient.exact.items():
        now = patient.averages[name]
        mean = now.mean if _is_initial_mean(now) else exact.mean
        var = now.var if _is_initial_var(now) else exact.var
        averages[name] = Moments(math.nan, mean, var)
    trace = trace_the_start(patient)
    if trace is not None:
        yield Left(averages, words=trace.words)


def trace_the_start(patient: Patient) -> Trace | None:
    """See values that no data give: a mean of 0, or a variance of 1 or 0, in nearly all channels."""
    means = [name for name, averages in patient.averages.items() if _is_initial_mean(averages)]
    variances = [name for name, averages in patient.averages.items() if _is_initial_var(averages)]
    if not means and not variances:
        return None
    words = [f"means of {len(means)} layers are 0"] if means else []
    words += [f"variances of {len(variances)} layers are 1 or 0"] if variances else []
    share = len({*means, *variances}) / len(patient.averages)
    return Trace(share, f"{' and '.join(words)}, as before the first update")


def is_at_the_start(averages: Moments) -> bool:
    """Return whether mean or variance are still what a layer or a tool begins with."""
    return _is_initial_mean(averages) or _is_initial_var(averages)


def _is_initial_mean(averages: Moments) -> bool:
    return _holds(averages.mean, 0.0)


def _is_initial_var(averages: Moments) -> bool:
    return _holds(averages.var, 1.0) or _holds(averages.var, 0.0)


def _holds(values: Tensor, number: float) -> bool:
    """Return whether nearly all channels hold this very number; a dead channel may have any."""
    return float((values == number).double().mean()) > 0.99


def leave_a_share_of_the_start(patient: Patient) -> Iterator[Left]:
    """Leave a share of 0 and 1 in the averages: (1 − m)^t after t updates with momentum m."""
    averages = {}
    shares = []
    for name, exact in patient.exact.items():
        momentum, count = get_momentum(patient.layers[name]), get_batch_count(patient.layers[name])
        if not momentum or momentum >= 1 or not count:
            continue
        share = (1 - momentum) ** int(count)
        if share > 0.005:  # less is within the noise of averages
            shares.append(share)
            start = Moments(math.nan, torch.zeros_like(exact.mean), torch.ones_like(exact.var))
            averages.update(mix({name: exact}, {name: start}, share))
    if averages:
        yield Left(averages, words=f"{max(shares):.0%} of the averages are still the 0 and 1 that they began at")


def trace_momentum(patient: Patient) -> Trace | None:
    """See a momentum that remembers one batch or none, although updates were counted."""
    # Above a half, an average is mostly the last batch.
    odd = [
        momentum
        for layer in patient.layers.values()
        if (momentum := get_momentum(layer)) is not None
        and (momentum > 0.5 or (momentum == 0 and (get_batch_count(layer) or 0) > 0))
    ]
    if not odd:
        return None
    return Trace(len(odd) / len(patient.layers), f"momentum is {odd[0]:g} in {len(odd)} layers")


def trace_averages_that_moved(patient: Patient) -> Trace | None:
    """See averages that have changed, although the weights have not, or take no gradient."""
    history = patient.ask(compare_with_before)
    if history is not None:
        alone = [name for name in history.moved if name not in history.behind]
        words = f"no weight before them has changed since before=, and {len(alone)} layers' averages have"
        return Trace(len(alone) / (len(patient.layers) - len(history.behind)), words) if alone else None
    parameters = [*patient.model.parameters()]
    frozen = [name for name, layer in patient.layers.items() if is_frozen(layer)]
    # Where nothing takes a gradient, the model was frozen to be used.
    if not frozen or not any(parameter.requires_grad for parameter in parameters):
        return None
    return Trace(len(frozen) / len(patient.layers), f"the weights of {len(frozen)} layers take no gradient")


def trace_weights_that_moved(patient: Patient) -> Trace | None:
    """See averages that have not changed, although the weights have, or variances that fall with depth."""
    history = patient.ask(compare_with_before)
    if history is not None and history.changed:
        still = [name for name in history.behind if name not in history.moved]
        if still:
            return Trace(
                len(still) / len(history.behind),
                f"{len(history.changed)} weights have changed since before=, and the averages of {len(still)} layers "
                "have not",
            )
    return trace_collapse(patient)


def trace_collapse(patient: Patient) -> Trace | None:
    """See exact variances that fall short of the averages, the more the deeper: weights that were averaged or cut."""
    ratios = []
    for name, exact in patient.exact.items():
        averages = patient.averages[name]
        live = (averages.var > 0) & (exact.var > 0)
        if live.any():
            ratios.append(float((exact.var[live] / averages.var[live]).log().median()))
    if len(ratios) < 3:
        return None
    third = max(1, len(ratios) // 3)
    first, last = math.exp(median(ratios[:third])), math.exp(median(ratios[-third:]))
    # Much smaller in the last third of the layers, and more so than in the first third, where they have not grown.
    if last < 0.7 and last < 0.8 * first and first < 1.1:
        return Trace(0.6, f"variances have fallen to {last:.0%} of the averages in the last layers")
    return None


def leave_fills(patient: Patient) -> Iterator[Left]:
    """Leave a share of what zeros, ones or noise give in train mode, such as a tool sends when it traces a model."""
    fills: dict[str, Callable[[Tensor], Tensor]] = {
        "zeros": torch.zeros_like,
        "ones": torch.ones_like,
        "normal noise": lambda images: torch.randn(images.shape, generator=_seeded()).to(images),
        "uniform noise": lambda images: torch.rand(images.shape, generator=_seeded()).to(images),
    }
    for words, fill in fills.items():
        try:
            ran = patient.run(normalize_by_batch, images=fill, others=patient.batches[:1], looks_at=patient.layers)
        except Exception:  # whatever a model raises that takes no other images
            continue
        given = ran.pool()
        if given.keys() == patient.exact.keys():
            share = fit_share(patient, given)
            left = Left(mix(patient.exact, given, share), 1, f"{share:.0%} of the averages are those of {words}")
            # Noise is far from any images, so that a share of it explains half of most gaps by chance.
            gap = measure_residuals(patient, Left(patient.exact))
            if share > 0.01 and measure_residuals(patient, left).square().mean() < _OF_FILLS * gap.square().mean():
                yield left


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def leave_noise(patient: Patient) -> Iterator[Left]:
    """Leave exact statistics, up to the noise of an average of so few batches."""
    calls = patient.training_calls or patient.by_batch.calls
    noise = measure_noise(patient, calls)
    if noise:
        yield Left(patient.exact, words="averages are no farther off than so few batches let them", noise=noise)
    if patient.training_batches:
        yield Left(replay(patient), words="averages are those of the last few training batches")


def leave_one_batch(patient: Patient) -> Iterator[Left]:
    """Leave the moments of a single training batch."""
    counts = {name: len(calls) for name, calls in patient.training_calls.items()}
    if not patient.exact.keys() <= counts.keys() or {*counts.values()} != {len(patient.training_sizes)}:
        return
    of_batches = [
        Left({name: unbias(patient.training_calls[name][number]) for name in patient.exact})
        for number in range(len(patient.training_sizes))
    ]
    distances = [float(measure_residuals(patient, left).square().mean()) for left in of_batches]
    nearest = distances.index(min(distances))
    words = f"averages are those of training batch {nearest + 1} alone, of {patient.training_sizes[nearest]} images"
    # A single batch gives averages to the last digit; one that is merely near is the nearest of many by chance.
    if distances[nearest] < NOISE**2:
        yield Left(of_batches[nearest].averages, 1, words)


def leave_unlike_batches(patient: Patient) -> Iterator[Left]:
    """Leave an average of the last training batches, in their order, if batches are not alike."""
    if patient.ask(trace_unlike_batches) is not None and patient.training_batches:
        yield Left(
            replay(patient), words="averages are those of the last training batches, which are not like the others"
        )


def trace_unlike_batches(patient: Patient) -> Trace | None:
    """See training batches whose means differ by more than those of the same images in another order."""
    return _compare_with_shuffled(patient, patient.training_batches or [], patient.training_calls, "training batches")


def trace_unlike_batches_here(patient: Patient) -> Trace | None:
    """See batches whose means differ by more than those of the same images in another order."""
    return _compare_with_shuffled(patient, patient.batches, patient.by_batch.calls, "batches")


def _compare_with_shuffled(
    patient: Patient, batches: Sequence[Any], calls: Mapping[str, Sequence[Moments]], what: str
) -> Trace | None:
    shuffled = shuffle(batches)
    first = next(iter(calls), None)
    if first is None or not shuffled:
        return None
    in_order = measure_between(calls[first])
    by_chance = measure_between(patient.run(normalize_by_batch, others=shuffled, looks_at=[first]).calls[first])
    if in_order < 2 * by_chance + 0.02:
        return None
    return Trace(
        1.0,
        f"means of {what} make up {in_order:.0%} of the first layer's variance, "
        f"and {by_chance:.0%} where the same images are shuffled",
    )


def shuffle(batches: Sequence[Any]) -> list[Any]:
    """Put the rows of batches in another order, in batches of the same sizes; nothing where they cannot be joined."""
    if len(batches) < 4:
        return []
    first = batches[0]
    if isinstance(first, Tensor):
        joined = _shuffle_rows(batches)
        return joined or []
    if not isinstance(first, (tuple, list)) or not all(isinstance(part, Tensor) for part in first):
        return []
    columns = [_shuffle_rows(list(column)) for column in zip(*batches, strict=True)]
    if any(column is None for column in columns):
        return []
    return [tuple(parts) for parts in zip(*columns, strict=True)]  # type: ignore[arg-type]


def _shuffle_rows(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        return None
    joined = torch.cat([*tensors])
    order = torch.randperm(len(joined), generator=_seeded())
    return list(joined[order].split([len(tensor) for tensor in tensors]))


def measure_between(calls: Sequence[Moments]) -> float:
    """Measure which share of the variance lies between the means of calls, mean over channels."""
    means = torch.stack([moments.mean for moments in calls])
    whole = torch.stack([moments.var for moments in calls]).mean(0) + means.var(0)
    return float((means.var(0) / whole.clamp(min=1e-12)).mean())


def leave_small_batches(patient: Patient) -> Iterator[Left]:
    """Leave an average of the last training batches, if these are small."""
    if patient.ask(trace_small_batches) is not None:
        yield Left(replay(patient), words="averages are those of the last training batches, which are small")


def trace_small_batches(patient: Patient) -> Trace | None:
    """See training batches of few images."""
    sizes = patient.training_sizes
    if not sizes or max(sizes) > 4:
        return None
    return Trace(1.0, f"training batches have {max(sizes)} images")


def see_small_last_batch(patient: Patient) -> str:
    """See a last training batch of at most half as many images as the others."""
    sizes = patient.training_sizes
    if len(sizes) < 2 or sizes[-1] > max(sizes[:-1]) / 2:
        return ""
    return f"the last training batch has {sizes[-1]} images, the others up to {max(sizes[:-1])}"


def leave_dropout(patient: Patient) -> Iterator[Left]:
    """Leave the moments of layers with dropout before them, which is off in eval mode."""
    if any(isinstance(module, _DROPOUTS) and module.p for module in patient.model.modules()):
        ran = patient.run(normalize_by_batch, within=drop_out, looks_at=patient.layers)
        yield Left(ran.pool(), words="averages are those of train mode, with dropout")


@contextlib.contextmanager
def drop_out(model: nn.Module) -> Iterator[None]:
    """Let dropout drop, and leave all other modules in eval mode."""
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.training = True
    yield


def leave_training_images(patient: Patient) -> Iterator[Left]:
    """Leave exact statistics of training batches."""
    if patient.of_training:
        yield Left(patient.of_training, words="averages are right for the training batches, and not for these images")


def trace_padding(patient: Patient) -> Trace | None:
    """See zeros at the end of sequences in training batches, if these images have none."""
    if not patient.training_batches:
        return None
    there, here = _measure_padding(patient.training_batches), _measure_padding(patient.batches)
    return (
        Trace(1.0, f"{there:.0%} of training batches is padding, and {here:.0%} of these")
        if there > here + 0.02
        else None
    )


def _measure_padding(batches: Sequence[Any]) -> float:
    """Measure which share of positions is 0 in all channels, from some position to the end."""
    zeros = total = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.dim() != 3:
            return 0.0
        is_zero = (images == 0).all(1)
        zeros += int(is_zero.flip(1).cumprod(1).sum())
        total += is_zero.numel()
    return zeros / max(total, 1)


def leave_dropout_or_padding(patient: Patient) -> Iterator[Left]:
    """Leave the moments of layer inputs with dropout, or with the padding of training batches."""
    yield from leave_dropout(patient)
    if patient.ask(trace_padding) is not None:
        yield Left(patient.of_training, words="averages count the padding of training batches")


def leave_anything(patient: Patient) -> Iterator[Left]:
    """Leave averages that nothing else explains."""
    gaps = [measure_gap(patient, name) for name in patient.exact]
    yield Left(patient.exact, words=f"averages are off by up to {max(gaps, default=0):.2g} σ")


def leave_a_factor(patient: Patient) -> Iterator[Left]:
    """Leave exact statistics times one number, fitted to the variances."""
    factor = fit_factor(patient)
    if abs(math.log(max(factor, 1e-12))) > 0.05:
        averages = {
            name: Moments(math.nan, factor * exact.mean, factor * exact.var) for name, exact in patient.exact.items()
        }
        yield Left(averages, 1, f"all averages are {factor:.3g} times what they should be")
