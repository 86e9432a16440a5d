"""`recalibrate`: compute new statistics, check what they gain and what they would hide, then write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from bnlab.arguments import require_batches, require_count, require_forward
from bnlab.batches import Forward
from bnlab.doctor.case import Case, read_all_buffers
from bnlab.doctor.catalogue import list_rules
from bnlab.doctor.examine import Examination, examine_briefly, read_batches, score
from bnlab.doctor.findings import look_for_faults
from bnlab.doctor.recalibration import Recalibration
from bnlab.doctor.scores import Evaluate, Scores, require_evaluate
from bnlab.doctor.undo import write_statistics
from bnlab.doctor.verdict import WORTH
from bnlab.exact.inputs import Extract
from bnlab.exact.population import population_statistics
from bnlab.layers import batch_norm_layers, join_names, match_names, strip_wrappers
from bnlab.statistics import Statistics

CALLER = "recalibrate"
_ALL_FROZEN = (
    "all layers are frozen (in eval mode in a model in train mode, or without gradients); name them in layers="
)
_UPSTREAM = {"exact": "population", "precise": "batch"}


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    statistic: str | Statistics = "exact",
    layers: Sequence[str] | None = None,
    evaluate: Evaluate | None = None,
    forward: Forward | None = None,
    inputs: Mapping[Any, Extract] | None = None,
    max_images: int | None = None,
    force: bool = False,
    progress: bool | None = None,
) -> Recalibration:
    """Give a model's batch norms new running statistics, unless these gain nothing, or would hide another mistake.

    Running means and variances are written in place, all or none; `num_batches_tracked`, weights and modes stay. Frozen
    layers stay too: those in eval mode in a model that is in train mode, and those whose weight takes no gradient while
    other parameters do. Without labels and `evaluate`, statistics are written and called *not judged*.

    Args:
        model: any module with batch norms.
        batches: what `forward` takes, such as a DataLoader of images as the model will meet them; read once and kept.
            Labels are the second part of a tuple or list, or `labels` of a dictionary.
        statistic: "exact": moments of what each layer is given at inference. "precise": layers normalize with each
            batch's own statistics meanwhile, as in precise batch norm. Or your own `Statistics`: of the batches of
            several processes, for example.
        layers: names of the layers to write, frozen ones too; default all that are not frozen.
        evaluate: called with the model in eval mode, in the place of labels; returns a value for each image, higher is
            better, of the same images each time.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        inputs: what layers with a forward of their own normalize, as for `population_statistics`.
        max_images: stop after the batch that completes so many images.
        force: write in any case.
        progress: show a bar while statistics are measured.

    Returns:
        A `Recalibration`: print it; `.written`, `.reason`, `.before`, `.after`, `.gain`, `.statistics`, `.layers`,
        `.undo()`, `.save_undo(path)`. In a `with` block, the old statistics come back at its end.

    Raises:
        TypeError, ValueError: an argument is wrong, a layer cannot be measured, or its buffers cannot hold the new
            values; nothing is written then.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> with recalibrate(model, [torch.tensor([[1.0], [3.0]])]) as recalibration:
    ...     print(recalibration, model[0].running_mean.item(), model[0].running_var.item())
    Recalibrated 1 batch-norm layer: not judged, as the batches have no labels and there is no evaluate=. 2.0 1.0
    >>> model[0].running_mean.item()  # behind the block
    0.0
    """
    _require_arguments(batches, statistic, evaluate, forward, max_images)
    chosen = batch_norm_layers(model, layers, caller=CALLER)
    known = batch_norm_layers(model, caller=CALLER)
    case = Case(model, known, (), (), read_all_buffers(known))
    frozen: tuple[str, ...] = ()
    if layers is None:
        frozen = tuple(case.select(lambda name: _is_frozen(case, name)))
    names = [name for name in chosen if name not in frozen]
    if not names:
        return Recalibration(False, _ALL_FROZEN, None, None, frozen, None)

    examination = Examination.of(model, known, forward, inputs, progress, CALLER)
    data = read_batches(batches, max_images, CALLER)
    if isinstance(statistic, Statistics):
        statistics = _select(statistic, model, names, layers is not None)
    else:
        statistics = _measure(examination, data, _UPSTREAM[statistic], names)
    statistics.find_layers(model, CALLER)  # raises where the buffers cannot hold them

    is_broken = any(_is_broken(case, name) for name in statistics)
    scores = None if is_broken else score(examination, data, statistics, evaluate)
    evidence = examine_briefly(examination, data, statistics, scores)
    hidden = _find_hidden(replace(case, evidence=evidence))
    is_wanted, reason = _judge(hidden, scores, is_broken)
    if force and not is_wanted:
        reason = f"force=True, although {reason}"
    written = is_wanted or force
    undoing = write_statistics(model, statistics) if written else None
    return Recalibration(written, reason, statistics, scores, frozen, undoing)


def _require_arguments(batches: Any, statistic: Any, evaluate: Any, forward: Any, max_images: int | None) -> None:
    """Raise for a wrong argument, before anything is measured."""
    require_batches(batches, CALLER)
    if not isinstance(statistic, Statistics) and statistic not in tuple(_UPSTREAM):
        raise ValueError(f"{CALLER}: statistic={statistic!r}; choose 'exact' or 'precise', or pass bnlab.Statistics")
    require_evaluate(evaluate, CALLER)
    require_forward(forward, CALLER)
    if max_images is not None:
        require_count(max_images, f"{CALLER}: max_images={max_images!r}; pass at least 1, or None for all")


def _is_frozen(case: Case, name: str) -> bool:
    """Return whether a layer is kept in eval mode while the model is trained, or its weight is not trained."""
    # A wrapper (DistributedDataParallel) may be in another mode than the model in it.
    roots = [module for name, module in case.model.named_modules() if not strip_wrappers(name)]
    is_held = all(root.training for root in roots) and not case.layers[name].training
    return is_held or case.is_frozen(name)


def _is_broken(case: Case, name: str) -> bool:
    """Return whether a layer's old statistics cannot be evaluated under: NaN, infinite, or a negative variance."""
    buffers = case.buffers[name]
    return not bool(buffers.isfinite().all()) or bool((buffers[1] < 0).any())


