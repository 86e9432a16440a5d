"""Scores of images: reading what a caller's function has returned, and the paired difference of two kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

_ADVICE = "return a value for each image, higher is better, e.g. (logits.argmax(1) == labels)"


@dataclass(frozen=True)
class Difference:
    """Mean difference of two scores of the same images, with its 95% interval over images.

    Attributes:
        value: the mean.
        low, high: the interval's ends.
        images: number of images.
    """

    value: float
    low: float
    high: float
    images: int


def compare_scores(values: Tensor, others: Tensor, are_shares: bool) -> Difference:
    """Estimate how much larger `values` are than `others`, both float64 [images], paired over images.

    Equal predictions of few images are no proof. So values of 0 and 1 get two further pairs, one of each sign
    (Bonett & Price 2012), and of other values that are all equal see `bound_unchanged`.

    Args:
        values, others: the scores.
        are_shares: whether all lie between 0 and 1, as those of accuracy do.
    """
    differences = values - others
    both = torch.cat((values, others))
    are_right_or_wrong = (both == 0) | (both == 1)
    are_signs = bool(are_right_or_wrong.all())

    if len(differences) < 2 or are_signs or differences.any():
        estimate = estimate_mean(differences, are_signs)
        # Of few images an interval leaves what shares can differ by; that of one image says that nothing is known.
        if are_shares and math.isfinite(estimate.low):
            estimate = replace(estimate, low=max(-1.0, estimate.low), high=min(1.0, estimate.high))
        return estimate
    # All differences are 0, and their standard deviation would make an interval of no width.
    spread = 1.0 if are_shares else float(values.max() - values.min())
    return bound_unchanged(len(differences), spread)


def estimate_mean(differences: Tensor, are_signs: bool = False, tests: int = 1) -> Difference:
    """Estimate a mean over images [N] with its 95% interval, as large samples have it.

    Args:
        differences: float64 [N].
        are_signs: they are -1, 0 or 1; one of each sign is added for the interval, which is about their mean.
        tests: how many means the 95% are of, all at once (Bonferroni).
    """
    images = len(differences)
    value = float(differences.mean())
    sample = differences
    if are_signs:
        one_of_each = differences.new_tensor([1.0, -1.0])
        sample = torch.cat((differences, one_of_each))
    if len(sample) < 2:
        return Difference(value, -math.inf, math.inf, images)

    error = float(sample.std()) / math.sqrt(len(sample))
    half = NormalDist().inv_cdf(1 - 0.025 / tests) * error
    center = float(sample.mean())
    # The two further pairs move the interval towards 0, so that it may leave the mean outside.
    low = min(value, center - half)
    high = max(value, center + half)
    return Difference(value, low, high, images)


def bound_unchanged(images: int, spread: float) -> Difference:
    """Bound a mean difference of which all images have shown 0, at 95%.

    Were more than 1 − .05^(1/images) of all images to differ, some of these would have, with a probability of 95% (for
    many images that is 3/images, the rule of three: Hanley & Lippman-Hand 1983).

    Args:
        images: number of images.
        spread: how far a single image may differ at most.
    """
    half = (1 - 0.05 ** (1 / images)) * spread
    return Difference(0.0, -half, half, images)


def average_by_image(values: Tensor) -> Tensor:
    """Average [N, ...] to float64 [N]."""
    return values.double().reshape(len(values), -1).mean(1)


def read_values(
    returned: Any, caller: str, must_be_finite: bool = True, advice: str = _ADVICE, function: str = "evaluate"
) -> Tensor:
    """Turn what a caller's `evaluate`, or another function of this name, has returned into float64 [images].

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: there are none, or one is not finite and must be.
    """
    if isinstance(returned, Real):
        raise TypeError(f"{caller}: {function} returned one number, {returned}; {advice}")
    try:
        values = torch.as_tensor(returned, device="cpu").detach()
        if values.is_complex():
            # It is caught below, where the message is made.
            raise TypeError
        values = values.double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{caller}: {function} returned a {type(returned).__name__}; {advice}") from error
    if not values.dim() or not values.numel():
        raise ValueError(f"{caller}: {function} returned {values.numel()} value(s) without an axis of images; {advice}")
    if must_be_finite and not values.isfinite().all():
        raise ValueError(f"{caller}: {function} returned values that are not finite; {advice}")
    # Scores [images, ...] of pixels or labels are averaged, because intervals are over images. A single row holds the
    # scores of images, and so does each of several lists, one for each batch.
    is_by_image = hasattr(returned, "shape") and len(values) > 1
    return average_by_image(values) if is_by_image else values.flatten()


def describe_number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent where it is large: "0.0312", "1.3", "1,340"."""
    # `z` writes -0.0 as 0.0. `g` gives numbers of more digits an exponent, which the last line avoids.
    reported = f"{value:z.{digits}g}"
    is_large = math.isfinite(value) and abs(float(reported)) >= 10**digits
    return f"{float(reported):,.0f}" if is_large else reported
