"""What is scored, chosen once for all batches: which output, which labels, and how the two are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.doctor.evidence.labels import choose_part, find_logits, find_out_of_range_labels, find_part, list_parts
from bnlab.doctor.evidence.scores import Reading, find_reading, merge_readings, score_batch
from bnlab.doctor.evidence.setup import find_labels
from bnlab.doctor.undo import normalize_each_batch
from bnlab.exact.task import Task
from bnlab.model.batches import count_images, take_images
from bnlab.model.borrow import measured

_FEW = 64  # images by which is chosen
_SURELY = 3.0  # standard errors by which other labels are predicted better; by convention

Shown = Sequence[tuple[Any, Any]]
"""Some batches, and their outputs."""


class _LabelsPart(NamedTuple):
    """The part of a tuple that its labels are taken from.

    Attributes:
        chosen: number of the part that the outputs predict; the usual one unless another is surely predicted better.
        usual: number of the part that looks like labels.
        parts: number of parts in the tuple.
    """

    chosen: int
    usual: int
    parts: int


def choose_scoring(task: Task) -> tuple[Task, list[str]]:
    """Choose what is scored, by up to 64 images that are evaluated. Several processes choose what the first one does.

    Returns:
        The task, whose forward gives the chosen output, and a sentence on each choice that one may not expect.
    """
    notes = []
    # The output comes first, because labels and their reading are chosen by what it predicts.
    number = _choose_together(task, lambda: _find_output(task))
    if number:
        task = _select_output(task, number)
        notes.append(f"Of the model's outputs, output[{number}] was scored, as it names classes.")

    # For most models there is nothing to choose, which two images show.
    if _choose_together(task, lambda: _is_usual(task, _evaluate_few(task, 2))):
        return replace(task, reading=Reading()), notes

    shown = _evaluate_few(task, _FEW)
    # The caller's function says where labels are, so that no part is looked for.
    part: _LabelsPart | None = _choose_together(task, lambda: None if task.labels else _find_labels_part(shown))
    if part is not None and part.chosen != part.usual:
        task = replace(task, label_place=(part.chosen, part.parts))
        notes.append(
            f"Labels were taken from batch[{part.chosen}], which the outputs predict, and not from "
            f"batch[{part.usual}]; pass labels= if that is wrong."
        )

    # Of all processes, and not of the first one alone, which may have no labels, or zeros and ones by chance.
    reading = task.ranks.run_together(lambda: _find_local_reading(task, shown))
    readings = [each for each in task.ranks.gather(reading) if each is not None]
    merged = merge_readings(readings) if readings else Reading()
    return replace(task, reading=merged), notes


def _choose_together(task: Task, choose: Callable[[], Any]) -> Any:
    """Choose by this process's batches, and take what the first process has chosen by its own."""
    return task.ranks.gather(task.ranks.run_together(choose))[0]


def _is_usual(task: Task, shown: Shown) -> bool:
    """Return whether there is nothing to choose: outputs are of several classes, and labels are whole numbers."""
    if not shown:
        return False
    batch, output = shown[0]
    logits = find_logits(output)
    labels = find_labels(task, batch)
    has_classes = logits is not None and logits.dim() > 1 and logits.shape[1] > 1
    has_one_part = task.labels is not None or len(list_parts(batch)) < 2
    return has_classes and has_one_part and labels is not None and not labels.is_floating_point()


def _evaluate_few(task: Task, count: int) -> Shown:
    """Evaluate so many images while each batch normalizes by its own statistics, as averages may be wrong."""
    shown = []
    images = 0
    try:
        with measured(task.model), ExitStack() as stack:
            # Of several processes a SyncBatchNorm would wait for the others, which may have other batches.
            if task.ranks.is_alone:
                normalize_each_batch(task.layers)(task.root, stack)
            for batch in task.data:
                few = take_images(batch, count)
                shown.append((few, task.evaluate(few)))
                images += count_images(few)
                if images >= count:
                    break
    except Exception:  # the same error is reported when a whole batch is run
        return []
    return shown


