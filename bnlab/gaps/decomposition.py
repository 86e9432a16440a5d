"""Decomposition of a running average's gap: signed terms that add up to it exactly."""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnlab.estimators import EMA, Cumulative, DebiasedEMA, PooledCumulative
from bnlab.estimators.bank import by_channel
from bnlab.estimators.base import check_momentum
from bnlab.exact.population import population_statistics
from bnlab.model.arguments import require_count
from bnlab.model.batches import Forward, require_batches, require_forward
from bnlab.model.borrow import borrowed
from bnlab.model.layers import batch_norm_layers, count_channels, get_batch_count, join_names
from bnlab.model.warn import warn
from bnlab.recording.frozen import record_frozen
from bnlab.recording.trace import LayerTrace, MomentTrace, replay_bank
from bnlab.statistics.layout import Layout
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics

if TYPE_CHECKING:
    import pandas as pd

TERMS = ("start", "noise", "lag", "data", "weighting", "upstream")
COVERED = 0.99  # of the EMA's weight that past networks have to account for


def window(momentum: float) -> int:
    """Count the last batches that hold at least 99% of an EMA's weight: 44 at 0.1, 459 at 0.01.

    >>> window(0.1), window(0.01), window(1.0)
    (44, 459, 1)
    """
    check_momentum(momentum)
    # `log1p(-1)` below would raise.
    if momentum == 1:
        return 1
    # This is the smallest n with (1 − m)^n of 1% or less.
    return math.ceil(math.log1p(-COVERED) / math.log1p(-momentum))


def decompose(
    model: nn.Module,
    trace: MomentTrace,
    weights: Callable[[int], Mapping[str, Tensor]],
    batches: Iterable[Any],
    *,
    momentum: float = 0.1,
    augmented: Iterable[Any] | None = None,
    forward: Forward | None = None,
    every: int = 1,
) -> pd.DataFrame:
    """Split the gap E − P of the EMA at the trace's last step into terms, for each layer and channel.

    P: exact population statistics. Q: moments pooled over batches, batch statistics upstream. M: the mean of batch
    means and of unbiased batch variances, all batches weighing the same. E: the EMA. D: the EMA with its start divided
    out. L: D's weights, normalized over the window, applied to M at the weights that each batch was measured on. Then

        E − P = (E−D) start + (D−L) noise + (L−M) lag + (M−M') data + (M'−Q) weighting + (Q−P) upstream

    `noise` is sampling noise, `weighting` what unbiasing, leaving out the variance of the batch means and unequal
    batches do, `data` what augmentation, dropout and the like do: M and L have them as in training, M' (the clean
    stream), Q and P do not. Without any it is 0.

    Args:
        model: the network after the trace's last step. It comes back as it was.
        trace: of its training, up to that step and not beyond it (`trace.truncate`).
        weights: step → state dict of the network after that many updates, for the last `window(momentum)` steps before
            the last one (fewer if the trace is shorter): one pass over `batches` for each that is asked for.
        batches: the population, in batches as they were trained on; read several times, so a list or a loader that
            gives the same each time.
        momentum: of the EMA.
        augmented: the training stream, where it differs.
        forward: as in `population_statistics`.
        every: M is measured on the weights of every so many steps, and taken to be on straight lines between them.

    Returns:
        columns layer, depth, channel, statistic ("mean" in the layer's units, "var" in their square), gap, and the
        terms. Layers that no batch reaches (an auxiliary head, say) are left out: `frame.attrs["unseen"]` lists them.
        noise and lag are of these last steps, also where a layer is not called in each of them, and NaN where it was in
        eval mode in all.

    Raises:
        TypeError, ValueError: as `population_statistics`; no trace, an empty one or another model's; or `batches` is
            an iterator, which can be read once.

    Warns:
        RuntimeWarning: `weights` gives the model's own tensors.

    >>> import copy
    >>> from bnlab import record
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]
    >>> with record(model) as trace:
    ...     for batch in batches:
    ...         output = model(batch)
    >>> weights = copy.deepcopy(model.state_dict())  # no weight has changed, so that nothing lags
    >>> frame = decompose(model, trace, lambda step: weights, batches, momentum=0.5)
    >>> frame.query("statistic == 'mean'")[["gap", "start", "noise", "lag"]].round(2)
       gap  start  noise  lag
    0 -0.5  -1.17   0.67  0.0
    """
    require_count(every, f"decompose: every={every!r}; pass a number of steps, 1 or more")
    require_forward(forward, "decompose")
    _require_trace(model, trace)
    if not callable(weights):
        raise TypeError(f"decompose: weights is a {type(weights).__name__}; pass a function of the step")
    _require_stream(batches, "batches")
    if augmented is not None:
        _require_stream(augmented, "augmented")

    last = trace.last_step
    layout = trace.layout
    running = [EMA(momentum), DebiasedEMA(momentum)]
    # The EMA is replayed as well, because the layers may have been trained with another momentum.
    e, d = replay_bank(trace, running, [last])[:, 0]

    # Older batches have almost no weight in the EMA, and each age costs a pass over the data.
    ages = min(window(momentum), last - trace.first_step)
    calls = [_count_calls(layer, last, ages) for layer in trace.layers.values()]
    shares = [_weigh_ages(of_layer, momentum, every) for of_layer in calls]

    trained_on = batches if augmented is None else augmented
    measure = partial(_measure_moments, model, layout, forward)
    lagged = torch.zeros_like(e)
    # All layers have the same ages; only the weights differ.
    for age in shares[0]:
        # The batch of age 0 was measured on the weights before the last update.
        step = last - 1 - age
        with _with_weights(model, weights(step), step):
            past, _ = measure(trained_on, training=True)
        weight = torch.tensor([of_layer[age] for of_layer in shares], dtype=e.dtype, device="cpu")
        lagged += by_channel(weight, layout.channels) * past

    # All that remains is measured on the present weights.
    m, _ = measure(trained_on, training=True)
    # Dropout and the like are off here. Batch norms still normalize with their batch.
    clean, q = measure(batches, training=False)
    exact = population_statistics(model, batches, forward=forward)
    p = _flatten_exact(exact, layout)

    terms = {
        "start": e - d,
        "noise": d - lagged,
        "lag": lagged - m,
        "data": m - clean,
        "weighting": clean - q,
        "upstream": q - p,
    }
    return _make_table(exact, layout, e - p, terms)


