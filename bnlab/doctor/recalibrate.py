"""`recalibrate`: compute new statistics, check what they gain and what they would hide, then write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bnlab.common.scores import Difference
from bnlab.doctor.backup import BufferBackup, write_statistics
from bnlab.doctor.catalogue import list_causes
from bnlab.doctor.cause import HIDDEN
from bnlab.doctor.evidence.case import Case, has_bad_values, read_all_buffers
from bnlab.doctor.evidence.choosing import choose_scoring
from bnlab.doctor.evidence.examine import add_forwards, add_training
from bnlab.doctor.evidence.fills import add_fills
from bnlab.doctor.evidence.labels import Labels, name_unread, require_labels
from bnlab.doctor.evidence.observing import observe_batches
from bnlab.doctor.evidence.scores import Evaluate, Scores, require_evaluate
from bnlab.doctor.evidence.scoring import find_only_class, score
from bnlab.doctor.evidence.setup import find_labels, measure, read_batches, set_up
from bnlab.doctor.interventions.experiment import try_undos
from bnlab.doctor.verdict.attribution import name_place, name_trials
from bnlab.doctor.verdict.findings import choose_known
from bnlab.doctor.words import count_things, describe_gain, describe_score
from bnlab.exact.population import require_amount
from bnlab.exact.task import Task
from bnlab.model.batches import Forward, count_images, require_batches, require_forward
from bnlab.model.layers import Extract, batch_norm_layers, join_names, match_names, strip_wrappers
from bnlab.statistics.network import Statistics
from bnlab.statistics.provenance import Check

CALLER = "recalibrate"
_ALL_FROZEN = (
    "all layers are frozen (in eval mode in a model in train mode, or without gradients); name them in layers="
)
_NOT_EXACT = (
    "the new statistics are not exact: an ordinary evaluation gives layer {layer!r} another input (does the model draw "
    "random numbers, or have observers of quantization? turn that off, or judge by labels or evaluate=)"
)
_FORCED = "force=True writes anyway"
_CONVINCED = f"If it is none: training_batches= shows that images are prepared as in training, and {_FORCED}"
_BETTER = "the images score better"
_WHICH = "training_batches= tells whether images or averages are at fault"
_UNTRAINED = "BN306, weights as constructed, although updates were counted (no statistics bring the score above chance)"


@dataclass(frozen=True)
class _Mistake:
    """A mistake that new statistics would hide.

    Attributes:
        words: its code, title and numbers, and who explains it.
        is_certain: whether it is one, and not averages of other images, which new statistics repair.
        convinced_by: what would show that it is none, or write anyway.
    """

    words: str
    is_certain: bool
    convinced_by: str


@dataclass(frozen=True)
class Recalibration:
    """What `bnlab.recalibrate` did; a block (`with recalibration:`) puts the old statistics back at its end.

    Attributes:
        written: whether the new statistics were written.
        reason: why, or why not.
        statistics: the new statistics; None where all layers are frozen.
        scores: of the images under the old ("running") and the new ("exact") ones; None where they were not judged.
        frozen: names of layers that were left as they were because they are frozen.
        undoing: the old buffers; None where nothing was written.
    """

    written: bool
    reason: str
    statistics: Statistics | None
    scores: Scores | None
    frozen: tuple[str, ...]
    undoing: BufferBackup | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that have new statistics."""
        return () if self.statistics is None else tuple(self.statistics)

    @property
    def before(self) -> float | None:
        """Mean score of the images under the old statistics; None where they were not judged."""
        return None if self.scores is None else self.scores.mean("running")

    @property
    def after(self) -> float | None:
        """Mean score of the images under the new statistics; None where they were not judged."""
        return None if self.scores is None else self.scores.mean("exact")

    @property
    def gain(self) -> Difference | None:
        """After minus before, with its 95% interval over images; None where they were not judged."""
        return None if self.scores is None else self.scores.compare("exact", "running")

    def undo(self) -> None:
        """Put the old statistics back, bit for bit; nothing to do where none were written, or a second time.

        Raises:
            RuntimeError: something else has written the buffers since; nothing is put back.
        """
        if self.undoing is not None:
            self.undoing.put_back()

    def save_undo(self, path: str | Path) -> None:
        """Write a safetensors file with the old statistics, for `bnlab.doctor.undo_from_file` and `bnlab undo`.

        It has digests (SHA-256) of the model's weights too, so that it is not used for another model.

        Raises:
            ValueError: nothing was written into the model, or two layers have the same name without wrappers.
            RuntimeError: something else has written the buffers since.
            OSError: the file cannot be written.
        """
        if self.undoing is None:
            raise ValueError("save_undo: nothing was written into the model, so that there is nothing to put back")
        self.undoing.save(path)

    def __enter__(self) -> Recalibration:
        if self.undoing is not None:
            self.undoing.require_first_block()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.undo()
        except RuntimeError as problem:
            # The block's own error matters more than that nothing could be undone after it.
            if error is None:
                raise
            error.add_note(str(problem))

    def __str__(self) -> str:
        lines = [f"Not recalibrated: {self.reason}."]
        if self.written:
            lines = [f"Recalibrated {count_things(len(self.layers), 'batch-norm layer')}: {self.reason}."]
        scores = self.scores
        gain = self.gain
        if scores is not None and gain is not None:
            before = describe_score(scores.mean("running"), scores)
            after = describe_score(scores.mean("exact"), scores)
            reported = f"New statistics {describe_gain(gain, scores)} on {count_things(gain.images, 'image')}."
            lines.append(f"{scores.metric}: {before} before, {after} after. {reported}")

        left = []
        if self.frozen:
            left.append(f"{join_names(self.frozen)} (frozen)")
        if self.statistics is not None and self.statistics.unseen:
            left.append(f"{join_names(self.statistics.unseen)} (no statistics)")
        if left:
            lines.append(f"Left as they were: {'; '.join(left)}.")
        return "\n".join(lines)

    __repr__ = __str__


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    statistic: str | Statistics = "exact",
    force: bool = False,
    evaluate: Evaluate | None = None,
    labels: Labels | None = None,
    training_batches: Iterable[Any] | None = None,
    layers: Sequence[str] | None = None,
    forward: Forward | None = None,
    inputs: Mapping[Any, Extract] | None = None,
    max_images: int | str | None = None,
    tolerance: float | None = None,
    group: Any = None,
    progress: bool | None = None,
) -> Recalibration:
    """Give a model's batch norms new running statistics, unless these gain nothing, or would hide another mistake.

    Running means and variances are written in place, all or none; `num_batches_tracked`, weights and modes stay. Frozen
    layers stay too: those in eval mode in a model that is in train mode, and those whose weight takes no gradient while
    other parameters do. Without labels and `evaluate`, new statistics are written and called *not judged*, also where
    `diagnose` finds the old ones healthy: only a mistake of images or network that new statistics would hide is
    refused. Inexact ones, as of a model that draws random numbers in eval mode, are written only where labels or
    `evaluate` show a gain, or where the old ones are not finite or negative. Those of `statistic="precise"` are not
    checked.

    Args:
        model: any module with batch norms.
        batches: what `forward` takes, such as a DataLoader of images as the model will meet them; read once and kept.
            Labels are looked for as `diagnose` does.
        statistic: "exact": moments of what each layer is given at inference. "precise": layers normalize with each
            batch's own statistics meanwhile, as in precise batch norm. Or your own `Statistics`.
        force: write in any case.
        evaluate: called with the model in eval mode, in the place of labels; returns a value for each image, higher is
            better, of the same images each time; of an array [images, ...] each image's mean is taken.
        labels: called with a batch, returns its labels, as for `diagnose`.
        training_batches: batches as in training, to tell wrong averages from a mistake that new statistics would hide,
            such as another scale of these images.
        layers: names of the layers to write, frozen ones too; default all that are not frozen.
        forward, inputs, max_images, tolerance, progress: as for `population_statistics`.
        group: a torch.distributed process group; every rank calls this with its own share of the images, at least one
            batch. All get the same statistics, and judge by the images of all.

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
    require_batches(batches, CALLER)
    if training_batches is not None:
        require_batches(training_batches, CALLER, "training_batches")
    if not isinstance(statistic, Statistics) and statistic not in ("exact", "precise"):
        raise ValueError(f"{CALLER}: statistic={statistic!r}; choose 'exact' or 'precise', or pass bnlab.Statistics")
    require_evaluate(evaluate, CALLER)
    require_labels(labels, CALLER)
    require_forward(forward, CALLER)
    require_amount(max_images, tolerance, CALLER)
    if max_images == "auto" and isinstance(statistic, Statistics):
        raise ValueError(f'{CALLER}: max_images="auto" is for statistics that are measured; pass a number, or None')

    # `chosen` layers may be written; a mistake that this would hide is looked for in all of them.
    chosen = batch_norm_layers(model, layers, caller=CALLER)
    known = batch_norm_layers(model, caller=CALLER)
    case = Case(model=model, layers=known, without=(), uncovered=(), buffers=read_all_buffers(known))
    # A caller who names layers wants them written, frozen or not.
    frozen = () if layers is not None else tuple(case.select(lambda name: _is_frozen(case, name)))
    names = [name for name in chosen if name not in frozen]
    if not names:
        return Recalibration(
            written=False, reason=_ALL_FROZEN, statistics=None, scores=None, frozen=frozen, undoing=None
        )

    task = set_up(model, known, forward, inputs, progress, CALLER, group, labels)
    ranks = task.ranks
    # "auto" limits what is measured, by the tolerance, and not what is read.
    most = None if isinstance(max_images, str) else max_images
    # Statistics that the caller brings are judged by the batches, too.
    if isinstance(statistic, Statistics):
        task = read_batches(task, batches, most)
        statistics = _select(statistic, model, names, layers is not None)
    else:
        task, statistics = _measure(task, batches, statistic, names, most, tolerance)
    # A metric has images and labels of its own, so that there is nothing to choose.
    if evaluate is None:
        task, _ = choose_scoring(task)
    statistics.find_layers(model, CALLER)  # raises where the buffers cannot hold them

    # All ranks have to decide alike, because each of them takes part in scoring.
    is_broken_here = any(has_bad_values(case.buffers[name]) for name in statistics)
    is_broken = any(ranks.gather(is_broken_here))
    scores = None if is_broken else score(task, statistics, evaluate)  # broken averages have no score to compare with
    if training_batches is not None:
        # A tolerance ends the reading of the images, and nothing that of the training batches: as many are read.
        most_training = most if tolerance is None else sum(map(count_images, task.data))
        training = read_batches(task, training_batches, most_training, "training_batches")
        case = add_training(case, training, evaluate)
    # Averages that are not finite are at fault whatever an undo brings back, so that nothing is looked for.
    # All ranks skip it alike, because layers that were left out are measured by all of them together.
    is_any_broken = any(ranks.gather(case.is_broken))
    local_mistake = None
    if not is_any_broken:
        local_mistake = ranks.run_together(lambda: _find_hidden(case, task, statistics, scores, evaluate))
    local_images = sum(map(count_images, task.data))
    hidden = _choose_hidden(ranks.gather((local_mistake, local_images)))
    # For the reason alone: scores are missing if there are no labels, or if labels do not fit the outputs.
    only_class = find_only_class(task) if evaluate is None else None
    why_not = _say_why_not_scored(task)

    is_wanted, reason = _decide(hidden, scores, is_broken, why_not, statistics.check)
    # Statistics of one class alone are those of no training set.
    if scores is None and only_class is not None and is_wanted and not is_broken:
        is_wanted = False
        reason = f"all labels are class {only_class}; pass shuffled batches, or all of them"
    if force and not is_wanted:
        reason = f"force=True, although {reason}"
    written = is_wanted or force
    undoing = write_statistics(model, statistics) if written else None
    return Recalibration(written, reason, statistics, scores, frozen, undoing)


def _is_frozen(case: Case, name: str) -> bool:
    """Return whether a layer is kept in eval mode while the model is trained, or its weight is not trained."""
    # A wrapper (DistributedDataParallel) may be in another mode than the model in it.
    roots = [module for path, module in case.model.named_modules() if not strip_wrappers(path)]
    is_held = all(root.training for root in roots) and not case.layers[name].training
    return is_held or case.has_fixed_weight(name)


def _measure(
    task: Task,
    batches: Iterable[Any],
    statistic: str,
    names: Sequence[str],
    max_images: int | None,
    tolerance: float | None,
) -> tuple[Task, Statistics]:
    """Measure new statistics of these layers; others normalize with their own. Return also what was read, as a task."""
    if tolerance is None:
        task = read_batches(task, batches, max_images)
        return task, measure(task, statistic=statistic, layers=names)

    # How many batches are read depends on what was measured so far, so reading cannot come first.
    data = []

    def keep() -> Iterator[Any]:
        for batch in batches:
            # The batches are scored afterwards, and may be readable only once.
            data.append(batch)
            yield batch

    statistics = measure(task, keep(), statistic=statistic, layers=names, max_images="auto", tolerance=tolerance)
    return task.on(data), statistics


def _select(given: Statistics, model: nn.Module, names: Sequence[str], are_named: bool) -> Statistics:
    """Select the caller's statistics of these layers, under the model's names.

    Raises:
        ValueError: they have none of them, or not all that the caller has named, or are another model's.
    """
    # Called for its errors: the statistics are another model's, or the buffers cannot hold them.
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
    selected = Statistics(moments, eps, missing)
    # A selection is as exact as the whole, and `_decide` asks whether that is exact.
    selected.check = given.check
    return selected


def _find_hidden(
    case: Case,
    task: Task,
    statistics: Statistics,
    scores: Scores | None,
    evaluate: Evaluate | None,
) -> _Mistake | None:
    """Find a mistake that new statistics would hide, in this process's data: undone, it brings back as much."""
    view = observe_batches(task)
    # What would be written counts as exact, even if it is one-pass or the caller's, because the question is what *it*
    # would hide. It is not complete if frozen layers were left out, which data reaches too.
    is_complete = len(statistics) == len(case.layers)
    exact = statistics if is_complete else measure(task)
    images = sum(map(count_images, task.data))
    examined = case.on_data(exact, images=images, view=view, scores=scores)
    # No undo would show this, because weights that learned nothing are at chance under any statistics.
    # Weights of 1 and biases of 0 alone are no proof: a training may leave them so.
    if examined.is_unloaded and scores is not None and scores.is_near_chance:
        return _Mistake(f"{_UNTRAINED}; bnlab.doctor.explain('BN306') says what to do", True, _FORCED)

    # Averages of no images, and layers with another formula, would else be blamed on the images or the
    # weights.
    examined = add_fills(add_forwards(examined, task), task)
    known, _ = choose_known(list_causes(), examined)
    experiment = try_undos(examined, task, known, evaluate)
    if experiment is None:
        return None
    experiment = name_trials(experiment, known, examined)
    chosen = experiment.choose_shown()
    # Where wrong averages explain it as well with as few numbers, new statistics repair it and hide nothing.
    if not chosen or any(trial.cause.kind not in HIDDEN for trial in chosen):
        return None
    cause = chosen[0].cause
    reported = chosen[0].undo.words
    # With labels, another kind of undo that brings back nearly as much makes it uncertain, as in `name_choice`. Without
    # them exact statistics leave no gap by construction, and would always be such a rival.
    has_rivals = experiment.has_labels and not experiment.choose().other_kinds <= {*HIDDEN}
    is_certain = name_place(examined, experiment, chosen) != "averages or images" and not has_rivals
    words = f"{cause.code}, {cause.title} ({reported}); bnlab.doctor.explain({cause.code!r}) says what to do"
    # Training batches that were given have not shown otherwise, so that it is no use to ask for them.
    return _Mistake(words, is_certain, _CONVINCED if case.training is None else _FORCED)


