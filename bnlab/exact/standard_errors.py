"""Standard errors of a layer's moments, with images as the independent units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnlab.borrow import measured
from bnlab.exact.task import Task, watched
from bnlab.moments import read
from bnlab.statistics import Statistics, write_buffers


def measure_errors(task: Task, statistics: Statistics, upstream: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each layer's mean and variance, float64 [C]: from the spread of the images' means and second moments.

    One pass of ordinary forwards under the statistics, which are taken as they are: upstream layers' errors are not in
    it. An image is a row of a layer's input; rows of one image (crops, frames) are taken for independent.
    """
    layers = {name: task.layers[name] for name in statistics}
    sums = {name: torch.zeros(2, len(m.mean), dtype=torch.float64) for name, m in statistics.items()}
    images = dict.fromkeys(statistics, 0)

    def take(name: str, x: Tensor) -> None:
        moments = statistics[name]
        for count, mean, var in read(x, moments.mean, by_image=True).groups():
            offset = mean - moments.mean
            spread = torch.stack((offset, var + offset.square() - moments.var))
            # Images weigh by their values; with equal ones this is Σ(·)²/N².
            sums[name] += (spread * (count / moments.count)).square().sum(1)
            images[name] += len(mean)

    with measured(task.model):
        for name, layer in layers.items():
            write_buffers(layer, statistics[name])
            layer.training = upstream == "batch"
        with watched(layers, take):
            task.ranks.together(task.run_all)
    errors, gathered = {}, task.ranks.gather((sums, images))
    for name in statistics:
        total, count = sum(own[name] for own, _ in gathered), sum(own[name] for _, own in gathered)
        of_mean, of_var = (total * count / (count - 1)).sqrt() if count > 1 else total * math.nan
        errors[name] = of_mean, of_var
    return errors


def find_worst_error(statistics: Statistics) -> float:
    """The largest relative standard error of a layer, root mean square over its channels; inf if not known."""
    errors = list[Tensor]()
    for name, (of_mean, of_var) in (statistics.standard_errors or {}).items():
        var = statistics[name].var.clamp(min=torch.finfo(torch.float64).tiny)  # a dead channel has no error
        errors += [of_mean / var.sqrt(), of_var / var]
    return max((float(e.square().mean().sqrt().nan_to_num(math.inf)) for e in errors), default=0.0)
