"""Measure what the doctor's causes look at: exact statistics, batches and scores, in few passes over the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.decisions import compare_decisions
from bnlab.doctor.evidence.formula import find_deviations
from bnlab.doctor.evidence.labels import (
    describe_misfit,
    describe_only_class,
    describe_out_of_range,
    describe_unread,
    find_out_of_range_labels,
    require_as_many_labels,
)
from bnlab.doctor.evidence.observing import CallLog, View, observe_batches
from bnlab.doctor.evidence.predictions import compare_in_callers_mode, find_unread, probe_predictions
from bnlab.doctor.evidence.scores import Evaluate, score_batch
from bnlab.doctor.evidence.scoring import add_batch_statistics, find_only_class, score, score_training
from bnlab.doctor.evidence.setup import find_labels, measure
from bnlab.doctor.undo import find_tensor
from bnlab.exact.population import population_statistics
from bnlab.exact.task import Task
from bnlab.model.batches import count_images
from bnlab.model.layers import get_running_buffers
from bnlab.statistics.network import Statistics

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def examine(case: Case, task: Task, evaluate: Evaluate | None) -> Case:
    """Add to a case statistics and scores of a task's batches: four passes, and one more where there is dropout.

    With `evaluate` two passes, and three calls of it; without labels predictions of at most 1,000 images are compared
    instead of scores. A few images are run twice and alone.
    """
    # Causes read these warnings, and the caller is to see them as well. "always" catches those, too, that
    # have been shown before.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exact = measure(task)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    # The pass that observes the layers also gives the scores under each batch's statistics, and shows which
    # labels do not fit the outputs.
    batch_values: list[Tensor | None] = []
    misfits: list[str] = []
    out_of_range: list[Tensor] = []

    def take_output(batch: Any, output: Any) -> None:
        if evaluate is not None:
            return
        labels = find_labels(task, batch)
        # Labels that were only looked for may be something else, which is noted. The caller's function has to
        # be right.
        if labels is not None and task.labels is not None:
            require_as_many_labels(output, labels, task.caller)
        values = score_batch(output, labels, task.reading)
        batch_values.append(values)
        if values is None:
            misfit = describe_unread(batch) if labels is None else describe_misfit(output, labels)
            if misfit is not None:
                misfits.append(misfit)
            return
        is_out_of_range = find_out_of_range_labels(output, labels)
        if is_out_of_range is not None:
            out_of_range.append(is_out_of_range)

    log = CallLog()
    view = observe_batches(task, take_output)
    # `score` makes the first call under exact statistics, so layers are given what they should average.
    logged = None if evaluate is None else _log_first_call(task, evaluate, log)
    scores = score(task, exact, logged, batch_values)
    if scores is not None and evaluate is not None:
        scores = add_batch_statistics(scores, task, evaluate)
    decisions = compare_decisions(task, exact) if scores is None else None
    only_class = find_only_class(task) if scores is None and evaluate is None else None
    twice, alone = probe_predictions(task)
    examined = case.on_data(
        exact,
        images=sum(map(count_images, task.data)),
        view=view,
        scores=scores,
        decisions=decisions,
        dropped=_measure_dropout(task, view),
        plain=_measure_plain(task),
        twice=twice,
        alone=alone,
        evaluated=log.group(),
        by_batch=compare_in_callers_mode(task),
        warnings=tuple(str(warning.message) for warning in caught),
        misfit=misfits[0] if misfits else describe_only_class(only_class) or describe_out_of_range(out_of_range),
    )
    return add_forwards(examined, task)


def add_forwards(case: Case, task: Task) -> Case:
    """Add to a case what its layers' forwards leave out in eval mode, and how they differ from the formula."""
    unread = find_unread(task)
    return replace(case, unread=unread, deviations=find_deviations(task, unread))


