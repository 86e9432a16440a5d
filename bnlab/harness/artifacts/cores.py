"""What a process may take of the machine."""

import os

import torch

from bnlab.memory import memory_limit


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_memory(device: torch.device) -> int:
    """Bytes that activations may take: the share of the cores, as a process on each other one measures too."""
    limit, cores = memory_limit(None, device), count_cores()
    return limit if device.type != "cpu" else limit * min(torch.get_num_threads(), cores) // cores
