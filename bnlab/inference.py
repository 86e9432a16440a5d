"""Inference-time statistics: what a layer normalizes with is made from the batch that is being predicted.

    with bnlab.inference.applied(model, TestBatch()): logits = model(images)

A rule mixes the layer's own (source) statistics with those of its input, in every call again.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from bnlab.arguments import check_count, check_number
from bnlab.borrowing import borrowed, replace_forward
from bnlab.estimators.names import find_named_subclasses, read_parameters, split_label
from bnlab.in_mode import in_mode
from bnlab.layers import (
    TORCH_FORWARDS,
    BatchNorm,
    batch_norm_layers,
    check_input,
    get_layer_input,
    get_running_buffers,
    join_names,
    replace_input,
    strip_transforms,
)
from bnlab.loans import count_loans
from bnlab.moments import Moments
from bnlab.normalizations import Computation, Followed, Normalizations, agree, allowed_rounding, identify


@dataclass(frozen=True)
class Rule(ABC):
    """Statistics from a layer's input and its source statistics. Subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalize `x` [N, C, positions] with: float64, [1, C, 1], or [N, C, 1] for each example.

        `mean` and `var` [1, C, 1] are the layer's running buffers as they are (after training an average of unbiased
        variances, after `Statistics.write_to` of exact ones ddof 0); the variance returned has ddof 0.
        """

    @property
    def label(self) -> str:
        """Canonical name that tells every parameter, e.g. `pseudo_samples(n=16.0,between=False)`."""
        own = ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return self.name + (f"({own})" if own else "")


@dataclass(frozen=True)
class TestBatch(Rule):
    """The test batch's own mean and variance, as in training. Source: Nado et al. 2020 ("prediction-time BN").

    Assumes that the batch is a fair sample of what is to be predicted; predictions depend on their neighbours.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)   # one image, one channel, two positions
    >>> [round(v.item(), 6) for v in TestBatch().statistics(x, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))]
    [2.0, 1.0]
    """

    __test__ = False  # not a test of pytest's
    name: ClassVar[str] = "test_batch"

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        _check_variance(x.shape[0] * x.shape[2])
        return _measure(x, (0, 2), mean)


@dataclass(frozen=True)
class PseudoSamples(Rule):
    """The source counted as `n` further images beside the B of the batch: (n·source + B·test)/(n+B).

    Source: Schneider et al. 2020, who mix means and variances and leave out the variance between the two means;
    `between=True` adds it, p(1−p)Δμ² with p = n/(n+B), as the mixture's variance has it.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [round(v.item(), 6) for v in PseudoSamples(n=1).statistics(x, zero, one)]
    [1.0, 1.0]
    >>> [round(v.item(), 6) for v in PseudoSamples(n=1, between=True).statistics(x, zero, one)]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "pseudo_samples"
    n: float = 16.0
    between: bool = False

    def __post_init__(self) -> None:
        check_number(self.n, lambda n: n >= 0, f"PseudoSamples: n={self.n!r}; it counts images and is 0 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        weight = len(x) / (self.n + len(x))
        return _mix((mean, var), _measure(x, (0, 2), mean), weight, n=x.shape[0] * x.shape[2], between=self.between)


@dataclass(frozen=True)
class ExampleWeighing(Rule):
    """Each example's own moments take part in its statistics: E[x] and E[x²] are (1−α)·source + α·example.

    α is `weight`. Predictions do not depend on the batch. Source: Summers & Dinneen 2020.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [round(v.item(), 6) for v in ExampleWeighing(weight=0.5).statistics(x, zero, one)]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "example_weighing"
    weight: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.weight, lambda w: 0 <= w <= 1, f"ExampleWeighing: weight={self.weight!r}; it lies in [0, 1]")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix((mean, var), _measure(x, (2,), mean), self.weight, n=x.shape[2])


@dataclass(frozen=True)
class EvalNorm(Rule):
    """Example weighing with α = 1/B: what a training batch of B images held on average with this example in it.

    Exactly so for the mean; the variance is larger by (B−1)/B² of the variance of the images' means. Source: Singh &
    Shrivastava 2019 (EvalNorm), with their fitted weights replaced by 1/B.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> [round(v.item(), 6) for v in EvalNorm(batch_size=2).statistics(x, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "eval_norm"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count(self.batch_size, f"EvalNorm: batch_size={self.batch_size!r}; it is 1 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix((mean, var), _measure(x, (2,), mean), 1.0 / self.batch_size, n=x.shape[2])


def _measure(x: Tensor, dims: tuple[int, ...], near: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance in one read, summed in float64 about `near`, which lies closer to the values than 0 does."""
    near = near.to(x.dtype)
    n = x[0, 0].numel() * (len(x) if 0 in dims else 1)
    deviation = x - near
    shift = deviation.sum(dims, keepdim=True, dtype=torch.float64) / n
    norm = torch.linalg.vector_norm(deviation, dim=dims, keepdim=True, dtype=torch.float64)
    return near + shift, (norm.square() / n - shift.square()).clamp(min=0)


def _mix(
    source: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], weight: float, *, n: int, between: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean and variance of (1−weight)·source + weight·own; `between` the means: E[x²] − E[x]² without cancellation."""
    if weight == 1:
        _check_variance(n)
    mean, var = ((1 - weight) * a + weight * b for a, b in zip(source, own, strict=True))
    return mean, var + weight * (1 - weight) * (own[0] - source[0]).square() if between else var


def _check_variance(n: int) -> None:
    if n < 2:
        raise ValueError(
            "inference: one value per channel has no variance; pass more images or a rule that counts the source"
        )


def list_rules() -> dict[str, type[Rule]]:
    """Every rule by its name."""
    return find_named_subclasses(Rule)


def parse(label: str) -> Rule:
    """The rule that a name like `test_batch` or `pseudo_samples(n=16,between=True)` stands for.

    Raises:
        ValueError: there is no such rule, or a parameter is not one of its fields or out of its range.

    >>> parse("example_weighing(weight=0.2)")
    ExampleWeighing(weight=0.2)
    """
    name, text = split_label(label)
    rules = list_rules()
    if name not in rules:
        raise ValueError(f"estimator={label!r}: unknown; at inference time there are {', '.join(rules)}")
    cls = rules[name]
    return cls(**read_parameters(label, name, text, cls))


@contextlib.contextmanager
def applied(model: nn.Module, rule: Rule) -> Iterator[nn.Module]:
    """Inside the block `model` is in eval mode and normalizes by `rule`; then it is as it was before.

    Every layer's own forward still runs, under the rule's statistics; where each example has its own, or gradients
    are taken, on an input that is normalized already. Between calls the buffers are the source's: they may be read
    and written, but are put back at the end, other than weights (so load a state dict before the block); a copy of the
    model that is made in the block keeps the rule. In a layer whose class has a forward of its own torch's batch norm
    has to get the layer's input, which is checked at each call. What forwards in the block keep in deques, arrays or
    objects of other kinds stays there.

    Raises:
        TypeError: `model` is not a module or `rule` not a `Rule`.
        ValueError: no batch-norm layer, or copies of them on several devices (DataParallel); in the block, one value
            per channel and no statistics but its own, a layer in train mode, one whose own forward normalizes something
            else than its input, or with its batch's statistics in eval mode too, or a functional batch norm that goes
            by a layer's buffers.

    Warns:
        RuntimeWarning: a layer's own forward normalizes without torch's batch norm, so that nobody sees whether it
            normalizes its input; or, at the end, a forward has computed with the buffers of a layer that was not
            called, as where it folds it into weights. Outside of forwards, in other methods, nobody looks.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"inference.applied: rule is a {type(rule).__name__}; pass e.g. TestBatch()")
    layers = batch_norm_layers(model, caller="inference.applied")
    if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
        raise ValueError("inference.applied: DataParallel runs copies of the layers; pass the module inside of it")
    with borrowed(model), in_mode(model, training=False):
        layers = batch_norm_layers(model, caller="inference.applied")  # its own `eval` may exchange them
        bypasses = _Bypasses(layers)
        for name, layer in layers.items():
            replace_forward(layer, functools.partial(_call_by_rule, rule, name, bypasses))
        with bypasses.watched(model), Normalizations(bypasses.look, bypasses.look_at_other):
            yield model
        bypasses.tell()


class _Bypasses:
    """Refuses or tells what normalizes with a layer's buffers without calling the layer: it does not go by the rule."""

    def __init__(self, layers: Mapping[str, BatchNorm]) -> None:
        self._layers, self._loans = layers, count_loans()
        self._calls = self._forwards = 0  # of layers, and of modules around others, that have not ended
        self._called, self._used = set[str](), dict[str, None]()
        self._followed = self._follow()

    @contextlib.contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        """Inside the block it is known whether a forward of the model, or of a part that has parts, is running."""
        with contextlib.ExitStack() as hooks:
            for module in model.modules():
                if any(True for _ in module.children()) and not isinstance(module, torch.jit.ScriptModule):
                    hooks.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                    hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _enter(self, *_: object) -> None:  # methods, which copies of the model can have
        if not self._forwards:  # otherwise what is followed would grow with each batch
            self._followed = self._follow()
        self._forwards += 1

    def _follow(self) -> Followed:
        return Followed({name: get_running_buffers(layer) for name, layer in self._layers.items()})

    def _leave(self, *_: object) -> None:
        self._forwards -= 1

    @contextlib.contextmanager
    def allowed(self, name: str) -> Iterator[None]:
        """Within a layer's own call."""
        self._called.add(name)
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def look(self, x: Tensor, mean: Tensor | None, *_: object) -> None:
        """Called at every batch normalization."""
        if self._calls or mean is None or count_loans() > self._loans:  # as in a measurement within the block
            return
        if (name := self._followed.find_owner(mean)) is not None:
            raise ValueError(
                f"inference.applied: a functional batch norm goes by the buffers of layer {name!r}, not by the rule; "
                "call the layer itself"
            )

    def look_at_other(self, args: Any, result: Any, copies: bool) -> None:
        """Called at every other operation."""
        if self._calls or not self._forwards or count_loans() > self._loans:
            return
        if (computation := Computation.read(args, result)) is not None:
            self._used |= self._followed.look(computation, copies)

    def tell(self) -> None:
        """Warn of layers that something has computed with and nothing has called: folded into weights, say."""
        if names := [name for name in self._used if name not in self._called]:
            warnings.warn(
                f"inference.applied: {join_names(names)}: no forward has called it, and something has computed with "
                "its running buffers, which does not go by the rule; call the layer itself",
                RuntimeWarning,
                stacklevel=4,
            )


def _call_by_rule(
    rule: Rule,
    name: str,
    bypasses: _Bypasses,
    layer: BatchNorm,
    own: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A layer's `own` forward, with the rule's statistics lent to it as buffers."""
    x, source = get_layer_input(args, kwargs), get_running_buffers(layer)
    check_input(name, layer, x, "inference.applied")
    if layer.training:
        raise ValueError(
            f"inference.applied: layer {name!r} is in train mode, in which it normalizes with its batch's statistics "
            "whatever the rule; leave the model in eval mode inside of the block"
        )
    x, *lent = _prepare_call(rule, layer, x)
    if any(buffer.dtype == torch.float16 and buffer.isinf().any() for buffer in lent):
        raise ValueError(
            f"inference.applied: layer {name!r} gets a mean or variance beyond torch.float16, its buffers' type; keep "
            "the layer in float32"
        )
    args, kwargs = replace_input(args, kwargs, x)
    try:
        layer._buffers["running_mean"], layer._buffers["running_var"] = lent
        with bypasses.allowed(name):
            if getattr(own, "func", None) in TORCH_FORWARDS:
                return own(*args, **kwargs)
            run = _OwnForward(layer, x)
            with Normalizations(run.look):
                output = own(*args, **kwargs)
        run.check(name)
        return output
    finally:
        layer._buffers["running_mean"], layer._buffers["running_var"] = source


def _prepare_call(rule: Rule, layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer is to be given, and its running mean and variance meanwhile, so that it normalizes by the rule."""
    running_mean, running_var = get_running_buffers(layer)
    full = x if x.dtype in (torch.float32, torch.float64) else x.float()
    wide = full.flatten(2) if x.dim() > 2 else full[:, :, None]
    device = "cpu" if x.device.type == "mps" else x.device  # no float64 on MPS
    source = (buffer.to(device).double().view(1, -1, 1) for buffer in (running_mean, running_var))
    mean, var = rule.statistics(wide.to(device), *source)
    if len(mean) > 1 or _is_differentiated(mean):  # no gradient passes through buffers
        shape = (len(mean), -1) + (1,) * (x.dim() - 2)
        scale, center = ((1 + layer.eps) / (var + layer.eps)).sqrt(), mean.to(wide.dtype)
        rest = (mean - center).view(shape).to(wide)  # what float32 leaves out of a mean far above the deviation
        x = ((full - center.view(shape).to(wide) - rest) * scale.view(shape).to(wide)).to(x.dtype)
        mean, var = torch.zeros_like(running_mean), torch.ones_like(running_var)
    return x, mean.flatten().to(running_mean), var.flatten().to(running_var)


def _is_differentiated(value: Tensor) -> bool:
    """Whether it takes part in a derivative, backward or forward, or may in one of `torch.func`."""
    in_transform = torch._C._functorch.maybe_current_level() is not None  # such as vmap, where `requires_grad` hides
    return value.requires_grad or in_transform or unpack_dual(value).tangent is not None


class _OwnForward:
    """What torch normalizes while a layer's own forward runs on `x`."""

    def __init__(self, layer: BatchNorm, x: Tensor) -> None:
        self._given = strip_transforms(x).detach()
        self._identity, self._counts_writes = identify(self._given), not self._given.is_inference()
        self._before = None if self._counts_writes else Moments.of(self._given)
        self._normalized: list[Moments] = []  # where it is another tensor
        self._inner = [module for module in layer.modules() if isinstance(module, BatchNorm) and module is not layer]
        self._is_given = self._is_overwritten = self._is_dependent = False

    def look(self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, training: bool) -> None:
        """Called at every batch normalization."""
        inner = {get_running_buffers(m)[0].data_ptr() for m in self._inner if m.running_mean is not None}
        if not x.numel() or (mean is not None and mean.data_ptr() in inner):
            return
        if training:  # one row: an instance norm, which torch computes as the batch norm of one image
            self._is_dependent |= len(x) > 1
        elif self._counts_writes and identify(x) == self._identity:
            self._is_given = True
        elif self._counts_writes and identify(self._given) != self._identity:
            self._is_overwritten = True
        else:
            self._before = self._before or Moments.of(self._given)
            self._normalized.append(Moments.of(x))

    def check(self, name: str) -> None:
        """ValueError unless the input was normalized, in one piece or in several, and not by its own moments."""
        if self._is_dependent:
            raise ValueError(
                f"inference.applied: layer {name!r} normalizes with its batch's statistics in eval mode too, whatever "
                "the rule; use a layer that normalizes with its running statistics there"
            )
        if self._is_overwritten or not self._agrees():
            raise ValueError(
                f"inference.applied: layer {name!r} normalizes something else than its input, of which the statistics "
                "are; move what its own forward does to the input into a module before it"
            )
        if not self._is_given and not self._normalized:
            warnings.warn(
                f"inference.applied: layer {name!r} normalizes without torch's batch norm, so that nobody sees "
                "what; the statistics are those of its input",
                RuntimeWarning,
                stacklevel=2,
            )

    def _agrees(self) -> bool:
        if self._before is None or not self._normalized:
            return True
        return agree(
            self._before, functools.reduce(Moments.merge, self._normalized), allowed_rounding(self._given.dtype)
        )
