"""Recording one pass over data with the weights as they are."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_forward, find_device
from bnlab.batches import Forward, call, copy_batch, keep_batch
from bnlab.borrowing import KeptTensors, borrowed, gradients_set_aside, read_with_own_buffers, set_buffers_aside
from bnlab.fresh import LEAK, FreshForwards, find_difference
from bnlab.in_mode import find_left_in_eval, in_mode
from bnlab.layer_calls import Call, LayerCalls
from bnlab.layers import Lookalike, batch_norm_layers, find_lookalikes, join_names, set_train_mode
from bnlab.loans import refuse_other_threads
from bnlab.module_state import list_forward_hooks
from bnlab.normalizations import Computation, Followed, Normalizations
from bnlab.randomness import RandomStream, list_generators
from bnlab.recording.block import Recording, record
from bnlab.trace import MomentTrace


def record_frozen(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, training: bool = False
) -> MomentTrace:
    """The batch moments of one pass over `batches` with the weights as they are; `model` comes back as it was.

    Batch-norm layers normalize with their batch's statistics, all else runs as for inference. Every batch begins with
    the model as it is: weights, buffers and attributes that a forward changes are put back after it. Replaying running
    estimators on this trace gives the estimators of frozen weights: `Cumulative` what torch's `update_bn` computes,
    which leaves dropout on as `training=True` does.

    Args:
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        training: all else runs as in training too, dropout and the like.

    Raises:
        as `record`; ValueError if there are no batches, no layer goes into train mode or averages anything, or a layer
            is called in train mode where the next batch is made.

    Warns:
        RuntimeWarning: layers normalize with their running statistics as ever, because their class or the model
            overrides `train`, the forward puts them into eval mode, or their own forward takes them: the trace leaves
            them out. Or they average nothing in a pass without gradients. Or a module that is no batch norm of torch's
            may normalize with running statistics of its own, as in inference. Or the first batch, which is run again
            after the others, gives something else then: something of a forward stays behind.
    """
    layers, hooks = batch_norm_layers(model, caller="record_frozen"), list_forward_hooks(model)
    check_batches(batches, "record_frozen")
    check_forward(forward, "record_frozen")
    device = find_device(model, None, "record_frozen")
    left = find_left_in_eval(model, layers)
    if len(left) == len(layers):
        raise ValueError(
            f"record_frozen: {join_names(left)} stay in eval mode where the model is put into train mode (train is "
            "overridden), so that no layer has batch statistics; pass a model with layers that take train mode"
        )
    first, again = list[Call](), list[Call]()  # of the first batch: when it is recorded, and after all others
    with (
        borrowed(model),
        gradients_set_aside(model),
        KeptTensors(model.parameters()).restored(unseen=True),
        in_mode(model, training=training),
    ):
        refuse_other_threads(model)
        own = [(layer, dict(layer._buffers)) for layer in layers.values()]
        for layer in layers.values():
            set_buffers_aside(layer)  # a backward pass that is still to come may have saved the model's own
        use = LayerCalls({name: layer for name, layer in layers.items() if name not in left})
        set_train_mode(use.layers.values())
        forwards = FreshForwards(model, hooks, KeptTensors(model.parameters()))
        lookalikes = _LookalikesInEval({} if training else find_lookalikes(model))
        with record(model) as trace:
            assert isinstance(trace.recording, Recording)
            trace.recording.steps.count_updates_only()  # each forward is a step, whatever it does to the weights
            starts = {name: entries.start for name, entries in trace.layers.items()}
            random, kept = RandomStream(device, list_generators(model.modules())), list[Any]()
            for batch in _read(read_with_own_buffers(batches, own), use):
                is_first = trace.last_step == trace.first_step
                if is_first:
                    begin, kept = random.capture(), _keep(batch)
                calls = use.watched(first if is_first else None)
                with torch.no_grad(), forwards.one(), calls, lookalikes.watched():
                    (forward or call)(model, copy_batch(batch, device))
                trace.step()
            trace.recording.disregard_exchanges()
        # A model that has been changed between batches gives something else with good reason.
        can_repeat = bool(kept) and not forwards.changed
        if can_repeat:
            random.apply(begin)
            try:
                with torch.no_grad(), forwards.one(), use.watched(again):
                    (forward or call)(model, copy_batch(kept[0], device))
            except Exception:  # whatever a forward raises that cannot be repeated
                can_repeat = False
    told = _leave_out(trace, [name for name in layers if name in use.running or name not in use.layers])
    told += _describe_empty(trace, use.reached)
    if lookalikes.used:
        told.append(
            f"{join_names(lookalikes.used)}: keeps running statistics and is no subclass of torch's batch norm; if it "
            "normalizes with these, what comes after it is measured under them, as in inference; with training=True it "
            "is in train mode, as dropout is"
        )
    if can_repeat and (leaking := find_difference(first, again)):
        told.append(f"layer {leaking!r}: {LEAK}")
    for sentence in told:
        warnings.warn(f"record_frozen: {sentence}", RuntimeWarning, stacklevel=2)
    for name, entries in trace.layers.items():
        if not entries.moments.isfinite().all():
            raise ValueError(
                f"record_frozen: the input of layer {name!r} has NaN or infinite values; look at data and weights"
            )
        # An average of this pass alone: what the buffers had seen before is not its start, nor what a forward writes.
        entries.start, entries.updates, entries.restarts = starts[name], 0, []
    return trace


class _LookalikesInEval:
    """Tells which of a model's lookalikes compute with the running statistics that they keep.

    Attributes:
        used: their names.
    """

    def __init__(self, lookalikes: Mapping[str, Lookalike]) -> None:
        self._kept = {name: other.kept for name, other in lookalikes.items() if not other.frozen}
        self.used: dict[str, None] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The block is a forward."""
        if not self._kept:
            yield
            return
        followed = Followed(self._kept)

        def look(_: Tensor, mean: Tensor | None, *__: object) -> None:
            if (name := followed.find_owner(mean)) is not None:
                self.used[name] = None

        def look_at_other(args: Any, result: Any, copies: bool) -> None:
            if (computation := Computation.read(args, result)) is not None:
                self.used |= followed.look(computation, copies)

        with Normalizations(look, look_at_other):
            yield


