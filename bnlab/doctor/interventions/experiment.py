"""The experiment: what causes propose is undone, and the same images are predicted again.

Undos are proposed from one half of the images and judged on the other, and the halves are swapped, so that each image
judges once. They are ranked by the likelihood of the labels, which sees what few images show; scores say whether there
is anything worth undoing. A smaller undo (of fewer degrees) is preferred to a larger one if it provably brings back all
but a tenth of what the best one does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bnlab.common.scores import Difference, estimate_mean
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.first_layer import FirstLayer
from bnlab.doctor.evidence.sample import split_halves, take_sample
from bnlab.doctor.evidence.scores import Evaluate
from bnlab.doctor.evidence.scoring import Judge, Judged, choose_judge
from bnlab.doctor.evidence.setup import CALLER, measure, measure_under
from bnlab.doctor.thresholds import EXPLAINS_ALL, LEAST_OF_GAP, LEFT_BY_SMALLER, WORTH
from bnlab.doctor.undo import EACH_BATCH, EXACT, Kind, Undo
from bnlab.exact.task import Task
from bnlab.statistics.network import Statistics

_MOST_CALLS = 8  # of evaluate= under undos, beside three for scores and one with nothing undone

_NO_RESPONSE = "What is fed to the first layer does not follow a change of the images, so that none was undone."
_TOO_MANY = "Not all that may have gone wrong was tried: evaluate= is called twelve times at most."
_TRAINING_FAILS = "The images are not at fault: the training batches fail as well."
_NO_EFFECT = "What was undone to the images changed no score, so that nothing is known of it."
_NOT_REACHED = (
    "What was undone to the images changed no value of evaluate=, so that nothing is known of it; perhaps evaluate= "
    "goes past the model's own forward."
)


@dataclass(frozen=True, eq=False)
class Trial:
    """An undo that was tried.

    Attributes:
        cause: which proposed it; `verdict.attribution` may name another one that shares the undo.
        undo: as it was proposed from the first half.
        judged: how each image does under it.
        is_proposed: whether the cause proposed the undo itself.
    """

    cause: Cause
    undo: Undo
    judged: Judged
    is_proposed: bool = True

    @property
    def kind(self) -> Kind:
        """Where the fault is: where its cause says, or in the batches, if no single set of averages helps."""
        return "batches" if self.undo.shared == EACH_BATCH else self.cause.kind


@dataclass(frozen=True)
class Choice:
    """Why the verdict is what it is.

    Attributes:
        chosen: the undos that provably bring back as much as the best and have the fewest degrees.
        rivals: still smaller ones of which that is not known.
    """

    chosen: Sequence[Trial]
    rivals: Sequence[Trial]

    @property
    def kinds(self) -> set[Kind]:
        """Where the fault is, by those that are chosen."""
        return {trial.kind for trial in self.chosen}

    @property
    def other_kinds(self) -> set[Kind]:
        """Where else it may be, by their rivals: rivals of the same kind would not change the place of the fault."""
        return {trial.kind for trial in self.rivals} - self.kinds


Unit = Literal["score", "likelihood", "share"]


class Grade(IntEnum):
    """Whether an undo brings back as much as the best one."""

    TOO_LITTLE = 0
    PERHAPS = 1
    ENOUGH = 2


@dataclass(frozen=True)
class Crossing:
    """A number that an undo was graded by, and what the grade would be on the other side of its line.

    Attributes:
        what: the number, in words.
        value: the number.
        line: where the other grade begins.
        unit: of both: score, likelihood, or a share of the gap.
        trial: number of the undo in `UndoExperiment.trials`.
        grade: beyond the line.
    """

    what: str
    value: float
    line: float
    unit: Unit
    trial: int
    grade: Grade


@dataclass(frozen=True)
class UndoExperiment:
    """What was tried, and how it went.

    Attributes:
        as_is: how each image does with nothing undone.
        trials: the undos that were tried.
        has_labels: whether images were judged by labels or `evaluate=`; if not, by the gap that is left.
        is_by_scores: whether undos are ranked by the score, see `rank_by_scores`; if not, by the likelihood.
        notes: undos that could not be tried, a sentence each.
    """

    as_is: Judged
    trials: Sequence[Trial]
    has_labels: bool
    notes: Sequence[str] = ()
    is_by_scores: bool = False

    def read_ranked(self, judged: Judged) -> Tensor:
        """Read the values [N] by which undos are ranked: scores if `is_by_scores`, else likelihoods."""
        return judged.scores if self.is_by_scores else judged.likelihoods

    @property
    def best(self) -> Trial | None:
        """The undo that brings back most of what undos are ranked by."""
        return max(self.trials, key=self._average_ranked, default=None)

    def _average_ranked(self, trial: Trial) -> float:
        """Average over the images what undos are ranked by."""
        return float(self.read_ranked(trial.judged).mean())

    def measure_ranked_gain(self, trial: Trial) -> Difference:
        """Measure what an undo brings back of what undos are ranked by, for all undos at once."""
        return estimate_mean(self.read_ranked(trial.judged) - self.read_ranked(self.as_is), tests=len(self.trials))

    def measure_shortfall(self, trial: Trial) -> Difference:
        """Measure how much less than the best an undo brings back of what undos are ranked by, for all at once."""
        best = self.best
        assert best is not None
        return estimate_mean(self.read_ranked(best.judged) - self.read_ranked(trial.judged), tests=len(self.trials))

    def measure_likelihood(self, trial: Trial) -> Difference:
        """Measure what an undo brings back of the likelihood, for all undos at once."""
        return estimate_mean(trial.judged.likelihoods - self.as_is.likelihoods, tests=len(self.trials))

    def measure_score(self, trial: Trial) -> Difference:
        """Measure what an undo brings back of the score."""
        return estimate_mean(trial.judged.scores - self.as_is.scores)

    def rank_by_scores(self) -> UndoExperiment:
        """Return the same trials, ranked by the score where that surely gains and the best likelihood does not.

        Weights that were trained under other averages may be more right and surer of their errors under better ones:
        the likelihood of the labels falls with them, though the score rises by points.
        """
        best = self.best
        # Likelihoods rank where the best of them surely gains: few images show more in them than in scores.
        if best is None or not self.has_labels or self.measure_ranked_gain(best).low > 0:
            return self
        gains = [trial.judged.scores - self.as_is.scores for trial in self.trials]
        if not any(estimate_mean(gain, tests=len(gains)).low > WORTH for gain in gains):
            return self
        return replace(self, is_by_scores=True)

    def choose_shown(self) -> Sequence[Trial]:
        """Choose the smallest undos where the best surely brings back some likelihood, however little; else none.

        Without labels they have to take away half of the gap.
        """
        best = self.best
        if best is None or self.measure_ranked_gain(best).low <= 0:
            return []
        chosen = self.choose().chosen
        if self.has_labels:
            return chosen
        gap = -float(self.read_ranked(self.as_is).mean())  # without labels, see `scoring._judge_by_gap`
        return chosen if self.measure_ranked_gain(chosen[0]).value > LEAST_OF_GAP * gap else []

    def choose(self, crossing: Crossing | None = None) -> Choice:
        """Choose the smallest undos that bring back as much as the best.

        Args:
            crossing: what to choose if one number were on the other side of its line.
        """
        best = self.best
        assert best is not None
        grades = [grade for grade, _ in self._graded]
        if crossing is not None:
            grades[crossing.trial] = crossing.grade

        graded = list(zip(grades, self.trials, strict=True))
        # The best undo itself is enough, except beyond a crossing of its own, and where it lowers the score.
        enough = [trial for grade, trial in graded if grade is Grade.ENOUGH] or [best]
        perhaps = [trial for grade, trial in graded if grade is Grade.PERHAPS]
        fewest = min(trial.undo.degrees for trial in enough)
        chosen = [trial for trial in enough if trial.undo.degrees == fewest]
        return Choice(chosen, [trial for trial in perhaps if trial.undo.degrees < fewest])

    def measure_exact(self) -> tuple[float, float] | None:
        """Measure how much less exact statistics surely bring back than the best undo, of what undos are ranked by.

        Returns:
            That, and beyond which line it is clearly less: a tenth of the best gain. None where they were not tried.
        """
        best = self.best
        tried = [trial for trial in self.trials if trial.undo.shared == EXACT]
        if best is None or not tried:
            return None
        # Exact statistics were tried in several sets of layers, and the best set speaks for them.
        exact = max(tried, key=self._average_ranked)
        return self.measure_shortfall(exact).low, LEFT_BY_SMALLER * self.measure_ranked_gain(best).value

    def list_crossings(self) -> list[Crossing]:
        """List the numbers that undos were graded by, where the grade would be another one beyond the line."""
        return [crossing for _, crossings in self._graded for crossing in crossings]

    @cached_property
    def _graded(self) -> list[tuple[Grade, list[Crossing]]]:
        """The grade of each undo, and the lines to other grades."""
        return [self._grade(number) for number in range(len(self.trials))]

    def _grade(self, number: int) -> tuple[Grade, list[Crossing]]:
        """Grade an undo, and list the lines beyond which it would have another grade."""
        trial = self.trials[number]
        conditions = self._ask_conditions(trial)
        grade = conditions.grade
        crossings = []
        for name in conditions._fields:
            beyond = conditions.flip(name).grade
            if beyond is not grade:
                condition: _Condition = getattr(conditions, name)
                what = f"{trial.cause.code} {condition.what}"
                crossings.append(Crossing(what, condition.value, condition.line, condition.unit, number, beyond))
        return grade, crossings

    def _ask_conditions(self, trial: Trial) -> _Conditions:
        """Ask what an undo leaves of the best gain: at most a tenth?

        That is known by likelihoods; where few images do not tell, by averages that fit once it is undone. The score is
        asked too, as the likelihood of a label ends at its bound, where the score still falls.
        """
        best = self.best
        assert best is not None
        lost_score = estimate_mean(best.judged.scores - trial.judged.scores).low
        score_line = LEFT_BY_SMALLER * self.measure_score(best).value
        shortfall = self.measure_shortfall(trial)
        line = LEFT_BY_SMALLER * self.measure_ranked_gain(best).value
        explains = trial.undo.explains
        return _Conditions(
            keeps_score=_Condition(
                "undone falls short of the best by at least", lost_score, score_line, "score", lost_score <= score_line
            ),
            surely_suffices=_Condition(
                "undone leaves at most", shortfall.high, line, "likelihood", shortfall.high <= line
            ),
            likely_suffices=_Condition("undone leaves", shortfall.value, line, "likelihood", shortfall.value <= line),
            lets_averages_fit=_Condition("explains", explains, EXPLAINS_ALL, "share", explains > EXPLAINS_ALL),
        )


@dataclass(frozen=True)
class _Condition:
    """A number that an undo is graded by.

    Attributes:
        what: the number, in words.
        value: the number.
        line: where the condition begins, or ceases, to be met.
        unit: of both.
        is_met: whether the number is on the right side of its line.
    """

    what: str
    value: float
    line: float
    unit: Unit
    is_met: bool


class _Conditions(NamedTuple):
    """What an undo is graded by. Each is one number, so that one can be flipped while the others stay.

    Attributes:
        keeps_score: the score does not speak against the undo.
        surely_suffices: it surely leaves little of the best gain.
        likely_suffices: it likely does.
        lets_averages_fit: averages fit once it is undone.
    """

    keeps_score: _Condition
    surely_suffices: _Condition
    likely_suffices: _Condition
    lets_averages_fit: _Condition

    @property
    def grade(self) -> Grade:
        """The grade by all conditions together."""
        if not self.keeps_score.is_met:
            return Grade.TOO_LITTLE
        if self.surely_suffices.is_met:
            return Grade.ENOUGH
        if not self.likely_suffices.is_met:
            return Grade.TOO_LITTLE
        return Grade.ENOUGH if self.lets_averages_fit.is_met else Grade.PERHAPS

    def flip(self, name: str) -> _Conditions:
        """Put one number on the other side of its line."""
        condition: _Condition = getattr(self, name)
        flipped = replace(condition, is_met=not condition.is_met)
        return self._replace(**{name: flipped})


def try_undos(case: Case, task: Task, causes: Iterable[Cause], evaluate: Evaluate | None) -> UndoExperiment | None:
    """Try what causes propose; None where none of them sees a sign.

    Args:
        case: what is known of the model.
        task: the model and all batches.
        causes: those that may have gone wrong.
        evaluate: the caller's metric.
    """
    causes = list(causes)
    task = task.alone()  # others may have other batches, and propose other undos
    # Each undo takes a pass over the images, so that a sample of them has to do.
    sample = task.on(take_sample(task.data))
    whole = case.on_fold(sample, case.exact)
    # Asked first, of all images, so that a healthy model costs no forward for halves and unchanged scores.
    if not any(True for cause in causes for _ in cause.propose(whole)):
        return None

    halves: list[tuple[Case, Sequence[Any]]] = [(whole, task.data)]
    # The images of a metric cannot be divided into halves.
    if evaluate is None:
        halves = _swap_halves(whole, sample)

    judge, has_labels = choose_judge(task, evaluate, case.scores is not None)
    # Half by half, as trials are joined, because differences are taken image by image.
    unchanged = _join([judge(judging, None) for _, judging in halves])
    # A set, because both halves may fail for the same reason.
    notes: set[str] = set()
    most = math.inf if evaluate is None else _MOST_CALLS
    tried = _try_all(halves, causes, judge, has_labels, most, notes)

    # Causes in the images propose nothing then, which should not go unsaid.
    if not whole.fits_first and FirstLayer(whole).response is None:
        notes.add(_NO_RESPONSE)

    trials = []
    for trial in tried:
        if trial.cause.kind == "images" and _are_equal(trial.judged, unchanged):
            notes.add(_NO_EFFECT if evaluate is None else _NOT_REACHED)
        elif trial.cause.kind == "images" and _does_training_fail(case, trial, unchanged):
            notes.add(_TRAINING_FAILS)
        else:
            trials.append(trial)
    return UndoExperiment(unchanged, trials, has_labels, sorted(notes)).rank_by_scores()


def _does_training_fail(case: Case, trial: Trial, unchanged: Judged) -> bool:
    """Return whether training batches, to whose images nothing was done, score as these do rather than as undone."""
    if case.training_score is None:
        return False
    # If training batches score nearer to these images as they are, they went through the same, or neither went through
    # anything.
    middle = (trial.judged.scores.mean() + unchanged.scores.mean()) / 2
    return case.training_score < float(middle)


def _swap_halves(whole: Case, sample: Task) -> list[tuple[Case, Sequence[Any]]]:
    """Pair each half with the images of the other; all with themselves where a half is too small to be measured."""
    parts = [sample.on(part) for part in split_halves(sample.data)]
    try:
        folds = [whole.on_fold(part, _measure_half(part, whole.exact)) for part in parts]
    except ValueError:  # one value in a channel has no variance
        return [(whole, sample.data)]
    # A batch that cannot be cut is the only part, and judges itself.
    if len(parts) == 1:
        return [(folds[0], parts[0].data)]
    return [(folds[0], parts[1].data), (folds[1], parts[0].data)]


def _measure_half(half: Task, exact: Statistics) -> Statistics:
    """Measure exact statistics of a half of the images.

    Where layers that are called several times have cost many passes, those of all images stand in for the half's own
    while layers are measured, which takes one.
    """
    if exact.cost is not None and exact.cost.passes > 1:
        return measure_under(half, exact)
    return measure(half)


def _try_all(
    halves: Sequence[tuple[Case, Sequence[Any]]],
    causes: Sequence[Cause],
    judge: Judge,
    has_labels: bool,
    most: float,
    notes: set[str],
) -> list[Trial]:
    """Try what causes propose from one half of the images on the other, and the other way round; add to the notes.

    Only what both halves propose is a trial: undos of a cause that have the same name.
    """
    undos: dict[tuple[str, str], tuple[Cause, Undo]] = {}
    judged: defaultdict[tuple[str, str], list[Judged]] = defaultdict(list)
    calls = 0
    for fold, judging in halves:
        for cause in causes:
            for undo in _list_proposals(cause, fold, has_labels):
                key = (cause.code, undo.name)
                if calls >= most:
                    notes.add(_TOO_MANY)
                    continue
                calls += 1
                # Numbers differ between the halves, and one undo is reported: the first half's.
                undos.setdefault(key, (cause, undo))
                try:
                    judged[key].append(judge(judging, undo.apply))
                except Exception as error:  # a model that takes no other images may raise anything
                    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                    notes.add(f"Not tried, as it fails: {undo.words} ({reason}).")
    trials = []
    for key, (cause, undo) in undos.items():
        if len(judged[key]) == len(halves):
            trials.append(Trial(cause, undo, _join(judged[key])))
    return trials


def _join(parts: Sequence[Judged]) -> Judged:
    """Join how the images of both halves do."""
    scores = torch.cat([part.scores for part in parts])
    likelihoods = torch.cat([part.likelihoods for part in parts])
    return Judged(scores, likelihoods)


def _are_equal(one: Judged, other: Judged) -> bool:
    return torch.equal(one.scores, other.scores) and torch.equal(one.likelihoods, other.likelihoods)


def _list_proposals(cause: Cause, fold: Case, has_labels: bool) -> list[Undo]:
    """List what a cause proposes; without labels nothing that leaves no gap by construction."""
    proposed = list(cause.propose(fold))
    names = {undo.name for undo in proposed}
    if len(names) < len(proposed):
        raise ValueError(f"{CALLER}: {cause.code} proposes several undos of one name; give each a name of its own")
    return [undo for undo in proposed if has_labels or undo.shared not in (EXACT, EACH_BATCH)]
