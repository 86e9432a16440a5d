"""Generators of random numbers of torch, numpy and Python: to read their state, to put it back, to begin anew."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from bnlab.containers import list_inner


class Generator(NamedTuple):
    """A generator of random numbers.

    Attributes:
        read: gives its state.
        write: takes one.
        seeded: gives the state of a new one of its kind with a seed below 2³².
    """

    read: Callable[[], Any]
    write: Callable[[Any], object]
    seeded: Callable[[int], Any]


def find_generators(modules: Iterable[nn.Module]) -> list[Generator]:
    """Those that modules hold as attributes, or as entries or attributes of these (see `list_inner`), no deeper."""
    return _list_known(_list_held(modules))


def list_generators(modules: Iterable[nn.Module]) -> list[Generator]:
    """Those of `find_generators`, and Python's, and numpy's where somebody has imported it; not torch's."""
    numpy = _get_numpy()
    own = [random.getstate, *([numpy.random.get_state] if numpy else [])]  # methods of these two
    return _list_known([*_list_held(modules), *(method.__self__ for method in own)])


def _list_held(modules: Iterable[nn.Module]) -> list[Any]:
    values = [value for module in modules for value in vars(module).values()]
    return values + [inner for value in values for inner in list_inner(value)]


def _list_known(values: Iterable[Any]) -> list[Generator]:
    """Those of `values` that are generators, each once."""
    found = map(_as_generator, {id(value): value for value in values}.values())
    return [generator for generator in found if generator is not None]


@contextlib.contextmanager
def restored(generators: Iterable[Generator]) -> Iterator[None]:
    """They give the same numbers after the block as before it."""
    states = [(generator, generator.read()) for generator in generators]
    try:
        yield
    finally:
        for generator, state in states:
            generator.write(state)


def _as_generator(value: Any) -> Generator | None:
    numpy, kind = _get_numpy(), type(value)  # not subclasses, which may keep other states
    if kind is torch.Generator:
        return Generator(
            value.get_state, value.set_state, lambda seed: torch.Generator(value.device).manual_seed(seed).get_state()
        )
    if kind is random.Random:
        return Generator(value.getstate, value.setstate, lambda seed: random.Random(seed).getstate())
    if not kind.__module__ or not str(kind.__module__).startswith("numpy.random") or not numpy:
        return None
    if kind is numpy.random.RandomState:
        bits = type(value._bit_generator)
        return Generator(
            partial(value.get_state, legacy=False),
            value.set_state,
            lambda seed: _read_state(numpy.random.RandomState(bits(seed))),
        )
    held = value.bit_generator if kind is numpy.random.Generator else value
    if not isinstance(held, numpy.random.BitGenerator) or not type(held).__module__.startswith("numpy.random"):
        return None
    return Generator(lambda: held.state, partial(setattr, held, "state"), lambda seed: type(held)(seed).state)


def _read_state(generator: Any) -> Any:
    return generator.get_state(legacy=False)


def _get_numpy() -> Any:
    return sys.modules.get("numpy")


class RandomStream:
    """The random state of the CPU, of one CUDA device and of other generators.

    Each batch has a stream of its own, whatever runs between: no other one, of a batch, a process or the caller, whose
    data may have been drawn from it, has the same numbers.

    Args:
        device: where the model runs.
        generators: others than torch's.
        rank: of this process among those that measure together.
    """

    def __init__(self, device: torch.device, generators: Iterable[Generator], rank: int = 0) -> None:
        self._devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self._seed = f"bnlab {torch.initial_seed()} {rank}"
        self._others = list(generators)

    def begin(self, index: int) -> list[Any]:
        """The state with which batch `index` begins."""
        # Seeds that only a hash connects: with a neighbour's, or the caller's own, the numbers would be the same.
        seeds = random.Random(f"{self._seed} {index}")
        own = [torch.Generator(device).manual_seed(seeds.getrandbits(63)).get_state() for device in self._devices]
        return [*own, *(other.seeded(seeds.getrandbits(32)) for other in self._others)]

    def capture(self) -> list[Any]:
        own = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices[1:])]
        return [*own, *(other.read() for other in self._others)]

    def apply(self, state: list[Any]) -> None:
        torch.set_rng_state(state[0])
        for device, own in zip(self._devices[1:], state[1:], strict=False):
            torch.cuda.set_rng_state(own, device)
        for other, own in zip(self._others, state[len(self._devices) :], strict=True):
            other.write(own)
