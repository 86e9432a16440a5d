"""An ordinary evaluation of a few images under a result: whether it holds, and what the measurement could not see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.batches import list_leaves, map_leaves
from bnlab.exact.watch import FUNCTIONAL, OtherStatistics, Watch
from bnlab.fresh import LEAK
from bnlab.layers import BatchNorm, join_names
from bnlab.moments import Moments, Partial, compare_moments, pool, read

_SHARE = 16  # of a batch's images one in so many is evaluated again, and two at least


class Sample(NamedTuple):
    """What a batch was at a layer when it was measured.

    Attributes:
        first: moments of its first images; None where the images are not the rows of the layer's input.
        whole: moments of all of it.
        exact: whether the whole was read as `Moments.of` does; else in one read.
    """

    first: Moments | None
    whole: Partial
    exact: bool


@dataclass(frozen=True)
class Check:
    """What an ordinary evaluation of images of a few batches under a result has shown.

    Attributes:
        images: how many were evaluated.
        mean: the largest difference of a layer's mean from what it was in the measurement, in σ of the layer.
        var: the largest difference of a layer's variance, relative to the variance of the layer.
        layer: the first layer where a difference is more than rounding; None where the result holds.
        bypassed: layers that are called in a way that hooks do not see: they are not measured.
        dependent: layers that normalize with the statistics of their batch even in evaluation.
        transformed: layers whose own forward normalizes something else than their input, which is what is measured, or
            in train mode with upstream="batch" takes the statistics of something else.
        batch: the number of the batch in which `layer` differs, from 0; otherwise of the last one evaluated.
        compared: how many layers' inputs were compared with the measurement, over all batches evaluated; 0 with
            upstream="batch", where an evaluation gives others.
        replaced: layers that the forward lets normalize with other statistics than those that were measured.
        lookalikes: modules that keep running statistics and are no batch norm of torch's: they are not measured.
        unknown: layers whose own forward computes by hand, and gives something else than their input, normalized with
            the statistics that were measured.
        tied: layers whose running buffers another part of the model holds, too, and computes with.
        leaking: with upstream="batch", the first layer that is given something else of the first batch when that is run
            again: something of a forward stays behind.
    """

    images: int
    mean: float
    var: float
    layer: str | None
    bypassed: tuple[str, ...]
    dependent: tuple[str, ...]
    transformed: tuple[str, ...] = ()
    batch: int = 0
    compared: int = 0
    replaced: tuple[str, ...] = ()
    lookalikes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    leaking: str | None = None

    @property
    def held(self) -> bool:
        """Whether the evaluation has given what was measured, as far as that was `compared`."""
        return self.layer is None and self.leaking is None

    def join(self, other: Check) -> Check:
        """One check of the batches of both."""
        first = other if self.held else self
        names = ("bypassed", "dependent", "transformed", "replaced", "lookalikes", "unknown", "tied")
        return Check(
            images=self.images + other.images,
            mean=max(self.mean, other.mean),
            var=max(self.var, other.var),
            layer=first.layer,
            leaking=first.leaking,
            batch=first.batch,
            compared=self.compared + other.compared,
            **{name: tuple(dict.fromkeys(getattr(self, name) + getattr(other, name))) for name in names},
        )

    def name_bypassed(self, names: Iterable[str]) -> Check:
        """This one with further layers that hooks have not seen."""
        return replace(self, bypassed=tuple(dict.fromkeys([*self.bypassed, *names])))

    def warnings(self) -> list[str]:
        """A sentence for each thing that somebody has to know."""
        sentences = []
        if bypassed := [name for name in self.bypassed if name != FUNCTIONAL]:
            sentences.append(
                f"{_describe(bypassed)}: called past its hooks (by .forward(), a functional batch norm, arithmetic "
                "with its buffers, or in another thread), so not measured there; it normalizes with the statistics "
                "that the model has"
            )
        if FUNCTIONAL in self.bypassed:
            sentences.append(
                f"a {FUNCTIONAL} outside of all layers, or a layer that is no part of the model: not measured; it "
                "normalizes with the statistics that it is given, and what comes after it depends on them"
            )
        if self.lookalikes:
            sentences.append(
                f"{_describe(self.lookalikes)}: keeps running statistics and is no subclass of torch's batch norm, so "
                "not measured; if it normalizes with these, what comes after it depends on them"
            )
        if self.dependent:
            sentences.append(
                f"{_describe(self.dependent)}: normalizes with the statistics of its batch even in evaluation; what "
                "comes after it depends on how images are put into batches"
            )
        if self.transformed:
            sentences.append(
                f"{_describe(self.transformed)}: normalizes something else than its input (a part of it, say), which "
                "is what was measured; move what its own forward, or a hook that comes later, does to the input into a "
                "module before it"
            )
        if self.replaced:
            sentences.append(
                f"{_describe(self.replaced)}: normalizes with other statistics than were measured, and so what comes "
                "after it was not measured under them; the forward gives it other running buffers (by "
                "torch.func.functional_call or load_state_dict), or its own forward makes others of them"
            )
        if self.unknown:
            sentences.append(
                f"{_describe(self.unknown)}: computes by hand, and its output is not its input, normalized with the "
                "statistics that were measured; what it normalizes, and with what, cannot be seen (an activation in "
                "the layer looks the same, and does no harm)"
            )
        if self.tied:
            sentences.append(
                f"{_describe(self.tied)}: another part of the model holds its running buffers too, and computes with "
                "them as they were before; what comes after was measured so, and changes once the result is written"
            )
        if self.leaking is not None:
            sentences.append(f"layer {self.leaking!r}: {LEAK}")
        if self.layer is not None:
            which = "the first batch" if self.batch == 0 else f"batch {self.batch} (from 0)"
            sentences.append(
                f"layer {self.layer!r}: {which}, evaluated again under the result, differs from here on, over all "
                f"layers by up to {self.mean:.2g} σ in the mean and {self.var:.2g} of the variance; either batches "
                "share state that cannot be watched, such as numpy's generator of random numbers (with "
                "strategy='layerwise' they do not take turns), or the forward reads strides "
                "(channels_last=False), or a layer's input depends on its own statistics"
            )
        return sentences


def _describe(names: Sequence[str]) -> str:
    layers = [name for name in names if name != FUNCTIONAL]
    parts = [f"layer{'s' if len(layers) > 1 else ''} {join_names(layers)}"] if layers else []
    return " and ".join([*parts, *([f"a {FUNCTIONAL} outside of all layers"] if FUNCTIONAL in names else [])])


def count_images(batch: Any) -> int:
    """The length of the first of a batch's tensors with the most dimensions; 1 where there is none."""
    tensors = [leaf for leaf in list_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return max(tensors, key=Tensor.dim).size(0) if tensors else 1


def sample(x: Tensor, part: Partial, exact: bool, images: int) -> Sample:
    """Of a batch's input at a layer, which `part` has been read from; `images`: how many the batch has."""
    rows = _count_sampled(images)
    return Sample(_read_in_own_precision(x[:rows]) if len(x) == images and rows <= images else None, part, exact)


def _read_in_own_precision(x: Tensor) -> Moments:
    """Moments with the rounding of `x` itself: quick, and the same for the same values."""
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return Moments(x.numel() // x.shape[1], mean.cpu().double(), var.cpu().double())


def _read_sample(name: str, x: Tensor) -> Moments:
    return _read_in_own_precision(x)


def _take_first(batch: Any) -> Any:
    """A batch of some of its images."""
    images = count_images(batch)
    rows = _count_sampled(images)
    return map_leaves(lambda x: x[:rows] if _has_images(x, images) else x, batch)


def _has_images(leaf: Any, images: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == images


def _count_sampled(images: int) -> int:
    return max(2, -(-images // _SHARE))


@dataclass(frozen=True)
class Inspection:
    """A result that is to be checked.

    Attributes:
        model: in eval mode, with the result in its buffers.
        targets: the layers that were to be measured, by name.
        measured: the result; its σ is the yardstick.
        evaluate: the forward of a batch, in the same conditions as in the measurement, or as the caller would run it.
        others: as in `Watch`.
    """

    model: nn.Module
    targets: Mapping[str, BatchNorm]
    measured: Mapping[str, Moments]
    evaluate: Callable[[Any], object]
    others: OtherStatistics

    def check(self, batch: Any, samples: Mapping[str, Sample]) -> Check:
        """Evaluate the first images of a batch, or all of it where that does not do, and compare.

        Args:
            batch: one that was measured.
            samples: what it was at each layer in the measurement; empty: nothing is compared.
        """
        if all(kept.first is not None for kept in samples.values()):
            with contextlib.suppress(Exception):  # a forward that wants whole batches, say
                first = {name: kept.first for name, kept in samples.items() if kept.first is not None}
                check = self.compare(_take_first(batch), first)
                if check.held:
                    return check

        def read_again(name: str, x: Tensor) -> Moments:
            exact = name not in samples or samples[name].exact
            return Moments.of(x) if exact else pool([read(x)])

        before = {name: pool([kept.whole]) for name, kept in samples.items()}
        return self._compare(batch, before, read_again, self.measured if before else {})

    def look_for_bypasses(self, batch: Any) -> Check:
        """Evaluate all of a batch without comparing what layers see: how they are called, and with what."""
        return self._compare(batch, {}, _read_sample, self.measured)

    def look(self, batch: Any) -> tuple[Any, dict[str, Moments]]:
        """The first images of a batch, or all of it where that does not do, and what layers see in their evaluation."""
        with contextlib.suppress(Exception):
            return _take_first(batch), self._see(_take_first(batch))
        return batch, self._see(batch)

    def _see(self, batch: Any) -> dict[str, Moments]:
        with Watch(self.model, self.targets, self.others, _read_sample, {}) as watch:
            self.evaluate(batch)
        return watch.seen

    def compare(self, images: Any, seen: Mapping[str, Moments]) -> Check:
        """Evaluate images, and compare with what layers have `seen` of them."""
        return self._compare(images, seen, _read_sample, self.measured if seen else {})

    def _compare(
        self,
        batch: Any,
        before: Mapping[str, Moments],
        read_moments: Callable[[str, Tensor], Moments],
        result: Mapping[str, Moments],
    ) -> Check:
        with Watch(self.model, self.targets, self.others, read_moments, result) as watch:
            self.evaluate(batch)
        bypassed = dict.fromkeys([*watch.bypassed, *(name for name in watch.seen if name not in self.measured)])
        if watch.foreign:
            bypassed[FUNCTIONAL] = None
        mean, var, worst, compared = 0.0, 0.0, None, 0
        for name, was in before.items():
            now = watch.seen.get(name)
            if now is None:
                continue
            compared += 1
            off = compare_moments(was, now, self.measured[name].var)
            if worst is None and max(off) > watch.tolerance:
                worst = name
            mean, var = max(mean, off[0]), max(var, off[1])
        return Check(
            count_images(batch),
            mean,
            var,
            worst,
            tuple(bypassed),
            tuple(watch.dependent),
            tuple(watch.transformed),
            compared=compared,
            replaced=tuple(watch.replaced),
            unknown=tuple(watch.unknown),
            tied=tuple(watch.tied),
            lookalikes=tuple(name for name in watch.lookalikes_used if not self.others.lookalikes[name].frozen),
        )
