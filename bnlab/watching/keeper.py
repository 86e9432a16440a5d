"""Keeping what a model is called with while its running averages move.

    a call of the model ─▶ is a batch norm in train mode? ─▶ a copy of its arguments, and of the model's attributes

What is kept are the arguments of the outermost module that is called and holds all batch norms. Batch norms that are
trained outside of such a call average images that are not kept: a hook before each of them sees that.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.model.batches import copy_batch, count_bytes, count_images, is_dense, list_settings, list_tensors
from bnlab.model.borrow import OF_EVERY_MODULE, Reverted, is_of_torch
from bnlab.model.layers import BatchNorm, unwrap_parallel
from bnlab.recording.observer import Observer
from bnlab.recording.recorders import DOES_NOTHING, RecordingCall
from bnlab.statistics.network import digest_weights

_NO_TENSOR = "the model's inputs hold no tensor, so that there are no images to keep; pass batches="
_NO_COPY = "the model's inputs cannot be copied ({error}); pass batches="
_PASSED_BY = (
    "batch norms are also trained by calls of parts of the model, or of another model that shares them (last "
    "{name!r}), and the images of these calls are not kept; watch the module that is called each time, or pass batches="
)
_STAND_STILL = (
    "there have been {updates:,} updates since a batch norm was last in train mode, so that running averages stand "
    "still; call model.train() before each epoch (evaluating may have left the model in eval mode), if they are not "
    "frozen on purpose"
)
CLOSED = "this watch is closed; bnlab.watch(model) begins another one"

_PLAIN = (bool, int, float, str, Enum, type(None))  # types of attributes that are kept


@dataclass
class Calls:
    """Calls of the model in a block in which nothing is kept.

    Attributes:
        weights: the digest of the model's weights before the block.
        in_train_mode: how many there were with a batch norm in train mode.
        in_eval_mode: how many there were with all batch norms in eval mode.
        has_other_weights: whether the model had other weights at the first of these.
    """

    weights: str
    in_train_mode: int = 0
    in_eval_mode: int = 0
    has_other_weights: bool = False

    def note(self, model: nn.Module, is_in_eval_mode: bool) -> None:
        """Note a call."""
        if not is_in_eval_mode:
            self.in_train_mode += 1
            return
        # Once is enough: it waits for an accelerator.
        if not self.in_eval_mode:
            self.has_other_weights = digest_weights(model) != self.weights
        self.in_eval_mode += 1


class KeptCall(NamedTuple):
    """A copy of what the model was called with.

    Attributes:
        args: its arguments by their place.
        kwargs: those by name.
        images: how many they are.
        number: of the batch, by which the model's attributes at the call are found.
    """

    args: dict[int, Any]
    kwargs: dict[str, Any]
    images: int
    number: int


@dataclass(frozen=True, eq=False)
class _Kept:
    """A call that is kept, and by what it is known when it comes again.

    Attributes:
        call: the copy.
        sources: the tensors that were copied.
        settings: what else the call was given, and the attributes that the model had.
    """

    call: KeptCall
    sources: Sequence[weakref.ref[Tensor]]
    settings: Sequence[Any]

    def is_of(self, tensors: Sequence[Tensor], settings: Sequence[Any]) -> bool:
        """Return whether the same call was copied: with these very tensors, which have not been written since."""
        if len(tensors) != len(self.sources) or settings != self.settings:
            return False
        if any(source() is not tensor for source, tensor in zip(self.sources, tensors, strict=True)):
            return False
        # Loops that write each batch into the same memory show the same tensors, with other values.
        pairs = zip(list_tensors(self.call), tensors, strict=True)
        return all(torch.equal(copy, tensor.to(copy.device)) for copy, tensor in pairs if is_dense(tensor))


class Pause(Reverted):
    """A block in which calls are counted, and nothing is kept."""

    def __init__(self, pauses: dict[int, Calls], calls: Calls) -> None:
        self._pauses = pauses
        self.lent = self.calls = calls

    def change(self) -> None:
        """Begin to count."""
        self._pauses[id(self)] = self.calls

    def give_back(self) -> None:
        """Go on keeping."""
        self._pauses.pop(id(self), None)


class Keeper:
    """Keeps what a model was called with while its running averages moved, and counts its updates.

    An update is the first step of an optimizer after a training call, whatever comes between. So that much is noted:

    - a training call, in `_enter`, sets `_has_forward`; if a batch norm averages in it, `_updates_since` becomes −1;
    - a step, in `_end_update`, counts only if `_has_forward`: `_updates` and `_updates_since` grow, and the flag ends.

    So `_updates_since` is 0 after the update of the latest batch that was averaged, and counts those without one.

    Args:
        model: the model as the caller calls it, with its wrappers.
        layers: its batch norms.
        images: the latest so many images are kept, or a few more: batches are not cut. With 0 none are kept.
        keep: the device of the copies; None: that of the inputs.
        is_speaking: whether the size of what is kept is printed at the first batch.

    Attributes:
        layers: the batch norms.
        wanted: `images`.
        frozen: the layers that were in eval mode in the latest call that was kept.
        undo: what removes the hooks.
        is_closed: whether `close` was called.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, BatchNorm], images: int, keep: str | None, is_speaking: bool
    ) -> None:
        self.layers = list(layers.values())
        self.wanted = images
        self.frozen: list[BatchNorm] = []
        self.is_closed = False
        self._names = list(layers)
        self._keep = keep
        self._is_speaking = is_speaking
        self._kept: deque[_Kept] = deque()
        self._attributes: dict[int, list[Mapping[str, Any]]] = {}  # by the number of the batch, of each module
        self._refusal: str | None = None  # why the latest batch cannot be kept
        self._passed_by: str | None = None  # a layer that was trained by another call since what is kept began
        self._pauses: dict[int, Calls] = {}  # by block; one inside of another one counts for both
        self._level: int | None = None  # of the outermost module that was called; 0 is the model itself
        self._is_inside = False  # whether this module runs
        self._batches = 0
        self._updates = 0
        self._updates_since = 0  # the latest batch that was kept
        self._has_forward = False  # since the last update

        self._holders = _list_holders(model, self.layers)
        named = dict(unwrap(model).named_modules())
        self._module_names = {module: name for name, module in named.items()}
        self._modules = {name: module for name, module in named.items() if not is_of_torch(module)}
        self._observer = Observer(model, self.layers, self._end_update)
        self.undo = contextlib.ExitStack()
        self._attach()

    def _attach(self) -> None:
        self._observer.attach(self.undo)
        for level, module in enumerate(self._holders):
            # This hook comes before all others. They may change the inputs, and would do so a second time
            # when the module is called with the copies.
            before = RecordingCall(partial(self._enter, level), DOES_NOTHING)
            self.undo.callback(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
            after = RecordingCall(partial(self._leave, level), DOES_NOTHING)
            self.undo.callback(module.register_forward_hook(after, always_call=True).remove)
        for name, layer in zip(self._names, self.layers, strict=True):
            before = _HookOfLayer(partial(self._see_layer, name), DOES_NOTHING)
            self.undo.callback(layer.register_forward_pre_hook(before).remove)

    @property
    def batches(self) -> list[KeptCall]:
        """The copies, the oldest first."""
        return [kept.call for kept in self._kept]

    @property
    def images(self) -> int:
        """Number of images that are kept."""
        return sum(batch.images for batch in self.batches)

    @property
    def updates(self) -> int:
        """Number of updates of the model by torch's optimizers; of batches where none was seen."""
        return self._updates or self._batches

    def list_replaced(self, model: nn.Module) -> list[str]:
        """List the names of the layers that are no part of the model any more."""
        present = {*model.modules()}
        return [name for name, layer in zip(self._names, self.layers, strict=True) if layer not in present]

    def find_refusal(self) -> str | None:
        """Find out why the model cannot be measured on what is kept; None where nothing speaks against it."""
        if self.is_closed:
            return CLOSED
        if self._kept and self._updates_since > 1:  # one may be of another kind, as of a search for an architecture
            return _STAND_STILL.format(updates=self._updates_since)
        if self._passed_by is not None:
            return _PASSED_BY.format(name=self._passed_by)
        return self._refusal

    def call(self, model: nn.Module, batch: KeptCall) -> Any:
        """Call the module that was called in training, as it was called, or the same one of another model."""
        # A loop may set an attribute before each call, such as a domain. Attributes that differ between the kept calls
        # are set as they were at this one; the others stay as eval() has left them. Whoever has borrowed the model puts
        # all of them back.
        attributes = self._attributes[batch.number]
        by_module = zip(*self._attributes.values(), strict=True)
        for module_name, own, others in zip(self._modules, attributes, by_module, strict=True):
            changed = {name: value for name, value in own.items() if any(other.get(name) != value for other in others)}
            vars(model.get_submodule(module_name)).update(changed)
        # The call goes past wrappers: DistributedDataParallel would broadcast buffers, and compiled code would not see
        # hooks.
        holder = model.get_submodule(self._module_names[unwrap(self._holders[self._level or 0])])
        return holder(*batch.args.values(), **batch.kwargs)

    def paused(self) -> Pause:
        """Keep nothing in the block, and count the model's calls in it."""
        return Pause(self._pauses, Calls(digest_weights(self._holders[0])))

    def close(self) -> None:
        """Remove the hooks and the copies."""
        self.undo.close()
        self._kept.clear()
        self.is_closed = True

    def _end_update(self) -> None:
        # A step of an optimizer without a forward since the last one belongs to the same update, as that of a second
        # optimizer does.
        if self._has_forward:
            self._updates += 1
            self._updates_since += 1
        self._has_forward = False

    def _enter(self, level: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a module is called with; the hook before it."""
        if not self._observer.is_training() or _is_redirected(module):
            return
        # This call is inside one of an outer module that holds all batch norms, too, and whose calls are kept.
        if self._level is not None and level > self._level:
            return
        # This module contains the one whose calls were kept so far. It cannot be called with the arguments of that.
        if level != self._level:
            self._level = level
            self._forget()
        self._is_inside = True

        if self._pauses:
            is_in_eval_mode = not any(layer.training for layer in self.layers)
            for calls in self._pauses.values():
                calls.note(self._holders[0], is_in_eval_mode)
            return
        frozen = [layer for layer in self.layers if not _averages(layer)]
        are_all_frozen = len(frozen) == len(self.layers)
        self._has_forward |= torch.is_grad_enabled() or not are_all_frozen
        if not are_all_frozen:
            self.frozen = frozen
            self._updates_since = -1  # that of this batch is to come
            self._take(args, kwargs)

    def _leave(self, level: int, *_: Any) -> None:
        if level == self._level:
            self._is_inside = False

    def _see_layer(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Notice that a batch norm is trained outside of the calls that are kept; the hook before it."""
        if self._is_inside or self._pauses or not _averages(layer) or not self._observer.is_training():
            return
        if not _is_checkpointed():
            self._forget()
            self._passed_by = name

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = list(list_tensors((args, kwargs)))
        # A forward that is checkpointed as a whole runs again in the backward pass.
        attributes = [_read_attributes(module) for module in self._modules.values()]
        settings = [*list_settings((args, kwargs)), attributes]
        if any(kept.is_of(tensors, settings) for kept in self._kept):
            return
        self._batches += 1
        self._refusal = None if tensors else _NO_TENSOR
        by_place = dict(enumerate(args))
        images = count_images({**by_place, **kwargs}) if tensors else 0
        if not images or not self.wanted:
            return
        try:
            device = None if self._keep is None else torch.device(self._keep)
            copied = copy_batch(KeptCall(by_place, kwargs, images, self._batches), device)
        except Exception as error:  # whatever it is: training goes on
            self._refusal = _NO_COPY.format(error=f"{type(error).__name__}: {error}")
            return

        # Weak references do not keep a batch alive, and an id could later belong to another one.
        sources = [weakref.ref(tensor) for tensor in tensors]
        self._attributes[self._batches] = attributes
        self._kept.append(_Kept(copied, sources, settings))
        # Whole batches are dropped, as long as the others have all the images that are wanted.
        while self.images - self._kept[0].call.images >= self.wanted:
            dropped = self._kept.popleft()
            del self._attributes[dropped.call.number]
        if self.images >= self.wanted:
            self._passed_by = None

        if self._is_speaking:
            self._is_speaking = False
            self._print_size()

    def _forget(self) -> None:
        self._kept.clear()
        self._attributes.clear()

    def _print_size(self) -> None:
        first = self._kept[0].call
        # At the first batch the total is not known yet; it is estimated from batches of this size.
        batches = math.ceil(self.wanted / first.images)
        images = batches * first.images
        megabytes = batches * count_bytes(first) / 1e6
        print(f"bnlab.watch keeps the latest {images:,} training images: {megabytes:,.1f} MB", file=sys.stderr)


class PauseOfOther(Pause):
    """A block in which calls of another model than the watched one are counted.

    Args:
        model: the other model.
        layers: its batch norms.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, BatchNorm]) -> None:
        super().__init__({}, Calls(digest_weights(model)))
        self._model = model
        self._layers = layers
        self._hooks = contextlib.ExitStack()

    def change(self) -> None:
        """Begin to count, by hooks that are on the other model in the block only."""
        keeper = Keeper(self._model, self._layers, images=0, keep=None, is_speaking=False)
        self._hooks.push(keeper.undo)
        self._pauses = keeper._pauses
        super().change()

    def give_back(self) -> None:
        """Remove the hooks."""
        self._hooks.close()


class _HookOfLayer(RecordingCall):
    """A hook that is no part of compiled code, which it would cut in two at each layer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if torch.compiler.is_compiling() else super().__call__(*args, **kwargs)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile."""
    inner = unwrap_parallel(model)
    # Wrappers may be nested in either order: a compiled model in DDP, or DDP that is compiled.
    while _is_compiled(inner):
        inner = unwrap_parallel(inner.get_submodule("_orig_mod"))
    return inner


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in dict(module.named_children())


def _list_holders(model: nn.Module, layers: Sequence[BatchNorm]) -> list[nn.Module]:
    """List the modules that hold all layers, the outermost first; none inside of what was compiled.

    A hook in compiled code would break its graph.
    """
    holders = []
    for module in model.modules():
        # A module that holds only some of the batch norms has inputs that do not reach the others.
        if {*layers} <= {*module.modules()}:
            holders.append(module)
            if _is_compiled(module):
                break
    return holders


def _averages(layer: nn.Module) -> bool:
    """Return whether a call of a layer moves its averages; second passes, as of adversarial images, switch that off."""
    return layer.training and getattr(layer, "track_running_stats", True) and getattr(layer, "momentum", None) != 0


def _read_attributes(module: nn.Module) -> Mapping[str, Any]:
    """Read the numbers, words and switches that are set on a module."""
    own = vars(module).items()
    return {name: value for name, value in own if isinstance(value, _PLAIN) and name not in OF_EVERY_MODULE}


def _is_redirected(module: nn.Module) -> bool:
    """Return whether a call does not run the module's own forward, but one of Lightning's.

    Under DistributedDataParallel Lightning calls a LightningModule with the arguments of `training_step`.
    """
    source = str(getattr(module.forward, "__module__", ""))
    return source.startswith(("lightning.pytorch.strategies.", "pytorch_lightning.strategies."))


def _is_checkpointed() -> bool:
    """Return whether a checkpoint runs a part of the model, which happens once more in the backward pass."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False
