"""A first update of a network, which finds what would stop its training before a sweep begins."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.models import build_model
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import Diverged, Progress, train
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
    progress, classes = _start_within_memory(run), run.dataset.classes
    try:
        with _count_calls(progress.model) as calls:
            logits = progress.model(run.dataset.train.images[:2])
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            raise ValueError(f"found {getattr(logits, 'shape', type(logits))} of two images, not logits [2, {classes}]")
        with states.record_moments(run, progress), contextlib.suppress(Diverged):  # which is a result
            train(progress, replace(run.batches, batch_size=2), run.config.optimizer, run.steps, [], until=1)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model={run.config.model.name}: cannot be trained, {where_raised(error)}") from error
    return {name: count for name, count in calls.items() if count > 1}


def _start_within_memory(run: Run) -> Progress:
    """The training at step 0; UserError, before weights are drawn, if they do not fit into the free memory."""
    with _limit_parameters(run):
        if run.config.model.is_layered:
            _build_without_memory(run)
        return states.start_training(run)


def _build_without_memory(run: Run) -> None:
    """Build the network where tensors hold no values, so that a limit on parameters is met before memory is used."""
    config, (_, channels, size, _), classes = run.config, run.dataset.train.images.shape, run.dataset.classes
    try:
        with torch.device("meta"):
            build_model(config.model, config.norm, channels=channels, image_size=size, classes=classes, seed=0)
    except (OverflowError, RuntimeError, TypeError) as error:  # sizes beyond 64 bits
        reason = str(error).partition("\n")[0]
        raise UserError(f"model={config.model.name}: has more parameters than can be counted ({reason})") from error


@contextlib.contextmanager
def _limit_parameters(run: Run) -> Iterator[None]:
    """In the block, no network is built whose training needs more memory than is free."""
    config, free = run.config, find_free_bytes(run.device)
    needed = _FLOAT * _count_copies(config)
    parameters = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal parameters
        if not is_lazy(parameter):
            parameters += parameter.numel()
        if needed * parameters > free:
            raise UserError(
                f"model={config.model.name}: has {parameters:,} parameters or more; with gradients and the optimizer's "
                f"state they need {needed * parameters / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _count_copies(config: Config) -> int:
    """How many numbers training keeps for each parameter: itself, its gradient, the optimizer's state, its average."""
    return 2 + config.optimizer.moments + (config.averaging != "none")


@contextlib.contextmanager
def _count_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """In the block, count the calls of each batch-norm layer."""
    calls: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, BatchNorm):
                hook = module.register_forward_hook(lambda *_, name=name: calls.update([name]))
                stack.callback(hook.remove)
        yield calls
