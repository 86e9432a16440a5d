"""The trial of a network: one update before it is trained, and what the user's own batch norms average in it.

Running averages that are replayed are only as right as what is recorded. Whether it is what such a layer averages shows
in its running statistics after the update.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

import bnlab
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.producing import record_moments, start_training
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Diverged, train
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.measurements.subjects import Subject
from bnlab.layers import TORCH_FORWARDS, BatchNorm, OtherInput, batch_norm_layers, has_own_forward
from bnlab.recording.trace import LayerTrace, MomentTrace
from bnlab.statistics import read_buffers

# How far running statistics may be off, in units of what is averaged: rounding, and other ways to compute moments.
_ROUNDING = 1e-6
_COMPUTING = 1e-3
_NAME_A_FUNCTION = (
    "name a function that gives what it normalizes, from the layer, the arguments and the keyword arguments of its "
    "call: inputs=module.function"
)


def try_training(run: Run) -> set[float | None]:
    """Make the first update; UserError if the network cannot be built, take images, be trained or be measured.

    It takes two images, or a whole batch where there is a layer with a forward of its own, which may divide that.

    Returns:
        The momenta of the user's own batch norms; None: the average of all batches alike.
    """
    images, classes = run.dataset.train.images[:2], run.dataset.classes
    try:
        progress = start_training(run)
        _require_statistics(run.config, progress.model)
        logits = progress.model(images)
        if logits.shape != (2, classes):
            raise ValueError(f"found {logits.shape} of two images, not logits [2, {classes}]")

        batches = replace(run.batches, batch_size=2)
        if _try_measuring(run, progress.model, images):
            batches = run.batches
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "record: ")  # of averages, which are judged below
            with record_moments(run, progress) as trace, contextlib.suppress(Diverged):  # which is a result
                next(train(progress, batches, run.config.optimizer, run.steps, until=1))
    except UserError:
        raise
    except (AssertionError, AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        config = run.config
        given = f"images {list(images.shape[1:])} and {classes} classes of data={config.data.name}"
        raise UserError(
            f"model={config.model.name}: cannot be trained, {where_raised(error)}; it was given {given}"
        ) from error
    return _find_momenta(run.config, progress.model, trace)


def describe_momenta(config: Config, momenta: set[float | None], subjects: Iterable[Subject]) -> str:
    """Say which averages of the user's own batch norms a sweep does not measure beside others; empty: none."""
    averages = [subject for subject in subjects if subject.average is not None]
    swept = [subject.momentum for subject in averages if subject.momentum is not None]
    if not swept:
        return ""
    missing = set()
    for momentum in momenta - {None}:
        if momentum is not None and not any(math.isclose(momentum, each, rel_tol=0.01) for each in swept):
            missing.add(f"{momentum:.3g}")

    measured = [f"{momentum:g}" for momentum in dict.fromkeys(swept)]
    if missing:
        listed = sorted(missing, key=float)
        what = f"with momentum {' and '.join(listed)}"
        remedy = f"set momentum=[{','.join([*measured, *listed])}]"
    elif None in momenta and not any(subject.estimator == "cumulative" for subject in averages):
        what = "all batches alike (momentum=None)"
        remedy = "add cumulative to estimator="
    else:
        return ""
    only = f"rows are of momentum {' and '.join(measured)} alone"
    return f"{_name_own(config)}: averages {what} while it is trained, but {only}; {remedy}"


def has_own_layers(config: Config) -> bool:
    """Return whether the network may have batch norms of the user's own."""
    return config.norm.is_own or config.model.is_own


def _name_own(config: Config) -> str:
    """Name the user's own norm, or else the model, as it was chosen."""
    chosen = config.norm if config.norm.is_own else config.model
    return f"{chosen.group}={chosen.name}"


def _require_statistics(config: Config, model: nn.Module) -> None:
    """UserError for batch norms that have no statistics in eval mode but those of the images that they are given."""
    for name, layer in model.named_modules():
        if isinstance(layer, BatchNorm) and layer.running_mean is None:
            raise UserError(
                f"{_name_own(config)}: layer {name!r} keeps no running statistics, so that what it computes in eval "
                "mode depends on the images that are predicted together; let it keep them, and choose "
                "estimator=test_batch for statistics of these images"
            )


