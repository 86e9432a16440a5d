"""Making sure that a run's network is there: found, trained, or trained on after a kill, by one process for all.

Every few seconds trace and log are written, and last the state from which a killed training goes on exactly.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

import bnlab
from bnlab.common.bars import make_bar
from bnlab.common.files import reading, write_text, write_whole
from bnlab.harness import schema
from bnlab.harness.artifacts.job_settings import GROUPS
from bnlab.harness.artifacts.live import LiveLog, closing_log
from bnlab.harness.artifacts.run import Run, describe_environment, digest_losses
from bnlab.harness.artifacts.seeding import get_generators, set_generators
from bnlab.harness.artifacts.training import Diverged, TrainingState, train
from bnlab.harness.errors import JobError
from bnlab.harness.user_code import SOURCE
from bnlab.model.layers import batch_norm_layers
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace

if TYPE_CHECKING:
    from tqdm import tqdm

_LOG = logging.getLogger(__name__)
STATE_SECONDS = 5.0  # between two saved states: a kill costs at most so much training
# averaging=swa: all weights after an update alike, from 75% of the training on (Izmailov et al. 2018, arXiv 1803.05407,
# take one of each epoch).
_SWA_FROM = 0.75  # share of the training
_EMA_DECAY = 0.99  # averaging=ema
_IMAGES_AT_ONCE = 256  # for exact statistics, which do not depend on it
_MOST_TRAININGS = 3  # of a network that diverges, each time at another step


def ensure_trained(run: Run, list_checkpoints: Callable[[Run], Iterable[int]] = lambda run: run.measured_steps) -> bool:
    """Train the run's network unless that has been done; after a kill, go on from its state. Other processes wait.

    Returns whether there was anything to train. Where a checkpoint is missing, it is trained again from the start.
    `list_checkpoints` is called again once training has ended, as a training that diverged has fewer.

    Raises:
        Unreadable: of a file from which training was to go on.
        JobError: a checkpoint is wanted of a step that training does not reach.
    """
    with run.lock:
        ends: list[int] = []
        while not run.is_complete(wanted := {*list_checkpoints(run)}):
            # What is wanted depends on where training diverges, which is known only afterwards and may differ
            # from one training to the next. After two that end at the same step a third would change nothing.
            if len(ends) == _MOST_TRAININGS or (len(ends) > 1 and ends[-1] == ends[-2]):
                _require_reached(run, wanted - {*run.list_checkpoints()})
            _require_reached(run, [step for step in wanted if not 0 <= step <= run.steps])
            # `list_checkpoints` depends on status.json: while it is there, on where an earlier training diverged, and
            # on the whole training once it is removed. This training may end at either, so both lists are kept.
            steps_if_diverged = {*wanted, *run.list_kept()}
            # A finished training is not continued but repeated from step 0. Its folder has a file to resume from only
            # if a kill came between the last two writes of `_train`.
            if run.finished:
                run.resume_path.unlink(missing_ok=True)
            (run.folder / "status.json").unlink(missing_ok=True)
            # Checkpoints that exist are written again too: all have to come from one training, and after a kill no
            # status lists them.
            steps_if_finished = {*list_checkpoints(run), *run.list_checkpoints()}
            # The last step is always kept: `load_model` takes it unless another one is asked for.
            _train(run, {*steps_if_diverged, *steps_if_finished, run.steps})
            ends.append(run.status["step"] if run.status else 0)
        _write_where_images_are(run)
    return bool(ends)


def _require_reached(run: Run, missing: Iterable[int]) -> None:
    """Raise JobError if there are steps among the missing ones, which training does not reach."""
    steps = ", ".join(map(str, sorted(missing)))
    if not steps:
        return
    status = run.status or {"status": "finished"}
    end = f"diverged at step {status['step']}" if status["status"] == "diverged" else f"has steps 0 to {run.steps}"
    raise JobError(
        f"a checkpoint of step {steps} is asked for, but the training {end}; let the measurement's `reads` choose from "
        "run.measured_steps"
    )


def _train(run: Run, kept: set[int]) -> None:
    """Train to the end, from the run's state if there is one; `kept` are the steps of the checkpoints."""
    state = start_training(run)
    seconds_before = _restore_or_describe(run, state)
    for path in run.folder.glob("trace/*.safetensors"):
        last_step = int(path.stem.rpartition("-")[2])
        # These updates are made again: the file was written after the state, or by an earlier training that
        # is now repeated from step 0.
        if last_step > state.step:
            path.unlink()
    live = LiveLog(run, state.step) if run.config.log != "none" else None
    if state.step == 0:
        _keep_and_show(run, state, kept, live)
    # One iterator serves all parts: each goes on with the update after the last one of the part before.
    updates = train(state, run.batches, run.config.optimizer, run.steps)

    started = time.monotonic()
    status = "unfinished"
    settings = {"initial": state.step, "total": run.steps, "unit": "update", "desc": run.id}
    with closing_log(live), make_bar(run.config.quiet, is_inner=True, **settings) as bar:
        while status == "unfinished":
            # Each part writes its trace and log before the state, so that a state never lacks what led to it.
            status = _train_part(run, state, updates, kept, live, bar)
            seconds = time.monotonic() - started
            if status == "unfinished":
                _save_state(run, state, seconds_before + seconds)

    # An earlier training of this network may have gone further than one that has diverged. What it left behind belongs
    # to other updates.
    run.remove_checkpoints(after=state.step)

    end = {
        "status": status,
        "step": state.step,
        "train_seconds": seconds_before + seconds,
        "final_loss": state.loss,
        "checkpoints": run.list_checkpoints(),
        # Not `run.losses_digest`, which may have been read of an earlier training of this network.
        "training": digest_losses(run.read_log()),
    }
    # The state goes last: without it and without a status, a killed training would begin again.
    write_text(run.folder / "status.json", json.dumps(end, indent=1))
    run.resume_path.unlink(missing_ok=True)


