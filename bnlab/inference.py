"""Test-time statistics: a layer normalizes with statistics made from the batch that is being predicted.

with bnlab.inference.apply_statistics(model, TestBatch()): logits = model(images)
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.common.names import Named, list_named
from bnlab.model.arguments import require_count, require_number
from bnlab.model.borrow import Loan
from bnlab.model.layers import (
    BatchNorm,
    batch_norm_layers,
    get_bias,
    get_running_buffers,
    get_weight,
    join_names,
    overrides_forward,
    require_input,
)

__all__ = [
    "EvalNorm",
    "ExampleWeighing",
    "PseudoSamples",
    "TestBatch",
    "TestTimeStatistics",
    "apply_statistics",
    "list_test_time_statistics",
]

_CALLER = "inference.apply_statistics"


@dataclass(frozen=True)
class TestTimeStatistics(Named, ABC):
    """Statistics that a layer makes of its input and its source statistics. Subclasses are frozen dataclasses.

    `images_key` is what a sweep's names call the number of images that are predicted at once, which is no parameter.

    >>> x, mean, var = torch.tensor([[[1.0, 3.0]]]).double(), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> for kind in TestBatch(), PseudoSamples(1, between=True), ExampleWeighing(0.5), EvalNorm(2):
    ...     print(kind.name, *(round(value.item(), 6) for value in kind.statistics(x, mean, var)))
    test_batch 2.0 1.0
    pseudo_samples 1.0 2.0
    example_weighing 1.0 2.0
    eval_norm 1.0 2.0
    """

    __test__ = False  # its subclasses are no tests of pytest's
    images_key: ClassVar[str] = "batch"

    @abstractmethod
    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance (ddof 0) to normalize `x` [N, C, positions] with: float64 [1, C, 1] or [N, C, 1].

        `mean` and `var` [1, C, 1] are the layer's running buffers as they are.
        """


@dataclass(frozen=True)
class TestBatch(TestTimeStatistics):
    """Mean and variance of the test batch itself, as in training. Source: Nado et al. 2020 ("prediction-time BN").

    Assumes that the batch is a fair sample of what is to be predicted; predictions depend on their neighbours.

    >>> images, mean, var = torch.tensor([[[1.0]], [[5.0]]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [round(value.item(), 6) for value in TestBatch().statistics(images, mean, var)]
    [3.0, 4.0]
    """

    name: ClassVar[str] = "test_batch"
    images_key: ClassVar[str] = "n"

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (0, 2), mean, var, weight=1.0)


@dataclass(frozen=True)
class PseudoSamples(TestTimeStatistics):
    """Source counted as `n` further images beside the B of the batch: (n·source + B·test)/(n+B).

    Schneider et al. 2020 mix means and variances and leave out the variance between the two means; `between=True` adds
    it, p(1−p)Δμ² with p = n/(n+B), as the mixture's variance has it.

    >>> images, mean, var = torch.tensor([[[1.0]], [[5.0]]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [round(value.item(), 6) for value in PseudoSamples(2).statistics(images, mean, var)]  # half source, half batch
    [1.5, 2.5]
    """

    name: ClassVar[str] = "pseudo_samples"
    n: float = 16.0
    between: bool = False

    def __post_init__(self) -> None:
        require_number(self.n, lambda n: n >= 0, f"PseudoSamples: n={self.n!r}; it counts images and is 0 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        weight = len(x) / (self.n + len(x))
        return _mix(x, (0, 2), mean, var, weight, self.between)


@dataclass(frozen=True)
class ExampleWeighing(TestTimeStatistics):
    """Each example's own moments take part in its statistics: E[x] and E[x²] are (1−α)·source + α·example.

    α is `weight`. Predictions do not depend on the batch. Source: Summers & Dinneen 2020.

    >>> images, mean, var = torch.tensor([[[1.0]], [[5.0]]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> [value.flatten().tolist() for value in ExampleWeighing(0.5).statistics(images, mean, var)]  # one for each image
    [[0.5, 2.5], [0.75, 6.75]]
    """

    name: ClassVar[str] = "example_weighing"
    weight: float = 0.1

    def __post_init__(self) -> None:
        require_number(
            self.weight, lambda w: 0 <= w <= 1, f"ExampleWeighing: weight={self.weight!r}; it lies in [0, 1]"
        )

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (2,), mean, var, self.weight)


