"""BN104: averages that moved while weights did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from bnlab.doctor.cause import Cause, Severity, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.undo import EXACT, RESCALED, Undo, write_averages
from bnlab.doctor.words import count_things
from bnlab.model.layers import get_weight


class MovedAlone(Cause):
    """More updates counted than at `before=`, and no parameter has changed; or a layer whose weight takes no gradient,
    while other parameters do, and that is in train mode, has been updated since `before=`, or holds averages of other
    images than these.

    A forward in train mode averages whatever else happens: under `torch.no_grad()`, in a model summary of random
    images, in an evaluation without `eval()`, and in layers that `requires_grad_(False)` has frozen, as `model.train()`
    at the start of an epoch puts all layers back into train mode. It is undone by the earlier buffers, where no
    parameter has changed; else exact statistics bring back what is lost, and all weights that the model lists before
    the layers are frozen too, so that these cannot have moved away from the averages.

    It is a false alarm if averages are meant to follow new data under old weights, or after a recalibration that
    counts, such as `torch.optim.swa_utils.update_bn`.
    """

    code = "BN104"
    title = "averages moved, weights did not"
    meaning = (
        "Every forward pass in train() updates the averages, whatever images it sees, even if no weight is trained."
    )
    remedy = (
        "Load the earlier checkpoint's buffers, or recalibrate (layers=) on images that these weights were trained "
        "for; call eval() before such forward passes, and on frozen layers after each train()."
    )
    undone_by = (EXACT, RESCALED)

    def look(self, case: Case) -> Signs | None:
        updated = _list_updated(case)
        frozen = case.select(case.has_fixed_weight)
        training = [name for name in frozen if case.layers[name].training]
        layers = case.select(lambda name: name in updated or name in training)

        # Frozen layers in train mode go on moving, whatever that has cost so far. What has moved already is a
        # warning only while nothing can be measured: with data, undoing shows its cost.
        costs_are_unknown = not case.has_data and _is_untrained(case)
        severity: Severity = "warning" if training or costs_are_unknown else "note"
        return Signs.of(layers, self.describe(case, layers), severity)

    def propose(self, case: Case) -> Iterator[Undo]:
        layers = _list_updated(case) if _is_untrained(case) else []
        # Earlier buffers belong to earlier weights, and are put back only where these have stayed.
        if case.history is not None and layers:
            earlier = {name: case.history.layers[name].buffers for name in layers}
            yield Undo(self.describe(case, layers), tuple(layers), 0, write_averages(case.layers, earlier))

    def list_layers(self, case: Case) -> Sequence[str]:
        if _is_untrained(case):
            return _list_updated(case)
        # Frozen layers behind trained ones do not count: their inputs have moved with the weights, so that
        # their averages may be off without any forward in train mode.
        leading = takewhile(lambda parameter: not parameter.requires_grad, case.model.parameters())
        settled = {id(parameter) for parameter in leading}  # by identity, because `==` compares their elements
        changes = {} if case.history is None else case.history.layers
        # Buffers that still equal the earlier ones, bit for bit, have not been moved.
        stayed = [name for name, change in changes.items() if change.is_same]

        def may_have_moved(name: str) -> bool:
            is_settled = id(get_weight(case.layers[name])) in settled
            return case.has_fixed_weight(name) and is_settled and name not in stayed

        return case.select(may_have_moved)

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        reported = []
        training = [name for name in layers if case.layers[name].training and case.has_fixed_weight(name)]
        if training:
            reported.append(f"{count_things(len(training), 'frozen layer')} in train mode")
        updates = max((_count_updates(case, name) for name in layers), default=0)
        if updates > 0:
            reported.append(f"{count_things(updates, 'update')} since the earlier checkpoint")
        if case.history is not None and _is_untrained(case):
            reported.append(f"{count_things(case.history.parameters, 'tensor')} of weights stayed the same")
        return "; ".join(reported) or "frozen weights do not move, so other images passed in train()"


def _is_untrained(case: Case) -> bool:
    """Return whether it is known that no parameter has changed since the earlier checkpoint."""
    history = case.history
    return history is not None and history.parameters > 0 and not history.moved


def _list_updated(case: Case) -> list[str]:
    """List the layers that were updated since the earlier checkpoint although their weights are fixed."""
    is_untrained = _is_untrained(case)
    return case.select(lambda name: _count_updates(case, name) > 0 and (is_untrained or case.has_fixed_weight(name)))


def _count_updates(case: Case, name: str) -> int:
    """Count a layer's updates since the earlier checkpoint; 0 where that is not known."""
    change = None if case.history is None else case.history.layers.get(name)
    return 0 if change is None else change.updates or 0
