"""A case: all that is known of a model. It is what causes read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.doctor.evidence.formula import Deviation
from bnlab.doctor.evidence.history import Changes
from bnlab.doctor.evidence.observing import LayerView, View
from bnlab.doctor.evidence.scores import Decisions, Scores
from bnlab.doctor.thresholds import CHANCE, FARTHEST, FEWEST_BATCHES, FITS, NEARLY_ALL, NOISY, START_REMEMBERED
from bnlab.exact.task import Task
from bnlab.model.layers import (
    AveragesByItself,
    BatchNorm,
    get_batch_count,
    get_bias,
    get_momentum,
    get_weight,
)
from bnlab.model.reading import Pooled
from bnlab.recording.trace import MomentTrace
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics, read_buffers


@dataclass(frozen=True)
class Case:
    """A model and what is known of it; what was not given or not measured is None, or empty.

    Attributes:
        model: as it is.
        layers: batch norms with running statistics, by name, in order of depth (without data as the model lists them).
        without: names of batch norms that keep none.
        uncovered: names of other normalizations that keep running statistics, which bnlab does not measure.
        buffers: layer → float64 [2, C], running mean and variance as they are; may be NaN.
        training: exact statistics of the training batches.
        training_view: what the layers saw of the training batches, batch by batch.
        history: changes since an earlier checkpoint.
        trace: a recording of the training.
        ranks: running statistics of all processes.
        expected: the mean score that the model should reach.
        training_score: mean score of the training batches by the model as it is, in eval mode, where it is a share.
        training_sizes: images in the last training batch of an epoch, and in a full one; None where that is not known.
        stored: batch norms that cannot be measured, as they are stored; they are the layers where there are no others.
        eps_before: layer → eps of the module that was given as an earlier checkpoint, where it is another one.

    Measured on the images:
        statistics: exact statistics; causes read them as `exact`.
        images: number of images.
        view: what the layers saw of them batch by batch.
        scores: of the images, under running, exact and batch statistics; None without labels and `evaluate`.
        decisions: how predictions differ, where there are no scores; None where outputs name no classes.
        dropped: pooled variance [C] of layers with dropout on, over that with dropout off; empty where there is none.
        plain: exact statistics without `inputs=`, where that was given.
        twice: how predictions of a few images differ between two runs of a batch, in units of the outputs' spread; NaN
            where outputs cannot be compared, or change together with buffers.
        alone: the same between images alone and inside of a batch; NaN where images cannot be run alone too.
        evaluated: moments of two groups of the calls of `evaluate`, by layer, see `CallLog.group`; empty without it.
        by_batch: how predictions of a few images differ from those of the same images in a larger batch, batch norms
            being in the mode in which the caller left them; NaN where none is in train mode.
        unread: layer → those of mean, variance, weight and bias that its forward in eval mode does not read.
        deviations: layer with a forward of its own → how this differs from the formula in eval mode.
        fills: zeros, ones or noise, in words → what layers would average of them, [2, C] by layer; empty where all
            averages fit.
        warnings: what measuring the exact statistics warned of.
        misfit: why labels could not be compared with the outputs; None where they could, or there are none.

    In `Cause.propose`, the fold, which is half of the images:
        task: how the model is run; its batches are those of the fold.
        fold_statistics: exact statistics of the fold; causes read them as `fold`.
    """

    model: nn.Module
    layers: Mapping[str, BatchNorm]
    without: tuple[str, ...]
    uncovered: tuple[str, ...]
    buffers: Mapping[str, Tensor]
    training: Statistics | None = None
    training_view: View | None = None
    history: Changes | None = None
    trace: MomentTrace | None = None
    ranks: Sequence[Mapping[str, Tensor]] | None = None
    expected: float | None = None
    training_score: float | None = None
    training_sizes: tuple[int, int] | None = None
    stored: Mapping[str, BatchNorm] = field(default_factory=dict)
    eps_before: Mapping[str, float] = field(default_factory=dict)
    statistics: Statistics | None = None
    images: int = 0
    view: View = field(default_factory=View)
    scores: Scores | None = None
    decisions: Decisions | None = None
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    plain: Statistics | None = None
    twice: float = math.nan
    alone: float = math.nan
    evaluated: Mapping[str, Sequence[Moments]] = field(default_factory=dict)
    by_batch: float = math.nan
    unread: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    fills: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    misfit: str | None = None
    task: Task | None = None
    fold_statistics: Statistics | None = None

    def list_known(self) -> frozenset[str]:
        """List what causes may need and is there, keys of `bnlab.doctor.cause.NEEDS`."""
        given = {
            "data": self.statistics,
            "training": self.training,
            "before": self.history,
            "trace": self.trace,
            "ranks": self.ranks,
            "inputs": self.plain,
            "sizes": self.training_sizes,
        }
        known = {need for need, value in given.items() if value is not None}
        # Who has given training batches is not asked for them again, even where their sizes are not known.
        if "training" in known:
            known.add("sizes")
        # Either of the two is enough.
        if known & {"data", "before"}:
            known.add("changes")
        return frozenset(known)

    @property
    def has_data(self) -> bool:
        """Whether images were measured."""
        return self.statistics is not None

    @property
    def is_measurable(self) -> bool:
        """Whether what layers normalize can be measured."""
        return not any(name in self.stored for name in self.layers)

    def select(self, shows: Callable[[str], bool]) -> list[str]:
        """Select the layers for which a condition holds."""
        return [name for name in self.layers if shows(name)]

    @property
    def seen(self) -> list[str]:
        """Names of the layers that the data has reached."""
        return [name for name in self.layers if name in (self.statistics or ())]

    def count_updates(self, name: str) -> int | None:
        """Count the batches that a layer has averaged, as its `num_batches_tracked` says; None without one."""
        count = get_batch_count(self.layers[name])
        return None if count is None else int(count)

    def start_weight(self, name: str) -> float | None:
        """Weight (1−m)^t that mean 0 and variance 1, where averages start, still have by a layer's count and momentum.

        None where no updates are counted, of self-tuned layers, which choose their momentum, and where it is 0, as
        averages then never leave the place where they were put.
        """
        layer = self.layers[name]
        updates = self.count_updates(name)
        momentum = get_momentum(layer)
        if not updates or momentum == 0 or isinstance(layer, AveragesByItself):
            return None
        if momentum is None:  # the mean of all batches, the first of which replaces the start
            return 0.0
        return (1 - momentum) ** updates

    def is_initial(self, name: str) -> bool:
        """Return whether more than 99% of a layer's channels hold mean 0 and variance 1, where averages start."""
        mean, var = self.buffers[name]
        return float(((mean == 0) & (var == 1)).double().mean()) > NEARLY_ALL

    def has_fixed_weight(self, name: str) -> bool:
        """Return whether a layer's weight takes no gradient while other parameters of the model do."""
        weight = get_weight(self.layers[name])
        # In a model that takes no gradients at all, as one that only predicts, such a weight says nothing.
        is_trainable = any(parameter.requires_grad for parameter in self.model.parameters())
        return isinstance(weight, nn.Parameter) and not weight.requires_grad and is_trainable

    @cached_property
    def is_broken(self) -> bool:
        """Whether a layer's averages are not finite, or a variance negative."""
        return any(has_bad_values(buffers) for buffers in self.buffers.values())

    @cached_property
    def is_as_constructed(self) -> bool:
        """Whether no layer has counted updates, and all hold the averages, weights and biases of a new network."""
        return bool(self.layers) and all(self._is_new(name) for name in self.layers)

    def _is_new(self, name: str) -> bool:
        layer = self.layers[name]
        if self.count_updates(name) or not self.is_initial(name):
            return False
        return get_weight(layer) is None or self._has_first_weights(name)

    @cached_property
    def is_unloaded(self) -> bool:
        """Whether updates were counted in all layers, and yet their weights and biases are as they were constructed.

        All weights are 1 then, or all are 0, and biases 0.

        Layers without weights, or whose weights take no gradient while others do, say nothing.
        """
        with_weight = [name for name, layer in self.layers.items() if get_weight(layer) is not None]
        asked = [name for name in with_weight if not self.has_fixed_weight(name)]
        return bool(asked) and all(self._has_first_weights(name) and self.count_updates(name) for name in asked)

    def _has_first_weights(self, name: str) -> bool:
        layer = self.layers[name]
        weight = get_weight(layer)
        bias = get_bias(layer)
        if weight is None or (bias is not None and bool(bias.any())):
            return False
        # All are 0 at the end of a residual branch that is to begin as the identity.
        return bool((weight == 1).all()) or bool((weight == 0).all())

    # With data

    def mean_gaps(self, name: str, reference: Statistics | None = None) -> Tensor:
        """Distance of the running mean from the exact one, in σ of the exact: z [C], signed.

        Args:
            name: of the layer.
            reference: statistics in the place of the exact ones of the data.
        """
        exact = self.exact if reference is None else reference
        mean, _ = self.buffers[name]
        # With eps, as in the layer itself: without, a dead channel of variance 0 would be infinitely far off.
        return (mean - exact[name].mean) / (exact[name].var + exact.eps[name]).sqrt()

    def log_ratios(self, name: str, reference: Statistics | None = None) -> Tensor:
        """Logarithm of the running variance over the exact one, eps added to both: ln ρ [C]; see `mean_gaps`."""
        exact = self.exact if reference is None else reference
        _, var = self.buffers[name]
        eps = exact.eps[name]
        return ((var + eps) / (exact[name].var + eps)).log()

    def measure_gap(self, name: str, reference: Statistics | None = None) -> tuple[float, float]:
        """Root mean square over channels of z and of ln ρ; see `mean_gaps`."""
        gaps = self.mean_gaps(name, reference)
        ratios = self.log_ratios(name, reference)
        return float(gaps.square().mean().sqrt()), float(ratios.square().mean().sqrt())

    def measure_distance(self, name: str, reference: Statistics) -> float:
        """Measure how far a layer's averages are off, see the function `measure_distance`."""
        mean, var = self.buffers[name]
        return float(measure_distance(mean, var, reference[name], reference.eps[name]))

    def clearly_differs(self, name: str) -> bool:
        """Return whether averages differ from exact ones by more than .03, and than the noise of either explains."""
        gap, most = self.measure_fit(name)
        # A gap of NaN differs, too; `gap > most` would be false.
        return not gap <= most

    def measure_fit(self, name: str) -> tuple[float, float]:
        """Measure how far averages are off, in σ, and how far they may be without clearly differing."""
        gap = self.measure_distance(name, self.exact)
        # The larger, not the sum: without training batches the expected gap contains the exact mean's noise already.
        chance = max(self.estimate_expected_gap(name), self.estimate_sampling_error(name))
        return gap, max(FITS, CHANCE * chance)

    def explain(self, predicted: Mapping[str, Tensor], layers: Sequence[str], *, with_noise: bool = False) -> float:
        """Return which share of the layers' gap is explained by averages [2, C] that are predicted: 1 all, 0 nothing.

        It is 1 − (distance from the predicted) / (distance from the exact ones), over all these layers together.

        Args:
            predicted: averages by layer; the gap of other layers is not explained.
            layers: those whose gap is to be explained.
            with_noise: whether averages are also off by the noise of the few batches that they remember.
        """
        exact = self.read_exact(layers)
        before = 0.0
        after = 0.0
        for name in layers:
            held = self.buffers[name]
            gap = self._measure_squares(name, held, exact[name])
            left = gap
            if name in predicted:
                left = self._measure_squares(name, held, predicted[name])
                if with_noise:
                    # Both are squares: noise of up to NOISY standard deviations counts as explained.
                    left = max(0.0, left - NOISY**2 * self._expect_squares(name))
            before += gap
            after += left
        return _compute_share_gone(before, after)

    def _expect_squares(self, name: str) -> float:
        """Sum the squares of the distance that noise lets expect, as `_measure_squares`; 0 where it is not known."""
        view = self.find_view(name)
        if view is None or get_momentum(self.layers[name]) == 0 or view.batch_means.count < FEWEST_BATCHES:
            return 0.0
        scale = self.exact[name].var + self.exact.eps[name]
        of_mean = view.batch_means.var / scale
        # `_measure_squares` divides log variances by √2, so the noise is divided by 2·variance² here.
        of_var = view.batch_squares.var / (2 * scale.square())
        # Of variances it is not known where rows are no images, and of means it is.
        both = of_mean.nan_to_num() + of_var.nan_to_num()
        # The first share is the noise of the running average, the second that of the mean over all batches.
        return float(both.sum()) * (self._noise_share(name) + 1 / view.batch_means.count)

    def read_exact(self, layers: Iterable[str]) -> dict[str, Tensor]:
        """Read the exact mean and variance [2, C] of layers."""
        return {name: torch.stack((self.exact[name].mean, self.exact[name].var)) for name in layers}

    def _measure_squares(self, name: str, averages: Tensor, target: Tensor) -> float:
        """Sum the squares of the distance of averages [2, C] from others, in σ and log variance; each at most 10."""
        eps = self.exact.eps[name]
        # The σ of the exact statistics, whatever the target is, so that distances from two targets compare.
        sigma = (self.exact[name].var + eps).sqrt()
        of_mean = (averages[0] - target[0]) / sigma
        of_var = ((averages[1] + eps) / (target[1] + eps)).log() / math.sqrt(2)  # see `measure_distance`
        # Where nothing can be computed, as of a negative variance, averages count as farthest off.
        both = torch.stack((of_mean, of_var)).nan_to_num(nan=FARTHEST).clamp(-FARTHEST, FARTHEST)
        return float(both.square().sum())

    @cached_property
    def is_costly(self) -> bool:
        """Whether the images score better under exact statistics, with an interval above 0."""
        return self._scores_better("exact", "running")

    @cached_property
    def is_batch_better(self) -> bool:
        """Whether they score better under each batch's statistics than under exact and running ones, likewise."""
        return self._scores_better("batch", "exact") and self._scores_better("batch", "running")

    def _scores_better(self, kind: str, other: str) -> bool:
        scores = self.scores
        return scores is not None and kind in scores.values and scores.compare(kind, other).low > 0

    def noise_ratio(self, name: str) -> float:
        """Median over channels of |T|: the mean's gap over the noise of an average of independent batches.

        T = (running mean − exact mean) / sqrt(b·(m/(2−m) + 1/batches)), with b the variance between batch means at the
        frozen weights; the second term is the noise of the exact mean, which is of so many batches. The training
        batches tell both where they were given; other batches should be as large as those of training. NaN with fewer
        than three batches, and with momentum 0.
        """
        noise = self.estimate_noise(name)
        reference = self.reference
        if noise is None or name not in reference:
            return math.nan

        running_mean, _ = self.buffers[name]
        gap = (running_mean - reference[name].mean).abs()
        least = torch.finfo(torch.float64).tiny
        # A dead channel has neither a gap nor noise, and a ratio of 0 then rather than NaN.
        ratios = gap / noise.clamp(min=least)
        return float(ratios.median())

    def estimate_noise(self, name: str) -> Tensor | None:
        """Estimate the noise of a running mean around the exact one [C].

        None with fewer than three batches, and with momentum 0: that averages no batches, so nobody knows how many.
        """
        view = self.find_view(name)
        if view is None or get_momentum(self.layers[name]) == 0:
            return None
        means = view.batch_means
        if means.count < FEWEST_BATCHES:
            return None

        share = self._noise_share(name) + 1 / means.count
        variance = means.var * share
        return variance.sqrt()

    def remembers_start(self, name: str) -> bool:
        """Return whether a layer's averages hold more than 1% of the 0 and 1 that they started from."""
        weight = self.start_weight(name)
        return self.is_initial(name) if weight is None else weight > START_REMEMBERED

    def estimate_expected_gap(self, name: str) -> float:
        """Estimate how large noise alone makes the mean's gap, in σ, root mean square over channels; 0 if not known."""
        noise = self.estimate_noise(name)
        if noise is None or name not in self.reference:
            return 0.0
        return _average_in_sigma(noise.square(), name, self.reference)

    def estimate_sampling_error(self, name: str) -> float:
        """Estimate the standard error of the exact mean, in σ, root mean square over channels; images are the units.

        0 where the layer's rows are no images.
        """
        # Not `find_view`: the exact statistics are those of these images, whatever the training batches are.
        layer_view = self.view.layers.get(name)
        if layer_view is None or layer_view.image_means.count < 2:
            return 0.0
        images = layer_view.image_means
        return _average_in_sigma(images.var / images.count, name, self.exact)

    def find_view(self, name: str) -> LayerView | None:
        """Find the training batches' view of a layer where there is one, else that of the data."""
        view = self.view if self.training_view is None else self.training_view
        return view.layers.get(name)

    def _noise_share(self, name: str) -> float:
        """Variance of a running mean over the variance of a batch's mean, once the start is forgotten."""
        momentum = get_momentum(self.layers[name])
        # The sum of the squared weights of the batches: n·(1/n)² if all weigh the same, else Σ m²(1−m)^2k.
        if momentum is None:
            return 1 / max(1, self.count_updates(name) or 1)
        return momentum / (2 - momentum)

    @property
    def reference(self) -> Statistics:
        """Exact statistics of the training batches where there are some, else those of the data."""
        return self.exact if self.training is None else self.training

    @property
    def exact(self) -> Statistics:
        """Exact statistics of the images: what each layer would average if all before it had exact averages.

        ValueError without data.
        """
        return _require(self.statistics)

    def on_data(self, exact: Statistics, **measured: Any) -> Case:
        """Return the case with what was measured on images, and its layers in the order in which data reaches them.

        Args:
            exact: statistics of the images, in that order.
            measured: further attributes.
        """
        by_depth = {name: self.layers[name] for name in exact if name in self.layers}
        # Layers that no data has reached come last, in the order in which the model lists them.
        return replace(self, layers={**by_depth, **self.layers}, statistics=exact, **measured)

    @property
    def first(self) -> str:
        """Name of the layer that data reaches first; IndexError where it reaches none."""
        return self.seen[0]

    # The fold: half of the images, from which causes propose, to be judged on the other half

    def on_fold(self, task: Task, exact: Statistics) -> Case:
        """Return the case with a fold: a task's batches, and exact statistics of these."""
        return replace(self, task=task, fold_statistics=exact)

    @property
    def fold(self) -> Statistics:
        """Exact statistics of the fold, as `exact` has them of all images; ValueError outside of `Cause.propose`."""
        return _require(self.fold_statistics)

    @property
    def fits_first(self) -> bool:
        """Whether the averages of the layer that data reaches first fit, so that nothing was done to the images."""
        return not self.clearly_differs(self.first)

    def read_fold(self, name: str) -> Tensor:
        """Read a layer's exact mean and variance [2, C] of the fold."""
        moments = self.fold[name]
        return torch.stack((moments.mean, moments.var))

    def measure_repaired(self, averages: Mapping[str, Tensor]) -> float:
        """Measure which share of the gap of layers to the fold is gone with other averages [2, C]: 1 all, 0 none.

        `explain` asks how near the present averages are to predicted ones; this asks how much nearer *other* averages
        would be to the fold. Here each layer counts once, however many channels it has, and there each channel does:
        `EXPLAINS_ALL` is of layers.
        """
        before = 0.0
        after = 0.0
        repaired = replace(self, buffers={**self.buffers, **averages})
        for name in averages:
            before += self.measure_distance(name, self.fold) ** 2
            after += repaired.measure_distance(name, self.fold) ** 2
        return _compute_share_gone(before, after)


