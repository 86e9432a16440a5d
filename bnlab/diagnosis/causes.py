"""The rows: what may be wrong, how it would be undone, and what averages it would have left.

A row names what its functions find; none of them decides. `diagnose` does, by scores and by bits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnlab.diagnosis.fits import (
    FirstLayer,
    Left,
    fit_factor,
    fit_rescaling,
    fit_share,
    measure_gap,
    measure_noise,
    mix,
    replay,
)
from bnlab.diagnosis.patient import Change, Patient, keep, merge, normalize_by, normalize_by_batch
from bnlab.model.calls import NormCall
from bnlab.model.layers import get_batch_count, get_bias, get_momentum, get_weight, list_others
from bnlab.statistics.moments import Moments

Kind = Literal["averages", "images", "batches", "network", "mode"]
"""Where the fault is. New averages repair what is wrong with averages, and hide what is wrong with images."""


@dataclass(frozen=True)
class Undo:
    """A change under which a mistake would be undone.

    Attributes:
        words: what is changed, in words.
        degrees: numbers that were free to be chosen, as two for a scale and a shift; inf for what can fit anything.
        change: of batch-norm operations.
        images: of the images.
        within: a block in which the model is run.
    """

    words: str
    degrees: float = 0
    change: Change = keep
    images: Callable[[Tensor], Tensor] | None = None
    within: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None


@dataclass(frozen=True)
class Trace:
    """What a mistake has left beside the averages, such as a count.

    Attributes:
        share: of the layers in which it is.
        words: what was found, in words.
    """

    share: float
    words: str


def find_nothing(patient: Patient) -> Any:
    """Find nothing: what a row does not have."""
    return ()


@dataclass(frozen=True)
class Cause:
    """A row: one thing that may be wrong.

    What is undone by exact statistics has averages that it `left`, or a `trace`, or both. Everything else has an
    `undo` of its own. What neither shows is looked at: a `sign`.

    Attributes:
        code: stable, such as "BN102".
        kind: where the fault is.
        title: in a few words.
        meaning: one sentence on what it means.
        remedy: one sentence on what to do.
        undo: how it would be undone, as changes to try.
        left: averages that it would have left.
        trace: what else it leaves; None where there is nothing.
        sign: words on what is worth a note, whatever is tried; "" where there is nothing.
        is_free: whether what it leaves is known without running the model again.
        doubles: how many doublings of the residuals the row is worth by itself: one, of what is named when nothing
            else explains half.
        decides: "at once" where a sign makes everything else pointless, "at the end" where it names a network that
            nothing helps.
    """

    code: str
    kind: Kind
    title: str
    meaning: str
    remedy: str
    undo: Callable[[Patient], Iterable[Undo]] = find_nothing
    left: Callable[[Patient], Iterable[Left]] = find_nothing
    trace: Callable[[Patient], Trace | None] = find_nothing
    sign: Callable[[Patient], str] = find_nothing
    is_free: bool = False
    doubles: float = 0.0
    decides: Literal["", "at once", "at the end"] = ""


# -- averages: what is undone by exact statistics ----------------------------------------------------------------------


def leave_what_no_data_give(patient: Patient) -> Iterator[Left]:
    """Leave values that are not finite or below 0 as they are; the others are exact."""
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
    spoiled = [name for name, averages in patient.averages.items() if bool(_find_spoiled(averages).any())]
    if not spoiled:
        return None
    return Trace(len(spoiled) / len(patient.averages), f"averages of {len(spoiled)} layers are not finite, or negative")


def _find_spoiled(averages: Moments) -> Tensor:
    return ~averages.mean.isfinite() | ~averages.var.isfinite() | (averages.var < 0)


def see_low_precision(patient: Patient) -> str:
    low = [
        name
        for name, layer in patient.layers.items()
        if layer.running_var is not None and layer.running_var.dtype in (torch.float16, torch.bfloat16)
    ]
    return f"the averages of {len(low)} layers are kept in half precision" if low else ""


def leave_the_start(patient: Patient) -> Iterator[Left]:
    """Leave mean, variance or both at values that a layer or a tool begins with, and that no data give."""
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


def _is_initial_mean(averages: Moments) -> bool:
    return _holds(averages.mean, 0.0)


def _is_initial_var(averages: Moments) -> bool:
    return _holds(averages.var, 1.0) or _holds(averages.var, 0.0)


def _holds(values: Tensor, number: float) -> bool:
    """Return whether nearly all channels hold this very number."""
    return float((values == number).double().mean()) > 0.99


def leave_a_share_of_the_start(patient: Patient) -> Iterator[Left]:
    """Leave (1 − m)^t of 0 and 1 after t updates of momentum m."""
    averages = {}
    shares = []
    for name, exact in patient.exact.items():
        momentum, count = get_momentum(patient.layers[name]), get_batch_count(patient.layers[name])
        if not momentum or momentum >= 1 or not count:
            continue
        share = (1 - momentum) ** int(count)
        if share > 0.005:
            shares.append(share)
            start = Moments(math.nan, torch.zeros_like(exact.mean), torch.ones_like(exact.var))
            averages.update(mix({name: exact}, {name: start}, share))
    if averages:
        yield Left(averages, words=f"{max(shares):.0%} of the averages are still the 0 and 1 that they began at")


def trace_momentum(patient: Patient) -> Trace | None:
    """See a momentum that remembers one batch, or none, where updates were counted."""
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
    """See averages that are others than before, where weights are the same or take no gradient."""
    history = patient.ask(compare_with_before)
    if history is not None and not history.changed and history.moved:
        share = len(history.moved) / len(patient.layers)
        return Trace(share, f"no weight has changed since before=, and {len(history.moved)} layers' averages have")
    parameters = [*patient.model.parameters()]
    frozen = [name for name, layer in patient.layers.items() if is_frozen(layer)]
    # Where nothing takes a gradient, the model was frozen to be used.
    if not frozen or not any(parameter.requires_grad for parameter in parameters):
        return None
    return Trace(len(frozen) / len(patient.layers), f"the weights of {len(frozen)} layers take no gradient")


def trace_weights_that_moved(patient: Patient) -> Trace | None:
    """See averages that are the same as before, where weights are not, or variances that fall with depth."""
    history = patient.ask(compare_with_before)
    if history is not None and history.changed:
        still = [name for name in patient.layers if name not in history.moved]
        if still:
            return Trace(
                len(still) / len(patient.layers),
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
    if last < 0.7 and last < 0.8 * first and first < 1.1:
        return Trace(0.6, f"variances have fallen to {last:.0%} of the averages in the last layers")
    return None


def leave_fills(patient: Patient) -> Iterator[Left]:
    """Leave a share of what zeros, ones or noise give in train mode, as a tool does that traces a model."""
    fills: dict[str, Callable[[Tensor], Tensor]] = {
        "zeros": torch.zeros_like,
        "ones": torch.ones_like,
        "normal noise": lambda images: torch.randn(images.shape, generator=_seeded()).to(images),
        "uniform noise": lambda images: torch.rand(images.shape, generator=_seeded()).to(images),
    }
    for words, fill in fills.items():
        try:
            ran = patient.run(normalize_by_batch, images=fill, batches=patient.batches[:1], looks_at=patient.layers)
        except Exception:  # whatever a model raises that takes no other images
            continue
        given = ran.pool()
        if given.keys() == patient.exact.keys():
            share = fit_share(patient, given)
            if share > 0.01:
                averages = mix(patient.exact, given, share)
                yield Left(averages, 1, f"{share:.0%} of the averages are those of {words}")


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


def leave_unlike_batches(patient: Patient) -> Iterator[Left]:
    if patient.ask(trace_unlike_batches) is not None and patient.training_batches:
        yield Left(
            replay(patient), words="averages are those of the last training batches, which are not like the others"
        )


def trace_unlike_batches(patient: Patient) -> Trace | None:
    """See training batches whose means differ by more than those of the same images in another order."""
    shuffled = shuffle(patient.training_batches or [])
    first = next(iter(patient.training_calls), None)
    if first is None or not shuffled:
        return None
    in_order = measure_between(patient.training_calls[first])
    by_chance = measure_between(patient.run(normalize_by_batch, batches=shuffled, looks_at=[first]).calls[first])
    if in_order < 2 * by_chance + 0.02:
        return None
    return Trace(
        1.0,
        f"means of training batches make up {in_order:.0%} of the first layer's variance, "
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
    if patient.ask(trace_small_batches) is not None:
        yield Left(replay(patient), words="averages are those of the last training batches, which are small")


def trace_small_batches(patient: Patient) -> Trace | None:
    """See training batches of few images."""
    sizes = patient.training_sizes
    if not sizes or max(sizes) > 4:
        return None
    return Trace(1.0, f"training batches have {max(sizes)} images")


def see_small_last_batch(patient: Patient) -> str:
    sizes = patient.training_sizes
    if len(sizes) < 2 or sizes[-1] > max(sizes[:-1]) / 2:
        return ""
    return f"the last training batch has {sizes[-1]} images, the others up to {max(sizes[:-1])}"


def leave_dropout(patient: Patient) -> Iterator[Left]:
    """Leave the moments of layers with dropout before them, which is off in eval mode."""
    if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in patient.model.modules()):
        ran = patient.run(normalize_by_batch, within=drop_out, looks_at=patient.layers)
        yield Left(ran.pool(), words="averages are those of train mode, with dropout")


@contextlib.contextmanager
def drop_out(model: nn.Module) -> Iterator[None]:
    """Let dropout drop, and leave all other modules in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.training = True
    yield