def _train_part(
    run: Run,
    state: TrainingState,
    updates: Iterator[int],
    kept: set[int],
    live: LiveLog | None,
    bar: tqdm[Any],
) -> str:
    """Make updates for some seconds, write their trace and the log, and return unfinished, finished or diverged."""
    began = time.monotonic()
    status = "finished"
    try:
        with record_moments(run, state) as trace:
            for step in updates:
                bar.set_postfix_str(f"loss {state.loss:.3f}", refresh=False)
                bar.update()
                # The recording also ends where batch norm is frozen, because nothing is recorded after that.
                is_due = time.monotonic() - began >= STATE_SECONDS
                # After the last update the loop ends by itself, and no state is needed.
                if step < run.steps and (is_due or step == run.frozen_from):
                    # The log below needs all updates, and a diverged network must not be saved.
                    state.read_log()
                    status = "unfinished"
                    # Recording ends before this update is finished: freezing may write exact statistics into
                    # the buffers, and `record` would warn that they are no average of the recorded batches.
                    break
                _finish_update(run, state, kept, live)
    except Diverged as error:
        _LOG.warning(f"{run.id}: diverged, {error}; there are no rows from then on")
        status = "diverged"

    # If the first update of this part diverged, there is nothing to keep of its trace.
    if trace is not None and state.step > trace.first_step:
        trace.truncate(state.step)  # of a training that diverged: later batches are not of finite weights
        trace.save(run.folder / "trace" / f"{trace.first_step:07d}-{state.step:07d}.safetensors")
    log = pd.DataFrame(state.log, columns=["step", "loss", run.metric])
    schema.write_frame(run.folder / "log.parquet", log)
    if live is not None:
        live.write_updates(state)
    if status == "unfinished":  # the update at which the loop stopped, now that nothing is recorded
        _finish_update(run, state, kept, live)
    return status


def _finish_update(run: Run, state: TrainingState, kept: set[int], live: LiveLog | None) -> None:
    """Change the network as its settings say, and keep its weights where they are wanted."""
    freeze_and_average(run, state)
    _keep_and_show(run, state, kept, live)


