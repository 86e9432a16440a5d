"""An ordinary evaluation of a few images under a result: whether it holds, and what the measurement could not see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bnlab.layers import BatchNorm, layer_input, without_transforms
from bnlab.moments import Moments, Partial, pool, read

_SHARE = 16  # of a batch's images one in so many is evaluated again, and two at least
FUNCTIONAL = "functional batch norm"  # the name of one that belongs to no layer


class Sample(NamedTuple):
    """What the first batch was at a layer when it was measured: moments of its first images, and of all."""

    first: Moments | None  # None where the images are not the rows of the layer's input
    whole: Partial
    exact: bool  # whether the whole was read as `Moments.of` does; else in one read


@dataclass(frozen=True)
class Check:
    """What an ordinary evaluation of the first batch's images under a result has shown.

    Attributes:
        images: how many were evaluated.
        mean: the largest difference of a layer's mean from what it was in the measurement, in σ of the layer.
        var: the largest difference of a layer's variance, relative to the variance of the layer.
        layer: the first layer where a difference is more than rounding; None where the result holds.
        bypassed: layers that are called in a way that hooks do not see: they are not measured.
        dependent: layers that normalize with the statistics of their batch even in evaluation.
    """

    images: int
    mean: float
    var: float
    layer: str | None
    bypassed: tuple[str, ...]
    dependent: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether the evaluation has given what was measured."""
        return self.layer is None

    def warnings(self) -> list[str]:
        """A sentence for each thing that somebody has to know."""
        found = []
        if self.bypassed:
            found.append(
                f"{_listed(self.bypassed)}: called past its hooks (by .forward(), a functional batch norm or in "
                "another thread), so not measured; it normalizes with the statistics that the model has"
            )
        if self.dependent:
            found.append(
                f"{_listed(self.dependent)}: normalizes with the statistics of its batch even in evaluation; what "
                "comes after it depends on how images are put into batches"
            )
        if self.layer is not None:
            found.append(
                f"layer {self.layer!r}: the first batch, evaluated again under the result, is {self.mean:.2g} σ off in "
                f"the mean and {self.var:.2g} in the variance; either batches share state that cannot be watched "
                "(strategy='layerwise' does without), or a layer's input depends on its own statistics"
            )
        return found


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"layer{'s' if len(names) > 1 else ''} {shown}"