def leave_training_images(patient: Patient) -> Iterator[Left]:
    if patient.of_training:
        yield Left(patient.of_training, words="averages are right for the training batches, and not for these images")


def trace_padding(patient: Patient) -> Trace | None:
    """See zeros at the end of sequences in training batches, where these images have none."""
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
    yield from leave_dropout(patient)
    if patient.ask(trace_padding) is not None:
        yield Left(patient.of_training, words="averages count the padding of training batches")


def leave_anything(patient: Patient) -> Iterator[Left]:
    """Leave what nothing else explains."""
    gaps = [measure_gap(patient, name) for name in patient.exact]
    yield Left(patient.exact, words=f"averages are off by up to {max(gaps, default=0):.2g} σ")


def leave_a_factor(patient: Patient) -> Iterator[Left]:
    factor = fit_factor(patient)
    if abs(math.log(max(factor, 1e-12))) > 0.05:
        averages = {
            name: Moments(math.nan, factor * exact.mean, factor * exact.var) for name, exact in patient.exact.items()
        }
        yield Left(averages, 1, f"all averages are {factor:.3g} times what they should be")


# -- images ------------------------------------------------------------------------------------------------------------


def undo_rescaling(patient: Patient) -> Iterator[Undo]:
    """Undo a scale and shifts of images, or another order of their colours, by what the first layer's averages say."""
    name = next(iter(patient.as_is.calls), None)
    images = _find_images(patient.batches[0])
    if name is None or name not in patient.exact or images is None or patient.evaluate is not None:
        return
    if measure_gap(patient, name) < 0.05:
        return
    first = FirstLayer(patient, name)
    # Where training batches do not fit the averages much better, these images are not to blame.
    if (
        name in patient.of_training
        and first.measure_distance(patient.of_training[name]) > measure_gap(patient, name) / 2
    ):
        return
    colours = images.shape[-3] if images.dim() >= 4 else 1
    for rescaling in fit_rescaling(first, colours):
        is_shown = (
            max(abs(math.log(abs(rescaling.scale))), float(rescaling.shift.abs().max()) / abs(rescaling.scale)) > 0.02
        )
        if rescaling.explains > 0.85 and (is_shown or rescaling.scale < 0):
            shifts = ", ".join(f"{value:+.2g}" for value in rescaling.shift.tolist())
            words = f"these images are {rescaling.scale:.3g}·x {shifts}, where x are those that the averages are of"
            yield Undo(words, 1 + len(rescaling.shift), images=rescaling.undo)
    if colours == 3:
        reversed_ = first.measure(lambda images: images.flip(-3))
        now = first.measure(lambda images: images)
        # Nothing is fitted here, so that half of the gap does not go by chance.
        if reversed_ and now and first.measure_distance(reversed_) < 0.5 * first.measure_distance(now):
            yield Undo("the colours of these images are in reversed order", images=lambda images: images.flip(-3))


