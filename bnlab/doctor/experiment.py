"""What an experiment has shown: which undos bring back how much, and which is preferred.

Undos are ranked by the likelihood of the labels, which sees what few images show; scores say whether there is anything
worth undoing. A smaller undo (of fewer degrees) is preferred to a larger one if it provably brings back all but a tenth
of what the best one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from bnlab.doctor.cause import Cause
from bnlab.doctor.thresholds import EXPLAINS_ALL
from bnlab.doctor.undoing import Undo

_SHORT = 0.1  # of the best gain: what a smaller undo may leave


@dataclass(frozen=True, eq=False)
class Trial:
    """An undo that was tried.

    Attributes:
        cause: what would be undone; of causes that share the undo, the one that explains most.
        undo: as it was proposed from the first half.
        values: float64 [2, N], each image's score and likelihood under it; without labels, of each batch, less the gap
            that is left.
        is_proposed: whether the cause proposed the undo itself.
    """

    cause: Cause
    undo: Undo
    values: Tensor
    is_proposed: bool = True


@dataclass(frozen=True)
class Gain:
    """A mean difference of the same images, with an interval.

    Attributes:
        value: the mean.
        low, high: the interval's ends.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Experiment:
    """What was tried, and how it went.

    Attributes:
        as_is: float64 [2, N], as `Trial.values`, with nothing undone.
        trials: the undos that were tried.
        has_labels: whether images were judged by labels or `evaluate=`; if not, by the gap that is left.
        notes: undos that could not be tried, a sentence each.
    """

    as_is: Tensor
    trials: Sequence[Trial]
    has_labels: bool
    notes: Sequence[str] = ()

    @property
    def best(self) -> Trial | None:
        """The undo that brings back most."""
        return max(self.trials, key=lambda trial: float(trial.values[1].mean()), default=None)

    def measure_gain(self, trial: Trial) -> Gain:
        """Measure what an undo brings back of the likelihood, for all undos at once."""
        return bound(trial.values[1] - self.as_is[1], len(self.trials))

    def measure_score(self, trial: Trial) -> Gain:
        """Measure what an undo brings back of the score."""
        return bound(trial.values[0] - self.as_is[0])

    def choose_shown(self) -> list[Trial]:
        """Choose the smallest undos where the best surely brings back some likelihood, however little; else none."""
        best = self.best
        if best is None or self.measure_gain(best).low <= 0:
            return []
        return self.choose()[0]

    def choose(self) -> tuple[list[Trial], list[Trial]]:
        """Choose the smallest undos that bring back as much as the best.

        That is known by scores, or where few images do not tell, by averages that fit once it is undone.

        Returns:
            Those that provably do and have the fewest degrees; and still smaller ones of which that is not known.
        """
        best = self.best
        assert best is not None
        gain = self.measure_gain(best).value
        score_gain = self.measure_score(best).value
        enough: list[Trial] = []
        perhaps: list[Trial] = []
        for trial in self.trials:
            of_score = bound(best.values[0] - trial.values[0])
            if of_score.low > _SHORT * score_gain:
                continue  # the likelihood of a label ends at its bound, where the score still falls
            shortfall = bound(best.values[1] - trial.values[1], len(self.trials))
            if shortfall.high <= _SHORT * gain:
                enough.append(trial)
            elif shortfall.value <= _SHORT * gain:
                fits = trial.undo.explains > EXPLAINS_ALL
                (enough if fits else perhaps).append(trial)
        enough = enough or [best]
        fewest = min(trial.undo.degrees for trial in enough)
        chosen = [trial for trial in enough if trial.undo.degrees == fewest]
        return chosen, [trial for trial in perhaps if trial.undo.degrees < fewest]


def bound(differences: Tensor, tests: int = 1) -> Gain:
    """Bound a mean of paired differences [N] at 95%, for so many of them at once (Bonferroni)."""
    value = float(differences.mean())
    if len(differences) < 2:
        return Gain(value, -math.inf, math.inf)
    error = float(differences.std()) / math.sqrt(len(differences))
    half = NormalDist().inv_cdf(1 - 0.025 / max(1, tests)) * error
    return Gain(value, value - half, value + half)
