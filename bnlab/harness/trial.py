"""The trial of a network before it is trained: it is built, updated, loaded again and compared."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.harness.artifacts.job_settings import GROUPS, MOMENTUM, Config
from bnlab.harness.artifacts.optimizers import LEAST_RATE
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import Diverged, train
from bnlab.harness.artifacts.training_runner import record_moments, start_training
from bnlab.harness.errors import UserError, where_raised
from bnlab.model.layers import get_momentum, is_batch_norm, join_names

_TIMED = 0.1  # seconds in which updates are timed, one of them at least
_SOME_IMAGES = 2  # a batch norm in train mode needs at least two
_REMEDY = "let them average in train mode, by their momentum, what they give to torch's batch norm"


class TrialResult(NamedTuple):
    """Trial of a network.

    Attributes:
        update: seconds of an update; NaN where a loss is not finite.
        moments: bytes of the batch moments of an update.
        network: bytes of the network's weights and buffers; a checkpoint takes them once, and once more for each
            average of its weights.
        warnings: what to say before the network is trained, in a line each.
    """

    update: float
    moments: float
    network: float
    warnings: list[str]


def select_tried(config: Config) -> tuple[Any, ...]:
    """Select the settings that a trial depends on: of networks that agree in them, one is tried for all."""
    # bnlab's own optimizers need no trial, so that networks that differ in one of them are of one kind.
    optimizer = config.optimizer if config.optimizer.is_own else None
    is_frozen = config.freeze_at is not None and config.freeze_with == "ema"
    return config.data, config.task, config.model, config.norm, optimizer, config.precision, is_frozen


def try_training(run: Run) -> TrialResult:
    """Make some updates of a network that is not kept, and time them.

    UserError, with the line of the user's code, if the network cannot be built, be trained, or be loaded again.
    """
    config = run.config
    optimizer = replace(config.optimizer, lr=LEAST_RATE)  # not 0, which some optimizers refuse
    # Averages of the weights take no part in an update, and each is a copy of the network.
    trial = Run(replace(config, optimizer=optimizer, averaging="none", weight_averages=None))
    trial.dataset = run.dataset  # which is read once: the trial would load it again
    update = math.nan
    try:
        state = start_training(trial)
        messages = [*_list_warnings(trial, state.model)]
        _require_output(trial, state.model)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "record: ")  # running averages that are not of what is recorded
            with record_moments(trial, state) as trace, contextlib.suppress(Diverged):  # which is a result
                # The number only has to be out of reach: `_time_updates` ends the trial.
                updates = train(state, trial.batches, optimizer, steps=10**9)
                update = _time_updates(updates)
        _require_loadable(trial, state.model)
    except UserError:
        raise
    except UserWarning as error:
        problem, _, _ = str(error).removeprefix("record: ").partition(": they were written")
        raise UserError(f"{_name_own(config)}: {problem}; {_REMEDY}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise either
        images, classes = run.dataset.train.images, run.dataset.classes
        given = f"images {list(images.shape[1:])} and {classes} classes of data={config.data.name}"
        raise UserError(
            f"{_name_own(config)}: cannot be trained, {where_raised(error)}; it was given {given}"
        ) from error

    layers = [] if trace is None else list(trace.layers.values())
    moments = sum(layer.moments.nbytes for layer in layers) / max(1, state.step)
    network = sum(tensor.nbytes for tensor in [*state.model.parameters(), *state.model.buffers()])
    return TrialResult(update, moments, network, messages)


def _name_own(config: Config) -> str:
    """Name the user's own parts of a network, apart from its data, as they were chosen; else bnlab's model."""
    chosen = [getattr(config, group) for group in GROUPS if group != "data"]
    names = [f"{each.group}={each.name}" for each in chosen if each.is_own]
    return " ".join(names) or f"model={config.model.name}"


def _list_warnings(run: Run, model: nn.Module) -> Iterator[str]:
    """Say what a user should know before the network is trained; UserError for weights that networks share."""
    name = _name_own(run.config)
    layers = {path: layer for path, layer in model.named_modules() if is_batch_norm(layer)}
    if run.has_trace and not {*layers} - {*(run.unseen if layers else ())}:
        raise UserError(
            f"{name}: has no batch norm, nn.BatchNorm2d or another one with running_mean and running_var, so there is "
            "nothing to measure; add one"
        )
    if run.unseen:
        yield f"{name}: an evaluation does not call {join_names(run.unseen)}; no table has rows of such batch norms"
    momenta = {path: get_momentum(layers[path]) for path in layers if path not in run.unseen}
    others = [path for path, value in momenta.items() if value is None or not math.isclose(value, MOMENTUM)]
    if others and run.config.freeze_at is not None and run.config.freeze_with == "ema":
        # Frozen layers read their own averages, which tables would list under this momentum.
        raise UserError(
            f"{name}: freeze_at freezes running averages of momentum {MOMENTUM}, and {join_names(others)} have another "
            "momentum, or none; give them this one, or set freeze_with=exact"
        )
    values = sorted({str(momenta[path]) for path in others if momenta[path] is not None})
    if values:
        yield f"{name}: layers have momentum {', '.join(values)}, which is not read; momentum= has those of the rows"
    if run.config.model.is_own:
        yield from _compare_seeds(run, model)


def _compare_seeds(run: Run, model: nn.Module) -> Iterator[str]:
    """Say if another seed has the same initial weights; UserError if they are the very same tensors."""
    other = Run(replace(run.config, seed=run.config.seed + 1))
    other.dataset = run.dataset
    pairs = [*zip(model.parameters(), other.new_model().parameters(), strict=False)]
    name = f"model={run.config.model.name}"
    # What is constant may be shared, such as a backbone that is not trained.
    trained = {weight.data_ptr() for weight in model.parameters() if weight.requires_grad} - {0}  # of an empty one
    if any(others.data_ptr() in trained for _, others in pairs):
        raise UserError(
            f"{name}: gives the same weights whenever it is called, so that each network would go on from the one "
            "before; build them inside of the function, or return a copy.deepcopy of them"
        )
    if all(torch.equal(mine, others) for mine, others in pairs):
        yield f"{name}: gives the same initial weights for every seed; intervals over seeds are of the rest alone"


def _require_output(run: Run, model: nn.Module) -> None:
    """UserError for outputs that are no tensor, or no logits of the classes."""
    output = _compute_output(run, model)
    name = _name_own(run.config)
    if not isinstance(output, Tensor):
        raise UserError(
            f"{name}: gives a {type(output).__name__}, but the loss takes one tensor, of classes logits [N, classes]; "
            "let its forward return this alone"
        )
    expected = [_SOME_IMAGES, run.dataset.classes]
    if not run.config.task.is_own and [*output.shape] != expected:
        raise UserError(f"{name}: gives {list(output.shape)} of two images, not logits {expected}")


def _require_loadable(run: Run, model: nn.Module) -> None:
    """UserError if a network that is loaded from its state dict predicts otherwise than the trained one."""
    model.eval()
    trained = _compute_output(run, model)
    again = run.new_model()
    again.load_state_dict(model.state_dict())
    again.eval()
    is_random = not torch.equal(trained, _compute_output(run, model))
    # Not bit for bit: weights may lie otherwise in memory.
    if not is_random and not torch.allclose(trained, _compute_output(run, again), 1e-3, 1e-4, equal_nan=True):
        raise UserError(
            f"{_name_own(run.config)}: its predictions change when it is loaded from its state dict, which is how "
            "networks are measured: training changes something that is not in there; register it as a buffer"
        )


def _compute_output(run: Run, model: nn.Module) -> Tensor:
    images = run.dataset.train.images[:_SOME_IMAGES].clone()  # a forward may write into its input
    output: Tensor = model(images)
    return output


def _time_updates(updates: Iterator[int]) -> float:
    """Make updates for a tenth of a second, but two at least; the seconds that one takes, without the first one."""
    started = time.perf_counter()
    for step in updates:
        now = time.perf_counter()
        if step == 1:
            # What it allocates once is not timed.
            started = now
        elif now - started >= _TIMED:
            return (now - started) / (step - 1)
    return math.nan