def _try_measuring(run: Run, model: nn.Module, images: Tensor) -> bool:
    """Ask batch norms with a forward of their own what they average; return whether there are any.

    UserError if it is unknown what they normalize.
    """
    inputs = run.inputs_of(model)
    if not any(isinstance(module, BatchNorm) and has_own_forward(module) for module in model.modules()):
        return False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "population_statistics: .* never average")  # refused after the update
            bnlab.population_statistics(model, [images], inputs=inputs)
    except OtherInput as error:
        raise UserError(f"{_name_own(run.config)}: {error.found}; {_NAME_A_FUNCTION}") from error
    except Exception as error:  # the user's function may raise anything
        if inputs is None:
            raise
        raise UserError(f"inputs={run.config.inputs}: {where_raised(error)}") from error
    return True


def _find_momenta(config: Config, model: nn.Module, trace: MomentTrace | None) -> set[float | None]:
    """Find the momenta of the user's own batch norms; UserError where the update has averaged something else."""
    momenta: set[float | None] = set()
    if trace is None or not has_own_layers(config):
        return momenta
    for name, layer in batch_norm_layers(model, caller="record").items():
        entries = trace.layers[name]
        end = read_buffers(layer).cpu()
        has_averaged = not torch.equal(entries.start.cpu(), end)
        if len(entries) and not has_averaged:
            raise UserError(
                f"{_name_own(config)}: layer {name!r} leaves its running statistics as they are in an update, so that "
                "there is no average to be measured; let it average in train mode, or derive a norm with constants "
                "from torch.nn.Module"
            )
        if has_averaged and type(layer).forward in TORCH_FORWARDS:
            momenta.add(layer.momentum)
        elif has_averaged and has_own_forward(layer):  # not of bnlab: these choose their momentum
            momentum = _fit_momentum(config, name, entries, end.double())
            momenta.add(None if layer.momentum is None else momentum)
    return momenta


def _fit_momentum(config: Config, name: str, entries: LayerTrace, end: Tensor) -> float:
    """Fit the weight of a batch to a layer's running statistics at the `end`; UserError if they are no average."""
    if not len(entries):
        raise UserError(
            f"inputs={config.inputs}: layer {name!r} averages what cannot be recorded; give values [N, C, ...] of all "
            "its channels"
        )
    start = entries.start.cpu().double()
    counts = torch.tensor(entries.counts, dtype=torch.float64, device="cpu")
    unbiased = entries.moments.double()
    biased = unbiased.clone()
    biased[:, 1] *= (1 - 1 / counts)[:, None]
    error, momentum = min(_fit_average(start, batches, end) for batches in (unbiased, biased))
    if error <= _ROUNDING + _COMPUTING * momentum and momentum < 1 + _COMPUTING:
        return momentum

    found = f"after an update the running statistics of layer {name!r} are no average of"
    if config.inputs is None:
        raise UserError(f"{_name_own(config)}: {found} its input; {_NAME_A_FUNCTION}")
    raise UserError(f"inputs={config.inputs}: {found} what it gives; give what the layer averages")


def _fit_average(start: Tensor, batches: Tensor, end: Tensor) -> tuple[float, float]:
    """Fit the weight of each batch in an average that begins at `start`: how far it is from `end` at most, the weight.

    Args:
        start: [2, C], mean and variance.
        batches: [T, 2, C], those of each batch.
        end: [2, C], what the average should be.
    """
    from scipy.optimize import least_squares  # here: it takes a third of a second

    is_finite = (batches.sum(0) + end).isfinite()
    sizes = start.abs() + batches.abs().amax(0)
    sizes[0] += sizes[1].sqrt()

    def compute_errors(momentum: float) -> Tensor:
        average = start
        for batch in batches:
            average = average.lerp(batch, float(momentum))
        return ((average - end) / sizes)[is_finite]

    if not is_finite.any():
        return math.inf, math.nan
    fit = least_squares(lambda values: compute_errors(values[0]).numpy(), 0.5, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    momentum = float(fit.x[0])
    return float(compute_errors(momentum).abs().max()), momentum
