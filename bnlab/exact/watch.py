"""What the batch-norm layers of a model do in an evaluation: by their hooks, and by what torch computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab.layers import BatchNorm, Lookalike, find_lookalikes, get_layer_input, strip_transforms
from bnlab.moments import Moments, compare_moments
from bnlab.normalizations import Computation, Followed, Normalizations, agree, allowed_rounding, identify

FUNCTIONAL = "functional batch norm"  # the name of one that belongs to no layer


class OtherStatistics(NamedTuple):
    """Running statistics of a model that the layers which are measured do not normalize with meanwhile.

    Attributes:
        originals: the layers' own, which were set aside, by layer.
        lookalikes: of modules that are no batch norm of torch's, by name.
    """

    originals: dict[str, list[Tensor]]
    lookalikes: dict[str, Lookalike]

    @classmethod
    def find(cls, model: nn.Module, targets: Mapping[str, BatchNorm]) -> OtherStatistics:
        """Those of a model whose layers `targets` still have their own."""
        buffers = {name: [layer.running_mean, layer.running_var] for name, layer in targets.items()}
        originals = {name: [tensor for tensor in own if tensor is not None] for name, own in buffers.items()}
        return cls(originals, find_lookalikes(model))


@dataclass
class _Call:
    """A call of a layer.

    Attributes:
        name: of the layer.
        computed: whether torch has computed a batch normalization in it.
        input: which tensor it was given, as `identify` says; None where it is not measured.
        moments: of its input.
        normalized: moments of what it normalizes, where that is another tensor.
    """

    name: str
    computed: bool = False
    input: tuple[Any, ...] | None = None
    moments: Moments | None = None
    normalized: Moments | None = None


@dataclass
class Watch(contextlib.AbstractContextManager["Watch"]):
    """Inside the block: what layers see through hooks, and every batch normalization that torch computes.

    Attributes:
        model: what is evaluated.
        targets: the layers that are measured, by name.
        others: statistics that measured layers do not normalize with.
        read_moments: gives the moments of a layer's input, from its name and the input [N, C, ...].
        result: what the layers are to normalize with, as far as it is known.
        seen: of each target that was called, the moments of its input over all calls.
        bypassed, dependent, transformed, replaced, unknown, tied: names of layers, as in `Check`.
        lookalikes_used: names of those with whose statistics something was computed.
        foreign: whether there was a normalization with running statistics that no module is known to have.
        tolerance: the largest `allowed_rounding` so far.
    """

    model: nn.Module
    targets: Mapping[str, BatchNorm]
    others: OtherStatistics
    read_moments: Callable[[str, Tensor], Moments]
    result: Mapping[str, Moments]
    seen: dict[str, Moments] = field(default_factory=dict)
    bypassed: dict[str, None] = field(default_factory=dict)
    dependent: dict[str, None] = field(default_factory=dict)
    transformed: dict[str, None] = field(default_factory=dict)
    replaced: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    tied: dict[str, None] = field(default_factory=dict)
    lookalikes_used: dict[str, None] = field(default_factory=dict)
    foreign: bool = False
    tolerance: float = 0.0

    def __enter__(self) -> Watch:
        self._stack = contextlib.ExitStack()
        self._open: list[_Call] = []
        self._owners: dict[int, str] = {}
        self._known = list[Tensor]()  # held, so that no other tensor comes to lie where they do
        self._layers = {id(module) for module in self.model.modules() if isinstance(module, BatchNorm)}
        known = {id(layer): name for name, layer in self.targets.items()}  # of the model that wraps this one, if any
        self._called = set[str]()
        buffers = dict[str, list[Tensor]]()
        self._used = dict[str, None]()  # layers with whose buffers something outside of them has computed
        for own_name, module in self.model.named_modules():
            if isinstance(module, BatchNorm):
                name = known.get(id(module), own_name)
                if module.running_mean is not None and module.running_var is not None:
                    buffers[name] = [module.running_mean, module.running_var]
                for tensor in (module.running_mean, module.weight):
                    if tensor is not None:
                        self._owners[tensor.data_ptr()] = name
                        self._known.append(tensor)
                before = module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
                after = module.register_forward_hook(self._leave, always_call=True)
                self._stack.callback(before.remove)
                self._stack.callback(after.remove)
        self._buffers = Followed(buffers)
        others = {  # not those of a layer that is not measured
            name: [tensor for tensor in kept if self._buffers.find_owner(tensor) is None]
            for name, kept in self.others.originals.items()
        }
        self._originals = Followed(others)
        self._of_lookalikes = Followed({name: other.kept for name, other in self.others.lookalikes.items()})
        self._stack.enter_context(Normalizations(self._look_at_normalization, self._look_at_other))
        return self

    def __deepcopy__(self, memo: object) -> Watch:
        return self  # in the hooks of a copy of a layer

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        # Folded into weights by hand, say; a layer that is called, too, may be looked at for another reason.
        self.bypassed |= {name: None for name in self._used if name not in self._called}

    def _enter(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if id(module) not in self._layers:
                return
            call = _Call(name)
            self._called.add(name)
            self._open.append(call)
            given = get_layer_input(args, kwargs)
            x = strip_transforms(given)
            if name in self.targets and isinstance(x, Tensor) and x.numel():
                call.moments = moments = self.read_moments(name, x)
                call.input = identify(x) if x is given else None
                self.seen[name] = self.seen[name].merge(moments) if name in self.seen else moments
                self.tolerance = max(self.tolerance, allowed_rounding(x.dtype))

        return look

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        if id(module) not in self._layers:  # a copy of it, which has the hooks too
            return
        call = self._open.pop() if self._open else _Call("")  # another hook may have raised before ours
        if call.moments and call.normalized and not agree(call.moments, call.normalized, self.tolerance):
            self.transformed.setdefault(call.name)
        if not call.computed and call.input is not None and call.moments and isinstance(module, BatchNorm):
            self._look_at_output(call.name, call.moments, module, output)

    def _look_at_output(self, name: str, given: Moments, layer: BatchNorm, output: Any) -> None:
        """Of a layer that computes by hand: it is known what it normalizes, and with what, if its output shows it."""
        shape = output.shape if isinstance(output, Tensor) else ()
        if layer.running_mean is None or layer.running_var is None or shape[1:2] != given.mean.shape or 0 in shape:
            return
        if not output.is_floating_point():  # spikes, say
            self.unknown.setdefault(name)
            return
        mean, var = layer.running_mean.detach().cpu().double(), layer.running_var.detach().cpu().double()
        scale = (var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight.detach().cpu().double())
        bias = 0.0 if layer.bias is None else layer.bias.detach().cpu().double()
        expected = Moments(given.count, (given.mean - mean) * scale + bias, given.var * scale.square())
        # Relative to the mean squares of what is added up: a channel may be constant, but for rounding.
        squares = expected.var + expected.mean.square() + (given.mean * scale).square()
        off = compare_moments(expected, self.read_moments(name, output.detach()), squares)
        if max(off) > max(self.tolerance, allowed_rounding(output.dtype)):
            self.unknown.setdefault(name)

    def _look_at_other(self, args: Any, result: Any, copies: bool) -> None:
        computation = Computation.read(args, result)
        if computation is None:
            return
        every = ((self._buffers, self._used), (self._originals, self.tied), (self._of_lookalikes, self.lookalikes_used))
        for followed, used in every:
            met = followed.look(computation, copies)
            used.update(met if not self._open else {})

    def _look_at_normalization(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, training: bool
    ) -> None:
        if self._open:
            self._open[-1].computed = True
        if (tied := self._originals.find_owner(mean)) is not None:
            self.tied.setdefault(tied)
        owners = (self._owners.get(tensor.data_ptr()) for tensor in (mean, weight) if tensor is not None)
        call = self._open[-1] if self._open else None
        lookalike = self._of_lookalikes.find_owner(mean) if call is None else None
        if lookalike is not None:
            self.lookalikes_used.setdefault(lookalike)
            if not training:
                return
        name = next(filter(None, owners), None) if call is None else call.name
        if name is not None and not self._open:
            self.bypassed.setdefault(name)
        # One row: an instance norm, which torch computes as the batch norm of one image.
        self.foreign |= name is None and mean is not None and len(x) > 1 and not training
        if training and len(x) > 1:
            self.dependent.setdefault(name or FUNCTIONAL)
        expected = None if call is None else self.result.get(call.name)
        if not (expected is None or training or mean is None or var is None):
            own = self.targets[str(name)].running_mean if str(name) in self.targets else None
            if not _hold(expected, mean, var, mean.dtype if own is None else own.dtype):
                self.replaced.setdefault(str(name))
        if call is not None and call.input is not None and x.numel() and identify(x) != call.input:
            moments = self.read_moments(call.name, x)
            call.normalized = call.normalized.merge(moments) if call.normalized else moments


def _hold(expected: Moments, mean: Tensor, var: Tensor, kept_as: torch.dtype) -> bool:
    """Whether these are the expected ones, to rounding, also where they are kept; `vmap` gives them several times."""
    for own, given in ((expected.mean, mean), (expected.var, var)):
        if given.numel() % len(own):
            return False
        rounding = max(torch.finfo(given.dtype), torch.finfo(kept_as), key=lambda info: info.eps)
        rows = given.detach().cpu().double().view(-1, len(own))
        if not torch.isclose(rows, own, rtol=4 * rounding.eps, atol=rounding.tiny).all():
            return False
    return True
