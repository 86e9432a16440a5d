"""What is fitted to numbers: how well averages are described, and the few numbers that explain them.

Residuals are what is left of the difference between averages and what explains them: of a mean in σ, of a variance as
log ratio over √2, so that both have the same noise. σ is that of exact statistics, with eps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.doctor.cause import Left
from bnlab.doctor.patient import ByLayer, Patient, keep, merge
from bnlab.model.layers import get_momentum
from bnlab.statistics.moments import Moments

NOISE = 0.01  # σ: no average is described better than this; half of what healthy networks of the gallery have
_FARTHEST = 10.0  # a residual that is larger counts as this, lest a single channel decide
_FITTING_BATCHES = 2  # whose images numbers are fitted to
_ROUNDS = 3


def measure_residuals(patient: Patient, left: Left) -> Tensor:
    """Measure what is left of the patient's averages under an explanation, of all channels, [R]."""
    residuals = []
    for name, exact in patient.exact.items():
        explained = left.averages.get(name, exact)
        var = exact.var + patient.layers[name].eps
        averages = patient.averages[name]
        mean_off = (averages.mean - explained.mean) / var.sqrt()
        ratio = (averages.var + patient.layers[name].eps) / (explained.var + patient.layers[name].eps)
        var_off = ratio.log() / math.sqrt(2)
        both = torch.stack((mean_off, var_off)).nan_to_num(nan=_FARTHEST, posinf=_FARTHEST, neginf=-_FARTHEST)
        # Of NaN or infinity a difference is NaN, also where these are what was left.
        both = both.masked_fill(_are_same(averages, explained), 0.0)
        if left.noise is not None and name in left.noise:
            sd_of_mean, sd_of_var = left.noise[name]
            by_chance = torch.stack((sd_of_mean / var.sqrt(), sd_of_var / var / math.sqrt(2)))
            both = both.sign() * (both.abs() - 2 * by_chance).clamp(min=0)
        residuals.append(both.clamp(-_FARTHEST, _FARTHEST).flatten())
    return torch.cat(residuals) if residuals else torch.zeros(1, dtype=torch.float64)


def _are_same(averages: Moments, explained: Moments) -> Tensor:
    """Return which means and variances [2, C] are the same, NaN among them."""
    found = torch.stack((averages.mean, averages.var))
    left = torch.stack((explained.mean, explained.var)).to(found)
    return (found == left) | (found.isnan() & left.isnan())


def measure_gap(patient: Patient, name: str) -> float:
    """Measure how far a layer's averages are from exact statistics, root mean square over channels."""
    only = {other: patient.averages[other] for other in patient.exact if other != name}
    residuals = measure_residuals(patient, Left(only))
    channels = 2 * len(patient.exact[name].mean)
    return math.sqrt(float(residuals.square().sum()) / channels)


def count_nats(residuals: Tensor, numbers: int) -> float:
    """Count the nats that averages take to describe, by residuals [R] and so many fitted numbers (Schwarz 1978)."""
    size = len(residuals)
    left = float(residuals.square().mean()) + NOISE**2
    return size / 2 * math.log(left) + numbers / 2 * math.log(size)


def mix(exact: ByLayer, other: ByLayer, weight: float) -> dict[str, Moments]:
    """Mix a share of other averages into exact ones."""
    return {
        name: Moments(
            math.nan,
            exact[name].mean.lerp(moments.mean, weight),
            exact[name].var.lerp(moments.var, weight),
        )
        for name, moments in other.items()
        if name in exact
    }


def fit_share(patient: Patient, other: ByLayer) -> float:
    """Fit which share of other averages is in the patient's, by least squares over all channels, from 0 to 1."""
    gaps, directions = [], []
    for name, moments in other.items():
        exact, averages = patient.exact[name], patient.averages[name]
        var = exact.var + patient.layers[name].eps
        scale = torch.stack((var.sqrt(), var))
        goal = torch.stack((exact.mean, exact.var))
        gaps.append(((torch.stack((averages.mean, averages.var)) - goal) / scale).flatten())
        directions.append(((torch.stack((moments.mean, moments.var)) - goal) / scale).flatten())
    gap, direction = torch.cat(gaps), torch.cat(directions)
    share = float(gap @ direction / direction.square().sum().clamp(min=1e-12))
    return min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0


def fit_factor(patient: Patient) -> float:
    """Fit the factor between the patient's variances and exact ones: the median of the layers' medians."""
    ratios = [
        (patient.averages[name].var / exact.var.clamp(min=1e-12)).median() for name, exact in patient.exact.items()
    ]
    return float(torch.stack(ratios).median())


def unbias(call: Moments) -> Moments:
    """Return a batch's moments as running averages take them, with the variance that has divisor n − 1."""
    return Moments(call.count, call.mean, call.var * (call.count / max(call.count - 1, 1)))


def replay(patient: Patient) -> dict[str, Moments]:
    """Average the training batches as the layers do, in their order, from exact statistics on."""
    averages = {}
    for name, calls in patient.training_calls.items():
        if name not in patient.exact:
            continue
        momentum = get_momentum(patient.layers[name])
        mean, var = patient.exact[name].mean, patient.exact[name].var
        for number, call in enumerate(calls, start=1):
            weight = 1 / number if momentum is None else momentum
            mean = mean.lerp(call.mean, weight)
            var = var.lerp(unbias(call).var, weight)
        averages[name] = Moments(math.nan, mean, var)
    return averages