@dataclass(frozen=True)
class EvalNorm(TestTimeStatistics):
    """Example weighing with α = 1/B: on average the moments of a training batch of B images with this example in it.

    The variance is larger by (B−1)/B² of that of the images' means. Source: Singh & Shrivastava 2019, who fit weights.

    >>> images, mean, var = torch.tensor([[[1.0]], [[5.0]]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> EvalNorm(batch_size=2).statistics(images, mean, var)[0].flatten().tolist()  # half source, half image
    [0.5, 2.5]
    """

    name: ClassVar[str] = "eval_norm"
    batch_size: int = 32

    def __post_init__(self) -> None:
        require_count(self.batch_size, f"EvalNorm: batch_size={self.batch_size!r}; it is 1 or more")

    def statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(x, (2,), mean, var, 1.0 / self.batch_size)


def _mix(
    x: Tensor, dims: tuple[int, ...], mean: Tensor, var: Tensor, weight: float, between: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute statistics of (1−weight)·source + weight·x, with or without the variance `between` the two means."""
    n = x[0, 0].numel()
    if 0 in dims:
        n *= len(x)
    # Source statistics that are not finite, or far off, must not count where their weight is 0.
    if weight == 1:
        # Torch refuses this in training for the same reason.
        if n < 2:
            raise ValueError("inference: one value per channel has no variance; pass more images or count the source")
        return _measure(x, dims, x.mean(dims, keepdim=True), n)

    test_mean, test_var = _measure(x, dims, mean, n)
    rest = 1 - weight
    mixed_mean = rest * mean + weight * test_mean
    mixed_var = rest * var + weight * test_var
    if between:
        square = (test_mean - mean).square()
        mixed_var = mixed_var + square * weight * rest
    return mixed_mean, mixed_var


def _measure(x: Tensor, dims: tuple[int, ...], center: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of `n` values in each channel as E[x²] − E[x]², float64.

    x is read once, about a `center` that lies closer to the values than 0 does, such as the source's mean: nothing
    cancels.
    """
    # In the input's own type, the difference of two values that are close to each other is exact.
    near = center.to(x.dtype)
    deviation = x - near
    total = deviation.sum(dims, keepdim=True, dtype=torch.float64)
    # `vector_norm` adds up squares in float64 without a tensor of all squares.
    norm = torch.linalg.vector_norm(deviation, dim=dims, keepdim=True, dtype=torch.float64)

    shift = total / n
    square = norm.square() / n
    mean = near + shift
    var = square - shift.square()
    # Where nothing varies, rounding may give a little less than 0.
    return mean, var.clamp(min=0)


def list_test_time_statistics() -> dict[str, type[TestTimeStatistics]]:
    """List every kind of test-time statistics by its name.

    >>> sorted(list_test_time_statistics())
    ['eval_norm', 'example_weighing', 'pseudo_samples', 'test_batch']
    """
    return list_named(TestTimeStatistics)


def apply_statistics(model: nn.Module, kind: TestTimeStatistics) -> contextlib.AbstractContextManager[nn.Module]:
    """Let batch norms normalize with this kind of statistics: inside the block `model` is in eval mode.

    After the block it is as it was before. Buffers that are written in the block are the source from then on. Copies
    made in the block go on with these statistics.

    Raises:
        TypeError: `model` is not a module or `kind` not a `TestTimeStatistics`.
        ValueError: no batch-norm layer, or one whose class has a forward of its own; in the block, a layer in train
            mode, or one value per channel and no statistics but its own.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0))
    >>> images = torch.tensor([[1.0], [5.0]])
    >>> with apply_statistics(model, TestBatch()):
    ...     model(images).flatten().tolist()
    [-1.0, 1.0]
    """
    if not isinstance(kind, TestTimeStatistics):
        raise TypeError(f"{_CALLER}: kind is a {type(kind).__name__}; pass e.g. TestBatch()")
    layers = batch_norm_layers(model, caller=_CALLER)
    # A forward that was set on a single layer is replaced for the block. One that a class defines may normalize
    # something else.
    overriding = [name for name, layer in layers.items() if overrides_forward(layer)]
    if overriding:
        names = join_names(overriding)
        raise ValueError(f"{_CALLER}: {names}: with a forward of their own, which takes no other statistics")
    return _Applied(model, kind, layers)


class _Applied(Loan):
    def __init__(self, model: nn.Module, kind: TestTimeStatistics, layers: Mapping[str, BatchNorm]) -> None:
        super().__init__(model, False, is_counted=True)
        self.lent = model
        self._kind = kind
        self._layers = layers

    def change(self) -> None:
        super().change()
        for name, layer in self._layers.items():
            # A partial is copied and pickled together with the model; a closure would still point at the original
            # layer.
            layer.forward = functools.partial(_normalize, self._kind, name, layer)  # type: ignore[method-assign]


def _normalize(kind: TestTimeStatistics, name: str, layer: BatchNorm, input: Tensor) -> Tensor:
    """Normalize the input: a layer's forward in the block."""
    require_input(name, layer, input, _CALLER)
    if input.numel() == 0:
        raise ValueError(f"{_CALLER}: a batch of no images reached layer {name!r}; leave empty batches out")
    if layer.training:
        raise ValueError(f"{_CALLER}: layer {name!r} is in train mode; leave the model in eval mode")

    # Half precision has too few digits to compute moments; the output gets the input's type again.
    x = input
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    mean, var = _compute_statistics(kind, layer, x)
    weight = _cast(get_weight(layer), x)
    bias = _cast(get_bias(layer), x)
    # Torch's own routine takes one set of statistics for the whole batch, and treats them as constants.
    if len(mean) == 1 and not torch.is_grad_enabled():
        mean = mean.flatten().to(x)
        var = var.flatten().to(x)
        output = F.batch_norm(x, mean, var, weight, bias, eps=layer.eps)
        return output.to(input.dtype)

    # Each example has statistics of its own, or gradients may pass through them.
    output = _standardize(x, mean, var, layer.eps)
    across = _shape_like(x, 1)
    if weight is not None:
        output = output * weight.view(across)
    if bias is not None:
        output = output + bias.view(across)
    return output.to(input.dtype)


def _standardize(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Compute (x − mean)/√(var + eps) with statistics [1, C, 1] or [N, C, 1]."""
    shape = _shape_like(x, len(mean))
    center = mean.to(x.dtype)
    rest = mean - center  # the part that float32 leaves out of a mean far above the deviation
    scale = (var + eps).rsqrt()

    center = center.to(x).view(shape)
    rest = rest.to(x).view(shape)
    scale = scale.to(x).view(shape)
    return (x - center - rest) * scale


def _shape_like(x: Tensor, examples: int) -> tuple[int, ...]:
    """Return the shape in which values of channels, for so many examples, are spread over positions as those of x."""
    positions = [1] * (x.dim() - 2)
    return (examples, -1, *positions)


def _compute_statistics(kind: TestTimeStatistics, layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and variance to normalize with, float64 [1, C, 1] or [N, C, 1]."""
    device = x.device
    if device.type == "mps":
        device = torch.device("cpu")  # MPS has no float64

    values = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    running_mean, running_var = get_running_buffers(layer)
    mean = running_mean.to(device).double()
    var = running_var.to(device).double()
    across = (1, -1, 1)
    return kind.statistics(values.to(device), mean.view(across), var.view(across))


def _cast(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like.dtype)
