"""Standard errors of a layer's moments, with images as the independent units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnlab.exact.ranks import Ranks
from bnlab.moments import Moments, Partial
from bnlab.statistics import Statistics


def standard_error(moments: Moments, parts: list[Partial], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Of the mean and of the variance, from the spread of the images' means and second moments about the mean."""
    square, images = torch.zeros(2, len(moments.mean), dtype=torch.float64, device="cpu"), 0
    for part in parts:
        for count, mean, var in part.groups():
            offset = mean - moments.mean
            spread = torch.stack((offset, var + offset.square() - moments.var))
            # Images weigh by their values; with equal ones this is Σ(·)²/N².
            square += (spread * (count / moments.count)).square().sum(1)
            images += len(mean)
    gathered = ranks.gather((square, images))
    total, count = sum(s for s, _ in gathered), sum(n for _, n in gathered)
    errors = (total * count / (count - 1)).sqrt() if count > 1 else torch.full_like(square, torch.nan)
    return errors[0], errors[1]


def count_rows(parts: list[Partial]) -> int:
    """How many groups there are, which are taken for independent of one another."""
    return sum(block[1].numel() // part.channels for part in parts for block in part.blocks)


def worst_error(statistics: Statistics) -> float:
    """The largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    errors = list[Tensor]()
    for name, (of_mean, of_var) in (statistics.standard_errors or {}).items():
        # A dead channel has no error and no variance.
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)
        errors += [of_mean / var.sqrt(), of_var / var]
    return max((float(e.square().mean().sqrt().nan_to_num(math.inf)) for e in errors), default=0.0)
