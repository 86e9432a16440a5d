"""Write statistics into a model so that the old ones can be put back, bit for bit, also by another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bnlab.common.files import digest
from bnlab.common.storage import load_tensors, save_tensors
from bnlab.doctor.evidence.history import name_tensor
from bnlab.model.layers import (
    BatchNorm,
    batch_norm_layers,
    get_running_buffers,
    is_batch_norm,
    join_names,
    require_module,
    strip_wrappers,
)
from bnlab.nn.self_tuned import SelfTuned
from bnlab.nn.state import Averages
from bnlab.statistics.network import Statistics, read_buffers

CALLER = "undo_from_file"
# Not the name of the class: files carry this one, and `load_tensors` asks for it.
_FORMAT = "bnlab.Undo/1"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class BufferBackup:
    """Old buffers of a model, and those that were written in their place.

    Attributes:
        model: the model.
        layers: the layers that were written, by name.
        old: running mean and variance before, [2, C] on the CPU, by layer.
        new: the same after.
        averages: what self-tuned layers had averaged before, by layer.
        is_done: whether the old ones have been put back.
        is_in_block: whether a block has begun that puts them back.
    """

    model: nn.Module
    layers: Mapping[str, BatchNorm]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    averages: Mapping[str, Averages | None]
    is_done: bool = False
    is_in_block: bool = False

    def put_back(self) -> None:
        """Put the old buffers back, once.

        Raises:
            RuntimeError: something else has written the buffers since; nothing is put back.
        """
        if self.is_done:
            return
        self._require_untouched("undo")
        for name, layer in self.layers.items():
            _write(layer, self.old[name])
            # A self-tuned layer drops its averages once something else has written its buffers, as here.
            if isinstance(layer, SelfTuned):
                layer.averages = self.averages[name]
        self.is_done = True

    def require_first_block(self) -> None:
        """Raise RuntimeError if the new buffers would not hold for a block: after an undo, or within such a block."""
        if self.is_done or self.is_in_block:
            raise RuntimeError(
                "recalibrate: this recalibration was undone, or is a block already, at whose end it will be; call "
                "recalibrate again for another block"
            )
        self.is_in_block = True

    def save(self, path: str | Path) -> None:
        """Write a file for `undo_from_file`: the old buffers, and digests of the model.

        Raises:
            ValueError: two layers have the same name without wrappers.
            RuntimeError: something else has written the buffers since.
            OSError: the file cannot be written.
        """
        # Once undone, the buffers hold the old values again, and a file of these is as good as before.
        if not self.is_done:
            self._require_untouched("save_undo")
        tensors: dict[str, Tensor] = {}
        for name, values in self.old.items():
            tensors.update(zip(_name_buffers(name), values, strict=True))
        if len(tensors) < 2 * len(self.old):
            raise ValueError(
                "save_undo: two layers have the same name but for what wrappers add ('module.'), and a file cannot "
                "tell them apart; keep the Recalibration and call undo()"
            )
        save_tensors(path, tensors, _FORMAT, {"digests": json.dumps(_list_digests(self.model))})

    def _require_untouched(self, caller: str) -> None:
        touched = [name for name, layer in self.layers.items() if not torch.equal(_read(layer), self.new[name])]
        if touched:
            raise RuntimeError(
                f"recalibrate: {caller}: the running statistics of {join_names(touched)} have been written since (a "
                "forward in train mode, load_state_dict?), so that nothing is put back; undo before the model goes on"
            )


def write_statistics(model: nn.Module, statistics: Statistics) -> BufferBackup:
    """Write statistics into a model, all or none, and return what puts the old ones back.

    Raises:
        ValueError: the buffers cannot hold a value; nothing is written then.
    """
    layers = statistics.find_layers(model, "recalibrate")
    old = {}
    averages = {}
    for name, layer in layers.items():
        # This comes first: reading lets a self-tuned layer bring its buffers up to date, which may also end
        # its averages.
        old[name] = _read(layer)
        if isinstance(layer, SelfTuned):
            averages[name] = layer.averages

    statistics.write_to(model)
    # Read back, because buffers round what is written and `_require_untouched` compares bit for bit.
    new = {name: _read(layer) for name, layer in layers.items()}
    return BufferBackup(model, layers, old, new, averages)


def undo_from_file(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Put back the buffers that `Recalibration.save_undo` has written into a file, bit for bit.

    Args:
        model: with the weights of then; its buffers may hold anything.
        path: the file.

    Returns:
        The names of the layers.

    Raises:
        TypeError: not a module.
        FileNotFoundError: there is no such file.
        ValueError: it is no undo file, or of another model or other weights; nothing is written then.

    >>> import tempfile
    >>> import bnlab
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibration = bnlab.recalibrate(model, [torch.tensor([[1.0], [3.0]])])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recalibration.save_undo(f"{folder}/undo.safetensors")
    ...     print(model[0].running_mean.item(), undo_from_file(model, f"{folder}/undo.safetensors"))
    2.0 ('0',)
    >>> model[0].running_mean.item()
    0.0
    """
    require_module(model, CALLER)
    tensors, metadata = load_tensors(path, _FORMAT)
    _require_same_model(model, json.loads(metadata["digests"]), path)
    written = []
    for name, layer in batch_norm_layers(model, caller=CALLER).items():
        mean_name, var_name = _name_buffers(name)
        # Layers that recalibration left alone, such as frozen ones, are not in the file.
        if mean_name in tensors:
            _write(layer, torch.stack((tensors[mean_name], tensors[var_name])))
            written.append(name)
    return tuple(written)


def _require_same_model(model: nn.Module, then: Mapping[str, str], path: str | Path) -> None:
    now = _list_digests(model)
    others = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if others:
        raise ValueError(
            f"{CALLER}: {path} was written beside other weights or another model: {join_names(others)} "
            f"differ{'s' if len(others) == 1 else ''}; nothing was put back"
        )


def _list_digests(model: nn.Module) -> dict[str, str]:
    """Compute a digest of each tensor of a state dict: of its type, shape and values, by its name without wrappers.

    Of batch norms' running statistics the type and the shape alone.
    """
    statistics = set()
    # A state dict has a layer under each of its names, as those of a shared encoder.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, BatchNorm) or is_batch_norm(module):
            statistics |= {name_tensor(name, buffer) for buffer in _BUFFERS}

    digests = {}
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            flat = tensor.detach().cpu().flatten().contiguous()
            # Running statistics may hold anything by now, because they are what is put back. Other values are
            # hashed as bytes, because NumPy has no bfloat16.
            values = b"" if key in statistics else flat.view(torch.uint8).numpy().data
            digests[strip_wrappers(key)] = digest(kind, values, digits=32)
    return digests


def _name_buffers(name: str) -> tuple[str, str]:
    """Name a layer's running mean and variance as a file does, without wrappers."""
    layer = strip_wrappers(name)
    return name_tensor(layer, "running_mean"), name_tensor(layer, "running_var")


def _read(layer: BatchNorm) -> Tensor:
    return read_buffers(layer).cpu()


@torch.no_grad()
def _write(layer: BatchNorm, values: Tensor) -> None:
    """Copy a running mean and variance [2, C] into the buffers."""
    mean, var = get_running_buffers(layer)
    mean.copy_(values[0])
    var.copy_(values[1])