def _find_images(batch: Any) -> Tensor | None:
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    return images if isinstance(images, Tensor) and images.is_floating_point() else None


# -- batches -----------------------------------------------------------------------------------------------------------


def trace_several_calls(patient: Patient) -> Trace | None:
    """See layers that are called several times in a forward, with inputs that differ."""
    several = {name: calls for name, calls in patient.as_is.calls.items() if len(calls) > len(patient.batches)}
    if not several or patient.evaluate is not None:
        return None
    for calls in several.values():
        number = len(calls) // len(patient.batches)
        by_place = [merge(calls[place::number]) for place in range(number)]
        ratio = (torch.stack([m.var for m in by_place]).amax(0) / torch.stack([m.var for m in by_place]).amin(0)).log()
        if measure_between(by_place) > 0.1 or float(ratio.nanmedian()) > 0.2:
            return Trace(1.0, f"{len(several)} layers are called {number} times a forward, with inputs that differ")
    return None


# -- the network -------------------------------------------------------------------------------------------------------


def undo_other_forward(patient: Patient) -> Iterator[Undo]:
    """Undo a forward that in eval mode does not normalize by the layer's averages."""

    def is_other(call: NormCall) -> bool:
        layer = patient.layers.get(call.name or "")
        if layer is None or layer.running_mean is None or layer.running_var is None:
            return False
        return (
            call.uses_batch
            or call.mean is None
            or call.var is None
            or not torch.equal(call.mean.double().cpu(), patient.averages[call.name or ""].mean)
            or not torch.equal(call.var.double().cpu(), patient.averages[call.name or ""].var)
        )

    seen: set[str] = set()

    def note(call: NormCall) -> NormCall | None:
        if is_other(call):
            seen.add(call.name or "")
        return None

    patient.run(note, batches=patient.batches[:1])
    if seen:
        averages = {name: patient.averages[name] for name in seen}
        yield Undo(f"in eval mode {len(seen)} layers do not normalize by their averages", change=normalize_by(averages))


