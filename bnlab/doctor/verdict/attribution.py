"""Attribution: from what was measured and tried to one cause and one place.

Evidence is measured once (`evidence/`). Each cause is a hypothesis about it, in a file of its own (`causes/`):

| what a cause has | what it is | who asks for it |
|---|---|---|
| `propose` | an intervention: how the fault would be undone | `interventions/`, which tries it on held-back images |
| `undone_by` | interventions that it shares with other causes | `name_trials` and `name_gap`, below |
| `predict` | averages that the cause would have left | `Cause.support`: do they explain the gap? |
| `list_layers` | layers in which it has left a trace, such as a count | `Cause.support`; without data a finding |
| `support` | what speaks for it, by the grounds of `GROUNDS` | `weigh`, below |
| `look` | signs that no intervention tells | `findings.find_signs`; never outranks what was tried |
| `describe`, `name_layers` | the numbers that show it, and where | findings |

What was tried decides first: the smallest intervention that brings back as much as the best (`UndoExperiment.choose`).
Where several causes are undone by the same one, the ground on which each stands decides between them, by the table
below. Where the fault is follows from the kind of the causes that are left (`name_choice`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bnlab.doctor.cause import Cause, Ground
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.lag import compare_with_drift
from bnlab.doctor.interventions.experiment import Crossing, Trial, UndoExperiment
from bnlab.doctor.thresholds import EXPLAINED
from bnlab.doctor.undo import EXACT, RESCALED
from bnlab.doctor.verdict.verdict import Word


@dataclass(frozen=True)
class Rank:
    """How much a ground counts.

    Attributes:
        weight: by which the share of the gap that it explains is multiplied.
        reason: why it counts so much, and no more.
    """

    weight: float
    reason: str


GROUNDS: Mapping[Ground, Rank] = {
    "populations": Rank(1.0, "Several populations were measured, batch by batch or call by call: nothing is inferred."),
    "traces": Rank(1.0, "A count, equal buffers or a momentum was left behind, which nothing else leaves."),
    "averages": Rank(1.0, "The averages that the cause would have left are those that are there."),
    "noise": Rank(0.9, "Every average is noisy: a cause that has left a trace of its own says more."),
    "collapse": Rank(0.6, "Variances that fall with depth are typical and not proof: more than no sign at all."),
    "batches": Rank(EXPLAINED, "Batches do better by their own statistics, which small batches and others explain."),
    "remainder": Rank(EXPLAINED, "Whatever explains less than half of the gap is not named before *others*."),
}
"""What may speak for a cause, the strongest first. Of equals the cause with the lower code is named."""


def weigh(cause: Cause, case: Case, layers: Sequence[str]) -> float:
    """Weigh a cause by the ground on which it stands best: 1 explains all of the layers' gap, 0 nothing."""
    support = cause.support(case, layers)
    return max((GROUNDS[ground].weight * share for ground, share in support.items()), default=0.0)


def name_trials(experiment: UndoExperiment, causes: Sequence[Cause], case: Case) -> UndoExperiment:
    """Name the cause of each intervention that several share: the one that weighs most."""
    return replace(experiment, trials=[_name_trial(trial, causes, case) for trial in experiment.trials])


def _name_trial(trial: Trial, causes: Sequence[Cause], case: Case) -> Trial:
    undo = trial.undo
    sharing = [cause for cause in causes if undo.shared in cause.undone_by]
    if undo.shared == RESCALED:
        # Predictions are the same whether images or averages are scaled: only a trace says that it is the averages.
        sharing = [cause for cause in sharing if cause.measure_traces(case, undo.layers) > EXPLAINED]
    if not sharing:
        return trial
    # `max` keeps the first of equals, and causes are ordered by code.
    cause = max(sharing, key=lambda cause: weigh(cause, case, undo.layers))
    return replace(trial, cause=cause, is_proposed=cause is trial.cause)


def name_gap(causes: Iterable[Cause], case: Case, layers: Sequence[str]) -> Cause | None:
    """Name what the gap of layers comes from where no intervention is known to help; None without such causes."""
    sharing = [cause for cause in causes if EXACT in cause.undone_by]
    return max(sharing, key=lambda cause: weigh(cause, case, layers), default=None)


# Where the fault is


def name_choice(case: Case, experiment: UndoExperiment, crossing: Crossing | None = None) -> Word:
    """Name where the fault is, by the smallest undos that bring back as much as the best, and their smaller rivals.

    Args:
        case: what is known of the model.
        experiment: with the undos that were tried.
        crossing: what to name if one number were on the other side of its line.
    """
    choice = experiment.choose(crossing)
    # A smaller undo of another kind may bring back as much, so it is not known where the fault is.
    if choice.other_kinds:
        return "undecided"
    if choice.kinds == {"averages"} and _may_be_images(case, choice.chosen):
        return "averages or images"
    return name_place(case, experiment, choice.chosen)


def name_place(case: Case, experiment: UndoExperiment, chosen: Sequence[Trial]) -> Word:
    """Name where the fault is, by undos of the same size."""
    kinds = {trial.kind for trial in chosen}
    if kinds == {"averages", "images"} or (kinds == {"images"} and may_be_averages(case, experiment)):
        return "averages or images"
    return next(iter(kinds)) if len(kinds) == 1 else "undecided"


def may_be_averages(case: Case, experiment: UndoExperiment) -> bool:
    """Return whether averages of other images explain the same as other images do: exact statistics bring back as much.

    Training batches tell; without labels exact statistics leave no gap by construction.
    """
    if case.training is not None:
        return False
    shortfall = experiment.measure_exact()
    if shortfall is None:  # exact statistics were not tried: with labels, because no cause saw averages that are off
        return not experiment.has_labels
    surely, line = shortfall
    return surely <= line


def name_causes(trials: Iterable[Trial]) -> str:
    """Name the causes that would be undone, each once."""
    causes = dict.fromkeys(trial.cause for trial in trials)
    return " or ".join(f"{cause.code} ({cause.title})" for cause in causes)


def _may_be_images(case: Case, chosen: Sequence[Trial]) -> bool:
    """Return whether other images may be why averages do not fit: exact ones replace those of the first layer too."""
    return depends_on_first(case, chosen) and case.clearly_differs(case.first)


def depends_on_first(case: Case, chosen: Sequence[Trial]) -> bool:
    """Return whether it depends on the first layer's fit alone if images may be why averages do not fit."""
    # If the cause that is named is not the one that proposed exact statistics, or the undo is another one, the averages
    # are explained already, and the first layer's fit decides nothing.
    is_explained = any(not trial.is_proposed or trial.undo.shared != EXACT for trial in chosen)
    if is_explained or case.training is not None or not case.seen:
        return False
    first = case.first
    replaces_first = all(first in trial.undo.layers for trial in chosen)
    drift = compare_with_drift(case, case.seen)
    # Weights that have moved on explain the first layer's gap, so that it says nothing of the images.
    if drift is not None and drift.is_lag:
        return False
    # What is left of the start shows in the first layer whatever the images are, and does not speak for other ones.
    return replaces_first and not case.remembers_start(first)
