"""Batch-norm layers whose running statistics choose their momentum themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.estimators.bank import MOMENTA
from bnlab.model.borrow import is_lent
from bnlab.model.layers import (
    AveragesByItself,
    BatchNorm,
    batch_norm_layers,
    get_running_buffers,
    join_names,
    require_module,
)
from bnlab.model.warn import warn
from bnlab.nn.state import TunedState

if TYPE_CHECKING:
    import pandas as pd

_KEY = "bnlab.nn.SelfTuned/2"  # in a state dict's metadata
_uncompiled: list[Callable[[SelfTuned, Tensor], Tensor]] = []  # `_train` without torch's compiler, once that is there


class SelfTuned(AveragesByItself):
    """Batch norm whose running mean and variance choose their own momentum. `SelfTuned.convert` makes these layers.

    While the weights move fast, averages must forget fast; towards the end they should be of many batches. Each layer
    keeps averages with 50 momenta from 0.001 to 1, each a forecast of the next batch's mean and variance. The running
    mean is whichever average has forecast the latest batches best (about the last tenth); the running variance is
    chosen likewise, for itself. `bnlab.estimators.Predictive` has the formula, its sources and what it assumes.

    Training is as before, bit for bit. After each batch the buffers include it, at the momenta that were chosen last.
    These are chosen by `train()` and `eval()` where they change the mode, by `state_dict()`, a forward in eval mode,
    and after each block of batches (at most 64). State dicts can be loaded into plain models, and those of plain models
    here. The averages are in a state dict's metadata, which `torch.save` writes and `safetensors`
    does not. Averages begin again from the buffers where a state dict has none, on another device or type, and after
    something else has written the buffers, which is noticed when momenta are chosen next.

    Not averaged are batches with values that are not finite, forwards while `layer.momentum` is 0, and batches whose
    mean and variance equal, bit for bit, those of one of the latest batches (64 at most): activation checkpointing
    runs forwards twice. A layer that is given the same batches again and again, as one on raw inputs in a fixed order
    of few batches, averages each of them once: if it began warm and sees one batch only, it keeps the averages that it
    had. While `layer.momentum` is None, as `update_bn` sets it, or 1, as
    fvcore's `update_bn_stats` does, the buffers are torch's own.

    With several processes each chooses its own momenta, except for SyncBatchNorm, and DistributedDataParallel evaluates
    under the statistics of the first. `nn.DataParallel` loses batches. `torch.compile` interrupts its graph at each
    layer. `torch.fx.symbolic_trace` and `torch.jit.script` take a model after `SelfTuned.revert`.

    Measured over whole trainings of a ResNet-20 at batch 16, in the deeper layers: a gap of 1.06 [1.05, 1.07] times
    that of the fixed momentum that is best for each layer and step in hindsight (n = 15, digits; 1.22 [1.16, 1.28],
    n = 5, on rendered characters). At the end at a constant learning rate and batch 256, on rendered characters, it
    did not help: see docs/howto/self_tuned.md.
    Memory: 1.7 kB a channel, and at most as much in a checkpoint: 46 MB for the 26,560 channels of ResNet-50.

    >>> model = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(1)))
    >>> for batch in torch.arange(24.0).reshape(6, 4, 1):  # the mean moves fast, so that only the last batch counts
    ...     output = model(batch)
    >>> model.eval()[0].running_mean.item()
    21.5
    """

    dims: tuple[int, ...]  # numbers of dimensions of its input; torch's own forward refuses others
    averages: TunedState | None  # None: new ones begin from the buffers with the next batch
    loaded: dict[str, Any] | None  # the averages in the state dict that is loaded now

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("SelfTuned: pass a model with torch's batch norm to SelfTuned.convert")

    @staticmethod
    def convert(model: nn.Module) -> nn.Module:
        """Let the batch-norm layers of `model` choose their momentum.

        The averages begin from the buffers if the model has been trained (`num_batches_tracked` > 0, or other values
        than 0 and 1).

        Args:
            model: changed in place and returned; after `convert_sync_batchnorm`, before DDP and torch.compile.

        Raises:
            TypeError: not a module.
            ValueError: it has no batch-norm layer with running statistics.

        Warns:
            UserWarning: layers of other classes than torch's, and those whose `forward` somebody has replaced, keep
                their momentum.
        """
        left = []
        for name, layer in batch_norm_layers(model, caller="SelfTuned.convert").items():
            # The class has to be exactly torch's: a subclass would lose what it overrides. A forward of the layer's
            # own, as hooks of other libraries set it, would be called in place of that of the new class.
            if type(layer) in _KINDS and "forward" not in vars(layer):
                _convert_layer(layer)
            elif not isinstance(layer, SelfTuned):
                left.append(name)

        if left:
            text = (
                f"SelfTuned.convert: {join_names(left)} are not of torch's own classes, or have a forward of their "
                "own, and keep their momentum"
            )
            warn(text, UserWarning)
        return model

    @staticmethod
    def revert(model: nn.Module) -> nn.Module:
        """Turn self-tuned layers into torch's own again, which keep the running statistics; return the model."""
        kinds: dict[type[nn.Module], Any] = {kind: plain for plain, kind in _KINDS.items()}
        for layer in list_self_tuned(model, "SelfTuned.revert").values():
            layer.settle()

            del layer.averages, layer.latest, layer.loaded  # the hooks of state dicts stay, and do nothing from now on
            layer.__class__ = kinds[type(layer)]
        return model

    def forward(self, input: Tensor) -> Tensor:
        # During a measurement, and for an input that torch's forward refuses, the layer is a plain batch norm.
        if self.training and self.track_running_stats and input.dim() in self.dims and not is_lent(self):
            # Importing torch's compiler takes seconds, so that it is left until something is compiled.
            if torch.compiler.is_compiling() and not _uncompiled:
                _uncompiled.append(torch.compiler.disable(_train))
            train = _uncompiled[0] if _uncompiled else _train
            return train(self, input)
        if self.averages is not None and self.averages.has_pending:
            self.settle()
        return super().forward(input)  # type: ignore[safe-super]

    def average(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalize the batch with its own moments, and write these into `mean` and `var` [C]."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # At momentum 1 torch writes the batch's mean and unbiased variance: no second pass computes them.
        return F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)

    def train(self, mode: bool = True) -> SelfTuned:
        # The layer settles first, so that eval mode begins with statistics of all batches so far. Many loops call
        # train() before each step, where nothing is to be settled yet.
        if mode != self.training:
            self.settle()
        return super().train(mode)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        self.averages = None

    @torch.inference_mode(False)  # what a validation in inference mode would make here, training could not write into
    @torch.no_grad()
    def settle(self) -> None:
        """Write into the buffers the statistics after all batches so far; begin again where others have written."""
        averages = self.averages
        # A measurement has borrowed the layer. What it writes into the buffers is put back, and is no reason to begin
        # again.
        if averages is None or self.running_mean is None or is_lent(self):
            return
        now = _read(self)
        # Only the buffers show that something else has written them, such as load_state_dict, update_bn or an average
        # of weights.
        if not averages.fits(now) or not _are_equal(now, averages.shown):
            self.averages = None
            return

        state = averages.settle() if averages.has_pending else None
        if state is not None:
            # `.data`: a backward pass still to come may have saved the buffers.
            mean, var = get_running_buffers(self)
            mean.data.copy_(state[0])
            var.data.copy_(state[1])
            averages.shown = _read(self)