def _keep_and_show(run: Run, state: TrainingState, kept: set[int], live: LiveLog | None) -> None:
    """Write a checkpoint if this is one of the steps of which they are kept, and measure the network for the log."""
    if state.step in kept:
        state.read_log()  # no weights of a network that has diverged
        # Averages first: a checkpoint alone would count as complete.
        for decay, average in state.weight_averages.items():
            run.save_average(decay, state.step, average.module)
        run.save_checkpoint(state.step, state.evaluated_model)
    if live is not None and state.step in run.measured_steps:
        state.read_log()  # nothing is measured on a network that has diverged
        live.measure(state)


def _restore_or_describe(run: Run, state: TrainingState) -> float:
    """Restore a killed training, or write the files that describe a new one; return the seconds that it has taken."""
    seconds = 0.0
    if run.resume_path.exists():
        # `Run.dataset` checks the images of finished networks only; this one was begun and not finished.
        run.require_images(run.dataset)
        seconds = _restore_state(run, state)
        _LOG.info(f"{run.id}: continuing from step {state.step} of {run.steps}")
        _warn_of_another_environment(run)
    else:
        _write_settings(run)
        # The machine on which training begins. A training that goes on elsewhere is compared with it.
        environment = describe_environment(run.device) | {"images": run.dataset.trained_on}
        write_text(run.folder / "environment.json", json.dumps(environment, indent=1))
    return seconds


def _warn_of_another_environment(run: Run) -> None:
    """Say if a training was begun on another kind of processor, or with other versions or threads."""
    here = describe_environment(run.device)
    begun = run.environment
    kinds = [f"{each['device']} with {each['vector_instructions']}" for each in (begun, here)]
    if kinds[0] != kinds[1]:
        _LOG.warning(
            f"{run.id}: was begun on another kind of processor, {kinds[0]}, and goes on here, {kinds[1]}; "
            "neither alone trains these numbers: where they count, train it again from the start"
        )

    changes = []
    for name, number in here["versions"].items():
        before = begun["versions"].get(name, number)
        if before != number:
            changes.append(f"{name} {before} (here {number})")
    if begun["threads"] != here["threads"]:
        changes.append(f"threads={begun['threads']} (here {here['threads']})")
    if changes:
        _LOG.warning(f"{run.id}: was begun with {', '.join(changes)}; the table runs names what it was begun with")


def _write_where_images_are(run: Run) -> None:
    """Write into the run's settings where its images are now, so that it is loaded with them after they were moved.

    What else may differ in settings of the images without another name of the network says how they are read.
    """
    data = run.config.data
    named = data.identify()
    now = {key: value for key, value in asdict(data).items() if key not in (*named, "content")}
    path = run.folder / "config.yaml"
    with reading(path):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        before = settings["data"]
        if settings["seed"] != run.config.seed:  # somebody has copied the folder of another network here
            raise ValueError(f"it is the network of seed={settings['seed']}")
    if before | now != before:
        write_text(path, yaml.safe_dump(settings | {"data": before | now}, sort_keys=False))


def _write_settings(run: Run) -> None:
    """Write the settings with which a network is trained, and the digests of the user's code."""
    settings = asdict(run.config)
    for key in GROUPS:
        naming = run.settings.get(key, {})
        if SOURCE in naming:
            settings[key][SOURCE] = naming[SOURCE]
    if not run.config.data.content:
        del settings["data"]["content"]
    write_text(run.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))


def start_training(run: Run) -> TrainingState:
    """Begin the training at step 0; sets the random states of torch, numpy and Python."""
    # For dropout and the like. Layers of the user's own may draw from the two others.
    torch.manual_seed(run.config.seed)
    np.random.seed(run.config.seed)
    random.seed(run.config.seed)
    model = run.new_model()
    optimizer = run.config.optimizer.build(model.parameters(), run.config.batch_size)
    average = None
    if run.config.averaging == "swa":
        average = _begin_average(get_swa_avg_fn(), model)
    elif run.config.averaging == "ema":
        average = _begin_average(get_ema_avg_fn(_EMA_DECAY), model)
    return TrainingState(
        model,
        optimizer,
        run.config.task.build(run.config.optimizer.label_smoothing),
        step=0,
        average=average,
        weight_averages={decay: _begin_average(get_ema_avg_fn(decay), model) for decay in run.config.decays},
        precision=run.config.precision,
    )