def _log_first_call(task: Task, evaluate: Evaluate, log: CallLog) -> Evaluate:
    """Make a metric whose first call is watched: what its forwards give the layers."""
    is_watched = False

    # Not `watched`, which refuses what cannot be measured: a metric may do what it likes.
    def note(name: str, layer: Any, args: Any, kwargs: Any) -> None:
        x = find_tensor(args, kwargs)
        if x is not None and x.dim() > 1 and x.numel() and x.shape[1] == len(get_running_buffers(layer)[0]):
            log.note(task, name, x)

    def evaluate_and_watch(model: nn.Module) -> Any:
        nonlocal is_watched
        with ExitStack() as stack:
            layers = {} if is_watched else task.layers
            for name, layer in layers.items():
                handle = layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
                stack.callback(handle.remove)
            is_watched = True
            return evaluate(model)

    return evaluate_and_watch


def add_training(case: Case, task: Task, evaluate: Evaluate | None) -> Case:
    """Add to a case what the training batches, those of the task, show."""
    # `measure` waits for the other processes itself. The next two work alone, so that an error in one of them
    # has to be raised in all.
    exact = measure(task)
    view = task.ranks.run_together(lambda: observe_batches(task))
    # A metric runs images of its own, and would not score the training batches.
    score_of_training = None if evaluate is not None else task.ranks.run_together(lambda: score_training(task))
    return replace(case, training=exact, training_view=view, training_score=score_of_training)


def read_training_sizes(batches: Any, read: Task | None, max_images: int | None) -> tuple[int, int] | None:
    """Find how many images are in the last training batch of an epoch, and in a full one: the smallest of the others.

    Args:
        batches: as the caller gave them; a DataLoader says it by its lengths, and is not read.
        read: what was read of them; None if nothing was, then those of a list are counted.
        max_images: after how many images reading has stopped.

    Returns:
        None where it is not known which batch is the last one.
    """
    if isinstance(batches, DataLoader):
        sampler = batches.batch_sampler
        # A sampler of another class may make batches of other sizes.
        if type(sampler) is BatchSampler and isinstance(sampler.sampler, Sized):
            images = len(sampler.sampler)
            # All images of an epoch may be fewer than a batch.
            full = min(sampler.batch_size, images)
            rest = images % sampler.batch_size
            last = full if sampler.drop_last or rest == 0 else rest
            return last, full

    data: Sequence[Any] = []
    if read is not None:
        data = read.data
    elif isinstance(batches, list):
        data = batches
    sizes = [count_images(batch) for batch in data]
    # Where reading has stopped before, the last batch is not that of an epoch.
    is_cut = max_images is not None and sum(sizes) >= max_images
    if is_cut or len(sizes) < 2:
        return None
    # Where sizes vary, the last batch is small only in comparison with the smallest of the others.
    return sizes[-1], min(sizes[:-1])


def _measure_plain(task: Task) -> Statistics | None:
    """Measure without `inputs=`, where it was given for layers that can be measured without it."""
    if not task.inputs.extracts:
        return None
    try:
        # Not `measure`, which would pass `inputs=` on.
        return population_statistics(task.model, task.data, forward=task.forward, progress=False)
    except ValueError:  # layers that cannot be measured without
        return None


def _measure_dropout(task: Task, view: View) -> dict[str, Tensor]:
    """Measure how dropout changes the variance of layers, with it over without, [C]; empty where there is none."""
    dropouts = [module for module in task.model.modules() if isinstance(module, _DROPOUTS) and module.p > 0]
    if not dropouts:
        return {}

    # Observed in the same way as `view`, so that only dropout differs.
    dropped = observe_batches(task, train=dropouts)
    # Dead channels have no variance to divide by.
    least = torch.finfo(torch.float64).tiny
    ratios = {}
    for name, layer_view in dropped.layers.items():
        without = view.layers[name].pooled.var
        ratios[name] = layer_view.pooled.var / without.clamp(min=least)
    return ratios