def _convert_layer(layer: BatchNorm) -> None:
    # Only the class changes: parameters, hooks and optimizers stay as they are.
    layer.__class__ = _KINDS[type(layer)]
    vars(layer).update(averages=None, latest=None, loaded=None)
    layer.register_state_dict_pre_hook(_settle_before_saving)
    layer.register_state_dict_post_hook(_save_averages)
    layer.register_load_state_dict_pre_hook(_take_saved)
    layer.register_load_state_dict_post_hook(_load_averages)


def _train(layer: SelfTuned, input: Tensor) -> Tensor:
    layer.latest = None
    # None and 1 are set by tools that compute statistics of their own, such as update_bn: torch's forward serves them.
    if layer.running_mean is None or layer.momentum is None or layer.momentum == 1:
        layer.averages = None
        return super(SelfTuned, layer).forward(input)

    averages = layer.averages
    if averages is None or not averages.fits(layer.running_mean):
        averages = _begin(layer)
        layer.averages = averages
    mean, var = averages.place
    if layer.momentum == 0:  # for a while, as in the second forward of sharpness-aware minimization
        # The moments go into tensors that are thrown away, because nothing of this batch is to be averaged.
        return layer.average(input, torch.zeros_like(mean), torch.zeros_like(var))

    output = layer.average(input, mean, var)
    # An empty batch has no moments to average.
    if input.numel():
        layer.latest = (mean, var)
        averages.average_into(get_running_buffers(layer))
        if averages.count_batch():
            layer.settle()
    return output


def _begin(layer: SelfTuned) -> TunedState:
    """Begin averages from the buffers."""
    batches = layer.num_batches_tracked
    # Without a count nobody knows whether the buffers have seen data; they are assumed to have.
    updates = 1 if batches is None else int(batches)

    start = _read(layer)
    # Statistics may also have been loaded, or written into a new layer, without their count.
    is_new = bool((start[0] == 0).all() and (start[1] == 1).all())
    if not updates and not is_new:
        updates = 1
    return TunedState(start, updates, layer.eps)


def _read(layer: SelfTuned) -> Tensor:
    """Copy the buffers: [2, C]."""
    return torch.stack(get_running_buffers(layer)).detach()


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two copies of buffers are the same, NaN for NaN."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class SelfTunedBatchNorm1d(SelfTuned, nn.BatchNorm1d):
    dims = (2, 3)


