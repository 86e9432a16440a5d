"""The loop over causes, and the choice: what is at fault is what, undone, brings back the score of the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.common.checkpoints import read_state
from bnlab.common.scores import compare_scores, estimate_mean
from bnlab.doctor.cause import Cause, Finding, Left, Trace, Trial, Undo
from bnlab.doctor.causes import CAUSES
from bnlab.doctor.fits import NOISE, count_nats, measure_gap, measure_residuals
from bnlab.doctor.patient import CALLER, IMAGES, Patient, normalize_by, normalize_by_batch
from bnlab.doctor.repair import Repair
from bnlab.doctor.report import Diagnosis
from bnlab.doctor.scores import Metric, Scores
from bnlab.model.batches import Forward, call, copy_batch, count_images, require_batches, require_forward
from bnlab.model.borrow import borrowed
from bnlab.model.layers import strip_wrappers

_WORTH = 0.005  # of shares, half a point; by convention
_WORTH_OF_SPREAD = 0.01  # of other scores' 5 to 95% range over images; by convention
_SURELY_HEALTHY = 4.0  # times what matters: what a better mean may be, at 95%, in a model that is called healthy
_HARDLY_SEEN = 20.0  # times what matters: what so few images leave possible that nothing can be said
_LEFT_BY_SMALLER = 0.1  # of the best gain, which a change with fewer numbers may leave; by convention
_VISIBLE = 0.05  # σ: a gap of averages that is worth a note; healthy networks of the gallery: .03 at most
_MAY_BE_IMAGES = 0.1  # σ: if the first layer's averages are off by more, different images may be the reason
_TRACE = 2.0  # a trace in all layers counts as if the row had halved the residuals twice
_NEAR_CHANCE = 0.1  # of what there is to gain over always naming the commonest label; by convention
_TRAINING_BATCHES = 64  # so many are read; an average of momentum .1 remembers about twenty


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    metric: Metric | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    training_batches: Iterable[Any] | None = None,
    before: Any = None,
    expected: float | None = None,
    causes: Sequence[Cause] = (),
    forward: Forward | None = None,
) -> Diagnosis:
    """Find out what is wrong with a model's batch-norm statistics, what it costs, and what to do.

    The same images are scored as the model is, under exact statistics, under each batch's own, and with each mistake
    undone that may have been made. The model comes back as it was.

    Args:
        model: any module with batch norms.
        batches: what `forward` takes, such as a DataLoader of images as the model will meet them; one to two thousand
            images are used, of batches that are spread over all. Labels are the second part of a tuple or list, or what
            a dictionary calls `labels`: of classes, [N] or of pixels [N, ...], or numbers. Without labels predictions
            are compared with those under exact statistics. Without batches, buffers, counts and modes alone are looked
            at.
        metric: called as `metric(output, batch)` in place of labels; returns a value for each image, higher is better.
        evaluate: called with the model in place of `metric`, where whole models are scored; of the same images each
            time. Statistics are of `batches`.
        training_batches: batches as in training, in their order; the first 64 are read. They tell other images from
            wrong averages.
        before: an earlier state of the model, or the model that it is a copy or an average of: a module, a state dict,
            or a file of one.
        expected: the mean score that the model should reach.
        causes: further rows of your own; see `bnlab.doctor.Cause`.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.

    Returns:
        A `Diagnosis`: print it; `.verdict`, `.findings`, `.table`, `.to_json()`, `.to_html(path)`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to pass.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).eval()
    >>> diagnose(model).causes  # its averages are still 0 and 1
    ['BN002']
    """
    require_forward(forward, CALLER)
    patient = Patient(
        model,
        [] if batches is None else _list_batches(batches, "batches", None),
        forward or call,
        metric,
        evaluate,
        None if training_batches is None else _list_batches(training_batches, "training_batches", _TRAINING_BATCHES),
        None if before is None else _read_earlier_state(before),
        expected,
    )
    _require_expected(patient)
    table = (*causes, *CAUSES)
    return examine(patient, table) if patient.batches else look_at(patient, table)


def _list_batches(batches: Iterable[Any], name: str, most: int | None) -> list[Any]:
    """List batches, the first so many; ValueError of none, as of a generator that was read to its end before."""
    require_batches(batches, CALLER, name)
    if isinstance(batches, (list, tuple)):
        listed = list(batches[:most])
    elif most is not None:
        listed = [copy_batch(batch, None) for batch in islice(batches, most)]
    else:
        listed = read_some(batches)
    if not listed:
        raise ValueError(f"{CALLER}: {name} is empty; pass at least one batch, or leave the argument out")
    if any(count_images(batch) < 1 for batch in listed):
        raise ValueError(f"{CALLER}: a batch of {name} has no images; leave empty batches out")
    return listed


def read_some(batches: Iterable[Any]) -> list[Any]:
    """Read a loader, and keep batches that are spread over all of it: it may hold more than memory does."""
    kept: list[Any] = []
    every = 1
    for number, batch in enumerate(batches):
        if number % every == 0:
            kept.append(copy_batch(batch, None))  # a loader may write the next batch into the same memory
        if len(kept) > 2 and sum(map(count_images, kept)) > 2 * IMAGES:
            kept = kept[::2]
            every *= 2
    return kept


def _require_expected(patient: Patient) -> None:
    """Raise ValueError for an expected score that none can reach, as 90 where accuracies are shares."""
    expected = patient.expected
    if expected is None:
        return
    if not math.isfinite(expected):
        raise ValueError(f"{CALLER}: expected={expected}; pass the mean score that the model should reach, such as 0.9")
    if expected > 1 and patient.chance is not None:
        raise ValueError(f"{CALLER}: expected={expected}; accuracies are shares, so that 90% are expected=0.9")


def _read_earlier_state(before: Any) -> dict[str, Tensor]:
    state = read_state(before, f"{CALLER}: before")
    return {strip_wrappers(name): value for name, value in state.items() if isinstance(value, Tensor)}


def recalibrate(model: nn.Module, batches: Iterable[Any], *, force: bool = False, **arguments: Any) -> Repair:
    """Write exact statistics of the batches into a model, if the doctor finds its averages at fault.

    Running means and variances are written in place, all or none; weights, modes and counts stay. Whatever the doctor
    says, or of other images: `population_statistics(model, batches).write_to(model)`.

    Args:
        model: any module with batch norms.
        batches: what `diagnose` takes, with labels or without.
        force: write in any case.
        arguments: further ones of `diagnose`.

    Returns:
        A `Repair`: print it; `.written`, `.reason`, `.statistics`, `.undo()`, `.save_undo(path)`.

    Raises:
        TypeError, ValueError: an argument is wrong, or the layers cannot be measured; nothing is written then.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> print(recalibrate(model, [torch.arange(100.0).view(-1, 1)]))
    Recalibrated 1 batch norms: the averages were at fault, never updated (BN002).
    """
    with borrowed(model):  # who has just trained it may have left it in train mode
        diagnosis = diagnose(model, batches, **arguments)
    return diagnosis.repair(force=force)


def assert_healthy(model: nn.Module, batches: Iterable[Any] | None = None, **arguments: Any) -> None:
    """Raise AssertionError with the diagnosis unless `diagnose` finds a model healthy; for test suites.

    Args:
        model: any module.
        batches: as for `diagnose`.
        arguments: further ones of `diagnose`.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> data = [torch.arange(100.0).view(-1, 1)]
    >>> repair = recalibrate(model, data)
    >>> assert_healthy(model.eval(), data)
    """
    diagnosis = diagnose(model, batches, **arguments)
    if not diagnosis.is_healthy:
        raise AssertionError(str(diagnosis))


def look_at(patient: Patient, causes: Sequence[Cause] = CAUSES) -> Diagnosis:
    """Look at buffers, counts and modes alone, without any image."""
    traces: list[tuple[Cause, Trace]] = [(cause, trace) for cause in causes if (trace := patient.ask(cause.trace))]
    # What no data give is wrong whatever the images; of everything else only images tell what it costs.
    findings = [Finding(cause, trace.words, is_note=not cause.is_free) for cause, trace in traces]
    findings += [Finding(cause, words, is_note=True) for cause in causes if (words := patient.ask(cause.sign))]
    return Diagnosis(patient, None, findings, asks=["batches"])


def examine(patient: Patient, causes: Sequence[Cause] = CAUSES) -> Diagnosis:
    """Try all rows on a patient, and choose.

    Args:
        patient: the model with its images.
        causes: rows of the table; of two that explain as much the first is named.
    """
    signs = {cause: words for cause in causes if (words := patient.ask(cause.sign))}
    notes = [Finding(cause, words, is_note=True) for cause, words in signs.items() if not cause.decides]

    def conclude(
        verdict: str, *findings: Finding, trials: Sequence[Trial] = (), chosen: Trial | None = None
    ) -> Diagnosis:
        named = {finding.cause.code for finding in findings}
        further = [note for note in notes if note.cause.code not in named]
        asks = [] if trials and _is_described(patient, causes) else _list_questions(patient)
        return Diagnosis(patient, verdict, [*findings, *further], list(trials), chosen, asks)

    for cause, words in signs.items():
        if cause.decides == "at once":
            return conclude(cause.kind, Finding(cause, words, is_note=False))

    as_is = Trial("averages", None, Undo("as it is"), patient.as_is.scores)
    trials = [as_is, *try_all(patient, causes, as_is)]
    mode = _judge_mode(patient, signs)
    if mode is not None and not mode.is_note:
        return conclude("mode", mode, trials=trials)

    best = max(trials, key=lambda trial: float(trial.scores.values.mean()))
    is_poor = _is_poor(patient, best.scores)
    at_the_end = [cause for cause in signs if cause.decides == "at the end"]
    if is_poor and at_the_end:
        cause = at_the_end[0]
        return conclude(cause.kind, Finding(cause, signs[cause], is_note=False), trials=trials)

    chosen = choose(trials)
    if chosen is not None:
        cause, words = name_cause(patient, causes, chosen)
        verdict = _name_place(patient, cause, chosen, trials)
        return conclude(verdict, Finding(cause, words, is_note=False), trials=trials, chosen=chosen)

    off = _name_visible_gap(patient, causes, trials, is_poor)
    if is_poor:
        return conclude("network", *off, trials=trials)
    return conclude("undecided" if _may_gain(trials) else "healthy", *off, trials=trials)


def try_all(patient: Patient, causes: Sequence[Cause], as_is: Trial) -> Iterator[Trial]:
    """Score the images under each change: exact statistics, each batch's own, and what the rows undo."""
    if patient.exact:
        numbers = sum(2 * len(moments.mean) for moments in patient.exact.values())
        undo = Undo("under exact statistics", numbers, normalize_by(patient.exact))
        exact = Trial("averages", None, undo, patient.under_exact.scores, is_exact=True)
        yield exact
        if _gains(exact, as_is, tests=1) and _is_described(patient, causes):
            return  # to the last bit: nothing else can say more
    # Each batch's own statistics can fit anything, so that every other change that brings back as much is preferred.
    if patient.layers:
        undo = Undo("each batch by its own statistics", math.inf, normalize_by_batch)
        yield Trial("batches", None, undo, patient.by_batch.scores)
    for cause in causes:
        for undo in patient.ask(cause.undo):
            ran = undo.run(patient)
            yield Trial(cause.kind, cause, undo, ran.scores)


