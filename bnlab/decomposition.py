"""Where the gap of a running average comes from: signed terms that add up to it exactly."""

from __future__ import annotations

import contextlib
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_count, check_forward
from bnlab.batches import Forward
from bnlab.borrow import borrowed
from bnlab.estimators import EMA, Cumulative, DebiasedEMA, PooledCumulative
from bnlab.estimators.bank import by_channel
from bnlab.exact.population import population_statistics
from bnlab.layers import batch_norm_layers, join_names
from bnlab.moments import Moments
from bnlab.recording.frozen import record_frozen
from bnlab.recording.trace import LayerTrace, MomentTrace, replay_bank
from bnlab.statistics import Layout, Statistics

if TYPE_CHECKING:
    import pandas as pd

TERMS = ("start", "noise", "lag", "data", "weighting", "upstream")
COVERED = 0.99  # of the EMA's weight that past networks have to account for


def window(momentum: float) -> int:
    """How many of the last batches hold at least 99% of an EMA's weight: 44 at 0.1, 459 at 0.01.

    >>> window(0.1), window(0.01), window(1.0)
    (44, 459, 1)
    """
    return 1 if momentum == 1 else math.ceil(math.log1p(-COVERED) / math.log1p(-momentum))


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
    """The gap E − P of the EMA at the trace's last step, term by term, for each layer and channel.

    P: exact population statistics. Q: moments pooled over batches, batch statistics upstream. M: the mean of batch
    means and of unbiased batch variances, all batches weighing the same. E: the EMA. D: the EMA with its start divided
    out. L: D's weights, normalized over the window, applied to M at the weights that each batch was measured on. Then

        E − P = (E−D) start + (D−L) noise + (L−M) lag + (M−M') data + (M'−Q) weighting + (Q−P) upstream

    `noise` is sampling noise, `weighting` what unbiasing, leaving out the variance of the batch means and unequal
    batches do, `data` what augmentation, dropout and the like do: M and L have them as in training, M' (the clean
    stream), Q and P do not. Without any it is 0.

    Args:
        model: the network after the trace's last step. It comes back as it was.
        trace: of its training, at least up to that step.
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
        noise and lag are NaN in a layer that was in eval mode for the whole window.

    Raises:
        TypeError, ValueError: as `population_statistics`; no trace, an empty one or another model's; or `batches` is
            an iterator, which can be read once.

    Warns:
        RuntimeWarning: those last steps hold less than 99% of the EMA's weight in layers that are not called in each.
            Or `weights` gives the model's own tensors.
    """
    check_count(every, f"decompose: every={every!r}; pass a number of steps, 1 or more")
    check_forward(forward, "decompose")
    _check_trace(model, trace)
    if not callable(weights):
        raise TypeError(f"decompose: weights is a {type(weights).__name__}; pass a function of the step")
    _check_stream(batches, "batches")
    if augmented is not None:
        _check_stream(augmented, "augmented")
    last = trace.last_step
    layout = trace.layout
    e, d = replay_bank(trace, [EMA(momentum), DebiasedEMA(momentum)], [last])[:, 0]
    trained_on = batches if augmented is None else augmented

    def expected(stream: Iterable[Any], training: bool) -> tuple[Tensor, Tensor]:
        """M and Q of the weights of now: [2, channels], NaN where no data came. Each pass draws the same numbers."""
        frozen = record_frozen(model, stream, forward=forward, training=training)
        calls = torch.tensor([len(frozen.layers.get(name, ())) for name in layout.names])
        seen = by_channel(calls > 0, layout.channels)
        kept = by_channel(torch.tensor([name in frozen.layers for name in layout.names]), layout.channels)
        both = torch.full((2, *e.shape), math.nan, dtype=e.dtype)
        both[..., kept] = replay_bank(frozen, [Cumulative(), PooledCumulative()], [frozen.last_step])[:, 0]
        m, q = both.where(seen, math.nan)
        return m, q

    lagged = torch.zeros_like(e)
    ages = min(window(momentum), last - trace.first_step)
    shares = [_weigh_ages(_count_calls(layer, last, ages), momentum, every) for layer in trace.layers.values()]
    _warn_of_the_uncovered(trace, last, ages, momentum)
    for age in shares[0]:
        weight = by_channel(torch.tensor([share[age] for share in shares], dtype=e.dtype), layout.channels)
        past = weights(last - 1 - age)
        with _with_weights(model, past, last - 1 - age):
            lagged += weight * expected(trained_on, training=True)[0]
    m, _ = expected(trained_on, training=True)
    clean, q = expected(batches, training=False)
    exact = population_statistics(model, batches, forward=forward)
    nothing = {name: Moments.empty(n) for name, n in zip(layout.names, layout.channels, strict=True)}
    p = layout.flatten(Statistics({**nothing, **exact}, dict(zip(layout.names, layout.eps, strict=True))))
    terms = torch.stack((e - d, d - lagged, lagged - m, m - clean, clean - q, q - p))
    return _make_table(exact, layout, e - p, terms)


def _make_table(exact: Statistics, layout: Layout, gap: Tensor, terms: Tensor) -> pd.DataFrame:
    """A row for each layer, channel and statistic, without layers that no data reached."""
    import pandas as pd

    frames = []
    for row, statistic in enumerate(("mean", "var")):
        frame = layout.channel_frame().drop(columns="channels").assign(statistic=statistic, gap=gap[row].numpy())
        frames.append(frame.assign(**dict(zip(TERMS, terms[:, row].numpy(), strict=True))))
    table = pd.concat(frames, ignore_index=True)
    table = table[table["layer"].isin(list(exact))].reset_index(drop=True)
    table.attrs["unseen"] = list(exact.unseen)
    return table


