"""Rows of three general experiments, which need no batch norm.

The mode of each module: does one class, or one of its modules, do better in the other mode? Company: does an answer
change with the other images of a batch, or with its padding? Numbers: which go in, and which come out?

The docstrings of rows' functions are read by users: "How it is looked for" in docs/codes.md and `bnlab explain`.
Thresholds that no comment explains are by convention.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.cause import Undo
from bnlab.doctor.patient import Patient
from bnlab.doctor.scores import find_images, find_labels, find_logits
from bnlab.model.batches import count_images
from bnlab.model.calls import NormCall

_ALONE = 4  # images whose answers alone are compared with those in a batch
_TOGETHER = 32  # images that are joined to a batch, where they came alone
_SAME = 1e-3  # of the outputs' standard deviation; kernels of other shapes round otherwise, by far less
_KEPT = 0.9  # of a gain, which half of the modules has to bring for the others to be left out; by convention
_OTHER = 0.1  # σ, or log ratio, from which on inputs are others than in training; by convention

# -- the mode of each module -------------------------------------------------------------------------------------------


def undo_mode_of_others(patient: Patient) -> Iterator[Undo]:
    """Undo eval mode of all modules of a class other than batch norms, or of the few that need it."""
    for modules in patient.ask(list_switching_classes):
        chosen = _narrow(patient, modules)
        yield Undo(f"eval mode of {name_modules(chosen)}", within=put_into_train_mode(chosen.values()))


def list_switching_classes(patient: Patient) -> list[Mapping[str, nn.Module]]:
    """List the modules of each class by whose mode the outputs change, by name."""
    classes: dict[type, dict[str, nn.Module]] = {}
    for name, module in patient.model.named_modules():
        if module not in patient.layers.values():
            classes.setdefault(type(module), {})[name] = module
    if not patient.gives_tensors:
        return []
    first = patient.batches[:1]
    as_is = patient.look(first)
    return [modules for modules in classes.values() if _switches(patient, modules, as_is)]


def _switches(patient: Patient, modules: Mapping[str, nn.Module], as_is: Sequence[Tensor]) -> bool:
    """Return whether outputs change by the mode of these modules."""
    try:
        outputs = patient.look(patient.batches[:1], within=put_into_train_mode(modules.values()))
    except Exception:  # whatever a model raises that wants targets in train mode, say
        return False
    return not _are_same(outputs, as_is)


def put_into_train_mode(modules: Any) -> Callable[[nn.Module], AbstractContextManager[Any]]:
    """Make the block in which these modules are in train mode, and they alone."""

    @contextlib.contextmanager
    def put(model: nn.Module) -> Iterator[None]:
        for module in modules:
            module.training = True
        yield

    return put


def _narrow(patient: Patient, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Halve modules as long as one half brings nearly the whole gain."""

    def gain(chosen: Mapping[str, nn.Module]) -> float:
        ran = patient.run(within=put_into_train_mode(chosen.values()))
        return float((ran.scores.likelihoods - patient.as_is.scores.likelihoods).mean())

    whole = gain(modules) if len(modules) > 1 else 0.0
    while whole > 0 and len(modules) > 1:
        names = [*modules]
        halves = [names[: len(names) // 2], names[len(names) // 2 :]]
        parts = [{name: modules[name] for name in half} for half in halves]
        kept = next((part for part in parts if gain(part) > _KEPT * whole), None)
        if kept is None:
            break
        modules = kept
    return modules


def name_modules(modules: Mapping[str, nn.Module]) -> str:
    """Name modules of one class: "InstanceNorm2d 'norm1'", "12 modules of Dropout"."""
    kind = type(next(iter(modules.values()))).__name__
    if len(modules) == 1:
        name = next(iter(modules))
        return f"{kind} {name!r}" if name else kind
    return f"{len(modules)} modules of {kind}"


def see_others_in_train_mode(patient: Patient) -> str:
    """See modules other than batch norms in train mode, if that changes outputs."""
    if not any(patient.modes.values()) or not patient.batches:
        return ""
    given = [
        {name: module for name, module in modules.items() if patient.modes[module]}
        for modules in patient.ask(list_switching_classes)
    ]
    names = [name_modules(modules) for modules in given if modules]
    return f"{' and '.join(names)} in train mode" if names else ""


def undo_mode_that_eval_does_not_reach(patient: Patient) -> Iterator[Undo]:
    """Undo train mode that `eval()` does not end, because a module has a `train` of its own, or norms are in a plain
    list."""
    if patient.unreached:
        words = f"train mode of {patient.unreached} batch norms that eval() does not reach"
        yield Undo(words, change=_normalize_by_own, unnamed=_normalize_by_own)


def _normalize_by_own(call: NormCall) -> NormCall | None:
    if not call.uses_batch or call.mean is None or call.var is None:
        return None
    return call.normalize_by(call.mean, call.var)


# -- company -----------------------------------------------------------------------------------------------------------


def undo_padding(patient: Patient) -> Iterator[Undo]:
    """Undo padding, by showing each sequence alone, cut to its own length."""
    alone = patient.ask(split)
    if not alone:
        return
    cut = [_cut(batch) for batch in alone]
    if any(batch is None for batch in cut) or not _matters(patient, cut):
        return
    yield Undo("padding of sequences, which counts", regrouped=cut)


def undo_company(patient: Patient) -> Iterator[Undo]:
    """Undo the company of images, by showing each alone, or together those that came alone."""
    alone = patient.ask(split)
    if not alone:
        return
    if len(alone) > len(patient.batches):
        if _matters(patient, alone):
            yield Undo("other images in the batch, which count", regrouped=alone)
        return
    together = [_join(alone[start : start + _TOGETHER]) for start in range(0, len(alone), _TOGETHER)]
    if not any(batch is None for batch in together):
        some = patient.look(together[:1])[0]
        if not _are_same([some], [torch.cat(patient.look(alone[: len(some)]))]):
            yield Undo("images that are alone in a batch", regrouped=together)


def split(patient: Patient) -> list[Any]:
    """Split batches of tensors into those of single images; nothing where that cannot be done, or not be scored."""
    if not patient.gives_tensors or not patient.is_scored:
        return []
    alone = []
    for batch in patient.batches:
        count = count_images(batch)
        parts = [_take(batch, slice(number, number + 1), count) for number in range(count)]
        if any(part is None for part in parts):
            return []
        alone += parts
    return alone


def _take(batch: Any, rows: slice, count: int) -> Any:
    """Take rows of all tensors of a batch; None where a part has other rows."""
    if isinstance(batch, Mapping):
        parts = {key: _take(value, rows, count) for key, value in batch.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(batch, (tuple, list)):
        taken = [_take(value, rows, count) for value in batch]
        return None if any(part is None for part in taken) else tuple(taken)
    return batch[rows] if isinstance(batch, Tensor) and batch.dim() and len(batch) == count else None


def _join(batches: Sequence[Any]) -> Any:
    """Join batches of tensors; None where they cannot be joined."""
    first = batches[0]
    if isinstance(first, Mapping):
        parts = {key: _join([batch[key] for batch in batches]) for key in first}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(first, tuple):
        columns = [_join(column) for column in zip(*batches, strict=True)]
        return None if any(part is None for part in columns) else tuple(columns)
    return torch.cat([*batches]) if len({batch.shape[1:] for batch in batches}) == 1 else None


def _cut(batch: Any) -> Any:
    """Cut a sequence to the length that its mask says; None where there is no mask."""
    if not isinstance(batch, Mapping):
        return None
    mask = next((value for key, value in batch.items() if "mask" in str(key) and value.dim() == 2), None)
    if mask is None:
        return None
    length = int(mask.sum())
    is_long = {key: value.dim() > 1 and value.shape[1] == mask.shape[1] for key, value in batch.items()}
    return {key: value[:, :length] if is_long[key] else value for key, value in batch.items()}


def _matters(patient: Patient, alone: Sequence[Any]) -> bool:
    """Return whether the first images have other answers alone."""
    joined = patient.look(patient.batches[:1])[0]
    few = min(_ALONE, len(joined))
    return not _are_same([torch.cat(patient.look(alone[:few]))], [joined[:few]])


def _are_same(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    for one, other in zip(outputs, others, strict=True):
        if one.shape != other.shape:
            return False
        off = (one - other).double().abs().nan_to_num(nan=0.0)
        if float(off.mean()) > _SAME * float(other.double().nan_to_num().std().clamp(min=1e-12)):
            return False
    return True


# -- numbers -----------------------------------------------------------------------------------------------------------


def see_images_that_are_not_finite(patient: Patient) -> str:
    """See images that hold NaN or infinity."""
    images = [each for batch in patient.batches if (each := find_images(batch)) is not None]
    broken = sum(int((~each.reshape(len(each), -1).isfinite().all(1)).sum()) for each in images if each.dim())
    return f"{broken:,} of {patient.images:,} images hold values that are not finite" if broken else ""


def see_values_that_are_not_finite(patient: Patient) -> str:
    """See outputs that are not finite under any averages, and the first module that returns them."""
    if not patient.batches or not patient.gives_tensors or not _count_broken(patient.as_is.outputs):
        return ""
    if patient.exact and not _count_broken(patient.under_exact.outputs):
        return ""
    broken = _count_broken(patient.as_is.outputs)
    first: list[str] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        given = [arg for arg in args if isinstance(arg, Tensor)]
        is_input_finite = all(bool(arg.isfinite().all()) for arg in given)
        if not first and is_input_finite and isinstance(output, Tensor) and not output.isfinite().all():
            first.append(f"{type(module).__name__} {name!r}")

    @contextlib.contextmanager
    def watch(model: nn.Module) -> Iterator[None]:
        leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
        handles = [module.register_forward_hook(partial(note, name)) for name, module in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    patient.run(others=patient.batches, within=watch)
    where = f", first those of {first[0]}" if first else ""
    return f"outputs of {broken:,} of {patient.images:,} images are not finite{where}"


def _count_broken(outputs: Sequence[Any]) -> int:
    tensors = [find_logits(output) for output in outputs]
    return sum(int((~tensor.reshape(len(tensor), -1).isfinite().all(1)).sum()) for tensor in tensors)


def undo_numbering(patient: Patient) -> Iterator[Undo]:
    """Undo another numbering of the classes, if each label is mostly predicted as one class, and no two as the same."""
    labels = [find_labels(batch) for batch in patient.batches]
    if patient.chance is None:
        return
    outputs = [find_logits(output) for output in patient.as_is.outputs]
    if not all(output.dim() == 2 for output in outputs):
        return
    given, named = torch.cat(labels).cpu().long(), torch.cat(outputs).argmax(1).cpu()
    classes = int(max(given.max(), named.max())) + 1
    counts = torch.zeros(classes, classes)
    counts.index_put_((given, named), torch.ones(len(given)), accumulate=True)
    present = counts.sum(1) > 0
    numbers = counts.argmax(1).where(present, torch.arange(classes))
    moved = [number for number in range(classes) if present[number] and numbers[number] != number]
    if not moved or len(set(numbers[present].tolist())) < int(present.sum()):
        return
    pairs = ", ".join(f"{number} is {int(numbers[number])}" for number in moved[:4])
    more = ", …" if len(moved) > 4 else ""
    yield Undo(
        f"labels that are numbered otherwise than outputs: {pairs}{more}",
        len(moved),
        labels=lambda old: numbers.to(old)[old.long()],
    )


def undo_other_inputs(patient: Patient) -> Iterator[Undo]:
    """Undo another range of the inputs, by giving each channel the mean and deviation of training batches. With batch
    norms, the first one's averages say more, see `undo_rescaling`.
    """
    if patient.layers or not patient.training_batches:
        return
    here, there = _measure_inputs(patient.batches), _measure_inputs(patient.training_batches)
    if here is None or there is None or here[0].shape != there[0].shape:
        return
    (mean, deviation), (goal, wanted) = here, there
    off = torch.cat([(mean - goal) / wanted, (deviation / wanted).log()]).nan_to_num()
    if float(off.abs().max()) < _OTHER:
        return

    def rescale(images: Tensor) -> Tensor:
        shape = (1, -1, *(1 for _ in range(images.dim() - 2)))
        values = [each.to(images).view(shape) for each in (mean, deviation, goal, wanted)]
        return (images - values[0]) / values[1] * values[3] + values[2]

    if len(mean) == 3:
        reversed_ = torch.cat([(mean.flip(0) - goal) / wanted, (deviation.flip(0) / wanted).log()]).nan_to_num()
        if float(reversed_.square().mean()) < float(off.square().mean()) / 2:
            yield Undo("channels in reversed order", images=lambda images: images.flip(1))
    words = "channels with other means and deviations than in training"
    yield Undo(words, 2 * len(mean), images=rescale)


def _measure_inputs(batches: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """Measure mean and standard deviation of each channel of the first input, [C]; None where it has none."""
    found = [find_images(batch) for batch in batches]
    images = [each for each in found if each is not None and each.dim() > 1]
    if len(images) < len(found):
        return None
    values = [each.double().movedim(1, 0).flatten(1) for each in images]
    joined = torch.cat(values, 1)
    return joined.mean(1), joined.std(1).clamp(min=math.sqrt(1e-12))
