"""Settings of torch and Python that hold for a whole thread or process, read and written together.

A forward pass may change them for a while (`sdpa_kernel`, `torch.backends.*.flags`, another default type,
`warnings.catch_warnings`, `redirect_stdout`); whoever suspends or ends it half-way has to put them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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


def _read_matmul_precision() -> tuple[Any, ...]:
    """As `torch.get_float32_matmul_precision` says, None where torch would not say it; and of each backend."""
    try:
        precision = _C._get_float32_matmul_precision()
    except RuntimeError:  # the newer settings of the backends have been used, too
        precision = None
    return precision, *(read() for read, _ in _MATMUL)


def _write_matmul_precision(values: tuple[Any, ...]) -> None:
    if values[0] is not None:
        _C._set_float32_matmul_precision(values[0])  # which sets those of the backends, too
    for (_, write), value in zip(_MATMUL, values[1:], strict=True):
        write(value)


def _write_saved_tensors_hooks(reason: str | None) -> None:
    """Forbid them for this reason, or allow them."""
    if reason is None:
        _C._autograd._saved_tensors_hooks_enable()
    else:
        _C._autograd._saved_tensors_hooks_disable(reason)


_MATMUL = [*_precision("cuda", "matmul"), *_precision("mkldnn", "matmul")]
_EINSUM: dict[str, Any] = torch.backends.opt_einsum.m.__dict__  # type: ignore[attr-defined]  # what its `flags` set


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
    *_pair("_get_math_sdp_allow_fp16_bf16_reduction", "_set_math_sdp_allow_fp16_bf16_reduction"),
    *_pair("_get_deterministic_fill_uninitialized_memory", "_set_deterministic_fill_uninitialized_memory"),
    *_pair("_get_qengine", "_set_qengine"),
    *_pair("_is_multithreading_enabled", "_set_multithreading_enabled"),
    *_pair("_check_sparse_tensor_invariants", "_set_check_sparse_tensor_invariants"),
    *_pair("_get_graph_executor_optimize", "_set_graph_executor_optimize"),
    *_pair("_get_warnAlways", "_set_warnAlways"),
    (torch.__future__.get_swap_module_params_on_conversion, torch.__future__.set_swap_module_params_on_conversion),
    *_pair("_get_torch_function_state", "_set_torch_function_state"),
    (_read_matmul_precision, _write_matmul_precision),
    *_precision("cuda", "conv"),
    *_precision("cuda", "rnn"),
    *_precision("mkldnn", "conv"),
    *_precision("mkldnn", "rnn"),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (partial(_EINSUM.get, "enabled"), partial(_EINSUM.__setitem__, "enabled")),
    (partial(_EINSUM.get, "strategy"), partial(_EINSUM.__setitem__, "strategy")),
    (_C._autograd._saved_tensors_hooks_get_disabled_error_message, _write_saved_tensors_hooks),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: logging.root.manager.disable, logging.disable),
]


def _write_filters(filters: list[Any]) -> None:
    warnings.filters = filters
    warnings._filters_mutated()  # type: ignore[attr-defined]  # Python caches what the filters said


_STREAMS: list[_Pair] = [
    (lambda: sys.stdout, partial(setattr, sys, "stdout")),
    (lambda: sys.stderr, partial(setattr, sys, "stderr")),
]
_BY_IDENTITY: list[_Pair] = [
    (lambda: warnings.filters, _write_filters),
    (lambda: warnings.showwarning, partial(setattr, warnings, "showwarning")),
    (lambda: warnings._showwarnmsg_impl, partial(setattr, warnings, "_showwarnmsg_impl")),  # type: ignore[attr-defined]
    (asyncio._get_running_loop, asyncio._set_running_loop),  # a forward that calls asyncio.run
    # What torch.compile hangs into Python's evaluation of this thread.
    (_EVAL_FRAME.get_eval_frame_callback, _EVAL_FRAME.set_eval_frame),
    *_STREAMS,
]
_READ_VALUES, _WRITE_VALUES = zip(*_BY_VALUE, strict=True)
_READ_OBJECTS, _WRITE_OBJECTS = zip(*_BY_IDENTITY, strict=True)


class Flags(NamedTuple):
    """One state of them: those that are compared by value, and those that are by identity."""

    values: list[Any]
    objects: list[Any]


def read_flags() -> Flags:
    """The state now."""
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
    """Put back what the block leaves changed, also after an exception; but for where output goes (a log, say)."""
    before, filters = read_flags(), list(warnings.filters)
    try:
        yield
    finally:
        now = read_flags()
        before.objects[-len(_STREAMS) :] = now.objects[-len(_STREAMS) :]
        write_flags(before, now)
        if warnings.filters != filters:  # others in the same list, also by a module that was imported meanwhile
            warnings.filters[:] = filters  # type: ignore[index]
            _write_filters(warnings.filters)  # type: ignore[arg-type]
