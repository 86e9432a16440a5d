"""How far statistics are from what the layers see when the model is evaluated under them."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_forward, find_device
from bnlab.batches import Forward, call, map_leaves
from bnlab.borrowing import KeptTensors, gradients_set_aside, read_with_own_buffers
from bnlab.exact.inputs import watch_inputs
from bnlab.exact.layouts import Layouts
from bnlab.fresh import FreshForwards
from bnlab.layers import batch_norm_layers, get_running_buffers, join_names, unwrap_parallel
from bnlab.loans import count_loans, refuse_other_threads
from bnlab.module_state import list_forward_hooks
from bnlab.moments import Moments, compare_moments
from bnlab.randomness import RandomStream, list_generators
from bnlab.statistics import Statistics, using

if TYPE_CHECKING:
    import pandas as pd

CALLER = "self_consistency"


@overload
def self_consistency(
    model: nn.Module,
    statistics: Statistics,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    channels_last: bool = True,
    by_layer: Literal[False] = False,
) -> tuple[float, float]: ...


@overload
def self_consistency(
    model: nn.Module,
    statistics: Statistics,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    channels_last: bool = True,
    by_layer: Literal[True],
) -> pd.DataFrame: ...


def self_consistency(
    model: nn.Module,
    statistics: Statistics,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    channels_last: bool = True,
    by_layer: bool = False,
) -> tuple[float, float] | pd.DataFrame:
    """How far `statistics` are from what the layers see when `model` is evaluated under them: exact ones are not.

    An ordinary hooked evaluation, batch after batch, each with the model as it is now (but for weights that somebody
    writes through `.data` between two batches). No forward is suspended; inputs are read, and modules put back, by the
    same code as breadth-first, and in the same memory layout, so that the rounding is the same. Each batch draws the
    random numbers that it has drawn in the measurement, if torch's seed, the batches' order and the memory layout are
    those of then (strategy="layerwise" and upstream="batch" have channels_last=False).

    Args:
        model: the one that the statistics are of; it comes back as it was.
        statistics: those to be tested.
        batches: the data that they were measured on.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        device: where the batches' tensors are moved; default the model's own.
        channels_last: as in `population_statistics`.
        by_layer: a frame instead of the two largest numbers, with an evaluation in float64 beside for comparison.

    Returns:
        the largest difference over layers and channels: of the means in σ, of the variances relative.
        `by_layer`: a row per layer that was reached, with columns layer, depth (from 1), mean and var as above, and
        mean_rounding and var_rounding: what the same network in float64 makes of the same batches under the same
        statistics, against its own precision. Where mean and var are no larger, rounding is all that they show. NaN
        where the network does not run in float64.

    Raises:
        as `using`; ValueError if the data reaches none of the layers, or is not finite there; another thread calls one.
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"{CALLER}: statistics is a {type(statistics).__name__}; pass bnlab.Statistics")
    check_batches(batches, CALLER)
    check_forward(forward, CALLER)
    device = find_device(model, device, CALLER)
    buffers = [(layer, dict(layer._buffers)) for layer in batch_norm_layers(model, caller=CALLER).values()]
    with using(model, statistics), gradients_set_aside(model):
        refuse_other_threads(unwrap_parallel(model))
        double = _copy_in_float64(model) if by_layer else None
        own = _Evaluation(model, list(statistics), forward or call, device, channels_last)
        twin = (
            _Evaluation(double, list(statistics), forward or call, device, channels_last)
            if double is not None
            else None
        )
        for batch in read_with_own_buffers(batches, buffers):
            own.take(batch)
            if twin is not None and not twin.try_take(map_leaves(_widen, batch)):
                twin = None
    if own.elsewhere:
        raise ValueError(
            f"{CALLER}: the forward calls {join_names(own.elsewhere)} in another thread, where nobody looks; pass one "
            "that runs all layers in this thread"
        )
    if not own.seen:
        raise ValueError(f"{CALLER}: the data reached none of the layers; pass at least one batch")
    for name, moments in own.seen.items():
        for what, value in (("given statistics", statistics[name]), ("input", moments)):
            if not (value.mean.isfinite().all() and value.var.isfinite().all()):
                raise ValueError(
                    f"{CALLER}: the {what} of layer {name!r} has NaN or infinite values; look at data and weights"
                )
    rows = {name: compare_moments(statistics[name], moments) for name, moments in own.seen.items()}
    if not by_layer:
        return max(mean for mean, _ in rows.values()), max(var for _, var in rows.values())
    rounding = {name: compare_moments(moments, own.seen[name]) for name, moments in (twin.seen if twin else {}).items()}
    return _make_frame(rows, rounding)


