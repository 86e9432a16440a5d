"""The trial of a network: one update before it is trained, and whether its own batch norms average what is recorded."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable

from torch import nn

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.producing import record_moments, start_training
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Diverged, compute_logits, train
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.measurements.subjects import Subject
from bnlab.model.layers import TORCH_FORWARDS, BatchNorm, has_own_forward

_REMEDY = (
    "let them average in train mode, by their momentum; of what is not their input name a function that gives it, from "
    "the layer, the arguments and the keyword arguments of its call: inputs=module.function"
)


def try_training(run: Run, subjects: Iterable[Subject]) -> str:
    """Make the first update; UserError if the network cannot be built, take images, be trained or be measured.

    Returns:
        Which averages of the user's own batch norms are not among those of `subjects`, in words; empty: none.
    """
    config = run.config
    images, classes = run.dataset.train.images[:2], run.dataset.classes
    try:
        progress = start_training(run)
        _require_statistics(config, progress.model)
        logits = compute_logits(progress.model, images, config.precision)
        if logits.shape != (2, classes):
            raise ValueError(f"found {logits.shape} of two images, not logits [2, {classes}]")

        with warnings.catch_warnings():
            warnings.filterwarnings("error", "record: ")  # running averages that are not of what is recorded
            warnings.filterwarnings(
                "ignore", "record: nothing was recorded: no batch-norm layer was called"
            )  # all frozen
            with record_moments(run, progress), contextlib.suppress(Diverged):  # which is a result
                next(train(progress, run.batches, config.optimizer, run.steps, until=1))
    except UserError:
        raise
    except UserWarning as error:
        found, _, _ = str(error).removeprefix("record: ").partition(": they were written")
        raise UserError(f"{_name_own(config)}: {found}; {_REMEDY}") from error
    except Exception as error:  # the user's code may raise any
        given = f"images {list(images.shape[1:])} and {classes} classes of data={config.data.name}"
        raise UserError(
            f"model={config.model.name}: cannot be trained, {where_raised(error)}; it was given {given}"
        ) from error
    return _describe_momenta(config, progress.model, subjects)


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


def _describe_momenta(config: Config, model: nn.Module, subjects: Iterable[Subject]) -> str:
    """Say which momenta of the user's own batch norms a sweep does not measure, if it measures any; empty: none."""
    averages = [subject for subject in subjects if subject.average is not None]
    swept = [subject.momentum for subject in averages if subject.momentum is not None]
    if not swept or not (config.norm.is_own or config.model.is_own):
        return ""

    missing = []
    for layer in model.modules():
        if not isinstance(layer, BatchNorm):
            continue
        if type(layer).forward not in TORCH_FORWARDS and not has_own_forward(layer):  # of bnlab, without a fixed one
            continue
        if layer.momentum is None:
            is_measured = any(subject.estimator == "cumulative" for subject in averages)
        else:
            is_measured = any(math.isclose(layer.momentum, each, rel_tol=0.01) for each in swept)
        if not is_measured:
            missing.append(f"momentum={layer.momentum}")
    if not missing:
        return ""
    measured = ", ".join(f"{momentum:g}" for momentum in dict.fromkeys(swept))
    return (
        f"{_name_own(config)}: averages with {' and '.join(dict.fromkeys(missing))} while it is trained, but rows are "
        f"of momentum {measured}; add it to momentum=, or cumulative to estimator= for None"
    )
