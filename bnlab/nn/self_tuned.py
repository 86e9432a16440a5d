"""Batch-norm layers whose running statistics choose their momentum themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bnlab.borrowing import is_paused_while_borrowed, replace_forward
from bnlab.interrupts import is_recorded
from bnlab.layers import (
    BatchNorm,
    batch_norm_layers,
    check_module,
    find_lookalikes,
    get_layer_input,
    is_tracing,
    join_names,
    past_modes,
)
from bnlab.loans import is_lent
from bnlab.nn.upkeep import LOOKING, Upkeep

_KEY = "bnlab.nn.SelfTuned/1"  # in a state dict's metadata
_RUNNING = ("running_mean", "running_var")


class SelfTuned(BatchNorm):
    """Batch norm whose running mean and variance choose their own momentum. `SelfTuned.convert` makes these layers.

    No fixed momentum is right for all of a training: as long as the weights move fast, averages must forget fast;
    towards the end they should be of many batches. Each layer therefore keeps, beside training, averages with 50
    momenta from 0.001 to 1. Each of them is a forecast of the next batch's mean and variance, which comes from the
    very weights that the average is to describe. The average that has forecast the latest batches best (about the last
    tenth) is what the running mean holds, and for itself the running variance. It is the estimator
    `bnlab.estimators.Predictive`, whose docstring has the formula and its sources.

    Training is as before, bit for bit (where it does not read running statistics, as quantization-aware convolutions
    do): torch's own forward runs, with another place to write the batch's moments to. The buffers are brought up to
    date when somebody looks: an evaluation, `state_dict()`, `layer.running_mean`, `model.buffers()`, an export; a
    tensor that was taken earlier shows the state of the latest look. Their keys are torch's, so that a plain model
    loads the checkpoint and this one loads a plain checkpoint, both with `strict=True`. The averages travel in the
    state dict's metadata, as far as it is saved (`torch.save` does, `safetensors` does not); without them, or where the
    buffers have been changed since, they begin from the buffers. So they do wherever something else writes the buffers
    (`reset_running_stats`, `write_to`); a UserWarning says where that is after every few batches.

    Every forward in train mode is a batch of its own: each part of an accumulated batch, each of two forwards of a step
    (a GAN's real and fake images: the forecasts alternate, and averages of both win). The repeated forward of
    activation checkpointing is none, but in a layer that takes no first forward (fairscale's checkpoints turn it off
    there); nor is one while `layer.momentum` is 0. While it is set to None, as
    `torch.optim.swa_utils.update_bn` does, or to 1, as fvcore's `update_bn_stats`, the buffers are torch's own: the
    average of all batches, or the last one. Another momentum has no effect, and a UserWarning says so. A batch with a
    NaN or infinite value in some channel is left out in that layer. A layer in eval mode stays as it is. With several
    processes SyncBatchNorm takes the moments of all of them, and all choose as one process would (tested on CPUs, with
    kernels written for it: torch has them for accelerators only); otherwise each process has its own,
    and DistributedDataParallel evaluates under the first one's, as it does with plain layers. Buffers in shared memory
    (`share_memory`) hold what one of the processes has looked at last; a UserWarning says so. `torch.compile`
    interrupts its graph at each layer in training, because which place is the next one is Python's to know; evaluation
    is compiled whole. What would write a training step down for good (a trace, an export, a CUDA graph) is refused.

    What it assumes: that the noise of batches is independent (drawn without replacement they favour slow averages a
    little). What it does not do: it comes near the statistics of batches that normalize with their own moments, which
    tiny batches make too small; it knows nothing of another domain's images; and while the learning rate falls to 0,
    the choice comes as late as its score remembers.

    Measured over whole trainings, n = 5 networks each: a gap of 1.089 [1.032, 1.149] times that of the fixed momentum
    that is best for each layer and step, which is known in hindsight only (ResNet-20, digits, batch 16, one-cycle
    schedule; 1.262 [1.174, 1.355] on glyphs; a small cnn 1.20 [1.08, 1.34] on digits, 1.47 [1.37, 1.58] on glyphs), and
    at the end of that schedule 1.91 [1.47, 2.47] times at batch 256 in the first. In the small cnn on glyphs a memory
    that follows the forecasts' errors makes that end better, 0.62 [0.51, 0.76] times the gap at batch 16; at batch 256,
    0.83 [0.74, 0.94] times, whether by a tenth is undecided. `results/reference/ANSWERS.md` has the rest, under
    `forecasts`, `self_tuned`, and the names that begin so.

    Memory: 1.7 kB a channel, whatever the batch, and at most as much in a checkpoint: 46 MB for the 26,560 channels of
    ResNet-50.
    """

    upkeep: Upkeep

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("SelfTuned: pass a model with torch's batch norm to SelfTuned.convert")

    @staticmethod
    def convert(model: nn.Module) -> nn.Module:
        """Let the batch-norm layers of `model` choose their momentum.

        The buffers are what the averages begin from, if the model has been trained (`num_batches_tracked` > 0);
        otherwise the first batch is.

        Args:
            model: changed in place; weights, buffers and hooks stay the same objects. Convert it before torch.compile
                and DistributedDataParallel, and after `convert_sync_batchnorm`, which makes plain layers of these.
                What looks for torch's exact classes, as `fuse_modules`, needs `revert` first; so does what copies the
                `__dict__` of modules, as learn2learn's `clone_module`: such a copy would run the original.

        Returns:
            The model.

        Raises:
            TypeError: not a module.
            ValueError: it has no batch-norm layer with running statistics, or one that is lazy, scripted or on the
                meta device, two layers share running buffers, or it is called inside of a block that uses the model
                (`record`, `using`).

        Warns:
            UserWarning: layers of other classes, and those that have been given another forward, stay as they are; some
                have momentum None or 1, so that `update_bn` or `update_bn_stats`, which set it, cannot be told from
                training: they would get a chosen average there too.
        """
        plain = {
            name: layer
            for name, layer in batch_norm_layers(model, caller="SelfTuned.convert").items()
            if not isinstance(layer, SelfTuned)
        }
        _check_at_rest(plain, "SelfTuned.convert")
        _check_own_buffers(plain)
        left = [name for name, lookalike in find_lookalikes(model).items() if not lookalike.frozen]
        for name, layer in plain.items():
            kind = _KINDS.get(type(layer))
            if kind is None or "forward" in vars(layer):
                left.append(name)
                continue
            layer.__class__ = kind
            vars(layer)["upkeep"] = Upkeep(vars(layer)["_buffers"], layer.eps, layer.momentum)
            replace_forward(layer, _run)
        if left:
            warnings.warn(
                f"SelfTuned.convert: {join_names(left)} are not of torch's own classes, or have their own forward, "
                "and keep their momentum",
                stacklevel=2,
            )
        if same := [name for name, layer in plain.items() if name not in left and layer.momentum in (None, 1)]:
            warnings.warn(
                f"SelfTuned.convert: {join_names(same)} have momentum None or 1, which update_bn and other ways to "
                "average all batches set, too: these would not be known; give the layers another momentum, such as 0.1",
                stacklevel=2,
            )
        return model

    @staticmethod
    def revert(model: nn.Module) -> nn.Module:
        """Make torch's own layers of them again, with the running statistics that they have now.

        Args:
            model: changed in place.

        Returns:
            The model.

        Raises:
            TypeError: not a module.
            ValueError: something else has exchanged a layer's class since, as parametrizations do, or it is called
                inside of a block that uses the model.
        """
        check_module(model, "SelfTuned.revert")
        kinds: dict[type[nn.Module], Any] = {kind: plain for plain, kind in _KINDS.items()}
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SelfTuned)}
        others = [name for name, layer in layers.items() if type(layer) not in kinds]
        if others:
            raise ValueError(f"SelfTuned.revert: {join_names(others)} have got another class since; undo that first")
        _check_at_rest(layers, "SelfTuned.revert")
        for layer in layers.values():
            layer._catch_up()
            del vars(layer)["forward"], vars(layer)["upkeep"]
            layer.__class__ = kinds[type(layer)]
        return model

    # Whoever looks at the buffers comes by one of these: attributes, state_dict(), named_buffers(), apply, copies.

    @property
    def running_mean(self) -> Tensor:  # type: ignore[override]
        """[C], the average of the batches' means that has forecast the latest ones best."""
        return self._catch_up()["running_mean"]  # type: ignore[no-any-return]

    @property
    def running_var(self) -> Tensor:  # type: ignore[override]
        """[C], that of their unbiased variances."""
        return self._catch_up()["running_var"]  # type: ignore[no-any-return]

    @property
    def _buffers(self) -> dict[str, Any]:  # type: ignore[override]
        return self._catch_up()

    @_buffers.setter
    def _buffers(self, buffers: dict[str, Any]) -> None:
        vars(self)["_buffers"] = buffers

    def _catch_up(self) -> dict[str, Any]:
        attributes = vars(self)
        if "upkeep" in attributes and attributes["upkeep"].is_behind:
            _write_buffers(attributes)
        return attributes["_buffers"]  # type: ignore[no-any-return]

    def holds_choice(self) -> bool:
        """Whether the running buffers hold what was chosen, and nothing else has written them since."""
        return _has_averages(vars(self)) and self.upkeep.is_held_by(self._catch_up())

    def train(self, mode: bool = True) -> SelfTuned:
        self._catch_up()  # also for those who hold the buffers, as DistributedDataParallel
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelfTuned:
        if is_lent(self):  # it may have other buffers meanwhile, and gets back its own
            super()._apply(fn, recurse)
            return self
        had_averages = _has_averages(vars(self))
        if had_averages:  # what is moved is taken for what the layer has left
            self.upkeep.begin_where_written(self._buffers, certainly=True)
        super()._apply(fn, recurse)
        if _has_averages(vars(self)):
            (self.upkeep.move if had_averages else self.upkeep.begin)(self._buffers)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Not as an entry: the keys are torch's, so that plain layers can load them.
        if hasattr(destination, "_metadata") and _has_averages(vars(self)):
            destination._metadata[prefix[:-1]][_KEY] = self.upkeep.export()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if not is_lent(self) and _has_averages(vars(self)) and any(prefix + name in state_dict for name in _RUNNING):
            self.upkeep.load(self._buffers, local_metadata.get(_KEY))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A shallow copy would run the layer that it was made from, in that one's mode; a borrowed layer has no own.
        forward: Any = vars(self).get("forward")
        if forward is None or (is_paused_while_borrowed(forward) and forward.args[2] is not self):
            vars(self).pop("forward", None)
            replace_forward(self, _run)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ValueError("SelfTuned: TorchScript cannot run these layers; pass SelfTuned.revert(copy.deepcopy(model))")

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError("SelfTuned: DataParallel trains copies whose batches are lost; use DistributedDataParallel")


class SelfTunedBatchNorm1d(SelfTuned, nn.BatchNorm1d):
    pass


class SelfTunedBatchNorm2d(SelfTuned, nn.BatchNorm2d):
    pass


class SelfTunedBatchNorm3d(SelfTuned, nn.BatchNorm3d):
    pass


class SelfTunedSyncBatchNorm(SelfTuned, nn.SyncBatchNorm):
    pass


_KINDS: dict[type[nn.Module], type[SelfTuned]] = {
    nn.BatchNorm1d: SelfTunedBatchNorm1d,
    nn.BatchNorm2d: SelfTunedBatchNorm2d,
    nn.BatchNorm3d: SelfTunedBatchNorm3d,
    nn.SyncBatchNorm: SelfTunedSyncBatchNorm,
}


def _check_own_buffers(layers: Mapping[str, BatchNorm]) -> None:
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        other = owners.setdefault(id(layer.running_mean), name)
        if other != name:
            raise ValueError(
                f"SelfTuned.convert: layers {other!r} and {name!r} share running buffers, where each would write over "
                "the other's choice; give each its own, or use one layer twice"
            )


def _check_at_rest(layers: Mapping[str, nn.Module], caller: str) -> None:
    if used := [name for name, layer in layers.items() if is_recorded(layer) or is_lent(layer)]:
        raise ValueError(
            f"{caller}: {join_names(used)} are in use by a block of bnlab (record, using, inference.applied); call it "
            "outside of the block"
        )


def _has_averages(attributes: dict[str, Any]) -> bool:
    """Whether a layer has running buffers with values; they may be set to None, or go to the meta device."""
    values = [attributes["_buffers"].get(name) for name in _RUNNING]
    return all(value is not None and not value.is_meta for value in values)


def _run(layer: SelfTuned, own: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    """A layer's forward."""
    x = get_layer_input(args, kwargs)
    if isinstance(x, Proxy):  # torch.fx takes it for one of the user's modules, and would look inside
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, kwargs)  # type: ignore[no-any-return]
    if layer.training and layer.track_running_stats:
        return _run_in_training(layer, own, args, kwargs)
    return own(*args, **kwargs)


@torch.compiler.disable
def _write_buffers(attributes: dict[str, Any]) -> None:
    if _has_averages(attributes):
        with past_modes():
            attributes["upkeep"].catch_up(attributes["_buffers"])


@torch.compiler.disable
def _run_in_training(layer: SelfTuned, own: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    """Let torch write the batch's moments into a place of their own: with momentum 1."""
    attributes = vars(layer)
    attributes["upkeep"].last = None
    if not _has_averages(attributes):
        return own(*args, **kwargs)
    upkeep, buffers = attributes["upkeep"], attributes["_buffers"]
    if is_tracing() or (buffers["running_mean"].is_cuda and torch.cuda.is_current_stream_capturing()):
        raise ValueError(
            "SelfTuned: traced, exported or captured in train mode, where all later batches would go to the place of "
            "this one; use eval(), or SelfTuned.revert"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(buffers["running_mean"]):
        raise ValueError(
            "SelfTuned: the running buffers are arguments of a torch.func transform such as grad; use SelfTuned.revert"
        )
    if upkeep.stands_aside(attributes["momentum"]):
        layer._catch_up()
        output = own(*args, **kwargs)
        upkeep.begin(buffers)
        return output
    upkeep.warn_of_shared_memory(buffers)
    # With momentum 0 torch's own averages leave a batch out: it is set for a while, as for the second forward of
    # sharpness-aware minimization.
    is_left_out = upkeep.leaves_out(is_off=attributes["momentum"] == 0)
    with past_modes(), LOOKING:
        upkeep.begin_where_written(buffers, certainly=not upkeep.is_behind)
        place = upkeep.collector.make_scratch() if is_left_out else upkeep.collector.make_place()
    # Not the layer itself: it may be looked at, copied and saved meanwhile, in another thread.
    stand_in = object.__new__(type(layer))
    vars(stand_in).update(attributes, momentum=1.0, _buffers=buffers | dict(zip(_RUNNING, place, strict=True)))
    del vars(stand_in)["upkeep"]
    try:
        output = type(layer).forward(stand_in, *args, **kwargs)
        upkeep.last = None if is_left_out else place
        return output
    finally:
        upkeep.is_behind = True
