"""Inference-time statistics: what a layer normalizes with is made from the batch that is being predicted.

    with bnlab.inference.applied(model, TestBatch()): logits = model(images)

A rule mixes the layer's own (source) statistics with those of its input, anew in every call.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnlab.layers import BatchNorm, batch_norm_layers, borrowed


@dataclass(frozen=True)
class Rule(ABC):
    """Statistics from a layer's input and its source statistics. Subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalize `x` [N, C, positions] with: float64, [1, C, 1], or [N, C, 1] for each example.

        `mean` and `var` [1, C, 1] are the source's (the layer's running buffers); variances have ddof 0.
        """

    @property
    def label(self) -> str:
        """Canonical name that tells every parameter, e.g. `pseudo_samples(n=16,between=False)`."""
        own = ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return self.name + (f"({own})" if own else "")


@dataclass(frozen=True)
class TestBatch(Rule):
    """The test batch's own mean and variance, as in training. Source: Nado et al. 2020 ("prediction-time BN").

    Assumes that the batch is a fair sample of what is to be predicted; predictions depend on their neighbours.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)   # one image, one channel, two positions
    >>> [v.item() for v in TestBatch().statistics(x, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))]
    [2.0, 1.0]
    """

    __test__ = False  # not a test of pytest's
    name: ClassVar[str] = "test_batch"

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        var_x, mean_x = torch.var_mean(x, dim=(0, 2), correction=0, keepdim=True)
        return mean_x, var_x


@dataclass(frozen=True)
class PseudoSamples(Rule):
    """The source counted as `n` further images beside the B of the batch: (n·source + B·test)/(n+B).

    Source: Schneider et al. 2020, who mix means and variances and leave out the variance between the two means;
    `between=True` adds it, p(1−p)Δμ² with p = n/(n+B), as the mixture's variance has it.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [v.item() for v in PseudoSamples(n=1).statistics(x, zero, one)]
    [1.0, 1.0]
    >>> [v.item() for v in PseudoSamples(n=1, between=True).statistics(x, zero, one)]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "pseudo_samples"
    n: float = 16.0
    between: bool = False

    def __post_init__(self) -> None:
        if not self.n >= 0:
            raise ValueError(f"PseudoSamples: n={self.n!r}; it counts images and is 0 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        mean_x, var_x = TestBatch().statistics(x, mean, var)
        p = self.n / (self.n + len(x))
        mixed = p * var + (1 - p) * var_x
        if self.between:
            mixed = mixed + p * (1 - p) * (mean_x - mean).square()
        return p * mean + (1 - p) * mean_x, mixed


@dataclass(frozen=True)
class ExampleWeighing(Rule):
    """Each example's own moments take part in its statistics: E[x] and E[x²] are (1−α)·source + α·example.

    α is `weight`. Predictions do not depend on the batch. Source: Summers & Dinneen 2020.

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> [v.item() for v in ExampleWeighing(weight=0.5).statistics(x, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "example_weighing"
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"{type(self).__name__}: weight={self.weight!r}; it lies in [0, 1]")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _weighed(x, mean, var, self.weight)


@dataclass(frozen=True)
class EvalNorm(Rule):
    """What a training batch of B images would have held on average with this example in it: α = 1/B.

    The example's moments with weight 1/B, the source for the others (Singh & Shrivastava 2019, with their fitted
    weight replaced by 1/B).

    >>> x = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    >>> [v.item() for v in EvalNorm(batch_size=2).statistics(x, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))]
    [1.0, 2.0]
    """

    name: ClassVar[str] = "eval_norm"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"EvalNorm: batch_size={self.batch_size!r}; it is 1 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _weighed(x, mean, var, 1.0 / self.batch_size)


def _weighed(x: Tensor, mean: Tensor, var: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The mixture's mean and variance; its variance written with Δμ², which is E[x²] − E[x]² without cancellation."""
    var_x, mean_x = torch.var_mean(x, dim=2, correction=0, keepdim=True)
    mixed = (1 - weight) * var + weight * var_x + weight * (1 - weight) * (mean_x - mean).square()
    return (1 - weight) * mean + weight * mean_x, mixed


@contextlib.contextmanager
def applied(model: nn.Module, rule: Rule) -> Iterator[nn.Module]:
    """Inside the block `model` is in eval mode and normalizes by `rule`; then it is as it was before.

    Every layer's own forward still runs, on an input that is shifted and scaled so that normalizing it with the
    source statistics gives what normalizing the input with the rule's would.

    Raises:
        TypeError: `model` is not a module or `rule` not a `Rule`. ValueError: no batch-norm layer.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"inference.applied: rule is a {type(rule).__name__}; pass e.g. TestBatch()")
    layers = batch_norm_layers(model, caller="inference.applied")
    with borrowed(model):
        model.eval()
        for layer in layers.values():
            layer.register_forward_pre_hook(_renormalizing(rule), with_kwargs=True)
        yield model


def _renormalizing(rule: Rule) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError("inference.applied: a layer lost its running statistics inside the block")
        wide = x.double().flatten(2) if x.dim() > 2 else x.double()[:, :, None]
        source = [b.double().view(1, -1, 1) for b in (layer.running_mean, layer.running_var)]
        mean, var = rule.statistics(wide, *source)
        scale = ((source[1] + layer.eps) / (var + layer.eps)).sqrt()
        shifted = torch.addcmul(source[0], wide - mean, scale)
        return (shifted.view(x.shape).to(x.dtype), *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    return hook