def _measure_moments(
    model: nn.Module, layout: Layout, forward: Forward | None, stream: Iterable[Any], training: bool
) -> tuple[Tensor, Tensor]:
    """Measure M and Q (see `decompose`) of the present weights: [2, channels] each, NaN where no data came.

    Each pass draws the same random numbers.
    """
    frozen = record_frozen(model, stream, forward=forward, training=training)
    running = [Cumulative(), PooledCumulative()]
    averages = replay_bank(frozen, running, [frozen.last_step])[:, 0]

    # By name: the trace may have its layers in another order than the model lists them.
    recorded = dict(zip(frozen.layout.names, averages.split(list(frozen.layout.channels), dim=-1), strict=True))
    parts = []
    for name, channels in zip(layout.names, layout.channels, strict=True):
        # A layer may be missing in the recording, or be there without a call.
        if len(frozen.layers.get(name, ())) > 0:
            parts.append(recorded[name])
        else:
            parts.append(torch.full((2, 2, channels), math.nan, dtype=torch.float64, device="cpu"))
    m, q = torch.cat(parts, dim=-1)
    return m, q


def _flatten_exact(exact: Statistics, layout: Layout) -> Tensor:
    """Lay the exact statistics out as [2, channels], NaN in layers that no batch reached."""
    moments: dict[str, Moments] = {}
    eps: dict[str, float] = {}
    for name, channels, layer_eps in zip(layout.names, layout.channels, layout.eps, strict=True):
        # Layers that were measured replace this NaN below.
        moments[name] = Moments.empty(channels)
        eps[name] = layer_eps
    moments.update(exact)
    return layout.flatten(Statistics(moments, eps))


def _make_table(exact: Statistics, layout: Layout, gap: Tensor, terms: Mapping[str, Tensor]) -> pd.DataFrame:
    """Make a row for each layer, channel and statistic, without layers that no data reached."""
    import pandas as pd

    frames = []
    for row, statistic in enumerate(("mean", "var")):
        frame = layout.channel_frame().drop(columns="channels")
        frame["statistic"] = statistic
        frame["gap"] = gap[row].numpy()
        for name, values in terms.items():
            frame[name] = values[row].numpy()
        frames.append(frame)

    table = pd.concat(frames, ignore_index=True)
    is_seen = table["layer"].isin(list(exact))
    table = table[is_seen].reset_index(drop=True)
    table.attrs["unseen"] = list(exact.unseen)
    return table


@contextlib.contextmanager
def _with_weights(model: nn.Module, weights: Mapping[str, Tensor], step: int) -> Iterator[None]:
    """Give the model the weights and buffers of a past step inside the block."""
    # `get_extra_state` of a module may put other things than tensors into a state dict.
    present = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    mismatch = _describe_mismatch(present, weights)
    if mismatch:
        raise ValueError(f"decompose: weights({step}) is no state dict of the model ({mismatch})")
    _warn_of_present_weights(present, weights)

    with borrowed(model):
        _write(present, weights)
        yield