def _begin_average(average: Callable[[Tensor, Tensor, Tensor | int], Tensor], model: nn.Module) -> AveragedModel:
    """Begin an average of weights and buffers, which takes no weights yet.

    `average` makes the new value of the old one, the newest and their number. Counts of batches, whole numbers, stay
    the newest.
    """

    def average_floats(before: Tensor, newest: Tensor, count: Tensor | int) -> Tensor:
        return average(before, newest, count) if before.is_floating_point() else newest

    # With `use_buffers=False` torch would copy the newest running averages instead of averaging them with the
    # same factors as the weights.
    return AveragedModel(model, avg_fn=average_floats, use_buffers=True)


def record_moments(run: Run, state: TrainingState) -> contextlib.AbstractContextManager[MomentTrace | None]:
    """Record the batch moments from here on; nothing of a network without batch norm, or where it is frozen."""
    is_frozen = run.frozen_from is not None and state.step >= run.frozen_from
    if is_frozen or not run.has_trace:
        return contextlib.nullcontext()
    return record(state.model, step=state.step)


def freeze_and_average(run: Run, state: TrainingState) -> None:
    """After an update, freeze batch norm if that is its step, and take the weights into their average."""
    if state.step == run.frozen_from:
        state.read_log()  # a network that has diverged has no statistics
        if run.config.freeze_with == "exact":
            images = run.dataset.train.images
            batches = images.tensor_split(math.ceil(len(images) / _IMAGES_AT_ONCE))
            exact = bnlab.population_statistics(state.model, batches)
            exact.write_to(state.model)
        _freeze_batch_norm(state.model)

    first = max(1, round(_SWA_FROM * run.steps)) if run.config.averaging == "swa" else 1
    if state.average is not None and state.step >= first:
        state.average.update_parameters(state.model)
    for average in state.weight_averages.values():
        average.update_parameters(state.model)


def _freeze_batch_norm(model: nn.Module) -> None:
    """Put batch norm into eval mode, in which it normalizes with its buffers."""
    for layer in batch_norm_layers(model, caller="freeze_at").values():
        layer.eval()


def _save_state(run: Run, state: TrainingState, seconds: float) -> None:
    """Write all from which the training goes on exactly, and the seconds that it has taken."""
    generators = get_generators()
    if run.device.type == "cuda":
        generators["device"] = torch.cuda.get_rng_state(run.device)
    saved = {
        "step": state.step,
        "seconds": seconds,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "averages": [average.state_dict() for average in _list_averages(state)],
        "generators": generators,
    }
    write_whole(run.resume_path, lambda beside: torch.save(saved, beside))


def _restore_state(run: Run, state: TrainingState) -> float:
    """Restore a training from its state; returns the seconds that it had taken. Unreadable if it cannot."""
    with reading(run.resume_path):
        saved = run.load_state()
        state.step = saved["step"]
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        for average, values in zip(_list_averages(state), saved["averages"], strict=True):
            average.load_state_dict(values)

        set_generators(saved["generators"])
        if run.device.type == "cuda" and "device" in saved["generators"]:  # it may have been begun on a CPU
            torch.cuda.set_rng_state(saved["generators"]["device"], run.device)
        # The log is written before the state, and may have updates that are made again.
        log = run.read_log()[: state.step]
        state.log = list(log.itertuples(index=False, name=None))
    # A state dict does not hold the modes of layers.
    if run.frozen_from is not None and state.step >= run.frozen_from:
        _freeze_batch_norm(state.model)
    return float(saved["seconds"])


def _list_averages(state: TrainingState) -> list[AveragedModel]:
    """List all averages of the weights that a training keeps."""
    averages = [] if state.average is None else [state.average]
    return averages + list(state.weight_averages.values())
