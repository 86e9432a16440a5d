"""Whether layers with a forward of their own compute (x − μ)/√(σ² + eps)·γ + β in eval mode, and if not, what else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bnlab.common.precision import widen
from bnlab.doctor.evidence.looking import LayerCall, run_and_inspect
from bnlab.doctor.thresholds import FORMULA_DIFFERS
from bnlab.doctor.undo import find_tensor
from bnlab.exact.task import Task
from bnlab.model.layers import BatchNorm, get_bias, get_running_buffers, get_weight, has_own_forward

_IMAGES = 8
_FEWEST_VALUES = 100  # of an output, of which one can say that they are a function of what is expected
# The defaults of Keras and of torch, which a conversion of weights may confuse.
_OTHER_EPS = (1e-3, 1e-5)


@dataclass(frozen=True)
class Deviation:
    """How a layer's output differs from the formula.

    Attributes:
        words: what it computes instead.
        is_affine: whether the formula may take its place, as nothing is built in behind it.
    """

    words: str
    is_affine: bool


def find_deviations(task: Task, unread: Mapping[str, Any]) -> dict[str, Deviation]:
    """Find the layers whose forward is another than the formula: one forward of eight images, if there are any.

    An activation that is built in behind the formula is none: then all channels follow one function of it.

    Args:
        task: the model and its batches.
        unread: layers whose forward is known to leave something out.
    """
    # Layers that normalize something other than their input, or leave a part out, are known to differ.
    known = {*task.inputs.extracts, *unread}
    layers = {name: layer for name, layer in task.layers.items() if has_own_forward(layer) and name not in known}
    if not layers:
        return {}
    deviations: dict[str, Deviation] = {}

    def inspect(name: str, layer: Any, given: LayerCall, output: Any) -> None:
        x = find_tensor(given.args, given.kwargs)
        if x is not None and isinstance(output, Tensor) and output.shape == x.shape and x.dim() > 1:
            deviation = _compare(layer, _list_channels(x), _list_channels(output))
            if deviation is not None:
                deviations[name] = deviation

    run_and_inspect(task, layers, _IMAGES, inspect)
    return deviations


def _list_channels(x: Tensor) -> Tensor:
    """List the values of each channel of [N, C, ...], float64 [C, M]."""
    return widen(x.detach().movedim(1, 0).flatten(1))


def _compare(layer: BatchNorm, x: Tensor, output: Tensor) -> Deviation | None:
    """Compare a layer's output with the formula, and with what people write in its place; None where it agrees."""
    expected = _normalize(layer, x)
    if not output.isfinite().all() or output.numel() < _FEWEST_VALUES or _agree(output, expected):
        return None
    # From the most specific explanation to the most general one: a known mistake, one line for all channels,
    # and any function, which is an activation behind the formula and no mistake.
    others = list(_list_others(layer, x))
    for words, other in others:
        if _agree(output, other):
            return Deviation(words, is_affine=True)

    slope, shift = _fit(output, expected)
    if _agree(output, slope * expected + shift):
        return Deviation(f"the formula times {slope:.3g}, plus {shift:.3g}", is_affine=True)
    if _is_function(output, expected):
        return None
    for words, other in others:
        if _is_function(output, other):
            return Deviation(f"{words}, and something behind it", is_affine=False)
    return None


def _normalize(layer: BatchNorm, x: Tensor, *, eps: float | None = None, is_absolute: bool = False) -> Tensor:
    """Compute the formula, with another eps or the absolute values of the weight where that is asked for."""
    mean, var = (widen(buffer)[:, None] for buffer in get_running_buffers(layer))
    if eps is None:
        eps = layer.eps
    normalized = (x - mean) / (var + eps).sqrt()
    weight = get_weight(layer)
    if weight is None:
        return normalized
    weight = widen(weight.detach())[:, None]
    return normalized * (weight.abs() if is_absolute else weight) + _get_bias(layer)


def _get_bias(layer: BatchNorm) -> Tensor | float:
    """Return the bias [C, 1]; 0 without one."""
    bias = get_bias(layer)
    return 0.0 if bias is None else widen(bias.detach())[:, None]


def _list_others(layer: BatchNorm, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """List what may stand in the place of the formula, in words and computed."""
    yield "the absolute values of the weight", _normalize(layer, x, is_absolute=True)
    for eps in _OTHER_EPS:
        if eps != layer.eps:
            yield f"an eps of {eps:g}", _normalize(layer, x, eps=eps)
    _, var = get_running_buffers(layer)
    var = widen(var)[:, None]
    root = (var + layer.eps).sqrt()
    bias = _get_bias(layer)
    scaled = _normalize(layer, x) - bias
    yield "the variance in the place of its root", scaled / root + bias
    yield "eps beside the root", scaled * root / (var.sqrt() + layer.eps) + bias


def _agree(output: Tensor, expected: Tensor) -> bool:
    """Return whether values agree up to rounding in half precision."""
    return float((output - expected).square().mean().sqrt()) <= FORMULA_DIFFERS * float(output.std())


def _fit(output: Tensor, expected: Tensor) -> tuple[float, float]:
    """Fit one slope and one shift for all channels."""
    centred = expected - expected.mean()
    slope = float((centred * output).sum() / centred.square().sum())
    return slope, float(output.mean()) - slope * float(expected.mean())


def _is_function(output: Tensor, expected: Tensor) -> bool:
    """Return whether an output is one function of what is expected, in all channels: neighbours differ by little.

    Half of the mean square of successive differences is the variance of what no function explains (von Neumann 1941).
    """
    ordered = output.flatten()[expected.flatten().argsort()]
    unexplained = ordered.diff().square().mean() / 2
    return bool(unexplained <= FORMULA_DIFFERS * ordered.var())
