"""Population statistics of every batch-norm layer, exact.

`upstream="population"` is what a layer sees in the inference network, every earlier layer normalizing with its own
population statistics; so layers have to be finished in order of depth (`breadth`, or the slow twin here).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from bnlab.breadth import CALLER, BreadthFirst, Forward, check_input, check_moments, load
from bnlab.layers import BatchNorm, batch_norm_layers, borrowed, layer_input, set_buffers_aside
from bnlab.moments import Moments
from bnlab.statistics import Statistics
from bnlab.switching import RandomStream

_Found = dict[str, Moments]


def population_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    upstream: str = "population",
    strategy: str = "breadth",
    forward: Forward | None = None,
    layers: Sequence[str] | None = None,
    max_images: int | None = None,
    device: torch.device | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
    group: object = None,
) -> Statistics:
    """Mean and variance (ddof 0) of what each batch-norm layer of `model` sees, over all of `batches`.

    The model is borrowed: it is evaluated with dropout and the like off, and comes back as it was. Layers that are
    not in `layers` normalize with their own buffers. Batches may differ in size, image size and structure.

    Args:
        model: any module with batch-norm layers that keep running statistics.
        batches: what `forward` takes, e.g. a DataLoader. Read once; a generator will do.
        upstream: "population", or "batch": every layer normalizes with its mini-batch's statistics and the moments
            are pooled over all batches (what one-pass "precise BN" tools compute; depends on the batch size).
        strategy: "breadth", or "layerwise": one forward pass up to each layer in turn, the slow obvious twin. With
            upstream="batch" both are the same one pass.
        forward: called as `forward(model, batch)`; default `model(batch)`, or `model(batch[0])` of a tuple or list.
        layers: names of the layers to measure; default all.
        max_images: stop after the batch with which at least so many images have been read.
        device: where the batches' tensors are moved; default the model's own.
        memory, group: a memory limit and a process group are not supported yet and refused.
        progress: show a bar over the layers.

    Returns:
        `Statistics` whose moments carry their counts; layers that no batch reached are listed in `.unseen`.

    Raises:
        TypeError: `model` is not a module or `batches` cannot be iterated. ValueError: an argument out of its range;
            no batches; no batch-norm layer (reached); a layer with fewer than two values, other channels, or values
            that are not finite; a layer that is reached again after it was finished (shared, or skipped by some
            batches). The model is as before in every case, also when its own forward raises.
    """
    _check_arguments(batches, upstream, strategy, max_images, memory, group)
    targets = batch_norm_layers(model, layers, caller=CALLER)
    place = device if device is not None else next((p.device for p in model.parameters()), "cpu")
    source = _Source(batches, max_images, torch.device(place))
    twin = {("population", "breadth"): _breadth, ("population", "layerwise"): _layerwise}
    measure = twin.get((upstream, strategy), _batch_upstream)
    with borrowed(model), _bar(len(targets), progress) as bar:
        model.eval()
        found = measure(unwrapped(model), targets, forward or _call, source, bar.update)
    if not source.count:
        raise ValueError(f"{CALLER}: batches is empty; pass at least one batch (is a generator used up?)")
    if not found:
        raise ValueError(f"{CALLER}: the forward reached none of {len(targets)} batch-norm layers")
    unseen = [name for name in targets if name not in found]
    return Statistics(found, {name: targets[name].eps for name in found}, unseen)


def _check_arguments(
    batches: object, upstream: str, strategy: str, max_images: int | None, memory: object, group: object
) -> None:
    for key, value, allowed in (
        ("upstream", upstream, ("population", "batch")),
        ("strategy", strategy, ("breadth", "layerwise")),
    ):
        if value not in allowed:
            raise ValueError(f"{CALLER}: {key}={value!r}; choose {' or '.join(map(repr, allowed))}")
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise TypeError(f"{CALLER}: batches is a {type(batches).__name__}; pass an iterable of batches, e.g. [images]")
    if max_images is not None and max_images < 1:
        raise ValueError(f"{CALLER}: max_images={max_images}; pass at least 1, or None for all")
    if memory is not None:
        raise ValueError(f"{CALLER}: memory={memory!r} is not supported yet; limit the data with max_images")
    if group is not None:
        raise ValueError(f"{CALLER}: group is not supported yet; measure on one rank and broadcast the statistics")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of DataParallel or DistributedDataParallel, on one device and without synchronization."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def _call(model: nn.Module, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _bar(total: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="layers", unit="layer", disable=None if shown else True)


class _Source:
    """The caller's batches, copied to the device (a forward may write into its input) and counted."""

    def __init__(self, batches: Iterable[Any], max_images: int | None, device: torch.device) -> None:
        self._batches, self._limit, self.device = batches, max_images, device
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        images = 0
        for batch in self._batches:
            self.count += 1
            images += _images(batch)
            yield _copied(batch, self.device)
            if self._limit is not None and images >= self._limit:
                return