def count_images(batch: Any) -> int:
    """The length of the first tensor in a batch; 1 where there is none."""
    return next((leaf.size(0) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def sample(x: Tensor, part: Partial, exact: bool, images: int) -> Sample:
    """Of the first batch's input at a layer, which `part` has been read from; `images`: how many the batch has."""
    rows = _sampled(images)
    return Sample(_in_one_precision(x[:rows]) if len(x) == images and rows <= images else None, part, exact)


def _in_one_precision(x: Tensor) -> Moments:
    """Moments with the rounding of `x` itself: quick, and the same for the same values."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return Moments(x.numel() // x.shape[1], mean.cpu().double(), var.cpu().double())


def _sampled(images: int) -> int:
    return max(2, -(-images // _SHARE))


def check_result(
    model: nn.Module,
    targets: Collection[str],
    measured: Mapping[str, Moments],
    samples: Mapping[str, Sample],
    batch: Any,
    evaluate: Callable[[Any], object],
) -> Check:
    """Evaluate the first images of the first batch, or all of it where that does not do, and compare.

    Args:
        model: in eval mode, with the result in its buffers.
        targets: the layers that were to be measured.
        measured: the result; its σ is the yardstick.
        samples: what the first batch was at each layer in the measurement; empty: nothing is compared.
        batch: the first batch.
        evaluate: the forward of a batch, in the same conditions as in the measurement.
    """
    images = count_images(batch)
    if all(kept.first is not None for kept in samples.values()):
        with contextlib.suppress(Exception):  # a forward that wants whole batches, say
            part = tree_map_only(Tensor, lambda t: t[: _sampled(images)] if t.dim() and len(t) == images else t, batch)
            first = {name: kept.first for name, kept in samples.items() if kept.first is not None}
            check = _compared(model, targets, measured, first, part, evaluate, lambda name, x: _in_one_precision(x))
            if check.held:
                return check

    def read_again(name: str, x: Tensor) -> Moments:
        exact = name not in samples or samples[name].exact
        return Moments.of(x) if exact else pool([read(x)])

    whole = {name: pool([kept.whole]) for name, kept in samples.items()}
    return _compared(model, targets, measured, whole, batch, evaluate, read_again)


def _compared(
    model: nn.Module,
    targets: Collection[str],
    measured: Mapping[str, Moments],
    before: Mapping[str, Moments],
    batch: Any,
    evaluate: Callable[[Any], object],
    read_moments: Callable[[str, Tensor], Moments],
) -> Check:
    with _Watch(model, targets, read_moments) as watch:
        evaluate(batch)
    bypassed = dict.fromkeys([*watch.bypassed, *(name for name in watch.seen if name not in measured)])
    mean, var, worst = 0.0, 0.0, None
    for name, was in before.items():
        now = watch.seen.get(name)
        if now is None:
            continue
        scale = measured[name].var
        off = float(((now.mean - was.mean).abs() / scale.sqrt()).nan_to_num(0.0).max())
        spread = float(((now.var - was.var).abs() / scale).nan_to_num(0.0).max())
        if worst is None and max(off, spread) > watch.tolerance:
            worst = name
        mean, var = max(mean, off), max(var, spread)
    return Check(count_images(batch), mean, var, worst, tuple(bypassed), tuple(watch.dependent))


@dataclass
class _Watch(contextlib.AbstractContextManager["_Watch"]):
    """Inside the block: what layers see through hooks, and every batch normalization that torch computes."""

    model: nn.Module
    names: Collection[str]
    read_moments: Callable[[str, Tensor], Moments]
    seen: dict[str, Moments] = field(default_factory=dict)
    bypassed: dict[str, None] = field(default_factory=dict)
    dependent: dict[str, None] = field(default_factory=dict)
    tolerance: float = 1e-5  # the fixed point's own, with room

    def __enter__(self) -> _Watch:
        self._stack = contextlib.ExitStack()
        self._open: list[str] = []
        self._owners: dict[int, str] = {}
        self._layers = {id(module) for module in self.model.modules() if isinstance(module, BatchNorm)}
        for name, module in self.model.named_modules():
            if isinstance(module, BatchNorm):
                for tensor in (module.running_mean, module.weight):
                    if tensor is not None:
                        self._owners[tensor.data_ptr()] = name
                before = module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
                after = module.register_forward_hook(self._leave, always_call=True)
                self._stack.callback(before.remove)
                self._stack.callback(after.remove)
        self._stack.enter_context(_Normalizations(self._normalized))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _enter(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if id(module) not in self._layers:
                return
            self._open.append(name)
            x = without_transforms(layer_input(args, kwargs))
            if name in self.names and isinstance(x, Tensor) and x.numel():
                moments = self.read_moments(name, x)
                self.seen[name] = self.seen[name].merge(moments) if name in self.seen else moments
                # Ten thousand roundings: what another number of images at once makes of it in a deep network.
                self.tolerance = min(0.1, max(self.tolerance, 1e4 * torch.finfo(x.dtype).eps))

        return look

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        if id(module) in self._layers:  # and no copy of it, which has the hooks too
            self._open.pop()

    def _normalized(self, x: Tensor, mean: Tensor | None, weight: Tensor | None, training: bool) -> None:
        owners = (self._owners.get(tensor.data_ptr()) for tensor in (mean, weight) if tensor is not None)
        name = self._open[-1] if self._open else next(filter(None, owners), None)
        if name is not None and not self._open:
            self.bypassed.setdefault(name)
        # One row: an instance norm, which torch computes as the batch norm of one image.
        if training and len(x) > 1:
            self.dependent.setdefault(name or FUNCTIONAL)


class _Normalizations(TorchDispatchMode):
    """Calls `tell(input, running mean, weight, training)` at every batch normalization that is computed."""

    def __init__(self, tell: Callable[[Tensor, Tensor | None, Tensor | None, bool], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if "batch_norm" in name and "stats" not in name and "elemt" not in name and "backward" not in name:
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (
                kwargs or {}
            )
            mean = given.get("running_mean")
            training = given.get("training", given.get("train", mean is None and "no_training" not in name))
            self._tell(given["input"], mean, given.get("weight"), bool(training))
        return func(*args, **(kwargs or {}))