def undo_weights_of_norms(patient: Patient) -> Iterator[Undo]:
    """Undo weights (γ) that training took as 1, or without their sign."""
    yield Undo("with the weights of all batch norms at 1", change=lambda call: replace(_own(call), weight=None))
    if any((weight := get_weight(layer)) is not None and (weight < 0).any() for layer in patient.layers.values()):
        yield Undo(
            "with the weights of all batch norms without their sign",
            change=lambda call: replace(_own(call), weight=None if call.weight is None else call.weight.abs()),
        )


def _own(call: NormCall) -> NormCall:
    """Return a call as in eval mode."""
    assert call.mean is not None
    assert call.var is not None
    return call.normalize_by(call.mean, call.var)


def undo_eps(patient: Patient) -> Iterator[Undo]:
    """Undo an eps of another framework, where it is larger than some variances."""
    for eps in (1e-3, 1e-5):
        others = {name: eps - layer.eps for name, layer in patient.layers.items() if layer.eps != eps}
        if not others:
            continue
        averages = {
            name: Moments(math.nan, patient.averages[name].mean, (patient.averages[name].var + more).clamp(min=0))
            for name, more in others.items()
        }
        yield Undo(f"with an eps of {eps:g}", change=normalize_by(averages))


def undo_second_folding(patient: Patient) -> Iterator[Undo]:
    """Undo layers whose weight and bias were folded into the layer before them, by passing their input through."""
    folded = [name for name in patient.exact if measure_gap(patient, name) > 0.1 and _is_folded(patient, name)]
    if folded:

        def pass_through(call: NormCall) -> NormCall | None:
            if call.name not in folded:
                return None
            eps = patient.layers[call.name].eps
            ones = torch.ones(call.x.shape[1], dtype=torch.float64)
            return replace(call.normalize_by(0 * ones, ones - eps), weight=None, bias=None)

        yield Undo(f"with {len(folded)} layers left out, whose inputs have their bias and weight", change=pass_through)


