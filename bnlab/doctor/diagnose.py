"""`diagnose`: examine a model, undo what may have gone wrong, and judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from bnlab.doctor.catalogue import list_causes
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case, read_all_buffers
from bnlab.doctor.evidence.choosing import choose_scoring
from bnlab.doctor.evidence.examine import add_training, examine, read_training_sizes
from bnlab.doctor.evidence.exported import insert_norms
from bnlab.doctor.evidence.fills import add_fills
from bnlab.doctor.evidence.history import compare_with, find_other_eps, read_state
from bnlab.doctor.evidence.labels import Labels, require_labels
from bnlab.doctor.evidence.scores import Evaluate, require_evaluate
from bnlab.doctor.evidence.setup import CALLER, measure, read_batches, set_up
from bnlab.doctor.evidence.stored import list_incomplete, list_stored
from bnlab.doctor.interventions.experiment import try_undos
from bnlab.doctor.report.diagnosis import Diagnosis
from bnlab.doctor.verdict.attribution import name_trials
from bnlab.doctor.verdict.findings import choose_known
from bnlab.doctor.verdict.labelled import conclude
from bnlab.doctor.verdict.unlabelled import conclude_unlabelled
from bnlab.doctor.verdict.verdict import Verdict
from bnlab.exact.task import Ranks, Task
from bnlab.model.arguments import require_count, require_number
from bnlab.model.batches import Forward, require_batches, require_forward
from bnlab.model.layers import (
    BatchNorm,
    Extract,
    batch_norm_layers,
    join_names,
    list_constant,
    list_others,
    require_module,
)
from bnlab.recording.trace import MomentTrace


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    before: Any = None,
    trace: MomentTrace | None = None,
    ranks: Any = None,
    causes: Sequence[Cause] = (),
    expected: float | None = None,
    worth: float | None = None,
    evaluate: Evaluate | None = None,
    labels: Labels | None = None,
    training_batches: Iterable[Any] | None = None,
    forward: Forward | None = None,
    inputs: Mapping[Any, Extract] | None = None,
    max_images: int | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Find out what is wrong with a model's batch-norm statistics, what it costs, and what to do.

    Without batches in milliseconds, from buffers, counts, momenta and modes alone. With batches, running averages are
    compared with exact statistics, and predictions under both and under each batch's own statistics: four passes over
    the batches (one more where there is dropout). Where something may be wrong, what is tried is scored on a sample of
    at most 1,000 images: a forward for each undo. With `evaluate` two passes, and at most twelve calls of it. Without
    labels the verdict goes by how predictions
    under running averages and exact statistics differ. The model comes back as it was.

    Args:
        model: any module with batch norms; what they normalize in a graph of `torch.export` is measured if it was
            exported with a dynamic batch dimension.
        batches: what `forward` takes, such as a DataLoader of images as the model will meet them; read once and kept.
            Labels are what a dictionary or a named tuple calls `labels`, `label`, `targets`, `target` or `y`, the
            second part of a tuple or list, and of a longer one the part that outputs predict; in masks, positions
            with 255 or a negative label do not count, and the classes in an image count alike, however small. Of
            labels that are shares of classes, as of label smoothing, the largest counts. By ten labels or more that are
            all of one class nothing is judged. Of several outputs the one that names classes is scored.
        before: an earlier checkpoint of this model, or the network that it is a copy or an average of, or one that
            contains it: a module, a state dict, or a file of one. Notes say which layers were not compared.
        trace: what `bnlab.record` recorded of the training.
        ranks: a torch.distributed process group, whose processes' buffers are compared; data are this one's own.
        causes: further causes of your own.
        expected: the mean score that the model should reach.
        worth: the smallest difference of scores that matters; by default half a point (0.005) of shares, and of other
            metrics a hundredth of their spread over images. Without labels it is at least half a point.
        evaluate: called with the model in eval mode, in the place of labels; returns a value for each image, higher is
            better, of the same images each time; of an array [images, ...] each image's mean is taken. In one of its
            calls batch norms, and they alone, normalize by each
            batch that they are given, also if it calls `model.eval()`. What single layers cost is not known.
        labels: called with a batch, returns its labels, a tensor, where they are not found as above.
        training_batches: batches as in training, to tell other data from wrong averages, and whether epochs end with a
            small batch: a DataLoader's lengths say it.
        forward, inputs, max_images, progress: as for `population_statistics`.

    Returns:
        A `Diagnosis`: print it; `.verdict`, `.findings`, `.table`, `.skipped`, `.to_json()`, `.to_html(path)`.

    Raises:
        TypeError, ValueError: an argument is wrong, or a layer cannot be measured; the message says which and why.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).eval()
    >>> print(diagnose(model).findings["code"].tolist())  # its averages are still 0 and 1
    ['BN002']
    """
    _require_arguments(batches, evaluate, labels, training_batches, trace, forward, expected, worth, max_images, causes)
    require_module(model, CALLER)
    if batches is not None:
        # Without batches nothing is run, and what the nodes of a graph store is enough.
        model = insert_norms(model, CALLER) or model
    # After `insert_norms`, which turns nodes of a graph into modules: only nodes that are left are listed.
    stored = list_stored(model, CALLER)
    layers, without = _find_layers(model, stored)
    buffers = read_all_buffers(layers)
    # A model without running averages has nothing to compare with an earlier checkpoint.
    history = None
    if before is not None and layers:
        history = compare_with(model, layers, read_state(before, f"{CALLER}: before"), CALLER)
    case = Case(
        model=model,
        layers=layers,
        without=tuple(without),
        uncovered=tuple(list_others(model)),
        buffers=buffers,
        history=history,
        trace=trace,
        ranks=None if ranks is None else Ranks(ranks, CALLER).gather(buffers),
        expected=expected,
        stored=stored,
        eps_before=find_other_eps(layers, before),
    )

    # Training batches are read by the same task, so that the same output and labels are scored.
    task = None
    training = None
    choices: list[str] = []
    if batches is not None and layers and case.is_measurable:
        task = read_batches(set_up(model, layers, forward, inputs, progress, labels=labels), batches, max_images)
        # A metric has images and labels of its own, so that there is nothing to choose.
        if evaluate is None:
            task, choices = choose_scoring(task)
        case = _try_to_examine(case, task, evaluate)
        if case.has_data and training_batches is not None:
            training = read_batches(task, training_batches, max_images, "training_batches")
            case = add_training(case, training, evaluate)

    # Also without batches, because a DataLoader's lengths are known without reading it.
    if training_batches is not None and case.is_measurable:
        case = replace(case, training_sizes=read_training_sizes(training_batches, training, max_images))

    known, skipped = choose_known([*list_causes(), *causes], case)
    experiment = None
    # Averages that are not finite are at fault, whatever else an undo would bring back.
    if task is not None and case.has_data and not case.is_broken:
        experiment = try_undos(case, task, known, evaluate)
        if experiment is not None:
            experiment = name_trials(experiment, known, case)

    # Without labels or a metric there is nothing to go by but how predictions differ.
    judged: Verdict | None
    if case.scores is None:
        judged, findings = conclude_unlabelled(case, experiment, known, worth)
    else:
        judged, findings = conclude(case, case.scores, experiment, known, worth)

    notes = [*_note_limits(case), *choices]
    if experiment is not None:
        notes += experiment.notes
    return Diagnosis(case, judged, experiment, findings, skipped, notes)


