"""Where the gap of a running average comes from: signed terms that add up to it exactly."""

from __future__ import annotations

import copy
import dis
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnlab.arguments import check_batches, check_count, check_forward
from bnlab.batches import Forward, call
from bnlab.borrowing import borrowed
from bnlab.containers import copy_entries
from bnlab.estimators import EMA, Cumulative, DebiasedEMA, PooledCumulative
from bnlab.estimators.bank import by_channel
from bnlab.exact.population import population_statistics
from bnlab.in_mode import end_evaluation
from bnlab.layer_trace import LayerTrace
from bnlab.layers import batch_norm_layers, join_names
from bnlab.moments import Moments
from bnlab.normalizations import Computation, Followed, Normalizations
from bnlab.recording.frozen import record_frozen
from bnlab.statistics import Statistics
from bnlab.trace import MomentTrace, replay_bank

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
            the last one (fewer if the trace is shorter or begins again in it): one pass over `batches` for each that is
            asked for.
        batches: the population, in batches as they were trained on; read several times, so a list or a loader that
            gives the same each time.
        momentum: of the EMA.
        augmented: the training stream, where it differs.
        forward: as in `population_statistics`.
        every: M is measured on the weights of every so many steps, and taken to be on straight lines between them.

    Returns:
        columns layer, depth, channel, statistic ("mean" in the layer's units, "var" in their square), gap, and the
        terms. Layers that no batch reaches (an auxiliary head, say) are left out: `frame.attrs["unseen"]` lists them.
        noise and lag are NaN in a layer that was in eval mode for the whole window, or has been since its buffers were
        written; all terms but the start in one that training leaves in eval mode by itself, see `record_frozen`.

    Raises:
        TypeError, ValueError: as `population_statistics`; no trace, an empty one or another model's; or `batches` is
            an iterator, which can be read once.

    Warns:
        RuntimeWarning: those last steps hold less than 99% of the EMA's weight in layers that are not called in each.
    """
    import pandas as pd

    check_count(every, f"decompose: every={every!r}; pass a number of steps, 1 or more")
    _check(
        model, trace, weights, {"batches": batches} | ({} if augmented is None else {"augmented": augmented}), forward
    )
    last = trace.last_step
    layout = trace.layout
    e, d = replay_bank(trace, [EMA(momentum), DebiasedEMA(momentum)], [last])[:, 0]
    trained_on = batches if augmented is None else augmented

    def expected(
        network: nn.Module, stream: Iterable[Any], training: bool, run: Forward | None = forward
    ) -> tuple[Tensor, Tensor]:
        """M and Q of a network: [2, channels] each, NaN where no data came. Each pass draws the same random numbers."""
        frozen = record_frozen(network, stream, forward=run, training=training)
        calls = torch.tensor([len(frozen.layers.get(name, ())) for name in layout.names])
        seen = by_channel(calls > 0, layout.channels)
        kept = by_channel(torch.tensor([name in frozen.layers for name in layout.names]), layout.channels)
        both = torch.full((2, *e.shape), math.nan, dtype=e.dtype)
        both[..., kept] = replay_bank(frozen, [Cumulative(), PooledCumulative()], [frozen.last_step])[:, 0]
        m, q = both.where(seen, math.nan)
        return m, q

    lagged = torch.zeros_like(e)
    past = _copy(model)
    end_evaluation(past)  # past weights are those of training
    ages = min(window(momentum), last - trace.last_start)
    shares = [_weigh_ages(_count_calls(layer, last, ages), momentum, every) for layer in trace.layers.values()]
    _warn_of_the_uncovered(trace, last, ages, momentum)
    run: Forward | None = _refuse_parts_of(model, forward)
    for age in shares[0]:
        _load(past, weights(last - 1 - age), last - 1 - age)
        weight = by_channel(torch.tensor([share[age] for share in shares], dtype=e.dtype), layout.channels)
        with borrowed(model):  # what is refused may have written into its buffers
            lagged += weight * expected(past, trained_on, training=True, run=run)[0]
        run = forward  # other weights compute with the same parts
    m, _ = expected(model, trained_on, training=True)
    clean, q = expected(model, batches, training=False)
    exact = population_statistics(model, batches, forward=forward)
    nothing = {name: Moments.empty(n) for name, n in zip(layout.names, layout.channels, strict=True)}
    p = layout.flatten(Statistics({**nothing, **exact}, dict(zip(layout.names, layout.eps, strict=True))))
    terms = torch.stack((e - d, d - lagged, lagged - m, m - clean, clean - q, q - p))
    frames = []
    for row, statistic in enumerate(("mean", "var")):
        frame = layout.channel_frame().drop(columns="channels").assign(statistic=statistic, gap=(e - p)[row].numpy())
        frames.append(frame.assign(**dict(zip(TERMS, terms[:, row].numpy(), strict=True))))
    table = pd.concat(frames, ignore_index=True)
    table = table[table["layer"].isin(list(exact))].reset_index(drop=True)
    table.attrs["unseen"] = list(exact.unseen)
    return table


def _copy(model: nn.Module) -> nn.Module:
    if shared := _list_shared(model):
        raise ValueError(
            f"decompose: {join_names(shared)} has been replaced by a function around a part of the model, and a copy "
            "of the model, into which past weights go, would share it; override it in the class"
        )
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own copying raises
        raise ValueError(
            f"decompose: the model cannot be copied ({str(error).splitlines()[0]}), and past weights go into a copy; "
            "torch.nn.utils.weight_norm, for one, has a successor in torch.nn.utils.parametrizations"
        ) from error


def _refuse_parts_of(model: nn.Module, forward: Forward | None) -> Forward:
    """`forward` for copies of the model; it raises ValueError where one computes with a tensor of the model itself."""
    held = Followed({name: [tensor] for name, tensor in [*model.named_parameters(), *model.named_buffers()]})

    def refuse(*names: str | None) -> None:
        if named := [name for name in names if name is not None]:
            raise ValueError(
                f"decompose: forwards of a copy of the model, into which past weights go, compute with {named[0]!r} of "
                "the model itself (in a hook, or a function that was put in place of a method); let it find its parts "
                "by the module that it is called with, or make it a method of a class"
            )

    def look(_: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, training: bool) -> None:
        refuse(*map(held.find_owner, (mean, var, weight)))

    def look_at_other(args: Any, result: Any, copies: bool) -> None:
        if (computation := Computation.read(args, result)) is not None:
            refuse(*held.look(computation, copies))

    def run(network: nn.Module, batch: Any) -> Any:
        with Normalizations(look, look_at_other):
            return (forward or call)(network, batch)

    return run


def _list_shared(model: nn.Module) -> list[str]:
    """Methods of modules in whose place a function around a part of the model was put, such as its own old method."""
    parts = {*model.modules()}
    held = [(name, module, key) for name, module in model.named_modules() for key in vars(module)]
    replaced = [
        (name, key, vars(module)[key]) for name, module, key in held if callable(getattr(type(module), key, None))
    ]
    return [".".join(filter(None, (name, key))) for name, key, value in replaced if _names_part(value, parts, set())]


def _names_part(value: Any, parts: set[nn.Module], known: set[FunctionType]) -> bool:
    """Whether a function has a part, a method of one, or such a function in its closure or among its globals."""
    if not isinstance(value, FunctionType) or value in known:
        return False
    known.add(value)
    inside = [content for cell in value.__closure__ or () for content in copy_entries(cell)]
    names = {step.argval for step in dis.get_instructions(value) if step.opname == "LOAD_GLOBAL"}
    held = [*inside, *map(value.__globals__.get, names)]
    owners = [each.__self__ if isinstance(each, MethodType) else each for each in held]
    # Not isinstance, which proxies answer themselves.
    return any(issubclass(type(owner), nn.Module) and owner in parts for owner in owners) or any(
        _names_part(each, parts, known) for each in inside
    )


def _load(model: nn.Module, weights: Mapping[str, Tensor], step: int) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:  # keys or shapes of another model
        reason = " ".join(str(error).split())
        raise ValueError(f"decompose: weights({step}) is no state dict of the model ({reason})") from error


def _count_calls(layer: LayerTrace, last: int, ages: int) -> NDArray[np.int64]:
    """[ages], how many batches the layer has taken in the step `last`, the one before it, and so on."""
    newest = layer.steps[max(bisect_right(layer.steps, last - ages), layer.last_start.entries) :]
    return np.bincount(last - np.array(newest, dtype=np.int64), minlength=ages)


def _warn_of_the_uncovered(trace: MomentTrace, last: int, ages: int, momentum: float) -> None:
    """Say of which layers much of the average's weight is older than the steps `last` − `ages` + 1 to `last`."""
    covered, kept = {}, 1 - momentum
    for name, layer in trace.layers.items():
        inside, calls = int(_count_calls(layer, last, ages).sum()), layer.calls_since_start
        if inside:
            covered[name] = (1 - kept**inside) / (1 - kept**calls)
    if short := {name: share for name, share in covered.items() if share < COVERED - 1e-9}:
        least = math.floor(1e4 * min(short.values())) / 1e4  # rounded it may be the share that is asked for
        warnings.warn(
            f"decompose: the last {ages} steps hold {least} of the average's weight in {join_names(short)} (not in "
            "each of them, or the buffers of a layer were written before them); there noise and lag are of these steps "
            "only",
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


def _check(
    model: nn.Module, trace: MomentTrace, weights: object, streams: Mapping[str, Iterable[Any]], forward: object
) -> None:
    layers = batch_norm_layers(model, caller="decompose")
    if not isinstance(trace, MomentTrace):
        raise TypeError(f"decompose: trace is a {type(trace).__name__}; pass a MomentTrace, e.g. from bnlab.record")
    recorded = dict(zip(trace.layout.names, trace.layout.channels, strict=True))
    if recorded != {name: layer.num_features for name, layer in layers.items()}:
        raise ValueError("decompose: the trace has other layers or channels than the model; pass that of its training")
    if trace.last_step == trace.first_step:
        raise ValueError("decompose: the trace is empty; train inside record(model)")
    if trace.last_step == trace.last_start:
        raise ValueError("decompose: the running buffers were written after the last step; no batch is in them")
    for name, layer in layers.items():
        tracked, recorded_batches = layer.num_batches_tracked, trace.layers[name].updates_now
        if tracked is not None and int(tracked) > recorded_batches:
            raise ValueError(
                f"decompose: layer {name!r} has seen {int(tracked)} batches and the trace ends after "
                f"{recorded_batches}; pass the model as it was then"
            )
    check_forward(forward, "decompose")
    if not callable(weights):
        raise TypeError(f"decompose: weights is a {type(weights).__name__}; pass a function of the step")
    for name, stream in streams.items():
        check_batches(stream, "decompose", name)
        if isinstance(stream, Iterator) and iter(stream) is stream:  # to begin a loader would draw a number
            raise ValueError(f"decompose: {name} is an iterator and can be read only once; pass a list or a loader")
