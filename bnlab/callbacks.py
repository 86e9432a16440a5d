"""Exact statistics wherever a trainer evaluates: the Trainer of Lightning, and that of Hugging Face's Transformers.

The running averages come back afterwards, bit for bit, also after an exception: training goes on as without.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import time
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from bnlab.doctor.recalibrate import recalibrate
from bnlab.doctor.undo import Undo, write_statistics
from bnlab.model.batches import require_batches
from bnlab.model.layers import batch_norm_layers
from bnlab.model.warn import warn
from bnlab.statistics.network import Statistics

__all__ = ["make_lightning_callback", "recalibrate_in_transformers"]
_SECONDS = "recalibration_seconds"  # what the time is called in logs


def make_lightning_callback(batches: Iterable[Any], **options: Any) -> Any:
    """Make a callback of Lightning: exact statistics in validations, tests, predictions and their checkpoints.

    A checkpoint is saved after its validation, so the running averages come back with the next training batch, at the
    end of the training, or with an exception. How long it takes is logged as `recalibration_seconds`, except before
    predictions, where Lightning logs nothing. The sanity check before the training has exact statistics too: batches
    that the model cannot take are found there.

    Args:
        batches: what the model's forward takes, such as a list of batches or a DataLoader; read at each validation, and
            kept in memory meanwhile. Labels are not looked at.
        options: as those of `bnlab.recalibrate`: `max_images=2000`, `layers=[...]`; `forward=` if the LightningModule
            has no forward of its own.

    Returns:
        A `Callback` of the package that is installed, `lightning` or `pytorch_lightning`.

    Raises:
        TypeError: the batches cannot be iterated over, or are one batch.
        ValueError: when training begins, if the model has no batch norm with running statistics.

    >>> from lightning import Trainer  # doctest: +SKIP
    >>> from bnlab.callbacks import make_lightning_callback
    >>> trainer = Trainer(callbacks=[make_lightning_callback(batches)])  # doctest: +SKIP
    """
    package = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
    callback_class: Any = importlib.import_module(package).Callback
    recalibrator = _Recalibrator(batches, options, "make_lightning_callback")

    class RecalibrationCallback(callback_class):  # type: ignore[misc]
        def on_fit_start(self, trainer: Any, module: nn.Module) -> None:
            recalibrator.require_layers(module)

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            seconds = recalibrator.measure(module)
            module.log(_SECONDS, seconds, batch_size=1, sync_dist=True)

        on_test_start = on_validation_start

        def on_predict_start(self, trainer: Any, module: nn.Module) -> None:
            recalibrator.measure(module)

        def on_train_batch_start(self, trainer: Any, module: nn.Module, batch: Any, batch_idx: int) -> None:
            recalibrator.put_back()

        def on_exception(self, trainer: Any, module: nn.Module, exception: BaseException) -> None:
            recalibrator.put_back()

        def teardown(self, trainer: Any, module: nn.Module, stage: str) -> None:
            recalibrator.put_back()

    return RecalibrationCallback()


def recalibrate_in_transformers(trainer: Any, batches: Iterable[Any], **options: Any) -> None:
    """Let a Trainer of Transformers evaluate, predict and save its model under exact statistics.

    Its methods `evaluate`, `predict` and `save_model`, which `train` calls as well, have exact statistics while they
    run. So a checkpoint has those that it was evaluated with. How long it takes is logged as `recalibration_seconds`.
    A callback cannot do this: Transformers calls none before an evaluation.

    Args:
        trainer: a `transformers.Trainer`, or one of a class below it; its methods are replaced.
        batches: what the model takes as its first argument, such as a list of batches or a DataLoader; read at each
            evaluation, and kept in memory meanwhile. Labels are not looked at.
        options: as those of `bnlab.recalibrate`: `max_images=2000`, `layers=[...]`; for batches that are dictionaries
            `forward=lambda model, batch: model(**batch)`.

    Raises:
        TypeError: the batches cannot be iterated over, or are one batch.
        ValueError: the model has no batch norm with running statistics.

    >>> from transformers import Trainer  # doctest: +SKIP
    >>> from bnlab.callbacks import recalibrate_in_transformers
    >>> trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=held_out)  # doctest: +SKIP
    >>> recalibrate_in_transformers(trainer, batches)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """
    recalibrator = _Recalibrator(batches, options, "recalibrate_in_transformers")
    recalibrator.require_layers(trainer.model)
    measured_in: Any = None  # the training's state when statistics were last measured, and its step
    measured_at = None

    @contextlib.contextmanager
    def recalibrated() -> Iterator[None]:
        nonlocal measured_in, measured_at
        if recalibrator.undoing is not None:  # evaluate calls itself for each of several data sets
            yield
            return

        state = trainer.state
        is_measured = state is measured_in and state.global_step == measured_at
        try:
            if trainer.is_in_train and is_measured and recalibrator.statistics is not None:
                recalibrator.write_again(trainer.model)  # a checkpoint after its evaluation
            else:
                seconds = recalibrator.measure(trainer.model)
                measured_in = state
                measured_at = state.global_step
                trainer.log({_SECONDS: seconds})
            yield
        finally:
            recalibrator.put_back()

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run_recalibrated(*arguments: Any, **keywords: Any) -> Any:
            with recalibrated():
                return method(*arguments, **keywords)

        return run_recalibrated

    for name in ("evaluate", "predict", "save_model"):
        setattr(trainer, name, wrap(getattr(trainer, name)))


class _Recalibrator:
    """Writes exact statistics into a model, and puts the running averages back.

    Attributes:
        statistics: those that were written last; None where `recalibrate` would not write them.
        undoing: the running averages while they are out of the model.
    """

    def __init__(self, batches: Iterable[Any], options: Mapping[str, Any], caller: str) -> None:
        require_batches(batches, caller)
        self.batches = batches
        self.options = options
        self.caller = caller
        self.statistics: Statistics | None = None
        self.undoing: Undo | None = None

    def require_layers(self, model: nn.Module) -> None:
        """Raise ValueError if the model has no batch norm with running statistics."""
        batch_norm_layers(model, self.options.get("layers"), caller=self.caller)

    def measure(self, model: nn.Module) -> float:
        """Measure and write exact statistics; the seconds that took."""
        self.put_back()
        started = time.perf_counter()
        recalibration = recalibrate(model, map(self._drop_labels, self.batches), **self.options)
        seconds = time.perf_counter() - started

        self.undoing = recalibration.undoing
        self.statistics = recalibration.statistics if recalibration.written else None
        if not recalibration.written:
            warn(f"{self.caller}: running averages are evaluated, not exact statistics: {recalibration.reason}")
        return seconds

    def write_again(self, model: nn.Module) -> None:
        """Write the statistics that were measured last."""
        assert self.statistics is not None
        self.undoing = write_statistics(model, self.statistics)

    def put_back(self) -> None:
        """Put the running averages back, if they are out."""
        undoing = self.undoing
        self.undoing = None
        if undoing is not None:
            undoing.put_back()

    def _drop_labels(self, batch: Any) -> Any:
        """Drop a batch's labels: by labels `recalibrate` judges, and writes in some epochs only."""
        if isinstance(batch, (dict, UserDict)):
            return {key: value for key, value in batch.items() if key not in ("label", "labels")}
        if isinstance(batch, (tuple, list)) and "forward" not in self.options:
            return tuple(batch[:1])  # the default forward takes the first part
        return batch
