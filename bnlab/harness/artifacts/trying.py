"""A first update of a network, which finds what would stop its training before a sweep begins."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.progress import Diverged, Progress
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import train
from bnlab.harness.errors import UserError, where_raised
from bnlab.layers import BatchNorm
from bnlab.memory import find_free_bytes

_FLOAT = 4  # bytes


def try_training(run: Run) -> dict[str, int]:
    """Make the first update on two images, of a network that the memory has room for.

    Returns: the batch-norm layers that one forward calls several times, with how often.

    Raises:
        UserError: the network is too large, cannot take the images or cannot be trained.
    """
    progress = _start_within_memory(run)
    try:
        with _count_calls(progress.model) as calls:
            logits = progress.model(run.dataset.train.images[:2])
        _require_logits(logits, run.dataset.classes)
        batches = replace(run.batches, batch_size=2)
        with states.record_moments(run, progress), contextlib.suppress(Diverged):  # which is a result
            train(progress, batches, run.config.optimizer, run.steps, [], until=1)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model={run.config.model.name}: cannot be trained, {where_raised(error)}") from error
    return {name: count for name, count in calls.items() if count > 1}


def _require_logits(found: Any, classes: int) -> None:
    """Raise ValueError unless these are the logits of two images."""
    if not isinstance(found, Tensor) or found.shape != (2, classes):
        shape = getattr(found, "shape", type(found))
        raise ValueError(f"found {shape} of two images, not logits [2, {classes}]")


def _start_within_memory(run: Run) -> Progress:
    """Begin the training at step 0; UserError, before weights are drawn, if they do not fit into the free memory."""
    with _limit_parameters(run):
        if run.config.model.is_layered:
            _build_without_memory(run)
        return states.start_training(run)


def _build_without_memory(run: Run) -> None:
    """Build the network where tensors hold no values, so that a limit on parameters is met before memory is used."""
    config = run.config
    classes = run.dataset.classes
    _, channels, size, _ = run.dataset.train.images.shape
    try:
        with torch.device("meta"):
            build_model(
                config.model,
                config.norm,
                channels=channels,
                image_size=size,
                classes=classes,
                seed=0,
            )
    except (OverflowError, RuntimeError, TypeError) as error:  # sizes beyond 64 bits
        reason = str(error).partition("\n")[0]
        raise UserError(f"model={config.model.name}: has more parameters than can be counted ({reason})") from error


@contextlib.contextmanager
def _limit_parameters(run: Run) -> Iterator[None]:
    """Refuse to build a network in the block whose training needs more memory than is free."""
    free = find_free_bytes(run.device)
    bytes_of_one = _FLOAT * _count_copies(run.config)
    parameters = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal parameters
        if not is_lazy(parameter):
            parameters += parameter.numel()
        needed = bytes_of_one * parameters
        if needed > free:
            name = run.config.model.name
            raise UserError(
                f"model={name}: has {parameters:,} parameters or more; with gradients and the optimizer's "
                f"state they need {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _count_copies(config: Config) -> int:
    """Count the numbers that training keeps for each parameter: itself, gradient, the optimizer's state, average."""
    averages = 0 if config.averaging == "none" else 1
    return 2 + config.optimizer.moments + averages


@contextlib.contextmanager
def _count_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """Count the calls of each batch-norm layer in the block."""
    calls: Counter[str] = Counter()

    def count(name: str, *arguments: object) -> None:
        calls[name] += 1

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, BatchNorm):
                hook = module.register_forward_hook(partial(count, name))
                stack.callback(hook.remove)
        yield calls
