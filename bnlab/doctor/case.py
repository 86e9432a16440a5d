"""A case: all that is known of a model. Rules read it, and change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from bnlab.doctor.history import History
from bnlab.doctor.observing import LayerView, View
from bnlab.doctor.scores import Scores
from bnlab.layers import BatchNorm
from bnlab.nn.self_tuned import SelfTuned
from bnlab.recording.trace import MomentTrace
from bnlab.statistics import Statistics, read_buffers


@dataclass(frozen=True)
class Evidence:
    """What was measured on the data.

    Attributes:
        exact: exact statistics of the images, each layer under its population's.
        view: what the layers saw batch by batch.
        scores: of the images, under running, exact and batch statistics; None without labels and `evaluate`.
        costs: layer → what its running statistics alone cost on a sample of the images, of the same unit as the scores.
        images: number of images.
        flipped: moments of the first layer in a sample whose image channels are in reverse order, and as they are; None
            where images do not have three channels.
        dropped: pooled variance [C] of layers with dropout on, over that with dropout off; of layers behind dropout.
        plain: exact statistics without `inputs=`, where that was given.
        warnings: what measuring the exact statistics warned of.
    """

    exact: Statistics
    view: View
    scores: Scores | None
    costs: Mapping[str, float]
    images: int
    flipped: tuple[Statistics, Statistics] | None = None
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    plain: Statistics | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A model and what is known of it; what was not given or not measured is None.

    Attributes:
        model: as it is.
        layers: batch norms with running statistics, by name, in order of depth (without data as the model lists them).
        without: names of batch norms that keep none.
        uncovered: names of other normalizations that keep running statistics, which bnlab does not read.
        buffers: layer → float64 [2, C], running mean and variance as they are; may be NaN.
        evidence: measured on the data.
        training: exact statistics of the training batches.
        training_view: what the layers saw of the training batches, batch by batch.
        history: changes since an earlier checkpoint.
        trace: a recording of the training.
        ranks: running statistics of all processes.
        expected: the mean score that the model should reach.
    """

    model: nn.Module
    layers: Mapping[str, BatchNorm]
    without: tuple[str, ...]
    uncovered: tuple[str, ...]
    buffers: Mapping[str, Tensor]
    evidence: Evidence | None = None
    training: Statistics | None = None
    training_view: View | None = None
    history: History | None = None
    trace: MomentTrace | None = None
    ranks: Sequence[Mapping[str, Tensor]] | None = None
    expected: float | None = None

    @property
    def known(self) -> frozenset[str]:
        """What rules may need and is there, keys of `bnlab.doctor.rule.NEEDS`."""
        given = {
            "data": self.evidence,
            "training": self.training,
            "before": self.history,
            "trace": self.trace,
            "ranks": self.ranks,
            "inputs": None if self.evidence is None else self.evidence.plain,
        }
        known = {need for need, value in given.items() if value is not None}
        if known & {"before", "trace"}:
            known.add("history")
        return frozenset(known)

    def select(self, shows: Callable[[str], bool]) -> list[str]:
        """Select the layers for which a condition holds."""
        return [name for name in self.layers if shows(name)]

    @property
    def seen(self) -> list[str]:
        """Names of the layers that the data has reached."""
        return [] if self.evidence is None else [name for name in self.layers if name in self.evidence.exact]

    def count_updates(self, name: str) -> int | None:
        """Count the batches that a layer has averaged, as its `num_batches_tracked` says; None without one."""
        count = self.layers[name].num_batches_tracked
        return None if count is None else int(count)

    def start_weight(self, name: str) -> float | None:
        """Weight (1−m)^t that mean 0 and variance 1, where averages start, still have by a layer's count and momentum.

        None where no updates are counted, and of self-tuned layers, which choose their momentum.
        """
        layer = self.layers[name]
        updates = self.count_updates(name)
        if not updates or isinstance(layer, SelfTuned):
            return None
        return 0.0 if layer.momentum is None else (1 - layer.momentum) ** updates

    def is_initial(self, name: str) -> bool:
        """Return whether more than 99% of a layer's channels hold mean 0 and variance 1, where averages start."""
        mean, var = self.buffers[name]
        return float(((mean == 0) & (var == 1)).double().mean()) > 0.99

    def is_frozen(self, name: str) -> bool:
        """Return whether a layer's weight takes no gradient while other parameters of the model do."""
        weight = self.layers[name].weight
        return isinstance(weight, nn.Parameter) and not weight.requires_grad and self.is_trainable

    @cached_property
    def is_trainable(self) -> bool:
        """Whether any parameter of the model takes a gradient."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    # With data

    def mean_gaps(self, name: str) -> Tensor:
        """Distance of the running mean from the exact one, in σ of the exact: z [C], signed."""
        moments = self._exact[name]
        mean, _ = self.buffers[name]
        return (mean - moments.mean) / (moments.var + self._exact.eps[name]).sqrt()

    def log_ratios(self, name: str) -> Tensor:
        """Logarithm of the running variance over the exact one, eps added to both: ln ρ [C]."""
        moments = self._exact[name]
        _, var = self.buffers[name]
        eps = self._exact.eps[name]
        return ((var + eps) / (moments.var + eps)).log()

    def find_gap(self, name: str) -> tuple[float, float]:
        """Root mean square over channels of z and of ln ρ."""
        gaps = self.mean_gaps(name)
        ratios = self.log_ratios(name)
        return float(gaps.square().mean().sqrt()), float(ratios.square().mean().sqrt())

    def is_off(self, name: str) -> bool:
        """Return whether running and exact statistics differ by more than z = .1 or |ln ρ| = .1, or by NaN."""
        mean_gap, var_gap = self.find_gap(name)
        return not (mean_gap <= 0.1 and var_gap <= 0.1)

    def noise_ratio(self, name: str) -> float:
        """Median over channels of |T|: the mean's gap over the noise of an average of independent batches.

        T = (running mean − exact mean) / sqrt(b·m/(2−m)), with b the variance between batch means at the frozen
        weights. The training batches tell b and the exact mean where they were given; other batches should be as large
        as those of training. NaN with fewer than three batches.
        """
        reference = self._exact if self.training is None else self.training
        view = self._view(name)
        if view is None or name not in reference or view.batch_means.count < 3:
            return math.nan
        share = self._noise_share(name)
        noise = (view.batch_means.var * share).sqrt()
        gap = (self.buffers[name][0] - reference[name].mean).abs()
        ratios = gap / noise.clamp(min=torch.finfo(torch.float64).tiny)
        return float(ratios.median())

    def _view(self, name: str) -> LayerView | None:
        """The training batches' view of a layer where there is one, else that of the data."""
        if self.training_view is not None:
            return self.training_view.layers.get(name)
        return None if self.evidence is None else self.evidence.view.layers.get(name)

    def _noise_share(self, name: str) -> float:
        """Variance of a running mean over the variance of a batch's mean, once the start is forgotten."""
        momentum = self.layers[name].momentum
        if momentum is None:
            return 1 / max(1, self.count_updates(name) or 1)
        return momentum / (2 - momentum)

    @property
    def _exact(self) -> Statistics:
        if self.evidence is None:
            raise ValueError("case: there is no data; a rule that asks for it needs 'data'")
        return self.evidence.exact


def read_all_buffers(layers: Mapping[str, BatchNorm]) -> dict[str, Tensor]:
    """Read the running mean and variance of layers as they are, float64 [2, C]."""
    return {name: read_buffers(layer).cpu().double() for name, layer in layers.items()}