def _measure(examination: Examination, data: list[Any], upstream: str, names: Sequence[str]) -> Statistics:
    """Measure new statistics of these layers; the others normalize with their own."""
    return population_statistics(
        examination.model,
        data,
        upstream=upstream,
        forward=examination.forward,
        layers=names,
        inputs=examination.inputs,
        progress=examination.progress,
    )


def _select(given: Statistics, model: nn.Module, names: Sequence[str], are_named: bool) -> Statistics:
    """Select the caller's statistics of these layers, under the model's names.

    Raises:
        ValueError: they have none of them, or not all that the caller has named, or are another model's.
    """
    given.find_layers(model, CALLER)
    pairs = match_names(names, given)
    missing = [name for name in names if name not in pairs]
    if missing and (are_named or not pairs):
        raise ValueError(f"{CALLER}: statistic has no layer {join_names(missing)}; there are {join_names(given)}")

    moments = {}
    eps = {}
    for name, other in pairs.items():
        moments[name] = given[other]
        eps[name] = given.eps[other]
    return Statistics(moments, eps, missing)


def _find_hidden(case: Case) -> str | None:
    """Find a mistake that new statistics would hide."""
    hiding = [rule for rule in list_rules() if rule.hides]
    findings, _ = look_for_faults(case, hiding, None, WORTH)
    if not findings:
        return None
    rule = findings[0].rule
    evidence = findings[0].signs.evidence
    return f"{rule.code}, {rule.title} ({evidence}); bnlab.doctor.explain({rule.code!r}) says what to do"


def _judge(hidden: str | None, scores: Scores | None, is_broken: bool) -> tuple[bool, str]:
    """Judge whether the new statistics should be written, with the reason."""
    if hidden is not None:
        return False, f"it would hide a mistake: {hidden}"
    if is_broken:
        return True, "not judged, as the old statistics are not finite or negative"
    if scores is None:
        return True, "not judged, as the batches have no labels and there is no evaluate="

    gain = scores.compare("exact", "running")
    if gain.low > 0:
        return True, "the images score better"
    if gain.value > 0:
        return False, "too few images to be sure of a gain"
    return False, "nothing is gained"