def _try_to_examine(case: Case, task: Task, evaluate: Evaluate | None) -> Case:
    """Examine the layers on data; where all are of other classes than torch's and none can be measured, without."""
    try:
        examined = examine(case, task, evaluate)
    except ValueError:
        # Only norms of other classes may be impossible to measure. If torch's are among the layers, or if
        # measuring alone succeeds, the error is about something else, such as labels, and has to be seen.
        if any(isinstance(layer, BatchNorm) for layer in task.layers.values()) or _can_measure(task):
            raise
        # As stored layers they are examined by what they hold, because `is_measurable` is False then.
        return replace(case, stored={**case.stored, **case.layers})
    return add_fills(examined, task)


def _can_measure(task: Task) -> bool:
    """Find out if the layers can be measured: if so, something else is wrong."""
    try:
        measure(task)
    except ValueError:
        return False
    return True


def _note_limits(case: Case) -> list[str]:
    """Say what the measurement could not see, and what an earlier checkpoint could not be compared with."""
    notes = []
    if case.misfit is not None:
        notes.append(case.misfit)
    if case.has_data and case.exact.unseen:
        notes.append(f"The batches did not reach {join_names(case.exact.unseen)}.")
    if case.history is not None and case.history.unmatched:
        notes.append(case.history.unmatched)
    if not case.is_measurable:
        notes.append(
            f"What {join_names(case.layers)} normalize cannot be measured: buffers, counts and before= were checked."
        )
        if isinstance(case.model, fx.GraphModule):
            notes.append("A graph that was exported with a dynamic batch dimension (dynamic_shapes=) can be measured.")
    constant = list_constant(case.model)
    if constant:
        notes.append(f"Not examined, as their statistics are constants: {join_names(constant)}.")
    return notes


