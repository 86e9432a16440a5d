"""Settings of torch and Python that hold for a whole thread or process, read and written together.

A forward pass may change them for a while (`sdpa_kernel`, `torch.backends.*.flags`, another default type,
`warnings.catch_warnings`); whoever suspends or ends it half-way has to put them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

_C: Any = torch._C
_EVAL_FRAME: Any = _C._dynamo.eval_frame

_Pair = tuple[Callable[[], Any], Callable[[Any], object]]


def _pair(read: str, write: str) -> list[_Pair]:
    """The two functions of torch's core, where this version has them."""
    return [(getattr(_C, read), getattr(_C, write))] if hasattr(_C, read) and hasattr(_C, write) else []


def _precision(backend: str, operation: str) -> list[_Pair]:
    """How float32 is computed; torch's older `allow_tf32` flags set the same."""
    if not hasattr(_C, "_get_fp32_precision_getter"):
        return []
    read = partial(_C._get_fp32_precision_getter, backend, operation)
    return [(read, partial(_C._set_fp32_precision_setter, backend, operation))]


def _determinism() -> tuple[bool, bool]:
    return _C._get_deterministic_algorithms(), _C._get_deterministic_algorithms_warn_only()


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


_BY_VALUE: list[_Pair] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (_anomaly, lambda values: torch.set_anomaly_enabled(*values)),
    (sys.get_asyncgen_hooks, lambda hooks: sys.set_asyncgen_hooks(*hooks)),
    (_determinism, lambda values: _C._set_deterministic_algorithms(values[0], warn_only=values[1])),
    *_pair("_get_cudnn_enabled", "_set_cudnn_enabled"),
    *_pair("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
    *_pair("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
    *_pair("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    *_pair("_get_mkldnn_deterministic", "_set_mkldnn_deterministic"),
    *_pair("_get_nnpack_enabled", "_set_nnpack_enabled"),
    *_pair("_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    *_pair("_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    *_pair("_get_math_sdp_enabled", "_set_sdp_use_math"),
    *_pair("_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
    *_pair("_get_overrideable_sdp_enabled", "_set_sdp_use_overrideable"),
    *_pair("_get_sdp_priority_order", "_set_sdp_priority_order"),
    *_precision("cuda", "matmul"),
    *_precision("cuda", "conv"),
    *_precision("cuda", "rnn"),
    *_precision("mkldnn", "matmul"),
    *_precision("mkldnn", "conv"),
    *_precision("mkldnn", "rnn"),
]


def _write_filters(filters: list[Any]) -> None:
    warnings.filters = filters
    warnings._filters_mutated()  # type: ignore[attr-defined]  # Python caches what the filters said


_BY_IDENTITY: list[_Pair] = [
    (lambda: warnings.filters, _write_filters),
    (lambda: warnings.showwarning, partial(setattr, warnings, "showwarning")),
    (lambda: warnings._showwarnmsg_impl, partial(setattr, warnings, "_showwarnmsg_impl")),  # type: ignore[attr-defined]
    (asyncio._get_running_loop, asyncio._set_running_loop),  # a forward that calls asyncio.run
    # What torch.compile hangs into Python's evaluation of this thread.
    (_EVAL_FRAME.get_eval_frame_callback, _EVAL_FRAME.set_eval_frame),
]
_READ_VALUES, _WRITE_VALUES = zip(*_BY_VALUE, strict=True)
_READ_OBJECTS, _WRITE_OBJECTS = zip(*_BY_IDENTITY, strict=True)


class Flags(NamedTuple):
    """One state of them: those that are compared by value, and those that are by identity."""

    values: list[Any]
    objects: list[Any]


def read_flags() -> Flags:
    """The state now. Some 3 µs, and 15 µs after much else was computed."""
    return Flags([read() for read in _READ_VALUES], [read() for read in _READ_OBJECTS])


def are_same(one: Flags, other: Flags) -> bool:
    return one.values == other.values and all(map(operator.is_, one.objects, other.objects))


def write_flags(wanted: Flags, now: Flags) -> None:
    """Change from `now`, which is in force, to `wanted`."""
    if wanted.values != now.values:
        for write, value, other in zip(_WRITE_VALUES, wanted.values, now.values, strict=True):
            if value != other:
                write(value)
    if not all(map(operator.is_, wanted.objects, now.objects)):
        for write, value, other in zip(_WRITE_OBJECTS, wanted.objects, now.objects, strict=True):
            if value is not other:
                write(value)


@contextlib.contextmanager
def flags_restored() -> Iterator[None]:
    """Put back what the block leaves changed, also after an exception."""
    before = read_flags()
    try:
        yield
    finally:
        write_flags(before, read_flags())