def _is_described(patient: Patient, causes: Sequence[Cause]) -> bool:
    """Return whether the averages are just what a row would have left that needs no further forward."""
    free = [left for cause in causes if cause.is_free for left in patient.ask(cause.left)]
    residuals = [measure_residuals(patient, left) for left in free if not left.numbers]
    return any(float(residual.abs().max()) < NOISE for residual in residuals)


# -- the choice --------------------------------------------------------------------------------------------------------


def choose(trials: Sequence[Trial]) -> Trial | None:
    """Choose, of the changes that bring back nearly as much as the best, the one with the fewest numbers.

    A change that can fit anything is chosen only if all others bring back less than half as much.

    Returns:
        The change; None if none surely brings back what matters.
    """
    as_is, *changed = trials
    good = [trial for trial in changed if _gains(trial, as_is, tests=len(changed))]
    if not good:
        return None
    best = max(good, key=_rank)
    limited = [trial for trial in good if trial.undo.degrees < math.inf]
    if not limited:
        return best
    best_limited = max(limited, key=_rank)
    if 2 * (_rank(best_limited) - _rank(as_is)) < _rank(best) - _rank(as_is):
        return best
    enough = [trial for trial in limited if not _falls_short(trial, best_limited, as_is, surely=True)]
    return min(enough, key=lambda trial: trial.undo.degrees)