def _find_layers(model: nn.Module, stored: dict[str, BatchNorm]) -> tuple[dict[str, BatchNorm], list[str]]:
    """Find the batch norms with running statistics, and the names of those without; ValueError if there is neither.

    Where none of them can be measured, they are those that are stored.
    """
    count = 0
    without = []
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            count += 1
            if module.running_mean is None:
                without.append(name)
    try:
        return batch_norm_layers(model, caller=CALLER), without
    except ValueError:
        # Norms of other classes may keep running statistics where none of torch's does.
        if without and len(without) == count and not stored:
            # That is an answer and no error: each batch is normalized by its own statistics.
            return {}, without
        # Exported graphs come here too: `batch_norm_layers` refuses them, as their layers cannot be watched.
        if stored:
            return stored, without
        incomplete = list_incomplete(model)
        if incomplete:
            raise ValueError(
                f"{CALLER}: {join_names(incomplete)} keep a running mean or a running variance alone, or of two "
                "lengths: there is no batch norm to examine"
            ) from None
        raise


def _require_arguments(
    batches: Any,
    evaluate: Any,
    labels: Any,
    training_batches: Any,
    trace: Any,
    forward: Any,
    expected: float | None,
    worth: float | None,
    max_images: int | None,
    causes: Sequence[Cause],
) -> None:
    """Raise for a wrong argument, before anything is measured."""
    if batches is not None:
        require_batches(batches, CALLER)
    if training_batches is not None:
        require_batches(training_batches, CALLER, "training_batches")
    require_evaluate(evaluate, CALLER)
    require_labels(labels, CALLER)
    if trace is not None and not isinstance(trace, MomentTrace):
        raise TypeError(f"{CALLER}: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    require_forward(forward, CALLER)
    if worth is not None:
        require_number(
            worth, lambda value: value > 0, f"{CALLER}: worth={worth!r}; pass a positive difference of scores"
        )
    if expected is not None:
        require_number(expected, math.isfinite, f"{CALLER}: expected={expected!r}; pass a mean score")
    if max_images is not None:
        require_count(max_images, f"{CALLER}: max_images={max_images!r}; pass at least 1, or None for all")
    for cause in causes:
        if not isinstance(cause, Cause):
            raise TypeError(f"{CALLER}: causes has a {type(cause).__name__}; pass instances of bnlab.doctor.Cause")


def assert_healthy(model: nn.Module, batches: Iterable[Any] | None = None, **arguments: Any) -> None:
    """Raise AssertionError with the diagnosis if `diagnose` finds more than notes; for test suites.

    Args:
        model: any module with batch norms.
        batches: as for `diagnose`.
        arguments: further ones of `diagnose`.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> for batch in torch.arange(400.0).reshape(100, 4, 1) % 5:
    ...     output = model(batch)
    >>> assert_healthy(model.eval())
    """
    diagnosis = diagnose(model, batches, **arguments)
    if not diagnosis.is_healthy:
        raise AssertionError(str(diagnosis))