def _images(batch: Any) -> int:
    """The length of the first tensor in a batch."""
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _copied(batch: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), batch)


def _breadth(
    model: nn.Module, targets: dict[str, BatchNorm], forward: Forward, source: _Source, advance: Callable[[], object]
) -> _Found:
    return BreadthFirst(model, targets, forward, source.device).measure(source, advance)


class _Reached(BaseException):
    """Ends a forward pass at the layer that is being measured."""


def _layerwise(
    model: nn.Module, targets: dict[str, BatchNorm], forward: Forward, source: _Source, advance: Callable[[], object]
) -> _Found:
    """Run everything up to the first unfinished layer, again and again."""
    found: _Found = {}
    arrived: dict[str, list[Moments]] = {}
    visited: set[str] = set()

    def stop(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in visited:
                raise ValueError(
                    f"{CALLER}: layer {name!r} is reached several times in one forward; "
                    "shared layers are not supported yet; leave it out with layers=[...]"
                )
            visited.add(name)
            if name not in found:
                x = layer_input(args, kwargs)
                check_input(name, targets[name], x)
                arrived.setdefault(name, []).append(Moments.of(x))
                raise _Reached

        return hook

    for name, layer in targets.items():
        layer.register_forward_pre_hook(stop(name), with_kwargs=True)
        set_buffers_aside(layer)
    batches, random = list(source), RandomStream(source.device)
    while True:
        arrived.clear()
        for index, batch in enumerate(batches):
            visited.clear()
            with contextlib.suppress(_Reached):
                _forward_once(model, forward, _copied(batch, source.device), index, random)
        if not arrived:
            return found
        if len(arrived) > 1:
            raise ValueError(
                f"{CALLER}: batches reach {' and '.join(map(repr, arrived))} first; "
                "skipped layers are not supported yet; leave them out with layers=[...]"
            )
        ((name, moments),) = arrived.items()
        found[name] = reduce(Moments.merge, moments)
        check_moments(name, found[name])
        load(targets[name], found[name])
        advance()


def _batch_upstream(
    model: nn.Module, targets: dict[str, BatchNorm], forward: Forward, source: _Source, advance: Callable[[], object]
) -> _Found:
    """One pass in which every measured layer normalizes with its batch's statistics; moments are pooled."""
    found: _Found = {}

    def measure(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = layer_input(args, kwargs)
            check_input(name, targets[name], x)
            if x.numel() == x.shape[1]:
                raise ValueError(
                    f"{CALLER}: a batch has one value per channel at layer {name!r} and so no variance to normalize "
                    "with; use larger batches or upstream='population'"
                )
            moments = Moments.of(x)
            found[name] = found[name].merge(moments) if name in found else moments

        return hook

    for name, layer in targets.items():
        layer.register_forward_pre_hook(measure(name), with_kwargs=True)
        set_buffers_aside(layer)
        layer.train()
    random = RandomStream(source.device)
    for index, batch in enumerate(source):
        _forward_once(model, forward, batch, index, random)
    for name, moments in found.items():
        check_moments(name, moments)
        advance()
    return found


def _forward_once(model: nn.Module, forward: Forward, batch: Any, index: int, random: RandomStream) -> None:
    """One forward that leaves nothing behind, with the batch's own random stream."""
    with borrowed(model), torch.no_grad():
        random.apply(random.begin(index))
        forward(model, batch)