class SelfTunedBatchNorm2d(SelfTuned, nn.BatchNorm2d):
    dims = (4,)


class SelfTunedBatchNorm3d(SelfTuned, nn.BatchNorm3d):
    dims = (5,)


class SelfTunedSyncBatchNorm(SelfTuned, nn.SyncBatchNorm):
    dims = (2, 3, 4, 5)

    def average(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # There is no other way to tell the forward of SyncBatchNorm where to write the moments of all processes.
        running_mean = self.running_mean
        running_var = self.running_var
        momentum = self.momentum
        try:
            self.running_mean = mean
            self.running_var = var
            self.momentum = 1.0
            return nn.SyncBatchNorm.forward(self, input)
        finally:
            self.running_mean = running_mean
            self.running_var = running_var
            self.momentum = momentum


_KINDS: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: SelfTunedBatchNorm1d,
    nn.BatchNorm2d: SelfTunedBatchNorm2d,
    nn.BatchNorm3d: SelfTunedBatchNorm3d,
    nn.SyncBatchNorm: SelfTunedSyncBatchNorm,
}


def list_self_tuned(model: nn.Module, caller: str) -> dict[str, SelfTuned]:
    """List the self-tuned layers of `model` by name; ValueError if it has none."""
    require_module(model, caller)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SelfTuned)}
    if not layers:
        raise ValueError(f"{caller}: the model has no self-tuned layer; use SelfTuned.convert(model)")
    return layers


def momenta(model: nn.Module) -> pd.DataFrame:
    """List the momentum that each self-tuned layer of `model` has chosen for its mean and for its variance.

    Returns:
        A row for each layer and statistic, in the model's order, with these columns.

        - layer, depth (from 1), statistic ("mean" or "var");
        - batches: how many the averages are of, since they began; 0 before the first one, and where something else has
          written the buffers since (`load_state_dict`, `update_bn`, averaged weights);
        - momentum: the chosen one; before the third batch the smallest, before the first NaN;
        - memory: 1/momentum, about how many of the latest batches it averages; never more than `batches` in effect.

    Raises:
        TypeError: not a module.
        ValueError: the model has no self-tuned layer.

    >>> import torch
    >>> from bnlab.nn import SelfTuned
    >>> model = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(1)))
    >>> for batch in torch.arange(24.0).reshape(6, 4, 1):  # the mean moves fast, the variance stays
    ...     output = model(batch)
    >>> momenta(model)[["layer", "statistic", "batches", "momentum"]].round(3)
      layer statistic  batches  momentum
    0     0      mean        6     1.000
    1     0       var        6     0.001
    """
    # Imported only here, because training needs no pandas, and the import takes long.
    import pandas as pd

    rows = []
    for depth, (name, layer) in enumerate(list_self_tuned(model, "momenta").items(), start=1):
        # This drops averages if something else has written the buffers since.
        layer.settle()
        # Batches may still wait for a full block: `advance` counts them, and leaves the layer as it is.
        bank = None if layer.averages is None else layer.averages.advance()
        batches = 0 if bank is None else bank.count
        for number, statistic in enumerate(("mean", "var")):
            momentum = math.nan
            if bank is not None and batches:
                momentum = float(MOMENTA[bank.chosen[number, 0]])
            rows.append((name, depth, statistic, batches, momentum, 1 / momentum))
    return pd.DataFrame(rows, columns=["layer", "depth", "statistic", "batches", "momentum", "memory"])


# Hooks of state dicts, which stay on layers that have been reverted.


def _settle_before_saving(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    if isinstance(layer, SelfTuned):
        layer.settle()


def _save_averages(layer: nn.Module, state_dict: Any, prefix: str, metadata: dict[str, Any]) -> None:
    if isinstance(layer, SelfTuned) and layer.averages is not None:
        metadata[_KEY] = layer.averages.export()


def _take_saved(layer: nn.Module, state_dict: Any, prefix: str, metadata: dict[str, Any], *_: object) -> None:
    if isinstance(layer, SelfTuned):
        # Kept until the buffers are loaded: the averages are taken over only if they belong to these buffers.
        layer.loaded = metadata.get(_KEY)
        # These averages belong to the old buffers, whatever is loaded now.
        layer.averages = None


@torch.inference_mode(False)
@torch.no_grad()
def _load_averages(layer: nn.Module, keys: object) -> None:
    if not isinstance(layer, SelfTuned) or layer.loaded is None:
        return
    saved = layer.loaded
    layer.loaded = None  # a layer that was converted twice has this hook twice

    now = _read(layer)
    if _are_equal(saved["shown"].to(now), now):  # else something else has written the buffers
        layer.averages = TunedState(now, 0, layer.eps)
        layer.averages.load(saved)
