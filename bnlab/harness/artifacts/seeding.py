"""Global generators: torch's, and numpy's and Python's, from which code of the user's may draw too."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from bnlab.model.borrow import keep_random_state


@contextlib.contextmanager
def seed_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (on the CPU), numpy and random in the block; they are restored after it."""
    with keep_random_state():
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed: that would also reseed the accelerators, which are not restored here.
        torch.default_generator.manual_seed(seed)
        yield


def get_generators() -> dict[str, Any]:
    """Return the states of the global generators, in plain values and tensors."""
    state: Any = np.random.get_state()
    name, keys, *others = state
    return {"torch": torch.get_rng_state(), "random": random.getstate(), "numpy": [name, keys.tolist(), *others]}


def set_generators(states: Mapping[str, Any]) -> None:
    """Set the global generators to what `get_generators` has returned."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    np.random.set_state(tuple(states["numpy"]))