def _make_frame(rows: dict[str, tuple[float, float]], rounding: dict[str, tuple[float, float]]) -> pd.DataFrame:
    import pandas as pd

    nothing = (float("nan"), float("nan"))
    values = [(name, depth, *row, *rounding.get(name, nothing)) for depth, (name, row) in enumerate(rows.items(), 1)]
    return pd.DataFrame(values, columns=["layer", "depth", "mean", "var", "mean_rounding", "var_rounding"])


def _widen(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _copy_in_float64(model: nn.Module) -> nn.Module | None:
    """A copy of the model in float64, or None where it cannot be copied."""
    try:
        return copy.deepcopy(model).double()
    except Exception:  # whatever a module's own copying raises
        return None


class _Evaluation:
    """One model, evaluated batch after batch: the moments of what its layers are given.

    On the CPU in channels_last, until a forward raises for it.
    """

    def __init__(
        self, model: nn.Module, names: list[str], forward: Forward, device: torch.device, channels_last: bool
    ) -> None:
        self._model, self._forward = model, forward
        self._layouts = Layouts(model, device, channels_last=channels_last, most=sys.maxsize)
        self._hooks, self._taken = list_forward_hooks(model), 0
        self._random = RandomStream(device, list_generators(model.modules()))
        self.seen: dict[str, Moments] = {}
        self.elsewhere: dict[str, None] = {}  # layers that other threads have called
        self._now: dict[str, Moments] | None = None  # of the forward that runs
        self._layers = batch_norm_layers(model, names, caller=CALLER)
        self._given = {name: torch.stack(get_running_buffers(layer)) for name, layer in self._layers.items()}
        watch_inputs(self._layers, self._look, CALLER, loans=count_loans(), elsewhere=self.elsewhere)
        self._forwards = FreshForwards(model, self._hooks, KeptTensors(model.parameters()))

    def take(self, batch: Any) -> None:
        """Evaluate one batch and merge what it gives."""
        try:
            self._evaluate(batch)
        except Exception:
            if not self._layouts.channels_last:
                raise
            self._layouts.restore()
            self._forwards = FreshForwards(self._model, self._hooks, KeptTensors(self._model.parameters()))
            self._evaluate(batch)
        self._taken += 1
        for name, moments in (self._now or {}).items():
            self.seen[name] = self.seen[name].merge(moments) if name in self.seen else moments
        self._now = None

    def try_take(self, batch: Any) -> bool:
        """`take`, or False and nothing more where the network does not run so."""
        with contextlib.suppress(Exception):
            self.take(batch)
            return True
        self.seen.clear()
        return False

    def _evaluate(self, batch: Any) -> None:
        self._now = {}
        own = self._random.capture()
        try:
            with torch.no_grad(), self._forwards.one():
                self._random.apply(self._random.begin(self._taken))
                self._forward(unwrap_parallel(self._model), self._layouts.copy(batch))
        finally:
            self._random.apply(own)  # the caller's batches draw from the caller's stream

    def _look(self, name: str, x: Tensor) -> None:
        layer = self._layers[name]
        if self._now is None:  # whoever makes the next batch calls it
            return
        if not layer.training and not all(map(torch.equal, get_running_buffers(layer), self._given[name])):
            raise ValueError(
                f"{CALLER}: the forward gives layer {name!r} other running buffers (torch.func.functional_call, "
                "load_state_dict?), so that it is not evaluated under the statistics; pass a forward that leaves "
                "them alone"
            )
        moments = Moments.of(x)
        self._now[name] = self._now[name].merge(moments) if name in self._now else moments
