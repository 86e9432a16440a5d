"""Global generators: torch's, and numpy's and Python's, from which code of the user's may draw too."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

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


def write_generators() -> str:
    """Write the states of numpy's and Python's global generators as JSON."""
    of_numpy = np.random.get_state(legacy=False)
    return json.dumps({"random": random.getstate(), "numpy": of_numpy}, default=np.ndarray.tolist)


def restore_generators(text: str) -> None:
    """Restore what `write_generators` has written."""
    states = json.loads(text)
    # JSON has made a list of the tuple, which `random.setstate` refuses.
    version, internal, gauss = states["random"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])
