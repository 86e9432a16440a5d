"""BN305: the earlier network scores better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack

from torch import nn

from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.history import Changes
from bnlab.doctor.evidence.scoring import score_by_labels
from bnlab.doctor.thresholds import ANOTHER_NETWORK, SURELY_BETTER
from bnlab.doctor.undo import Undo, write_averages, write_weights
from bnlab.doctor.words import count_things


class WentWrongSince(Cause):
    """The network of `before=` scores better than today's does under any statistics: training went wrong since.

    Batches that are too small, a learning rate that is too large, wrong labels, another task. It is undone by all
    weights and averages of the earlier network. They are tried where updates were counted since, or today's weights
    are farther from the earlier ones than 0 is, so that they are another network's, or were never trained; where all
    parameters have the same names and shapes, and labels say that it is surely better.

    It is a false alarm if the network was meant to learn other images than these.
    """

    code = "BN305"
    title = "the earlier network is better"
    meaning = "The network of `before=` scores better than this one under any averages: its training went wrong since."
    remedy = "Go back to the earlier checkpoint; new averages do not bring back what the weights have lost."
    kind = "network"
    needs = ("data", "before")

    def propose(self, case: Case) -> Iterator[Undo]:
        history = case.history
        if history is None or case.scores is None or not _is_another(case, history):
            return
        parameters = dict(case.model.named_parameters())
        write_parameters = write_weights((parameters[name], earlier) for name, earlier in history.moved.items())
        averages = {name: change.buffers for name, change in history.layers.items()}
        write_buffers = write_averages(case.layers, averages)

        def apply(model: nn.Module, stack: ExitStack) -> None:
            write_parameters(model, stack)
            write_buffers(model, stack)

        # With so many degrees, any smaller undo that brings back as much is preferred to going back.
        degrees = sum(parameter.numel() for parameter in parameters.values())
        moved = count_things(len(history.moved), "tensor")
        reported = f"with the weights and averages of before=, of which {moved} moved"
        undo = Undo(reported, tuple(case.layers), degrees, apply)
        if _is_better(case, undo):
            yield undo


def _is_another(case: Case, history: Changes) -> bool:
    """Return whether all is known of the earlier network, and today's was trained since, or is another one.

    Pruned, rounded or averaged weights stay nearer to what they were than 0 is, and are not gone back from.
    """
    # If parameters or layers were missing in it, the model would become a mixture of both networks.
    is_known = not history.added and len(history.layers) == len(case.layers)
    are_updated = any((change.updates or 0) > 0 for change in history.layers.values())
    are_others = history.distance > ANOTHER_NETWORK or case.is_unloaded
    return is_known and bool(history.moved) and (are_updated or are_others)


def _is_better(case: Case, undo: Undo) -> bool:
    """Return whether labels are predicted surely better than today's weights do under any statistics."""
    scores = case.scores
    assert scores is not None
    if scores.commonest is None:
        return True  # no classes, of which scores and likelihoods may disagree: what is tried tells
    assert case.task is not None
    scored = score_by_labels(case.task, undo.apply)
    assert scored is not None
    values = scored[0]
    error = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) - SURELY_BETTER * error > scores.best