def _rank(trial: Trial) -> float:
    return float(trial.scores.likelihoods.mean())


def compute_worth(scores: Scores) -> float:
    """Compute the smallest difference of scores that matters."""
    if scores.are_shares:
        return _WORTH
    low, high = scores.values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    # Of a metric that is mostly of one value the rare ones are its range.
    spread = high - low if high > low else scores.values.max() - scores.values.min()
    return _WORTH_OF_SPREAD * float(spread)


def _gains(trial: Trial, as_is: Trial, tests: int) -> bool:
    """Return whether a change brings back what matters, surely, also if it is the best of so many.

    Likelihoods see finer than scores, and are held to the stricter line (Bonferroni).
    """
    # Small batches predict a little better by their own statistics in many networks that were trained with them.
    least = compute_worth(as_is.scores) * (2 if trial.kind == "batches" else 1)
    gain = estimate_mean(trial.scores.values - as_is.scores.values)
    finer = estimate_mean(trial.scores.likelihoods - as_is.scores.likelihoods, tests=tests)
    return gain.low > 0 and finer.low > 0 and gain.value > least


def _falls_short(trial: Trial, best: Trial, as_is: Trial, *, surely: bool = False) -> bool:
    """Return whether a trial brings back less than nine tenths of what the best one does; `surely`: at 95%."""
    pairs = [
        (best.scores.likelihoods, trial.scores.likelihoods, as_is.scores.likelihoods, 0.0),
        (best.scores.values, trial.scores.values, as_is.scores.values, compute_worth(as_is.scores)),
    ]
    for of_best, of_trial, before, least in pairs:
        short = estimate_mean(of_best - of_trial)
        allowed = max(least, _LEFT_BY_SMALLER * float((of_best - before).mean()))
        if (short.low if surely else short.value) > allowed:
            return True
    return False