def _compute_share_gone(before: float, after: float) -> float:
    """Compute which share of a distance is gone, of its squares before and after; 0 where there was none."""
    return 1 - math.sqrt(after / before) if before > 0 else 0.0


def measure_distance(mean: Tensor, var: Tensor, exact: Moments | Pooled, eps: float) -> Tensor:
    """Measure how far averages [C] are off, in σ, root mean square over channels: means and variances together."""
    z = (mean - exact.mean) / (exact.var + eps).sqrt()
    log_ratio = ((var + eps) / (exact.var + eps)).log()
    mean_gap = z.square().mean().sqrt()
    var_gap = log_ratio.square().mean().sqrt()
    # Each as noisy as the other: of n normal values, a mean has the variance 1/n in units of σ², and the logarithm of a
    # variance has 2/n.
    return torch.hypot(mean_gap, var_gap / math.sqrt(2))


def _require(statistics: Statistics | None) -> Statistics:
    if statistics is None:
        raise ValueError("case: there is no data; a cause that asks for it needs 'data'")
    return statistics


def _average_in_sigma(squares: Tensor, name: str, statistics: Statistics) -> float:
    """Average squared differences of a layer's means [C] to their root mean square, in σ of its statistics."""
    scale = statistics[name].var + statistics.eps[name]
    mean_square = (squares / scale).mean()
    return float(mean_square.sqrt())


def read_moments(statistics: Statistics | None) -> dict[str, Tensor]:
    """Read mean and variance [2, C] of all layers; nothing where there are no statistics."""
    if statistics is None:
        return {}
    return {name: torch.stack((moments.mean, moments.var)) for name, moments in statistics.items()}


def has_bad_values(buffers: Tensor) -> bool:
    """Return whether one of a layer's buffers [2, C] is not finite, by their sum, or a variance negative."""
    # A NaN or an infinity makes the sum NaN or infinite. Finite float32 values cannot overflow a float64 sum.
    return not math.isfinite(buffers.sum()) or bool(buffers[1].min() < 0)


def read_all_buffers(layers: Mapping[str, BatchNorm]) -> dict[str, Tensor]:
    """Read the running mean and variance of layers as they are, float64 [2, C]."""
    return {name: read_buffers(layer).cpu().double() for name, layer in layers.items()}