def measure_noise(patient: Patient, calls: Mapping[str, Sequence[Moments]]) -> dict[str, Tensor]:
    """Measure the standard deviations [2, C] that averages have by chance, by how much batches differ.

    An average of momentum m has m/(2 − m) of the variance of a batch's moments.
    """
    noise = {}
    for name, of_batches in calls.items():
        momentum = get_momentum(patient.layers[name])
        if len(of_batches) < 3 or momentum is None:
            continue
        means = torch.stack([moments.mean for moments in of_batches])
        variances = torch.stack([moments.var for moments in of_batches])
        share = math.sqrt(momentum / (2 - momentum))
        noise[name] = share * torch.stack((means.std(0), variances.std(0)))
    return noise


# -- images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rescaling:
    """Images are scale·x + shift, where x are those that the averages are of.

    Attributes:
        scale: of all.
        shift: [1], of all, or [K], of each colour.
        explains: the share of the first layer's gap that goes with it.
    """

    scale: float
    shift: Tensor
    explains: float

    def undo(self, images: Tensor) -> Tensor:
        """Change images [..., K, H, W] back."""
        shift = self.shift if len(self.shift) == 1 else self.shift.view(-1, 1, 1)
        return (images - shift.to(images)) / self.scale


class FirstLayer:
    """What the first batch norm is given of images that were changed."""

    def __init__(self, patient: Patient, name: str) -> None:
        self.name = name
        self._patient = patient
        self._few = patient.batches[:_FITTING_BATCHES]
        self.averages = patient.averages[name]
        self.eps = patient.layers[name].eps

    def measure(self, change: object) -> Moments | None:
        """Measure it; None where the model takes no such images."""
        try:
            ran = self._patient.run(keep, images=change, others=self._few, looks_at=[self.name])  # type: ignore[arg-type]
        except Exception:  # whatever a model raises that takes no other images
            return None
        return merge(ran.calls[self.name]) if self.name in ran.calls else None

    def measure_distance(self, moments: Moments) -> float:
        """Measure how far its averages are from these moments, root mean square."""
        mean_off = (self.averages.mean - moments.mean) / (moments.var + self.eps).sqrt()
        var_off = ((self.averages.var + self.eps) / (moments.var + self.eps)).log() / math.sqrt(2)
        both = torch.stack((mean_off, var_off)).nan_to_num(nan=_FARTHEST).clamp(-_FARTHEST, _FARTHEST)
        return float(both.square().mean().sqrt())


def fit_rescaling(first: FirstLayer, colours: int) -> Iterator[Rescaling]:
    """Fit a scale, of either sign, and a shift for all colours or one for each, to the first layer's averages."""
    now = first.measure(lambda images: images)
    at_zero = first.measure(torch.zeros_like)
    at_one = first.measure(torch.ones_like)
    if now is None or at_zero is None or at_one is None or not first.averages.mean.isfinite().all():
        return
    slopes = [(at_one.mean - at_zero.mean)[None]]
    if colours > 1:
        of_colours = [first.measure(lambda images, k=k: _light(images, k)) for k in range(colours)]
        if all(moments is not None for moments in of_colours):
            slopes.append(torch.stack([moments.mean - at_zero.mean for moments in of_colours if moments is not None]))
    gap = first.measure_distance(now)
    for sign in (1.0, -1.0):
        for slope in slopes:
            scale, shift = sign, torch.zeros(len(slope), dtype=torch.float64)
            moments: Moments | None = Moments(now.count, at_zero.mean + sign * (now.mean - at_zero.mean), now.var)
            # The borders of padded images do not follow a shift, so that what is left is fitted again.
            for number in range(_ROUNDS):
                if number:
                    moments = first.measure(Rescaling(scale, shift, 0.0).undo)
                if moments is None:
                    break
                fitted = _fit_once(first, moments, at_zero.mean, slope)
                if fitted is None:
                    break
                # Undone so far, images are scale_left·x + shift_left; as they came, scale times that, plus shift.
                scale_left, shift_left = fitted
                shift = shift + scale * shift_left
                scale = scale * scale_left
            undone = first.measure(Rescaling(scale, shift, 0.0).undo)
            if undone is not None and gap > 0:
                yield Rescaling(scale, shift, 1 - first.measure_distance(undone) / gap)


def _light(images: Tensor, colour: int) -> Tensor:
    """Make images that are 1 in one colour, and 0 in the others."""
    made = torch.zeros_like(images)
    made.select(-3, colour).fill_(1)
    return made


def _fit_once(first: FirstLayer, moments: Moments, at_zero: Tensor, slopes: Tensor) -> tuple[float, Tensor] | None:
    """Fit the scale and the shifts [K] that images still have, by slopes [K, C]; None where nothing varies."""
    varies = (first.averages.var > first.eps) & (moments.var > first.eps)
    if int(varies.sum()) < 2:
        return None
    # The median, so that a few channels that are off for another reason do not decide.
    scale = math.exp(0.5 * float((moments.var[varies] / first.averages.var[varies]).log().median()))
    # A scale stretches means away from where they are on images that are 0; shifts explain the rest.
    unexplained = moments.mean - at_zero - scale * (first.averages.mean - at_zero)
    weights = (first.averages.var.clamp(min=0) + first.eps).rsqrt()
    known, wanted = (slopes * weights).T, (unexplained * weights)[:, None]
    # lstsq raises on NaN, as of a variance that a single bad batch has ruined.
    if not known.isfinite().all() or not wanted.isfinite().all():
        return None
    shift = torch.linalg.lstsq(known, wanted).solution[:, 0]
    return (scale, shift) if shift.isfinite().all() else None