def _may_gain(trials: Sequence[Trial]) -> bool:
    """Return whether exact statistics may bring back much, and these images are too few to tell."""
    as_is, *changed = trials
    exact = _find_exact(changed)
    if exact is None:
        return False
    gain = compare_scores(exact.scores.values, as_is.scores.values, as_is.scores.are_shares)
    worth = compute_worth(as_is.scores)
    return gain.high > _HARDLY_SEEN * worth or (gain.high > _SURELY_HEALTHY * worth and gain.value > worth)


def _find_exact(trials: Sequence[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.is_exact), None)


# -- names -------------------------------------------------------------------------------------------------------------


def name_cause(patient: Patient, causes: Sequence[Cause], trial: Trial) -> tuple[Cause, str]:
    """Name the cause of a change: its own, or of those that share it the one under which averages take fewest nats."""
    if trial.cause is not None:
        return trial.cause, trial.undo.words
    if trial.kind == "batches":
        return _name_by_traces(patient, [cause for cause in causes if cause.kind == "batches"])
    named: list[tuple[float, Cause, str]] = []
    if _is_described(patient, causes):  # no other row can say more
        causes = [cause for cause in causes if cause.is_free]
    for cause in causes:
        if cause.kind in ("averages", "images"):
            named += _describe_averages(patient, cause)
    _, cause, words = min(named, key=lambda each: each[0])
    return cause, words


