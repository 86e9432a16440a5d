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
    """Those that modules hold as attributes, also in plain objects and in containers (see `list_inner`)."""
    values = [value for module in modules for value in vars(module).values()]
    values += [inner for value in values for inner in list_inner(value)]
    found = map(_as_generator, {id(value): value for value in values}.values())
    return [generator for generator in found if generator is not None]


def list_generators(modules: Iterable[nn.Module]) -> list[Generator]:
    """Python's, numpy's where somebody has imported it, and those of `find_generators`; not torch's."""
    found = [Generator(random.getstate, random.setstate, lambda seed: random.Random(seed).getstate())]
    if numpy := _get_numpy():
        state = partial(numpy.random.get_state, legacy=False)
        found.append(Generator(state, numpy.random.set_state, lambda seed: _as_seeded(numpy.random.RandomState(seed))))
    return [*found, *find_generators(modules)]


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
    numpy, kind = _get_numpy(), type(value)
    if issubclass(kind, torch.Generator):
        return Generator(
            value.get_state, value.set_state, lambda seed: torch.Generator(value.device).manual_seed(seed).get_state()
        )
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):  # which has no state
        return Generator(value.getstate, value.setstate, lambda seed: random.Random(seed).getstate())
    if numpy and issubclass(kind, numpy.random.RandomState):
        bits = type(value._bit_generator)
        return Generator(
            partial(value.get_state, legacy=False),
            value.set_state,
            lambda seed: _as_seeded(numpy.random.RandomState(bits(seed))),
        )
    if numpy and issubclass(kind, (numpy.random.Generator, numpy.random.BitGenerator)):
        bits = value.bit_generator if issubclass(kind, numpy.random.Generator) else value
        return Generator(lambda: bits.state, partial(setattr, bits, "state"), lambda seed: type(bits)(seed).state)
    return None


def _as_seeded(state: Any) -> Any:
    return state.get_state(legacy=False)


def _get_numpy() -> Any:
    return sys.modules.get("numpy")
