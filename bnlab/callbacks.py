"""Exact statistics wherever a trainer evaluates: the Trainer of Lightning, and that of Hugging Face's Transformers.

Both are shells over `bnlab.watch`. The running averages come back afterwards, bit for bit, also after an exception:
training goes on as without.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.model.batches import call, require_batches, require_image_count, require_rereadable
from bnlab.model.warn import warn
from bnlab.statistics.network import Statistics, digest_weights
from bnlab.watching.watch import Watch, watch

__all__ = ["make_lightning_callback", "recalibrate_in_transformers"]
_SECONDS = "recalibration_seconds"  # what the time is called in logs
_METHODS = ("evaluate", "predict", "save_model")  # of a Trainer of Transformers, those that see exact statistics
_RECALIBRATED: weakref.WeakSet[Any] = weakref.WeakSet()  # trainers whose methods were replaced


def make_lightning_callback(batches: Iterable[Any] | None = None, *, images: int = 512, **options: Any) -> Any:
    """Make a callback of Lightning: exact statistics in validations, tests, predictions and their checkpoints.

    They are of the latest training batches, as `bnlab.watch` keeps them; before there are any (the sanity check, a
    resumed training, `validate` without `fit`), running averages are evaluated, and a warning says so once.

    A checkpoint is saved after its validation, so the running averages come back with the next epoch or training batch,
    at the end of the training, or with an exception. How long it takes is logged as `recalibration_seconds`, except
    before predictions, where Lightning logs nothing.

    Other weights may be put into the module for a validation, as `EMAWeightAveraging` does, in any order of callbacks:
    exact statistics are those of the weights that are validated. A checkpoint of the same weights has them, too. It has
    averaged buffers if the weights were averaged again after their validation, as at the end of the epoch; with
    `save_weights_only=True` Lightning saves the trained weights, not the averaged ones. A training that is resumed goes
    on averaging buffers from what its checkpoint has. After `fit` the module has averaged buffers, as without this
    callback.

    Args:
        batches: measured in place of the latest training batches: what the model's forward takes, such as a list of
            batches or a DataLoader; read at each validation, and kept in memory meanwhile.
        images: how many training images are kept.
        options: further ones of `bnlab.watch`: `keep="cpu"`, `layers=[...]`; with batches `max_images=2000`, and
            `forward=` if the LightningModule has no forward of its own.

    Returns:
        A `Callback` of the package that is installed, `lightning` or `pytorch_lightning`.

    Raises:
        TypeError, ValueError: the batches cannot be iterated over, or are one batch; `images` is no number of images.
        ValueError: when training begins, if the model has no batch norm with running statistics.

    >>> from lightning import Trainer  # doctest: +SKIP
    >>> from bnlab.callbacks import make_lightning_callback
    >>> trainer = Trainer(callbacks=[make_lightning_callback()])  # doctest: +SKIP
    """
    _require_arguments("make_lightning_callback", batches, images)
    # Lightning is published as two packages, and their classes are not interchangeable.
    package = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
    callback_class: Any = importlib.import_module(package).Callback

    block = _Block("make_lightning_callback")

    class LastCallback(callback_class):  # type: ignore[misc]
        """Runs after all other callbacks, when those that exchange weights have done so."""

        def on_validation_epoch_end(self, trainer: Any, module: nn.Module) -> None:
            block.follow(module)  # the module's own hook comes next, and may evaluate, too

        def on_save_checkpoint(self, trainer: Any, module: nn.Module, checkpoint: dict[str, Any]) -> None:
            block.write_to(checkpoint["state_dict"], module)

    class ExactStatisticsCallback(callback_class):  # type: ignore[misc]
        """Opens and closes the block, in the order in which Lightning calls its hooks.

        | hook | the block |
        |---|---|
        | start of an evaluation | is closed: other weights may be put into the module now |
        | its first batch | is opened: statistics are measured |
        | end of its epoch | is closed: the weights may be taken out; `LastCallback` opens it again if they were not |
        | end of a validation | is opened again, or closed, as the weights are: a checkpoint comes next |
        | start of a training epoch or batch, end of the fit, exception, teardown | is closed |
        """

        def __init__(self) -> None:
            self._last = LastCallback()
            self._watch: Watch | None = None
            self._has_begun = False  # whether an evaluation has, and nothing was measured in it

        def on_fit_start(self, trainer: Any, module: nn.Module) -> None:
            self._require_watch(trainer, module)
            # First, so that running averages are back before another callback exchanges them, or writes averaged ones.
            others = [callback for callback in trainer.callbacks if callback not in (self, self._last)]
            trainer.callbacks = [self, *others, self._last]

        def on_validation_start(self, trainer: Any, module: nn.Module) -> None:
            block.leave()
            self._has_begun = True

        on_test_start = on_predict_start = on_validation_start

        def on_validation_batch_start(self, trainer: Any, module: Any, *batch: Any) -> None:
            # No earlier than with the first batch, because other weights may be put into the module until then, by
            # callbacks or by the module's own hooks.
            if self._has_begun:
                seconds = self._enter_block(trainer, module)
                # Without `sync_dist` Lightning warns where several processes log a value at the end of an epoch.
                module.log(_SECONDS, seconds, batch_size=1, sync_dist=True, add_dataloader_idx=False)

        on_test_batch_start = on_validation_batch_start

        # Predictions have their own method, because Lightning does not log there.
        def on_predict_batch_start(self, trainer: Any, module: nn.Module, *batch: Any) -> None:
            if self._has_begun:
                self._enter_block(trainer, module)

        def on_validation_epoch_end(self, trainer: Any, module: nn.Module) -> None:
            # The weights may be taken out of the module now, with the buffers that were put in with them.
            block.leave()

        on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

        def on_validation_end(self, trainer: Any, module: nn.Module) -> None:
            block.follow(module)  # the module's own hook may have taken them out

        def on_train_epoch_start(self, trainer: Any, module: nn.Module) -> None:
            # As early as this, because StochasticWeightAveraging resets the buffers here before its last pass, and
            # running averages that came back later would undo that.
            block.leave()

        def on_train_batch_start(self, trainer: Any, module: nn.Module, batch: Any, batch_idx: int) -> None:
            block.leave()

        def on_train_end(self, trainer: Any, module: nn.Module) -> None:
            # Not as late as `teardown`: by then averaged weights have been copied into the module, with their buffers.
            block.leave()

        def on_exception(self, trainer: Any, module: nn.Module, exception: BaseException) -> None:
            block.leave()

        def teardown(self, trainer: Any, module: nn.Module, stage: str) -> None:
            block.leave()

        def _enter_block(self, trainer: Any, module: nn.Module) -> float:
            """Measure exact statistics and write them; the seconds that took."""
            self._has_begun = False
            training = self._require_watch(trainer, module)
            # Lightning begins the autocast of mixed precision in each of its steps, and hooks run outside of it.
            autocast = getattr(trainer.precision_plugin, "autocast_context_manager", contextlib.nullcontext)
            with autocast():
                return block.enter(training)

        def _require_watch(self, trainer: Any, module: nn.Module) -> Watch:
            """Return the watch of this module, which lives on after `fit`: a test has its batches."""
            if self._watch is None or self._watch.model is not module:
                if self._watch is not None:
                    self._watch.close()
                # Callbacks get the module without its DistributedDataParallel wrapper, in which `watch` would
                # find the process group.
                group = torch.distributed.group.WORLD if trainer.world_size > 1 else None
                chosen = dict(options)
                if batches is not None:
                    # Lightning converts training batches to the trainer's precision, but it never sees these.
                    forward = options.get("forward") or call
                    convert = trainer.precision_plugin.convert_input
                    chosen["forward"] = lambda model, batch: forward(model, convert(batch))
                self._watch = watch(module, images, batches=batches, group=group, **chosen)
            return self._watch

    return ExactStatisticsCallback()


def recalibrate_in_transformers(
    trainer: Any, batches: Iterable[Any] | None = None, *, images: int = 512, **options: Any
) -> None:
    """Let a Trainer of Transformers evaluate, predict and save its model under exact statistics.

    They are of the latest training batches, as `bnlab.watch` keeps them; before there are any, running averages are
    evaluated, and a warning says so once.

    Its methods `evaluate`, `predict` and `save_model`, which `train` calls as well, have exact statistics while they
    run. So a checkpoint has those that it was evaluated with. How long it takes is logged as `recalibration_seconds`.
    A callback cannot do this: Transformers calls none before an evaluation.

    Args:
        trainer: a `transformers.Trainer`, or one of a class below it; its methods are replaced.
        batches: measured in place of the latest training batches: what the model takes as its first argument, such as a
            list of batches or a DataLoader; read at each evaluation, and kept in memory meanwhile.
        images: how many training images are kept.
        options: further ones of `bnlab.watch`: `keep="cpu"`, `layers=[...]`; with batches `max_images=2000`, and for
            batches that are dictionaries `forward=lambda model, batch: model(**batch)`.

    Raises:
        TypeError, ValueError: `trainer` is no Trainer of Transformers; the batches cannot be iterated over, or only
            once, or are one batch; `images` is no number of images.
        ValueError: the model has no batch norm with running statistics, or this was called for this trainer before.

    >>> from transformers import Trainer  # doctest: +SKIP
    >>> from bnlab.callbacks import recalibrate_in_transformers
    >>> trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=held_out)  # doctest: +SKIP
    >>> recalibrate_in_transformers(trainer)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """
    if not all(hasattr(trainer, name) for name in ("model", *_METHODS)):
        raise TypeError(
            f"recalibrate_in_transformers: trainer is a {type(trainer).__name__}; pass a Trainer of transformers"
        )
    _require_arguments("recalibrate_in_transformers", batches, images)
    if trainer in _RECALIBRATED:
        raise ValueError(
            "recalibrate_in_transformers: this trainer evaluates under exact statistics already; make a new trainer to "
            "change that"
        )
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    # `trainer.model` is the model without its wrapper, in which `watch` would find the process group.
    group = torch.distributed.group.WORLD if is_distributed else None
    training = watch(trainer.model, images, batches=batches, group=group, **options)
    make_model = getattr(trainer, "call_model_init", None)

    def watch_new_model(*arguments: Any, **keywords: Any) -> Any:
        """Make the model of a training, which with `model_init` and in a search is another one each time."""
        nonlocal training
        assert make_model is not None  # else nothing calls this
        training.close()
        model = make_model(*arguments, **keywords)
        training = watch(model, images, batches=batches, group=group, **options)
        return model

    block = _Block("recalibrate_in_transformers")
    is_inside = False  # evaluate calls itself for each of several data sets
    measured_in: Any = None  # the training's state when statistics were last measured, and its step
    measured_at = None

    def measure() -> None:
        nonlocal measured_in, measured_at
        state = trainer.state
        # Each call of `train` begins with a new state, whose steps count from 0 again.
        is_measured = state is measured_in and state.global_step == measured_at
        # Outside of training the step does not tell whether the weights have changed since.
        if trainer.is_in_train and is_measured and block.statistics is not None:
            block.enter(training, block.statistics)  # a checkpoint after its evaluation
            return
        seconds = block.enter(training)
        measured_in = state
        measured_at = state.global_step
        trainer.log({_SECONDS: seconds})

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run_exactly(*arguments: Any, **keywords: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return method(*arguments, **keywords)

            is_inside = True
            try:
                measure()
                return method(*arguments, **keywords)
            finally:
                block.leave()
                is_inside = False

        return run_exactly

    _RECALIBRATED.add(trainer)
    if make_model is not None:
        trainer.call_model_init = watch_new_model
    for name in _METHODS:
        setattr(trainer, name, wrap(getattr(trainer, name)))


def _require_arguments(caller: str, batches: Iterable[Any] | None, images: Any) -> None:
    """Raise at once for what `watch` would refuse only when the fit begins."""
    require_image_count(images, caller)
    if batches is not None:
        require_batches(batches, caller)
        require_rereadable(batches, caller)


class _Block:
    """Exact statistics from one call of a trainer's to another.

    Attributes:
        statistics: those that were written last; None where there were none.
    """

    def __init__(self, caller: str) -> None:
        self.statistics: Statistics | None = None
        self._caller = caller
        self._training: Watch | None = None
        self._entered = contextlib.ExitStack()
        self._reported = set[str]()

    def enter(self, training: Watch, statistics: Statistics | None = None) -> float:
        """Write statistics, by default those that are measured now; the seconds that took.

        Warns, once for each reason, where there are none: running averages are evaluated then.
        """
        self.leave()
        started = time.perf_counter()
        self._training = training
        self.statistics = statistics
        try:
            self.statistics = training.measure() if statistics is None else statistics
            # The block stays open until `leave`, because a trainer saves its checkpoint after its validation.
            self._entered.enter_context(training.exact(self.statistics))
        except Exception as error:  # whatever it is: training can go on without exact statistics
            self.statistics = None
            if str(error) not in self._reported:
                self._reported.add(str(error))
                warn(f"{self._caller}: running averages are evaluated, not exact statistics: {error}")
        return time.perf_counter() - started

    def leave(self) -> None:
        """Put the running averages back, if they are out."""
        self._entered.close()

    def follow(self, model: nn.Module) -> None:
        """Have the statistics in the model if it has the weights that were measured, and otherwise not."""
        self.leave()
        if self._training is not None and self._is_of(model, None):
            self._entered.enter_context(self._training.exact(self.statistics))

    def write_to(self, state: dict[str, Tensor], model: nn.Module) -> None:
        """Put the statistics into a state of the model's if it has the weights that were measured."""
        if self.statistics is None or not self._is_of(model, state):
            return
        for name, moments in self.statistics.items():
            values = {f"{name}.running_mean": moments.mean, f"{name}.running_var": moments.var}
            # The state's tensors are those of a model that goes on with them, so they are not written in place.
            state.update({key: value.to(state[key]) for key, value in values.items() if key in state})

    def _is_of(self, model: nn.Module, state: Mapping[str, Tensor] | None) -> bool:
        """Return whether the statistics are of the model's weights, or of those of a state."""
        return self.statistics is not None and self.statistics.network == digest_weights(model, state)