def _describe_averages(patient: Patient, cause: Cause) -> Iterator[tuple[float, Cause, str]]:
    """Describe the averages under a cause: the nats that it takes, and what was found in words."""
    trace: Trace | None = patient.ask(cause.trace) or None
    lefts: list[Left] = patient.ask(cause.left) or ([] if trace is None else [Left(patient.exact)])
    for left in lefts:
        residuals = measure_residuals(patient, left)
        doubles = (cause.decides == "last") + (_TRACE * trace.share if trace is not None else 0.0)
        nats = count_nats(residuals, left.numbers) - len(residuals) * math.log(2) * doubles
        yield nats, cause, left.words or (trace.words if trace is not None else "")


def _name_by_traces(patient: Patient, causes: Sequence[Cause]) -> tuple[Cause, str]:
    """Name the first row that has left a trace, or the one that is named last."""
    for cause in causes:
        trace: Trace | None = patient.ask(cause.trace) or None
        if trace is not None:
            return cause, trace.words
    last = next(cause for cause in causes if cause.decides == "last")
    return last, "each batch is predicted better by its own statistics"


def _name_place(patient: Patient, cause: Cause, chosen: Trial, trials: Sequence[Trial]) -> str:
    """Name where the fault is: the row's kind, unless averages and images explain the same and no training tells."""
    if patient.training_batches:
        return cause.kind
    first = next(iter(patient.as_is.calls), None)
    is_first_off = first in patient.exact and measure_gap(patient, first) > _MAY_BE_IMAGES
    # The row that is named last only says that the averages do not fit, for which other images may be the reason.
    if cause.decides == "last" and cause.kind == "averages" and is_first_off:
        return "averages or images"
    exact = _find_exact(trials)
    if cause.kind == "images" and exact is not None and not _falls_short(exact, chosen, trials[0]):
        return "averages or images"
    return cause.kind


def _name_visible_gap(
    patient: Patient, causes: Sequence[Cause], trials: Sequence[Trial], is_poor: bool
) -> list[Finding]:
    """Name the cause of averages that do not fit, where that costs nothing that was measured."""
    exact = _find_exact(trials)
    if exact is None or all(measure_gap(patient, name) <= _VISIBLE for name in patient.exact):
        return []
    cause, words = name_cause(patient, causes, exact)
    # In a poor network what no data give is a fault of its own, even if other averages bring nothing back.
    return [Finding(cause, words, is_note=not (is_poor and cause.is_free))]


def _judge_mode(patient: Patient, signs: Mapping[Cause, str]) -> Finding | None:
    """Judge whether a model in train mode predicts worse than in eval mode; None where it is in eval mode."""
    cause = next((cause for cause in signs if cause.kind == "mode"), None)
    if cause is None:
        return None
    if not patient.is_scored:  # what is right is not known; that predictions depend on the batch is
        return Finding(cause, signs[cause], is_note=False)
    try:
        given = patient.run(mode="given").scores
    except Exception:  # as above: it cannot be evaluated as it was called
        return Finding(cause, signs[cause], is_note=False)
    lost = estimate_mean(patient.as_is.scores.values - given.values)
    return Finding(cause, signs[cause], is_note=not (lost.low > 0 and lost.value > compute_worth(given)))


def _is_poor(patient: Patient, scores: Scores) -> bool:
    """Return whether scores are below what is expected, or hardly above always naming the commonest label."""
    mean = float(scores.values.mean())
    if patient.expected is not None:
        return mean < patient.expected
    chance = patient.chance
    return chance is not None and mean < chance + _NEAR_CHANCE * (1 - chance)


def _list_questions(patient: Patient) -> list[str]:
    """List the arguments that would tell more."""
    asks = [] if patient.training_batches else ["training_batches"]
    return asks if patient.before is not None else [*asks, "before"]
