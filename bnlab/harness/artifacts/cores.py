"""The share of a machine that a process may use."""

import os

import torch

from bnlab.memory import memory_limit


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_memory(device: torch.device) -> int:
    """Compute the bytes that activations may take.

    On a CPU a process has the share of its cores, because processes on the other cores measure too.
    """
    limit = memory_limit(None, device)
    if device.type != "cpu":
        return limit
    cores = count_cores()
    used = min(torch.get_num_threads(), cores)
    return limit * used // cores
