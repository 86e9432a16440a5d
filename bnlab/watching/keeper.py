"""Keeping the inputs of the latest training batches, by hooks before the model's forward."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from bnlab.model.batches import copy_batch, count_bytes, count_images, is_dense, list_settings, list_tensors
from bnlab.model.borrow import count_loans
from bnlab.model.layers import BatchNorm, unwrap_parallel
from bnlab.recording.recorders import RecordingCall
from bnlab.watching.snapshot import Snapshot

Batch = dict[int | str, Any]
"""The arguments of a call: positional ones by their number, the others by their name."""

_NO_TENSOR = "the model's inputs hold no tensor, so that there are no images to keep; pass batches="
_NO_COPY = "the model's inputs cannot be copied ({error}); pass batches="
_NOT_CALLED = (
    "the model is trained, but no module that holds all its batch norms has been called (only parts of it, or its "
    "forward() directly, or code that was compiled before it was watched); watch the part that is called or what "
    "torch.compile returned, name its layers in layers=, or pass batches="
)
_IN_EVAL_MODE = (
    "the model is trained in eval mode, so that its batch norms use their running averages and do not update them; "
    "call model.train() before each epoch (evaluating may have left it in eval mode), or pass batches="
)
_CONVERTED = (
    "the model is now of {now}, and the images were kept when it was of {then}; train on, or pass batches= of that type"
)
CLOSED = "this watch is closed; bnlab.watch(model) begins another one"
_OLDER_WEIGHTS = (
    "an input of {kind} requires a gradient: it is optimized, or comes from trainable parts outside of it, and would "
    "belong to older weights; watch the module that holds these parts too, or pass batches="
)

# All that are not closed. The hook of optimizers is never removed, and must not keep models and images alive
# that nobody else needs.
_KEEPERS: weakref.WeakSet[Keeper] = weakref.WeakSet()
_HOOK: list[Any] = []  # the handle of the hook behind optimizers' steps, once there is one


@dataclass
class Calls:
    """Calls of the model in a block in which nothing is kept.

    Attributes:
        in_train_mode: how many there were with a batch norm in train mode.
        in_eval_mode: how many there were with all batch norms in eval mode.
        other_weights: the parameters that had other values, at the first call in eval mode, than before the block.
        has_other_averages: whether running averages had other values then.
        snapshot: what calls in eval mode are to be called with; None where that is not looked at.
    """

    in_train_mode: int = 0
    in_eval_mode: int = 0
    other_weights: Sequence[str] = ()
    has_other_averages: bool = False
    snapshot: Snapshot | None = None
    _by_level: Counter[int] = field(default_factory=Counter)

    def note(self, level: int, is_in_eval_mode: bool) -> None:
        """Note a call of the module at this level, 0 being the model itself."""
        if not is_in_eval_mode:
            self.in_train_mode += 1
            return
        # Once is enough: it waits for an accelerator.
        if not self.in_eval_mode and self.snapshot is not None:
            self.other_weights = self.snapshot.list_changed()
            self.has_other_averages = self.snapshot.has_other_averages()
        # A call of the model calls the modules in it, too, each of which has a hook.
        self._by_level[level] += 1
        self.in_eval_mode = max(self._by_level.values())


class _Kept:
    """A copy of a batch.

    Attributes:
        batch: the copy.
        images: how many images it has.
    """

    def __init__(self, batch: Batch, tensors: Sequence[Tensor], keep: str | None) -> None:
        self.batch: Batch = copy_batch(batch, None if keep is None else torch.device(keep))
        self.images = count_images(self.batch)
        # Weak references do not keep a batch alive, and an id could later belong to another one.
        self._sources = [weakref.ref(tensor) for tensor in tensors]
        self._settings = list(list_settings(batch))

    def is_of(self, batch: Batch, tensors: Sequence[Tensor]) -> bool:
        """Return whether this is a copy of this very batch, whose tensors have not been written since.

        Checkpointed forwards are run again in the backward pass, with the same tensors. Loops that write each batch
        into the same memory show the same tensors too, with other values; and a network may be given the same images
        once for each of its widths, say.
        """
        if len(self._sources) != len(tensors):
            return False
        if any(source() is not tensor for source, tensor in zip(self._sources, tensors, strict=True)):
            return False
        if list(list_settings(batch)) != self._settings:
            return False
        # Values are compared last, because that waits for an accelerator.
        pairs = zip(list_tensors(self.batch), tensors, strict=True)
        # torch compares no sparse or nested tensors: that they are the same ones has to do.
        dense = [(copy, tensor) for copy, tensor in pairs if is_dense(tensor)]
        return all(torch.equal(copy, tensor.to(copy.device)) for copy, tensor in dense)


class Keeper:
    """Keeps the inputs of the latest training forwards of a model, and counts its updates.

    Args:
        model: the model as the caller calls it, with its wrappers.
        layers: its batch norms.
        images: the latest so many images are kept, or a few more: batches are not cut. With 0 none are kept.
        keep: the device of the copies; None: that of the inputs.
        is_speaking: whether the size of what is kept is printed at the first batch.

    Attributes:
        wanted: `images`.
        refusal: why the model cannot be measured on what is kept (inputs were not kept, it is trained in eval mode, was
            not called, or this is closed); None where it can.
        frozen: the layers that were in eval mode in the latest training forward that was taken.
        is_closed: whether `close` was called.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, BatchNorm], images: int, keep: str | None, is_speaking: bool
    ) -> None:
        self._layers = list(layers.values())
        self._names = list(layers)
        self.wanted = images
        self._keep = keep
        self._is_speaking = is_speaking
        self._kept: deque[_Kept] = deque()
        self._dtype: torch.dtype | None = None  # of the model, when it was called with the latest batch that is kept
        self._pauses: list[Calls] = []  # a block inside of another one counts for both
        self._level: int | None = None  # of the outermost module that was called; 0 is the model itself
        # Parameters are told apart by identity, because `==` compares their elements.
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._forwards = 0
        self._updates = 0
        self._has_forward = False  # since the last update
        self._has_eval_forward = False  # with gradients, since the last training forward or update
        self._eval_updates = 0  # since the last training forward
        self._trains_norms = False  # whether a forward since the last update had a batch norm in train mode
        self._has_trained_norms = False  # whether one before the last update had
        self.refusal: str | None = None
        self.is_closed = False
        self.frozen: list[BatchNorm] = []

        self._ids = frozenset(map(id, self._layers))
        self._modules = _list_holders(model, self._layers)
        self._handles: list[Any] = []
        for level, module in enumerate(self._modules):
            hook = RecordingCall(partial(self._see, level), _do_nothing)
            # This hook comes before all others. They may change the inputs, and would do so a second time
            # when the module is called with the copies.
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        _KEEPERS.add(self)
        # One hook for all keepers, which is never removed: torch iterates over its hooks, and fails if one goes in the
        # middle of a step, as with a keeper that is collected then.
        if not _HOOK:
            _HOOK.append(register_optimizer_step_post_hook(torch.compiler.disable(_count_update)))

    @property
    def layers(self) -> Sequence[BatchNorm]:
        """The batch norms that are watched."""
        return self._layers

    def list_replaced(self, model: nn.Module) -> list[str]:
        """List the names of the layers that are no part of the model any more."""
        present = {*model.modules()}
        return [name for name, layer in zip(self._names, self._layers, strict=True) if layer not in present]

    @property
    def batches(self) -> list[Batch]:
        """The copies, the oldest first."""
        return [kept.batch for kept in self._kept]

    @property
    def images(self) -> int:
        """Number of images that are kept."""
        return sum(kept.images for kept in self._kept)

    @property
    def updates(self) -> int:
        """Number of updates of the model by torch's optimizers; of training forwards where none was seen."""
        return self._updates or self._forwards

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """Call the module that was called in training, with a copy of what it was called with."""
        args = [value for key, value in batch.items() if isinstance(key, int)]
        kwargs = {key: value for key, value in batch.items() if isinstance(key, str)}
        # The call goes past wrappers: DistributedDataParallel would broadcast buffers, and compiled code would not see
        # hooks.
        return unwrap(self._modules[self._level or 0])(*args, **kwargs)

    @contextlib.contextmanager
    def paused(self, snapshot: Snapshot | None = None) -> Iterator[Calls]:
        """Keep nothing in the block, and count the model's calls in it.

        Args:
            snapshot: what the model's calls in eval mode are to be called with.
        """
        calls = Calls(snapshot=snapshot)
        self._pauses.append(calls)
        try:
            yield calls
        finally:
            self._pauses.pop()

    def find_refusal(self) -> str | None:
        """Find out why the model cannot be measured on what is kept; None where nothing speaks against it."""
        if self.is_closed:
            return CLOSED
        if self.refusal is None and self._kept:
            dtype = self._find_dtype()
            if dtype != self._dtype:
                return _CONVERTED.format(now=dtype, then=self._dtype)
        return self.refusal

    def close(self) -> None:
        """Remove the hooks and the copies."""
        for handle in self._handles:
            handle.remove()
        _KEEPERS.discard(self)
        self._kept.clear()
        self.is_closed = True

    def count_update(self, optimizer: Optimizer) -> None:
        """Count an update if it is of one of the model's parameters, and there was a training forward before it."""
        # A step of an optimizer without a forward since the last one belongs to the same update, as that of a
        # second optimizer does. If no forward has been seen at all, the model is called past this watch, and
        # that is found out below.
        if not self._has_forward and not self._has_eval_forward and self._level is not None:
            return
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if updated.isdisjoint(self._parameters):
            # Of another model, or load_state_dict(assign=True) has put other parameters in the place of these.
            self._parameters = {id(parameter) for parameter in self._modules[0].parameters()}
            if updated.isdisjoint(self._parameters):
                return
        if self._has_forward:
            self._updates += 1
            self._has_forward = False
            self._has_trained_norms = self._trains_norms
            self._trains_norms = False
        elif self._has_eval_forward:
            # Between two steps there may be a forward in eval mode for a log, or of a search for an architecture. Two
            # updates without a training forward are training in eval mode.
            self._eval_updates += 1
            if self._eval_updates > 1:
                self.refusal = _IN_EVAL_MODE
        else:
            self.refusal = _NOT_CALLED
        self._has_eval_forward = False

    def _see(self, level: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a module is called with, if this is a training forward; the hook before it."""
        frozen = [layer for layer in self._layers if not layer.training]
        are_all_frozen = len(frozen) == len(self._layers)
        # bnlab's own measurements do not train, and a redirected call has the arguments of another function.
        if count_loans(self._ids) or _is_redirected(module):
            return
        if self._pauses:
            for calls in self._pauses:
                calls.note(level, are_all_frozen)
            return

        # A validation without gradients trains nothing.
        if not torch.is_grad_enabled():
            return
        # An inner module is called by itself, as where a checkpointed part of the forward is run again.
        if self._level is not None and level > self._level:
            return
        # If all batch norms are frozen, only the mode of the outermost module shows that it is trained.
        if are_all_frozen and not module.training:
            # It may be a validation as well. Only updates that follow show that this was training.
            self._has_eval_forward = True
            return
        # This is a training forward, so that calls in eval mode before it count as validations.
        self._has_eval_forward = False
        self._eval_updates = 0

        # Where batch norms are trained in one forward and frozen in another one, as with adversarial images or dropout
        # left on, averages are of the images of the first alone. The forward counts all the same, so that batch norms
        # that stay frozen are noticed after one update.
        if are_all_frozen and (self._trains_norms or self._has_trained_norms):
            self._has_forward = True
            return
        self._trains_norms = not are_all_frozen

        # This module contains the one that was the outermost so far, whose arguments are of no use to it.
        if level != self._level:
            self._level = level
            self._kept.clear()
        self.frozen = frozen

        batch: Batch = dict(enumerate(args))
        batch.update(kwargs)
        self._take(batch)

    def _take(self, batch: Batch) -> None:
        tensors = list(list_tensors(batch))
        self._has_forward = True
        # Earlier refusals end here: this batch may be one that can be kept.
        self.refusal = None
        # A forward whose input is refused still counts, so that updates are numbered as without.
        if not tensors:
            self.refusal = _NO_TENSOR
        elif any(tensor.requires_grad for tensor in tensors):
            self.refusal = _OLDER_WEIGHTS.format(kind=type(self._modules[self._level or 0]).__name__)
        elif any(kept.is_of(batch, tensors) for kept in self._kept):
            return

        self._forwards += 1
        if self.refusal is not None or not self.wanted or not count_images(batch):
            return
        try:
            kept = _Kept(batch, tensors, self._keep)
        except Exception as error:  # whatever it is: training goes on
            self.refusal = _NO_COPY.format(error=f"{type(error).__name__}: {error}")
            return
        self._kept.append(kept)
        self._dtype = self._find_dtype()
        # Whole batches are dropped, as long as the others have all the images that are wanted.
        while self.images - self._kept[0].images >= self.wanted:
            self._kept.popleft()

        if self._is_speaking:
            self._is_speaking = False
            self._print_size()

    def _find_dtype(self) -> torch.dtype | None:
        """Find the type of the model's parameters: of the first one, or None where it has none."""
        return next((parameter.dtype for parameter in self._modules[0].parameters()), None)

    def _print_size(self) -> None:
        first = self._kept[0]
        # At the first batch the total is not known yet; it is estimated from batches of this size.
        batches = math.ceil(self.wanted / first.images)
        images = batches * first.images
        megabytes = batches * count_bytes(first.batch) / 1e6
        print(f"bnlab.watch keeps the latest {images:,} training images: {megabytes:,.1f} MB", file=sys.stderr)


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


def _is_redirected(module: nn.Module) -> bool:
    """Return whether a call does not run the module's own forward, but one of Lightning's.

    Under DistributedDataParallel Lightning calls a LightningModule with the arguments of `training_step`.
    """
    source = str(getattr(module.forward, "__module__", ""))
    return source.startswith(("lightning.pytorch.strategies.", "pytorch_lightning.strategies."))


def _count_update(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Let all keepers count an update of an optimizer; the hook behind each step."""
    for keeper in list(_KEEPERS):  # a copy, as one may be collected meanwhile
        keeper.count_update(optimizer)


def _do_nothing(*_: object) -> None:
    """Stand for the hook in copies of a watched model."""