def _leave_out(trace: MomentTrace, names: Sequence[str]) -> list[str]:
    """Take layers out of the trace. Returns the sentence that says so; ValueError if none is left."""
    if not names:
        return []
    told = (
        f"the running statistics of {join_names(names)} are used as ever: these layers stay in eval mode where the "
        "model is put into train mode (train is overridden), the forward changes to eval mode, or a forward of "
        "their own takes them"
    )
    if len(names) == len(trace.layers):
        raise ValueError(f"record_frozen: {told}; pass a model with layers that have batch statistics")
    trace.layers = {name: entries for name, entries in trace.layers.items() if name not in names}
    return [f"{told}; the trace leaves them out"]


def _describe_empty(trace: MomentTrace, reached: Collection[str]) -> list[str]:
    """Sentences on layers without entries; ValueError if no layer has one."""
    empty, told = [name for name, entries in trace.layers.items() if not len(entries)], list[str]()
    if idle := [name for name in empty if name in reached]:
        told.append(
            f"{join_names(idle)} averaged nothing, though called in train mode (without gradients, as all of "
            "this pass): the trace has no entries of theirs"
        )
    if missed := [name for name in empty if name not in reached]:
        told.append(
            f"no values have come to {join_names(missed)} (on a branch that is not taken, or a copy or other code "
            "stands in for them): the trace has no entries of theirs"
        )
    if told and len(empty) == len(trace.layers):
        raise ValueError(
            f"record_frozen: {told[-1]}, nor of other layers; let the forward call layers of the model, or record the "
            "training itself"
        )
    return told


def _read(batches: Iterable[Any], use: LayerCalls) -> Iterator[Any]:
    """The batches; ValueError if there are none, or if a layer is called in train mode to make one."""

    def check() -> None:
        if use.between:
            raise ValueError(
                "record_frozen: the model is called while the next batch is made, where it has batch statistics; make "
                "all batches before, as a list"
            )

    is_empty = True
    for batch in batches:
        check()
        is_empty = False
        yield batch
    check()
    if is_empty:
        raise ValueError("record_frozen: batches is empty; pass at least one batch")


def _keep(batch: Any) -> list[Any]:
    """A copy of a batch, if it can be read more than once."""
    try:
        return [keep_batch(batch)]
    except ValueError:
        return []
