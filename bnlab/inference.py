"""Inference-time statistics: what a layer normalizes with is made from the batch that is being predicted.

with bnlab.inference.apply_rule(model, TestBatch()): logits = model(images)
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.arguments import check_count, check_number
from bnlab.borrow import borrowed
from bnlab.estimators.names import find_named_subclasses, read_parameters, split_label
from bnlab.layers import TORCH_FORWARDS, BatchNorm, batch_norm_layers, check_input, get_running_buffers, join_names


@dataclass(frozen=True)
class Rule(ABC):
    """Statistics from a layer's input and its source statistics. Subclasses are frozen dataclasses.

    >>> x, mean, var = torch.tensor([[[1.0, 3.0]]]).double(), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> for rule in TestBatch(), PseudoSamples(1, between=True), ExampleWeighing(0.5), EvalNorm(2):
    ...     print(rule.name, *(round(value.item(), 6) for value in rule.statistics(x, mean, var)))
    test_batch 2.0 1.0
    pseudo_samples 1.0 2.0
    example_weighing 1.0 2.0
    eval_norm 1.0 2.0
    """

    name: ClassVar[str]

    @abstractmethod
    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (ddof 0) to normalize `x` [N, C, positions] with: float64 [1, C, 1], or [N, C, 1].

        `mean` and `var` [1, C, 1] are the layer's running buffers as they are.
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
    """

    __test__ = False  # not a test of pytest's
    name: ClassVar[str] = "test_batch"

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (0, 2), mean, var, weight=1.0)


@dataclass(frozen=True)
class PseudoSamples(Rule):
    """The source counted as `n` further images beside the B of the batch: (n·source + B·test)/(n+B).

    Schneider et al. 2020 mix means and variances and leave out the variance between the two means; `between=True` adds
    it, p(1−p)Δμ² with p = n/(n+B), as the mixture's variance has it.
    """

    name: ClassVar[str] = "pseudo_samples"
    n: float = 16.0
    between: bool = False

    def __post_init__(self) -> None:
        check_number(self.n, lambda n: n >= 0, f"PseudoSamples: n={self.n!r}; it counts images and is 0 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (0, 2), mean, var, len(x) / (self.n + len(x)), self.between)


@dataclass(frozen=True)
class ExampleWeighing(Rule):
    """Each example's own moments take part in its statistics: E[x] and E[x²] are (1−α)·source + α·example.

    α is `weight`. Predictions do not depend on the batch. Source: Summers & Dinneen 2020.
    """

    name: ClassVar[str] = "example_weighing"
    weight: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.weight, lambda w: 0 <= w <= 1, f"ExampleWeighing: weight={self.weight!r}; it lies in [0, 1]")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (2,), mean, var, self.weight)