def _write(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.data.copy_(values[name])  # .data: a backward pass still to come may have saved the tensor


def _describe_mismatch(present: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Describe how weights differ from the tensors of a model; empty if they fit."""
    if not isinstance(weights, Mapping):
        return f"type {type(weights).__name__}"
    other = []
    for name, tensor in present.items():
        given = weights.get(name)
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            other.append(name)
    return f"{join_names(other)} missing or of another shape" if other else ""


def _warn_of_present_weights(present: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Warn if the weights of a past step are the model's own tensors, which training has written since."""
    # The addresses are compared, because equal values may be right, as at a learning rate of 0.
    if all(weights[name].data_ptr() == tensor.data_ptr() for name, tensor in present.items()):
        warn(
            "decompose: weights(step) gives the model's own tensors, so that past weights are those of now and there "
            "is no lag; keep copies, such as copy.deepcopy(model.state_dict()) at each step"
        )


def _count_calls(layer: LayerTrace, last: int, ages: int) -> NDArray[np.int64]:
    """Count the batches that the layer took in the step `last`, the one before it, and so on: [ages]."""
    start = bisect_right(layer.steps, last - ages)
    # Without the type, an empty list would become an array of floats, which `bincount` refuses.
    newest = np.array(layer.steps[start:], dtype=np.int64)
    return np.bincount(last - newest, minlength=ages)


def _weigh_ages(calls: NDArray[np.int64], momentum: float, every: int) -> dict[int, float]:
    """Compute the debiased EMA's weights of steps by their age, shared out to some of the ages by straight lines.

    Args:
        calls: [ages], how many batches a layer has taken in each of the steps; the weights are NaN if there are none.

    >>> for every in (1, 2):
    ...     print({age: round(weight, 3) for age, weight in _weigh_ages(np.array([1, 1, 1]), 0.5, every).items()})
    {0: 0.571, 1: 0.286, 2: 0.143}
    {0: 0.714, 2: 0.286}
    >>> {age: round(weight, 3) for age, weight in _weigh_ages(np.array([2, 0, 1]), 0.5, 1).items()}
    {0: 0.857, 1: 0.0, 2: 0.143}
    """
    ages = len(calls)
    kept = 1 - momentum
    # Each later batch leaves a share 1 − m, and the batches of one step are taken together.
    newer = calls.cumsum() - calls
    weights = kept**newer * (1 - kept**calls)
    total = weights.sum()
    # If a layer was frozen in all of these steps, its weights are NaN, and so are its noise and its lag.
    if total == 0:
        total = math.nan

    # The oldest age is always measured, because interpolation needs a value on either side.
    measured = sorted({*range(0, ages, every), ages - 1})
    # Interpolation is linear in the values, so that a unit vector gives the share of each age in one measured
    # age.
    units = np.eye(len(measured))
    shares = {}
    for age, unit in zip(measured, units, strict=True):
        part = np.interp(range(ages), measured, unit)  # 1 at this age, down to 0 at the measured ones beside it
        shares[age] = float(part @ weights / total)
    return shares


def _require_trace(model: nn.Module, trace: MomentTrace) -> None:
    """Raise TypeError or ValueError unless the trace ends where the model's training has come to."""
    layers = batch_norm_layers(model, caller="decompose")
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"decompose: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")

    recorded = dict(zip(trace.layout.names, trace.layout.channels, strict=True))
    present = {name: count_channels(layer) for name, layer in layers.items()}
    if recorded != present:
        raise ValueError("decompose: the trace has other layers or channels than the model; pass that of its training")
    if trace.last_step == trace.first_step:
        raise ValueError("decompose: the trace is empty; train inside record(model)")

    for name, layer in layers.items():
        entries = trace.layers[name]
        end = entries.updates + len(entries)
        tracked = get_batch_count(layer)
        # A larger count means that training went on after the trace. Of a single layer a smaller one proves nothing, as
        # some do not count all batches.
        if tracked is not None and int(tracked) > end:
            raise ValueError(
                f"decompose: layer {name!r} has seen {int(tracked)} batches and the trace ends after {end}; pass the "
                "model as it was then"
            )

    behind = []
    for name, layer in layers.items():
        entries = trace.layers[name]
        tracked = get_batch_count(layer)
        # Of frozen layers, some norms of other classes, and weights that were loaded alone nothing is counted.
        if tracked is not None and int(tracked) and len(entries):
            behind.append(int(tracked) < entries.updates + len(entries))
    if behind and all(behind):
        raise ValueError(
            "decompose: all layers have seen fewer batches than the trace has; call truncate(step), with the model's "
            "step, on a copy of the trace, or pass the model as it was at the end"
        )


def _require_stream(stream: Iterable[Any], name: str) -> None:
    """Raise TypeError or ValueError unless the stream can be read several times."""
    require_batches(stream, "decompose", name)
    # An iterator would be empty in the second pass, and raise no error.
    if isinstance(stream, Iterator):
        raise ValueError(f"decompose: {name} is an iterator and can be read only once; pass a list or a loader")