def _is_folded(patient: Patient, name: str) -> bool:
    """Return whether what a layer is given has its bias as mean and its weight as standard deviation."""
    layer = patient.layers[name]
    weight, bias = get_weight(layer), get_bias(layer)
    if weight is None or bias is None:
        return False
    varies = weight.detach().cpu() != 0
    size = weight.detach().cpu().double()[varies].abs()
    shift = bias.detach().cpu().double()[varies]
    exact = patient.exact[name]
    off = torch.stack(((exact.mean[varies] - shift) / size, (exact.var[varies].sqrt() / size).log()))
    # Weights and biases that are nearly the same in all channels would fit by chance.
    stored = torch.stack((shift / size, size.log()))
    spread = stored - stored.mean(1, keepdim=True)
    return bool(off.square().mean() < 0.25 * spread.square().mean())


def undo_training_since(patient: Patient) -> Iterator[Undo]:
    """Undo all that has happened since before=, where it is a network of the same shape."""
    history = patient.ask(compare_with_before)
    before = patient.before
    if before is None or history is None or not history.changed or not history.is_same_shape:
        return

    @contextlib.contextmanager
    def load_before(model: nn.Module) -> Iterator[None]:
        parameters = dict(model.named_parameters())
        now = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = before[name].to(parameter.data)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = now[name]

    averages = {name: _read_before(before, name) for name in patient.layers}
    kept = {name: moments for name, moments in averages.items() if moments is not None}
    yield Undo("with the weights and averages of before=", math.inf, normalize_by(kept), within=load_before)


def _read_before(before: Mapping[str, Tensor], name: str) -> Moments | None:
    prefix = f"{name}." if name else ""
    mean, var = before.get(f"{prefix}running_mean"), before.get(f"{prefix}running_var")
    return None if mean is None or var is None else Moments(math.nan, mean.double().cpu(), var.double().cpu())


def see_new_weights(patient: Patient) -> str:
    """See weights of 1 and biases of 0 in all batch norms, although updates were counted: none was trained."""
    counted = [int(count) for layer in patient.layers.values() if (count := get_batch_count(layer)) is not None]
    weights = [weight for layer in patient.layers.values() if (weight := get_weight(layer)) is not None]
    biases = [bias for layer in patient.layers.values() if (bias := get_bias(layer)) is not None]
    if not weights or not counted or not max(counted):
        return ""
    are_new = all(bool((weight == 1).all()) for weight in weights) and not any(bool(bias.any()) for bias in biases)
    return (
        f"weights and biases of batch norms are as constructed, and {max(counted):,} updates were counted"
        if are_new
        else ""
    )