def _choose_hidden(found: Sequence[tuple[_Mistake | None, int]]) -> _Mistake | None:
    """Choose the mistake that processes with over half of the images have found; `found`: each one's, and its images.

    Few images do not show it, and where processes have unlike images, one alone finds its own at fault.
    """
    mistakes = [(mistake, images) for mistake, images in found if mistake is not None]
    of_finders = sum(images for _, images in mistakes)
    of_all = sum(images for _, images in found)
    # Every rank sees the same list and returns the same entry, so that all write or all refuse.
    return mistakes[0][0] if 2 * of_finders > of_all else None


def _say_why_not_scored(task: Task) -> str:
    """Say what is the matter with labels, for the case that there are no scores."""
    has_local_labels = any(find_labels(task, batch) is not None for batch in task.data)
    if any(task.ranks.gather(has_local_labels)):
        return "labels cannot be compared with the outputs"
    kind = name_unread(task.data[0]) if task.data else None
    return "the batches have no labels" if kind is None else f"labels are a {kind} and no tensor"


def _decide(
    hidden: _Mistake | None, scores: Scores | None, is_broken: bool, why_not: str, check: Check | None
) -> tuple[bool, str]:
    """Decide whether the new statistics should be written, with the reason; `why_not`: why there are no scores."""
    # This comes before any gain: new statistics of images that are prepared wrongly raise the score, too.
    if hidden is not None and hidden.is_certain:
        is_wanted = False
        reason = f"it would hide a mistake: {hidden.words}. {hidden.convinced_by}"
    elif is_broken:
        is_wanted = True
        reason = "not judged, as the old statistics are not finite or negative"
    elif scores is None:
        # Nothing can show a gain here, so statistics that are known to be inexact are not written.
        is_wanted = check is None or check.is_exact
        reason = f"not judged, as {why_not} and there is no evaluate="
    else:
        is_wanted, reason = _judge_gain(scores.compare("exact", "running"))
    return is_wanted, _add_doubts(reason, is_wanted, hidden, check)


def _judge_gain(gain: Difference) -> tuple[bool, str]:
    """Judge whether a gain is sure, with the reason."""
    if gain.low > 0:
        return True, _BETTER
    if gain.value > 0:
        return False, "too few images to be sure of a gain"
    return False, "nothing is gained"


def _add_doubts(reason: str, is_wanted: bool, hidden: _Mistake | None, check: Check | None) -> str:
    """Add to a reason that a mistake may be hidden, and that the new statistics are not exact, where that is so."""
    if hidden is not None and not hidden.is_certain:
        doubt = f", as they would without {hidden.words}" if reason == _BETTER else f"; this may hide {hidden.words}"
        reason = f"{reason}{doubt}; {_WHICH}"
    if check is None or check.is_exact:
        return reason
    not_exact = _NOT_EXACT.format(layer=check.layer)
    return f"{reason}, although {not_exact}" if is_wanted else f"{not_exact}; {reason}"
