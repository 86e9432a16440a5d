"""BN209: the images are scaled, shifted, or with reversed channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.common.scores import describe_number
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.first_layer import FirstLayer, Response
from bnlab.doctor.thresholds import EXPLAINED, EXPLAINS_ALL, SCALE_SHOWS
from bnlab.doctor.undo import RESCALED, Change, Undo, change_images
from bnlab.statistics.moments import Moments

_ROUNDS = 3


class OtherInput(Cause):
    """Images that are a·x + b instead of x, or whose channels are reversed.

    The first layer's averages say what images they are of: the median ratio of its variances gives a², and its means
    give b, one for all channels or one for each. Predictions of (images − b)/a are as good as they once were, where
    nothing else is wrong; so they are of negatives (a below 0), and of images with reversed channels.

    Images that were taken differently, darker or of less contrast, are found here as well: the averages cannot show
    whether they were taken or preprocessed differently.
    """

    code = "BN209"
    title = "images scaled, shifted, or with reversed channels"
    meaning = (
        "These images are preprocessed differently from those the averages were computed on; new statistics would hide "
        "that."
    )
    remedy = (
        "First compare the preprocessing of both: range, mean and standard deviation, RGB or BGR, black on white; do "
        "not recalibrate before."
    )
    kind = "images"
    needs = ("data",)

    def propose(self, case: Case) -> Iterator[Undo]:
        first = FirstLayer(case)
        if case.fits_first or _are_as_in_training(case, first.name):
            return
        # The response is asked for last, because it alone runs the model.
        response = first.response
        if response is None:
            return
        for candidate in _list_candidates(case, first, response):
            explains = first.explain(candidate.undo)
            if explains > candidate.least:
                layers = (first.name,)
                apply = change_images(candidate.undo)
                yield Undo(candidate.words, layers, candidate.degrees, apply, RESCALED, explains, candidate.name)


@dataclass(frozen=True)
class _Candidate:
    """What may have been done to the images.

    Attributes:
        words: what was done, in words.
        name: which of the candidates it is.
        undo: changes the images back.
        degrees: numbers that were fitted.
        least: share of the first layer's gap that has to go with it.
    """

    words: str
    name: str
    undo: Change
    degrees: int
    least: float


def _list_candidates(case: Case, first: FirstLayer, response: Response) -> list[_Candidate]:
    """List what may have been done to the images."""
    candidates = []
    for scale, shift in _fit(case, first, response):
        # The numbers are no part of the name: each half of the images has its own, but undos of the two halves are
        # matched by their names.
        sign = "negative" if scale < 0 else "positive"
        name = f"{sign}, shifts: {len(shift)}"
        degrees = 1 + len(shift)
        candidates.append(_Candidate(_describe(scale, shift), name, _undo(scale, shift), degrees, EXPLAINS_ALL))
    if response.colours == 3:
        # Nothing is fitted here, so that most of the gap does not go by chance. What is left may be the noise of
        # running averages, which no undo of the images takes away.
        candidates.append(
            _Candidate("the channels are reversed", "reversed", lambda images: images.flip(-3), 0, EXPLAINED)
        )
    return candidates


def _are_as_in_training(case: Case, first: str) -> bool:
    """Return whether the averages do not fit the training batches either: then these images are not to blame."""
    if case.training is None or first not in case.training:
        return False
    # Only where training batches fit twice as well as these images is something wrong with these alone.
    return case.measure_distance(first, case.training) > case.measure_distance(first, case.fold) / 2


def _fit(case: Case, first: FirstLayer, response: Response) -> Iterator[tuple[float, Tensor]]:
    """Fit a scale, of either sign, and a shift for all channels or one for each, to the first layer's averages."""
    # All colours shifted by the same: one free number, in place of one for each colour.
    common = response.slopes.sum(0, keepdim=True)
    slopes_to_fit = [common]
    if response.colours > 1:
        slopes_to_fit.append(response.slopes)
    # Variances give a² and leave the sign of a open, so that both are tried.
    for sign in (1.0, -1.0):
        for slopes in slopes_to_fit:
            fitted = _fit_in_rounds(case, first, response.at_zero, slopes, sign)
            if fitted is None:
                return
            scale, shift = fitted
            # A fit near 1·x + 0 says that nothing was done to the images; a change of sign always counts.
            is_shown = max(abs(math.log(abs(scale))), float(shift.abs().max()) / abs(scale)) > SCALE_SHOWS
            if is_shown or scale < 0:
                yield scale, shift


