"""Rows about images, batches and the network: how the mistake would be undone, or what shows it.

The docstrings of rows' functions are read by users: "How it is looked for" in docs/codes.md and `bnlab explain`.
Thresholds that no comment explains are by convention.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from bnlab.doctor.average_rows import is_at_the_start, measure_between
from bnlab.doctor.cause import Trace, Undo
from bnlab.doctor.fits import FirstLayer, fit_rescaling, measure_gap
from bnlab.doctor.history import compare_with_before, read_earlier_averages
from bnlab.doctor.patient import Patient, merge, normalize_by
from bnlab.doctor.scores import find_images
from bnlab.model.calls import NormCall
from bnlab.model.layers import get_batch_count, get_bias, get_weight, list_others, strip_wrappers
from bnlab.statistics.moments import Moments

# -- images ------------------------------------------------------------------------------------------------------------


def undo_rescaling(patient: Patient) -> Iterator[Undo]:
    """Undo a scale and shifts of images, or another order of their colours, as the first layer's averages suggest."""
    name = next(iter(patient.as_is.calls), None)
    images = find_images(patient.batches[0])
    if name is None or name not in patient.exact or images is None or patient.evaluate is not None:
        return
    if measure_gap(patient, name) < 0.05:  # as small as in healthy networks
        return
    history = patient.ask(compare_with_before)
    if history is not None and name in history.moved and name not in history.behind:
        return  # the averages moved without the weights, so that no images are to blame
    if is_at_the_start(patient.averages[name]):
        return  # nor where no image was averaged
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
        # Nothing is fitted here, so that half of the gap does not disappear by chance.
        if reversed_ and now and first.measure_distance(reversed_) < 0.5 * first.measure_distance(now):
            yield Undo("the colours of these images are in reversed order", images=lambda images: images.flip(-3))


# -- batches -----------------------------------------------------------------------------------------------------------


def trace_several_calls(patient: Patient) -> Trace | None:
    """See layers that a forward pass calls several times, with inputs that differ."""
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
    """Undo a forward pass that does not normalize by the layer's averages in eval mode."""

    def is_other(call: NormCall) -> bool:
        layer = patient.layers.get(call.name or "")
        if layer is None or layer.training or layer.running_mean is None or layer.running_var is None:
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

    patient.run(note, others=patient.batches[:1])
    if seen:
        averages = {name: patient.averages[name] for name in seen}
        yield Undo(
            f"{len(seen)} layers that do not normalize by their averages in eval mode", change=normalize_by(averages)
        )


def undo_weights_of_norms(patient: Patient) -> Iterator[Undo]:
    """Undo weights (γ) that training took as 1, or without their sign."""
    if not patient.layers:
        return
    yield Undo("weights of batch norms that training took as 1", change=lambda call: replace(_own(call), weight=None))
    if any((weight := get_weight(layer)) is not None and (weight < 0).any() for layer in patient.layers.values()):
        yield Undo(
            "weights of batch norms that training took without their sign",
            change=lambda call: replace(_own(call), weight=None if call.weight is None else call.weight.abs()),
        )


def _own(call: NormCall) -> NormCall:
    """Return a call as in eval mode."""
    assert call.mean is not None
    assert call.var is not None
    return call.normalize_by(call.mean, call.var)


def undo_eps(patient: Patient) -> Iterator[Undo]:
    """Undo another eps, by trying 1e-3 and 1e-5, those of Keras and PyTorch."""
    for eps in (1e-3, 1e-5):
        others = {name: eps - layer.eps for name, layer in patient.layers.items() if layer.eps != eps}
        if not others:
            continue
        averages = {
            name: Moments(math.nan, patient.averages[name].mean, (patient.averages[name].var + more).clamp(min=0))
            for name, more in others.items()
        }
        yield Undo(f"another eps than in training, which may have been {eps:g}", change=normalize_by(averages))


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

        words = f"{len(folded)} layers whose inputs have their bias as mean and their weight as deviation already"
        yield Undo(words, change=pass_through)


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


def undo_averages_that_moved(patient: Patient) -> Iterator[Undo]:
    """Undo changes of averages since before=, in layers before which no weight has changed."""
    history = patient.ask(compare_with_before)
    if history is None or patient.before is None:
        return
    alone = [name for name in history.moved if name not in history.behind]
    averages = {name: read_earlier_averages(patient.before, name) for name in alone}
    kept = {name: moments for name, moments in averages.items() if moments is not None}
    if kept:
        words = f"averages of {len(kept)} layers that have moved since before=, where no weight has"
        yield Undo(words, change=normalize_by(kept))


def undo_training_since(patient: Patient) -> Iterator[Undo]:
    """Undo everything since before=, if that is a network of the same shape."""
    history = patient.ask(compare_with_before)
    before = patient.before
    if before is None or history is None or not history.changed or not history.is_same_shape:
        return

    @contextlib.contextmanager
    def load_before(model: nn.Module) -> Iterator[None]:
        parameters = {strip_wrappers(name): parameter for name, parameter in model.named_parameters()}
        now = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = before[name].to(parameter.data)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = now[name]

    averages = {name: read_earlier_averages(before, name) for name in patient.layers}
    kept = {name: moments for name, moments in averages.items() if moments is not None}
    yield Undo("all that was changed since before=", math.inf, normalize_by(kept), within=load_before)


def see_new_weights(patient: Patient) -> str:
    """See weights of 1 and biases of 0 in all batch norms, although updates were counted, so that none was trained."""
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
    """See outputs that differ when the model gets the same images again."""

    @contextlib.contextmanager
    def draw_others(model: nn.Module) -> Iterator[None]:
        torch.manual_seed(1)
        yield

    if not patient.batches or not patient.gives_tensors:
        return ""
    first = patient.batches[:1]
    [once] = patient.look(first)
    [again] = patient.look(first, within=draw_others)
    spread = once.double().std().clamp(min=1e-12)
    if float((once - again).double().abs().mean() / spread) > 0.02:
        return "the same images are predicted differently a second time"
    return ""


def see_what_is_not_covered(patient: Patient) -> str:
    """See layers that the images do not reach, or that do not run torch's batch norm."""
    if not patient.batches:
        return ""
    unseen = [name for name in patient.layers if name not in patient.exact]
    others = list(list_others(patient.model))
    if not unseen and not others:
        return ""
    return f"{', '.join([*unseen, *others])} were not examined"


def see_train_mode(patient: Patient) -> str:
    """See batch norms in train mode."""
    training = patient.in_train_mode
    return f"{len(training)} of {len(patient.layers)} batch norms are in train mode" if training else ""
