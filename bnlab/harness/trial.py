"""The trial of a network: an update before it is trained, or a second of them, and what its batch norms average."""

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

from bnlab.harness.artifacts.job_settings import MOMENTUM, Config
from bnlab.harness.artifacts.optimizers import LEAST_RATE
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import Diverged, compute_logits, train
from bnlab.harness.artifacts.training_runner import record_moments, start_training
from bnlab.harness.errors import UserError, where_raised
from bnlab.model.layers import BatchNorm, get_momentum, is_batch_norm, join_names

_WARM_UP = 5  # updates of a longer trial that are not timed
_REMEDY = (
    "let them average in train mode, by their momentum; of what is not their input name a function that gives it, from "
    "the layer, the arguments and the keyword arguments of its call: inputs=module.function"
)


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


def select_kind(config: Config) -> tuple[Any, ...]:
    """Select the settings that a trial depends on: of networks that agree in them, one is tried for all."""
    # bnlab's own optimizers need no trial, so that networks that differ in one of them are of one kind.
    optimizer = config.optimizer if config.optimizer.is_own else None
    is_frozen = config.freeze_at is not None and config.freeze_with == "ema"
    return config.data, config.model, config.norm, optimizer, config.inputs, config.precision, is_frozen


def try_training(run: Run, seconds: float = 0.0) -> TrialResult:
    """Make two updates, and more for so many seconds, of a network that is not kept.

    UserError if the network cannot be built, take images, be trained or be measured.
    """
    config = run.config
    optimizer = replace(config.optimizer, lr=LEAST_RATE)  # not 0, which some optimizers refuse
    # Averages of the weights take no part in an update, and each is a copy of the network.
    trial = Run(replace(config, optimizer=optimizer, averaging="none", weight_averages=None))
    trial.dataset = run.dataset  # which is read once: the trial would load it again
    update = math.nan
    images, classes = run.dataset.train.images[:2], run.dataset.classes
    try:
        state = start_training(trial)
        _require_new(trial, state.model)
        _require_statistics(trial, state.model)
        logits = _compute_logits(trial, state.model)
        messages = list(_list_warnings(trial, logits))
        if optimizer.is_own:
            _require_updates(trial, state.optimizer, logits)

        with warnings.catch_warnings():
            warnings.filterwarnings("error", "record: ")  # running averages that are not of what is recorded
            # The last filter is asked first. Where all layers are frozen, our own message says more.
            warnings.filterwarnings("ignore", "record: nothing was recorded: no batch-norm layer was called")
            with record_moments(trial, state) as trace, contextlib.suppress(Diverged):  # which is a result
                # The number only has to be out of reach: `_time_updates` ends the trial.
                updates = train(state, trial.batches, optimizer, steps=10**9)
                update = _time_updates(updates, seconds)
        # Before `eval()` below, because it looks at the modes in which the updates left the layers.
        _require_training(trial, state.model)
        # In eval mode too, where a user's forward may give something else.
        state.model.eval()
        _require_all_saved(trial, state.model)
    except UserError:
        raise
    except UserWarning as error:
        problem, _, _ = str(error).removeprefix("record: ").partition(": they were written")
        raise UserError(f"{_name_norm_or_model(config)}: {problem}; {_REMEDY}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise either
        given = f"images {list(images.shape[1:])} and {classes} classes of data={config.data.name}"
        raise UserError(
            f"model={config.model.name}: cannot be trained, {where_raised(error)}; it was given {given}"
        ) from error

    layers = [] if trace is None else list(trace.layers.values())
    moments = sum(layer.moments.nbytes for layer in layers) / max(1, state.step)
    network = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    return TrialResult(update, moments, network, messages)


def _require_new(run: Run, model: nn.Module) -> None:
    """UserError if networks share weights, or one cannot be told its mode, or cannot be written."""
    name = _name_norm_or_model(run.config)
    if model.train() is not model:
        raise UserError(f"{name}: its train() has to return the module, as torch's does; end it with `return self`")
    others = [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{name}: its state dict holds more than tensors ({others[0]}), which cannot be written")

    # What is constant may be shared, such as a table of positions or a backbone that is not trained.
    held = {weight.data_ptr() for weight in model.parameters() if weight.requires_grad} - {0}  # of an empty one
    if any(weight.data_ptr() in held for weight in run.new_model().parameters()):
        raise UserError(
            f"{name}: gives the same weights whenever it is called, so that each network would go on from the one "
            "before; build them inside of the function, or return a copy.deepcopy of them"
        )


def _require_all_saved(run: Run, model: nn.Module) -> None:
    """UserError if a network that is loaded from its state dict predicts otherwise than the trained one."""
    trained = _compute_logits(run, model)
    if not torch.equal(trained, _compute_logits(run, model)):  # it draws random numbers
        return
    again = run.new_model()
    again.load_state_dict(model.state_dict())
    again.eval()
    # Not bit for bit: weights may lie otherwise in memory.
    if not torch.allclose(trained, _compute_logits(run, again), rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            f"{_name_norm_or_model(run.config)}: predicts otherwise once it is loaded from its state dict, as networks "
            "are to be measured: something that training changes is not in there; register it as a buffer"
        )


def _require_updates(run: Run, optimizer: torch.optim.Optimizer, logits: Tensor) -> None:
    """UserError unless the user's own optimizer can make an update, and its state be written after it."""
    name = f"optimizer={run.config.optimizer.name}"
    # Any loss will do, as long as it gives the weights gradients.
    logits.square().mean().backward()
    before = [float(group["lr"]) for group in optimizer.param_groups]
    try:
        optimizer.step()
    except (Exception, SystemExit) as error:  # the user's code may raise either
        raise UserError(f"{name}: cannot make an update, {where_raised(error)}") from error
    has_schedule = any("initial_lr" in group for group in optimizer.param_groups)
    if has_schedule or before != [float(group["lr"]) for group in optimizer.param_groups]:
        raise UserError(
            f"{name}: sets its learning rate itself, which optimizer.schedule does here; leave its scheduler out, or "
            "turn a rate of its own off"
        )


def _time_updates(updates: Iterator[int], seconds: float) -> float:
    """Make two updates, and more for so many seconds; the seconds that one takes, without the first ones."""
    # What the first updates allocate once is not timed.
    warm_up = _WARM_UP if seconds else 1
    started = time.perf_counter()
    for step in updates:
        now = time.perf_counter()
        if step <= warm_up:
            started = now
        elif now - started >= seconds:
            return (now - started) / (step - warm_up)
    return math.nan


def _name_norm_or_model(config: Config) -> str:
    """Name the user's own norm, or else the model, as it was chosen."""
    chosen = config.norm if config.norm.is_own else config.model
    return f"{chosen.group}={chosen.name}"


def _compute_logits(run: Run, model: nn.Module) -> Tensor:
    """Compute the logits of two images; UserError for outputs of another kind, ValueError for another shape."""
    # A batch norm in train mode needs at least two.
    images = run.dataset.train.images[:2].clone()  # a forward may write into its input
    # Not in another precision, for which logits are cast: here the model may give anything.
    logits = compute_logits(model, images, "float32")
    if not isinstance(logits, Tensor):
        mode = "train" if model.training else "eval"
        name = _name_norm_or_model(run.config)
        raise UserError(
            f"{name}: gives a {type(logits).__name__} in {mode} mode, but the loss takes logits [N, classes]; let its "
            "forward return these alone, or put it into a module that does"
        )
    if logits.shape != (len(images), run.dataset.classes):
        expected = [len(images), run.dataset.classes]
        raise ValueError(f"found {list(logits.shape)} of two images, not logits {expected}")
    return logits


def _are_probabilities(logits: Tensor) -> bool:
    """Find out whether the outputs of each image are positive and add up to 1, as logits hardly ever do."""
    sums = logits.detach().sum(1)
    return bool((logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _list_warnings(run: Run, logits: Tensor) -> Iterator[str]:
    """Say what a user should know before the network is trained."""
    name = _name_norm_or_model(run.config)
    if run.unseen:
        yield f"{name}: an evaluation does not call {join_names(run.unseen)}; no table has rows of such batch norms"
    if _are_probabilities(logits):
        yield (
            f"{name}: its outputs are probabilities, but the loss is a cross entropy of logits: leave the softmax out, "
            "or the network learns slowly and its loss stays high"
        )


def _require_training(run: Run, model: nn.Module) -> None:
    """UserError unless a batch norm is called in evaluations, and all of these average what they normalize."""
    name = _name_norm_or_model(run.config)
    layers = {path: layer for path, layer in model.named_modules() if is_batch_norm(layer)}
    evaluated = {path: layer for path, layer in layers.items() if path not in run.unseen}
    if layers and not evaluated:
        raise UserError(
            f"{name}: an evaluation calls none of its batch norms ({join_names(layers)}), so that there is nothing to "
            "measure; call them in eval mode too"
        )
    frozen = [path for path, layer in evaluated.items() if not layer.training]
    if frozen:
        raise UserError(
            f"{name}: is trained with batch norms in eval mode ({join_names(frozen)}), which have no "
            "running average to measure; leave them in train mode, freeze all of them later by freeze_at=0.5, or let "
            "those that stay constant be torchvision.ops.FrozenBatchNorm2d"
        )
    momenta = {path: get_momentum(layers[path]) for path in evaluated}
    others = [path for path, value in momenta.items() if value is None or not math.isclose(value, MOMENTUM)]
    if run.config.freeze_at is not None and run.config.freeze_with == "ema" and others:
        # Frozen layers read their own averages, which tables would list under this momentum.
        raise UserError(
            f"{name}: freeze_at freezes running averages of momentum {MOMENTUM}, and {join_names(others)} have another "
            "momentum, or none; give them this one, or set freeze_with=exact"
        )


def _require_statistics(run: Run, model: nn.Module) -> None:
    """UserError without batch norms, or if one has no statistics in eval mode but those of the images it is given."""
    name = _name_norm_or_model(run.config)
    for layer_name, layer in model.named_modules():
        if isinstance(layer, BatchNorm) and not is_batch_norm(layer):
            raise UserError(
                f"{name}: layer {layer_name!r} keeps no running statistics, so that what it computes in eval "
                "mode depends on the images that are predicted together; let it keep them, and choose "
                "estimator=test_batch for statistics of these images"
            )
    if run.has_trace and not any(map(is_batch_norm, model.modules())):
        raise UserError(
            f"{name}: has no batch norm, nn.BatchNorm2d or another one with running_mean and running_var, and "
            "statistics of batch norms are what a sweep measures; put one into it"
        )