@dataclass(frozen=True)
class EvalNorm(Rule):
    """Example weighing with α = 1/B: what a training batch of B images held on average with this example in it.

    The variance is larger by (B−1)/B² of that of the images' means. Source: Singh & Shrivastava 2019, who fit weights.
    """

    name: ClassVar[str] = "eval_norm"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count(self.batch_size, f"EvalNorm: batch_size={self.batch_size!r}; it is 1 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (2,), mean, var, 1.0 / self.batch_size)


def _mix(
    x: Tensor, dims: tuple[int, ...], mean: Tensor, var: Tensor, weight: float, between: bool = True
) -> tuple[Tensor, Tensor]:
    """Statistics of (1−weight)·source + weight·x; `between` the means: E[x²] − E[x]², without cancellation.

    x is read once, about the source's mean, which lies closer to the values than 0 does.
    """
    n = x[0, 0].numel() * (len(x) if 0 in dims else 1)
    if weight == 1 and n < 2:
        raise ValueError("inference: one value per channel has no variance; pass more images or count the source")
    near = mean.to(x.dtype)
    deviation = x - near
    shift = deviation.sum(dims, keepdim=True, dtype=torch.float64) / n
    norm = torch.linalg.vector_norm(deviation, dim=dims, keepdim=True, dtype=torch.float64)
    own_mean, own_var = near + shift, (norm.square() / n - shift.square()).clamp(min=0)
    if weight == 1:
        return own_mean, own_var
    spread = (own_mean - mean).square() * weight * (1 - weight) if between else 0.0
    return (1 - weight) * mean + weight * own_mean, (1 - weight) * var + weight * own_var + spread


def list_rules() -> dict[str, type[Rule]]:
    """Every rule by its name."""
    return find_named_subclasses(Rule)


def parse(label: str) -> Rule:
    """The rule that a name like `test_batch` or `pseudo_samples(n=16,between=True)` stands for; ValueError if none."""
    name, text = split_label(label)
    rules = list_rules()
    if name not in rules:
        raise ValueError(f"estimator={label!r}: unknown; at inference time there are {', '.join(rules)}")
    return rules[name](**read_parameters(label, name, text, rules[name]))


@contextlib.contextmanager
def apply_rule(model: nn.Module, rule: Rule) -> Iterator[nn.Module]:
    """Inside the block `model` is in eval mode and its batch norms normalize by `rule`; then it is as it was before.

    Buffers that are written in the block are the source from then on. Copies made in the block keep the rule.

    Raises:
        TypeError: `model` is not a module or `rule` not a `Rule`.
        ValueError: no batch-norm layer, or one whose class has a forward of its own; in the block, a layer in train
            mode, or one value per channel and no statistics but its own.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"inference.apply_rule: rule is a {type(rule).__name__}; pass e.g. TestBatch()")
    layers = batch_norm_layers(model, caller="inference.apply_rule")
    odd = [name for name, layer in layers.items() if type(layer).forward not in TORCH_FORWARDS]
    if odd := [name for name in odd if not type(layers[name]).__module__.startswith("bnlab.")]:  # ours are as torch's
        raise ValueError(
            f"inference.apply_rule: {join_names(odd)}: with a forward of their own, no rule holds for them"
        )
    # Compiled code would not see the forwards.
    with borrowed(model), torch.compiler.set_stance("force_eager"), contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            given = vars(layer).get("forward")
            if given is None:
                stack.callback(delattr, layer, "forward")
            else:
                stack.callback(setattr, layer, "forward", given)
            layer.forward = functools.partial(_normalize, rule, name, layer)  # type: ignore[method-assign]
        yield model


def _normalize(rule: Rule, name: str, layer: BatchNorm, input: Tensor) -> Tensor:
    """A layer's forward in the block."""
    check_input(name, layer, input, "inference.apply_rule")
    if input.numel() == 0:
        raise ValueError(f"inference.apply_rule: a batch of no images reached layer {name!r}; leave empty batches out")
    if layer.training:
        raise ValueError(f"inference.apply_rule: layer {name!r} is in train mode; leave the model in eval mode")

    x = input if input.dtype in (torch.float32, torch.float64) else input.float()
    mean, var = _compute_statistics(rule, layer, x)
    weight = _cast(layer.weight, x)
    bias = _cast(layer.bias, x)
    if len(mean) == 1 and not torch.is_grad_enabled():
        output = F.batch_norm(x, mean.flatten().to(x), var.flatten().to(x), weight, bias, eps=layer.eps)
        return output.to(input.dtype)

    # Each example has statistics of its own, or gradients may pass through them.
    shape = (len(mean), -1, *[1] * (x.dim() - 2))
    center = mean.to(x.dtype)
    rest = mean - center  # what float32 leaves out of a mean far above the deviation
    scale = (var + layer.eps).rsqrt()
    output = (x - center.to(x).view(shape) - rest.to(x).view(shape)) * scale.to(x).view(shape)
    across = (1, -1, *[1] * (x.dim() - 2))
    if weight is not None:
        output = output * weight.view(across)
    if bias is not None:
        output = output + bias.view(across)
    return output.to(input.dtype)


def _compute_statistics(rule: Rule, layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance to normalize with, float64 [1, C, 1] or [N, C, 1]."""
    device = "cpu" if x.device.type == "mps" else x.device  # no float64 on MPS
    mean, var = (buffer.to(device).double().view(1, -1, 1) for buffer in get_running_buffers(layer))
    values = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    return rule.statistics(values.to(device), mean, var)


def _cast(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like.dtype)