def _find_local_reading(task: Task, shown: Shown) -> Reading | None:
    """Find how outputs are compared with the labels of this process; None where it has none."""
    of_batches = [find_labels(task, batch) for batch in task.data]
    labels = [each for each in of_batches if each is not None]
    if not labels:
        return None
    outputs = [output for _, output in shown]
    return find_reading(outputs, labels)


def _find_labels_part(shown: Shown) -> _LabelsPart | None:
    """Find the part of a tuple that its labels are taken from; None where there is no tuple of several parts.

    It is the one that looks like labels unless another one is surely predicted better, both than that one and than by
    always naming its commonest class.
    """
    if not shown:
        return None
    batch, _ = shown[0]
    numbers = list_parts(batch)
    if not numbers:
        return None
    usual = find_part(batch)
    return _LabelsPart(_choose_part(shown, usual, numbers), usual, len(batch))


def _choose_part(shown: Shown, usual: int, numbers: Sequence[int]) -> int:
    """Choose the part of a tuple that the outputs predict, of these numbers; else the usual one."""
    right = {}
    for number in numbers:
        values = _count_right(shown, number)
        if values is not None:
            right[number] = values
    if not right:
        return usual

    best = max(right, key=lambda number: float(right[number].mean()))
    # Outputs that name one class for all images agree with any part that is nearly constant. So a part has to
    # be predicted better than that before it is taken for the labels.
    labels = torch.cat([batch[best].cpu() for batch, _ in shown])
    is_predicted = labels.dim() == 1 and _is_surely_better(right[best], (labels == labels.mode().values).double())
    if not is_predicted:
        return usual
    if usual in right:
        return best if _is_surely_better(right[best], right[usual]) else usual
    # Floating-point labels of the outputs' shape are labels too.
    are_numbers = all(_are_numbers(batch[usual], output) for batch, output in shown)
    return usual if are_numbers else best


def _is_surely_better(values: Tensor, others: Tensor) -> bool:
    """Return whether values of 0 or 1 are larger than others of the same images by more than chance makes them."""
    differences = values - others
    # McNemar's test: if neither is better, n differences of 1 or −1 have a sum with standard deviation √n.
    return float(differences.sum()) > _SURELY * math.sqrt(int((differences != 0).sum()))


def _count_right(shown: Shown, number: int) -> Tensor | None:
    """Find which images are predicted right if a part is their labels [N]; None where it is not one class for each."""
    if any(number not in list_parts(batch) for batch, _ in shown):
        return None
    parts = [batch[number] for batch, _ in shown]
    if any(part.is_floating_point() for part in parts):
        return None
    outputs = [output for _, output in shown]
    reading = find_reading(outputs, parts)
    values = []
    for output, part in zip(outputs, parts, strict=True):
        is_out_of_range = find_out_of_range_labels(output, part)
        right = score_batch(output, part, reading)
        # Numbers beyond the classes of the outputs, such as lengths, show that the part is something else.
        if right is None or is_out_of_range is None or bool(is_out_of_range.any()):
            return None
        values.append(right.cpu())
    return torch.cat(values)


def _are_numbers(part: Any, output: Any) -> bool:
    """Return whether a part is floating-point labels of an output."""
    logits = find_logits(output)
    if logits is None or not isinstance(part, Tensor) or not part.is_floating_point():
        return False
    return part.shape == logits.shape


def _find_output(task: Task) -> int:
    """Find which output is scored, of several: a forward of two images, and one of more if there are several."""
    if find_labels(task, task.data[0]) is None:
        return 0
    # Two images show whether there are several outputs at all; only then are more images run.
    for count in (2, _FEW):
        batch = take_images(task.data[0], count)
        try:
            with measured(task.model):
                output = task.evaluate(batch)
        except Exception:  # the same error is reported when a whole batch is run
            return 0
        if not isinstance(output, (tuple, list)) or len(output) < 2:
            return 0
    labels = find_labels(task, batch)
    return 0 if labels is None else choose_part(output, labels)


def _select_output(task: Task, number: int) -> Task:
    """Return the task with a forward that returns this output alone, where there are several."""

    def select(model: nn.Module, batch: Any) -> Any:
        output = task.forward(model, batch)
        return output[number] if isinstance(output, (tuple, list)) and len(output) > number else output

    return replace(task, forward=select)