@contextlib.contextmanager
def _with_weights(model: nn.Module, weights: Mapping[str, Tensor], step: int) -> Iterator[None]:
    """The model has the weights and buffers of a past step in the block."""
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    if reason := _find_mismatch(own, weights):
        raise ValueError(f"decompose: weights({step}) is no state dict of the model ({reason})")
    _warn_of_present_weights(own, weights)
    values = {name: tensor.clone() for name, tensor in own.items()}
    with borrowed(model):
        try:
            for name, tensor in own.items():
                tensor.data.copy_(weights[name])  # .data: a backward pass still to come may have saved the tensor
            yield
        finally:
            for name, tensor in own.items():
                tensor.data.copy_(values[name])


def _find_mismatch(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """In what weights differ from the tensors that a model has; empty if they fit."""
    if not isinstance(weights, Mapping):
        return f"type {type(weights).__name__}"
    if missing := [name for name in own if not isinstance(weights.get(name), Tensor)]:
        return f"{join_names(missing)} missing"
    if unknown := [name for name in weights if name not in own and not name.endswith("_extra_state")]:
        return f"the model has no {join_names(unknown)}"
    other = [name for name, tensor in own.items() if weights[name].shape != tensor.shape]
    return f"other shapes in {join_names(other)}" if other else ""


def _warn_of_present_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Say that what was kept of a past step are the model's own tensors, which training has written since."""
    if all(weights[name].data_ptr() == tensor.data_ptr() for name, tensor in own.items()):
        warnings.warn(
            "decompose: weights(step) gives the model's own tensors, so that past weights are those of now and there "
            "is no lag; keep copies, such as copy.deepcopy(model.state_dict()) at each step",
            RuntimeWarning,
            stacklevel=5,
        )


def _count_calls(layer: LayerTrace, last: int, ages: int) -> NDArray[np.int64]:
    """[ages], how many batches the layer has taken in the step `last`, the one before it, and so on."""
    newest = layer.steps[bisect_right(layer.steps, last - ages) :]
    return np.bincount(last - np.array(newest, dtype=np.int64), minlength=ages)


def _warn_of_the_uncovered(trace: MomentTrace, last: int, ages: int, momentum: float) -> None:
    """Say of which layers much of the average's weight is older than the steps `last` − `ages` + 1 to `last`."""
    covered, kept = {}, 1 - momentum
    for name, layer in trace.layers.items():
        if inside := int(_count_calls(layer, last, ages).sum()):
            covered[name] = (1 - kept**inside) / (1 - kept ** len(layer))
    if short := {name: share for name, share in covered.items() if share < COVERED - 1e-9}:
        least = math.floor(1e4 * min(short.values())) / 1e4  # rounded it may be the share that is asked for
        warnings.warn(
            f"decompose: the last {ages} steps hold {least} of the average's weight in {join_names(short)}, which are "
            "not called in each; there noise and lag are of these steps only",
            RuntimeWarning,
            stacklevel=3,
        )


def _weigh_ages(calls: NDArray[np.int64], momentum: float, every: int) -> dict[int, float]:
    """The debiased EMA's weights of steps by their age, shared out to some of the ages by straight lines.

    Args:
        calls: [ages], how many batches a layer has taken in each of the steps; the weights are NaN if there are none.

    >>> for every in (1, 2):
    ...     print({age: round(weight, 3) for age, weight in _weigh_ages(np.array([1, 1, 1]), 0.5, every).items()})
    {0: 0.571, 1: 0.286, 2: 0.143}
    {0: 0.714, 2: 0.286}
    >>> {age: round(weight, 3) for age, weight in _weigh_ages(np.array([2, 0, 1]), 0.5, 1).items()}
    {0: 0.857, 1: 0.0, 2: 0.143}
    """
    ages, kept = len(calls), 1 - momentum
    newer = calls.cumsum() - calls
    weights = kept**newer * (1 - kept**calls)
    measured = sorted({*range(0, ages, every), ages - 1})
    total = weights.sum() or math.nan
    shared = [float(np.interp(range(ages), measured, unit) @ weights / total) for unit in np.eye(len(measured))]
    return dict(zip(measured, shared, strict=True))


def _check_trace(model: nn.Module, trace: MomentTrace) -> None:
    layers = batch_norm_layers(model, caller="decompose")
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"decompose: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    recorded = dict(zip(trace.layout.names, trace.layout.channels, strict=True))
    if recorded != {name: layer.num_features for name, layer in layers.items()}:
        raise ValueError("decompose: the trace has other layers or channels than the model; pass that of its training")
    if trace.last_step == trace.first_step:
        raise ValueError("decompose: the trace is empty; train inside record(model)")
    for name, layer in layers.items():
        tracked, end = layer.num_batches_tracked, trace.layers[name].updates + len(trace.layers[name])
        if tracked is not None and int(tracked) > end:
            raise ValueError(
                f"decompose: layer {name!r} has seen {int(tracked)} batches and the trace ends after {end}; pass the "
                "model as it was then"
            )


def _check_stream(stream: Iterable[Any], name: str) -> None:
    check_batches(stream, "decompose", name)
    if isinstance(stream, Iterator):
        raise ValueError(f"decompose: {name} is an iterator and can be read only once; pass a list or a loader")