def see_random_outputs(patient: Patient) -> str:
    """See outputs that differ when the same images are shown again."""

    @contextlib.contextmanager
    def draw_others(model: nn.Module) -> Iterator[None]:
        torch.manual_seed(1)
        yield

    if patient.evaluate is not None:
        return ""
    first = patient.as_is.outputs[:1]
    second = patient.run(batches=patient.batches[:1], within=draw_others).outputs
    for one, other in zip(first, second, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            spread = one.double().std().clamp(min=1e-12)
            if float((one - other).double().abs().mean() / spread) > 0.02:
                return "the same images are predicted otherwise a second time"
    return ""


def see_what_is_not_covered(patient: Patient) -> str:
    """See layers that the images do not reach, or that do not run torch's batch norm."""
    unseen = [name for name in patient.layers if name not in patient.exact]
    others = list(list_others(patient.model))
    if not unseen and not others:
        return ""
    return f"{', '.join([*unseen, *others])} were not examined"


def see_train_mode(patient: Patient) -> str:
    trained = patient.trained
    return f"{len(trained)} of {len(patient.layers)} batch norms are in train mode" if trained else ""


# -- an earlier network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """What is other than before.

    Attributes:
        changed: names of parameters with other values.
        moved: names of layers with other averages.
        is_same_shape: whether all parameters were there, with the same shapes.
    """

    changed: Sequence[str]
    moved: Sequence[str]
    is_same_shape: bool


def compare_with_before(patient: Patient) -> History | None:
    """Compare a patient with before=; None without it."""
    before = patient.before
    if before is None:
        return None
    parameters = dict(patient.model.named_parameters())
    known = {name: before[name] for name in parameters if name in before}
    changed = [
        name
        for name, earlier in known.items()
        if earlier.shape != parameters[name].shape or not torch.equal(earlier.to(parameters[name]), parameters[name])
    ]
    moved = []
    for name in patient.layers:
        earlier = _read_before(before, name)
        if earlier is not None and not are_same(earlier, patient.averages[name]):
            moved.append(name)
    shapes = len(known) == len(parameters) and all(known[name].shape == parameters[name].shape for name in known)
    return History(changed, moved, shapes)


def are_same(one: Moments, other: Moments) -> bool:
    """Return whether two averages are the same."""
    return (
        one.mean.shape == other.mean.shape
        and torch.allclose(one.mean, other.mean, 0, 0, equal_nan=True)
        and torch.allclose(one.var, other.var, 0, 0, equal_nan=True)
    )


def is_frozen(layer: nn.Module) -> bool:
    """Return whether a layer's own weights take no gradient."""
    own = [*layer.parameters(recurse=False)]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


# -- the table ---------------------------------------------------------------------------------------------------------

CAUSES: tuple[Cause, ...] = (
    Cause(
        "BN001",
        "averages",
        "not finite, negative, or in low precision",
        "The averages cannot represent what was averaged, or a single bad batch has ruined them for good.",
        "Keep batch norm in float32 even if the rest is cast; recalibrate, and look for the batch or the overflow.",
        left=leave_what_no_data_give,
        trace=trace_what_no_data_give,
        sign=see_low_precision,
        is_free=True,
    ),
    Cause(
        "BN002",
        "averages",
        "never updated",
        "The running mean or variance is still at its initial value, which no real batch produces.",
        "Train in train(), or load a checkpoint that has both buffers; bnlab.recalibrate repairs what there is.",
        left=leave_the_start,
        trace=trace_the_start,
        is_free=True,
    ),
    Cause(
        "BN101",
        "averages",
        "averages have not converged from their start at 0 and 1",
        "There were too few updates for this momentum, and the averages still hold a part of where they began.",
        "Recalibrate, train longer, or use a larger momentum.",
        left=leave_a_share_of_the_start,
        is_free=True,
    ),
    Cause(
        "BN102",
        "averages",
        "momentum reversed, or 0",
        "The averages are little more than the last batch, or have not moved: PyTorch's momentum is the weight of the "
        "new batch.",
        "Set momentum to 0.1 or, where it is reversed, to one minus its value, and recalibrate.",
        trace=trace_momentum,
    ),
    Cause(
        "BN104",
        "averages",
        "averages moved, weights did not",
        "Every forward in train() updates the averages, whatever images it sees, even if no weight is trained.",
        "Load the earlier buffers, or recalibrate; call eval() on frozen layers after each train().",
        trace=trace_averages_that_moved,
    ),
    Cause(
        "BN106",
        "averages",
        "weights moved, averages did not",
        "The averages belong to other weights: those before a change, or those of the network they were copied from.",
        "Recalibrate after averaging, merging, pruning or rounding weights.",
        trace=trace_weights_that_moved,
    ),
    Cause(
        "BN108",
        "averages",
        "averages of other images or weights",
        "The averages belong to other weights than these, or to other images than these.",
        "Recalibrate before you evaluate, unless these images are preprocessed differently than in training.",
        left=leave_anything,
        doubles=1.0,
    ),
    Cause(
        "BN110",
        "averages",
        "a small last batch",
        "This batch of few images makes an update at the full learning rate, which can damage the weights.",
        "Pass drop_last=True to the DataLoader.",
        sign=see_small_last_batch,
    ),
    Cause(
        "BN111",
        "averages",
        "averages of no images",
        "Forwards on zeros, ones or noise in train() were averaged, as tools that trace or count a model cause.",
        "Recalibrate; call eval() before you trace, export or count operations.",
        left=leave_fills,
    ),
    Cause(
        "BN201",
        "averages",
        "noise of the averages",
        "The averages are off by no more than the noise of the few batches they remember.",
        "Recalibrate before an evaluation that matters, or lower the momentum.",
        left=leave_noise,
    ),
    Cause(
        "BN202",
        "averages",
        "batches are not alike",
        "Batches come from different populations; averages over the last few describe only these.",
        "Shuffle the training batches, or recalibrate over all; domains need a batch norm each.",
        left=leave_unlike_batches,
        trace=trace_unlike_batches,
    ),
    Cause(
        "BN203",
        "averages",
        "small batches",
        "Statistics of so few images are noisy, and the network learns with them.",
        "Train with larger or synchronized batches, or with another norm.",
        left=leave_small_batches,
        trace=trace_small_batches,
    ),
    Cause(
        "BN205",
        "averages",
        "padding or dropout is counted",
        "The averages describe what the layers are given in train mode, with dropout or padding, not in eval mode.",
        "Put dropout after the last batch norm, and normalize only what is not padding; or recalibrate.",
        left=leave_dropout_or_padding,
        trace=trace_padding,
    ),
    Cause(
        "BN207",
        "images",
        "other data than in training",
        "The averages are right for the training batches; these images are of another population.",
        "Check the preprocessing; if the domain has changed, adapt knowingly: bnlab.recalibrate on these images.",
        left=leave_training_images,
    ),
    Cause(
        "BN215",
        "averages",
        "averages times one factor",
        "Means and variances are right except for one factor, as when a converter left out the divisor.",
        "Divide both by it where they are converted or loaded; bnlab.recalibrate repairs this copy.",
        left=leave_a_factor,
    ),
    Cause(
        "BN209",
        "images",
        "images scaled, shifted, or with reversed channels",
        "These images are preprocessed differently from those the averages are of; new statistics would hide that.",
        "Compare the preprocessing of both: range, mean and deviation, RGB or BGR; do not recalibrate before.",
        undo=undo_rescaling,
    ),
    Cause(
        "BN203",
        "batches",
        "small batches",
        "The network needs the images that stand beside each other in a batch.",
        "Train with larger or synchronized batches, on more images if these are few, or with another norm.",
        doubles=1.0,
    ),
    Cause(
        "BN204",
        "batches",
        "one layer, several populations",
        "Train mode normalizes each population by its own statistics, eval mode all by the same.",
        "Train again with batches that mix them, a batch norm for each, or group norm.",
        trace=trace_several_calls,
    ),
    Cause(
        "BN302",
        "network",
        "folded twice",
        "Statistics, weight and bias of these layers were folded into the layer before already, and are applied twice.",
        "Replace the folded layers with an identity.",
        undo=undo_second_folding,
    ),
    Cause(
        "BN303",
        "network",
        "weights that training did not use",
        "Training ignored these weights (γ); applying them gives later layers inputs they never saw.",
        "Set these weights to 1, or to their absolute values, in the converter; do not recalibrate.",
        undo=undo_weights_of_norms,
    ),
    Cause(
        "BN304",
        "network",
        "the forward leaves something out",
        "In eval mode these layers ignore part of what they store.",
        "Repair the layers' forward, or export the model again in eval mode.",
        undo=undo_other_forward,
    ),
    Cause(
        "BN305",
        "network",
        "the earlier network is better",
        "The network of before= scores better than this one under any averages: its training went wrong since.",
        "Go back to the earlier checkpoint; new averages do not bring back what the weights have lost.",
        undo=undo_training_since,
    ),
    Cause(
        "BN307",
        "network",
        "another eps than in training",
        "Channels with a small variance are divided by a different number than in training.",
        "Pass the eps of training to the batch norms, such as eps=1e-3 for networks of Keras; do not recalibrate.",
        undo=undo_eps,
    ),
    Cause(
        "BN306",
        "network",
        "weights as constructed, although updates were counted",
        "The averages come from a training run that these weights have not been through.",
        "Load the trained weights, and look at what load_state_dict returns; do not recalibrate.",
        sign=see_new_weights,
        decides="at the end",
    ),
    Cause(
        "BN901",
        "network",
        "not covered",
        "These were not examined, so nothing is known about them.",
        "Pass batches that reach them, or the part of the model that is used.",
        sign=see_what_is_not_covered,
        decides="at the end",
    ),
    Cause(
        "BN211",
        "network",
        "the same image, different predictions",
        "Even in eval mode something in the forward draws random numbers, or keeps what it was given before.",
        "Pass training=self.training to F.dropout, turn off observers of quantization; then diagnose again.",
        sign=see_random_outputs,
        decides="at once",
    ),
    Cause(
        "BN402",
        "mode",
        "normalizes by the batch",
        "Called as it is now, the model's predictions depend on the other images of a batch.",
        "Call model.eval() before evaluating, exporting or saving predictions.",
        sign=see_train_mode,
    ),
)
"""All rows. Of two that explain as much, the first is named."""