def _fit_in_rounds(
    case: Case, first: FirstLayer, at_zero: Tensor, slopes: Tensor, sign: float
) -> tuple[float, Tensor] | None:
    """Fit a scale of this sign and as many shifts [K] as there are slopes [K, C]; None as for `_fit_once`."""
    scale = sign
    shift = torch.zeros(len(slopes), dtype=torch.float64, device="cpu")
    # One pass over the images as they are serves both signs and all shifts in the first round.
    moments = _multiply(first.as_is, sign, at_zero)
    # The borders of padded images do not follow a shift, so that what is left is fitted again.
    for number in range(_ROUNDS):
        if number > 0:
            moments = first.measure(_undo(scale, shift))
        left = _fit_once(case, first.name, moments, at_zero, slopes)
        if left is None:
            return None
        # Undone so far, the images are scale_left·x + shift_left. As they were given, they are therefore
        # scale·(scale_left·x + shift_left) + shift.
        scale_left, shift_left = left
        shift = shift + scale * shift_left
        scale = scale * scale_left
    return scale, shift


def _multiply(moments: Moments | None, sign: float, at_zero: Tensor) -> Moments | None:
    """Compute what the first layer is given of images times 1 or −1, which it follows affinely."""
    if moments is None:
        return None
    return Moments(moments.count, at_zero + sign * (moments.mean - at_zero), moments.var)


def _fit_once(
    case: Case, first: str, moments: Moments | None, at_zero: Tensor, slopes: Tensor
) -> tuple[float, Tensor] | None:
    """Fit the scale and the shifts [K] that images still have, by what the first layer is given; slopes [K, C].

    None where it is given nothing, or nothing varies.
    """
    running_mean, running_var = case.buffers[first]
    eps = case.layers[first].eps
    if moments is None or not running_mean.isfinite().all():
        return None
    # Dead channels have no ratio of variances.
    varies = (running_var > eps) & (moments.var > eps)
    if int(varies.sum()) < 2:
        return None
    # The median, so that a few channels which are off for another reason do not decide.
    scale = math.exp(0.5 * float((moments.var[varies] / running_var[varies]).log().median()))
    # A scale stretches means away from where they are on images that are 0. The shifts explain the rest.
    unexplained = moments.mean - at_zero - scale * (running_mean - at_zero)
    # Each channel counts in units of its own σ.
    weights = (running_var.clamp(min=0) + eps).rsqrt()
    shift = torch.linalg.lstsq((slopes * weights).T, (unexplained * weights)[:, None]).solution[:, 0]
    return scale, shift


def _undo(scale: float, shift: Tensor) -> Change:
    """Make what changes images [..., K, H, W], or of any shape where there is one shift, back."""
    by = shift if len(shift) == 1 else shift.view(-1, 1, 1)
    return lambda images: (images - by.to(images)) / scale


def _describe(scale: float, shift: Tensor) -> str:
    """Write images in terms of x, those of training."""
    shifts = [describe_number(value, 2) for value in shift.tolist()]
    signed = [value if value.startswith("-") else f"+{value}" for value in shifts]
    each = signed[0] if len(signed) == 1 else f"({', '.join(signed)})"
    return f"the images are {describe_number(scale)}·x {each}, where x are those the averages were computed on"
