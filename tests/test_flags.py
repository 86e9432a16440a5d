"""Global settings of torch and Python that a forward changes for a while."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel

from bnlab import Statistics, population_statistics, running_statistics, self_consistency, using
from bnlab.flags import Flags, are_same, flags_restored, read_flags
from tests.helpers import images, plain, randomized


@contextlib.contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], object], value: object) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def determine(on: bool) -> None:
    torch.use_deterministic_algorithms(on, warn_only=on)


@contextlib.contextmanager
def matmul_precision() -> Iterator[None]:
    with flags_restored():  # torch's own way back sets what the backends were not set to before
        torch.set_float32_matmul_precision("medium")
        yield


def look() -> tuple[Flags, list[object]]:
    """What `CONTEXTS` change: what `read_flags` says, and what torch and Python say themselves."""
    hooks = torch._C._autograd._saved_tensors_hooks_is_enabled()
    own = [torch.get_float32_matmul_precision(), mha.get_fastpath_enabled(), hooks]
    own += [torch._C._is_multithreading_enabled(), torch._C._get_graph_executor_optimize()]
    own += [torch._C._is_fwd_grad_enabled(), torch._C._is_torch_function_enabled()]
    own += [torch.sparse.check_sparse_tensor_invariants.is_enabled()]
    own += [torch.backends.opt_einsum.enabled, torch.utils.deterministic.fill_uninitialized_memory]  # type: ignore[attr-defined]
    own += [torch.is_warn_always_enabled(), torch.__future__.get_swap_module_params_on_conversion()]
    own += [logging.root.manager.disable, sys.getrecursionlimit(), id(sys.stdout), id(sys.stderr)]
    return read_flags(), own


def is_as(before: tuple[Flags, list[object]]) -> bool:
    flags, own = look()
    return are_same(flags, before[0]) and own == before[1]


CONTEXTS: dict[str, Callable[[], Any]] = {
    "sdpa_kernel": lambda: sdpa_kernel(SDPBackend.MATH),
    "cudnn.flags": lambda: torch.backends.cudnn.flags(enabled=False, benchmark=True, deterministic=True),
    "mkldnn.flags": lambda: torch.backends.mkldnn.flags(enabled=False),
    "default_dtype": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "catch_warnings": warnings.catch_warnings,
    "detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: setting(torch.are_deterministic_algorithms_enabled, determine, True),
    "matmul_precision": matmul_precision,
    "mha": lambda: setting(mha.get_fastpath_enabled, mha.set_fastpath_enabled, False),
    "opt_einsum.flags": lambda: torch.backends.opt_einsum.flags(enabled=False),  # type: ignore[attr-defined]
    "saved_tensors_hooks": lambda: torch.autograd.graph.disable_saved_tensors_hooks("not here"),
    "check_sparse_tensor_invariants": torch.sparse.check_sparse_tensor_invariants,
    "optimized_execution": lambda: torch.jit.optimized_execution(False),
    "redirect_stdout": lambda: contextlib.redirect_stdout(io.StringIO()),
    "redirect_stderr": lambda: contextlib.redirect_stderr(io.StringIO()),
    "logging.disable": lambda: setting(lambda: logging.root.manager.disable, logging.disable, logging.CRITICAL),
    "recursion": lambda: setting(sys.getrecursionlimit, sys.setrecursionlimit, 5000),
    "multithreading": lambda: torch.autograd.set_multithreading_enabled(False),
    "warn_always": lambda: setting(torch.is_warn_always_enabled, torch.set_warn_always, True),
    "swap_module_params": lambda: setting(
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
        True,
    ),
    "torch functions": torch._C.DisableTorchFunctionSubclass,
    "forward derivatives": lambda: torch.autograd.forward_ad._set_fwd_grad_enabled(False),
}


class Entering(nn.Module):
    """Passes layers inside of a context; in what state each batch goes on after a layer is written down."""

    def __init__(self, context: Callable[[], Any], fails: bool = False) -> None:
        super().__init__()
        self.context, self.fails = context, fails
        self.inner, self.outer = plain()[:6], nn.Sequential(nn.Conv2d(12, 5, 1), nn.BatchNorm2d(5))

    def forward(self, x: Tensor) -> Tensor:
        before = look()
        with self.context():
            entered = look()
            x = self.inner(x)
            assert is_as(entered), "another batch's flags leaked in"
        assert is_as(before)
        x = self.outer(x)
        if self.fails:
            raise ArithmeticError
        return x


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_forward_changes_for_a_while(context: str, strategy: str) -> None:
    before = look()
    model = randomized(Entering(CONTEXTS[context]))
    assert isinstance(population_statistics(model, images(3, 4, 2), strategy=strategy), Statistics)
    assert is_as(before)
    model.fails = True
    with pytest.raises(ArithmeticError):
        population_statistics(model, images(3, 4, 2), strategy=strategy)
    assert is_as(before)


class EnteringForFew(nn.Module):
    """Passes layers inside of a context if the batch is small."""

    def __init__(self, few: int) -> None:
        super().__init__()
        self.few, self.inner = few, plain()

    def forward(self, x: Tensor) -> Tensor:
        before = read_flags()
        with sdpa_kernel(SDPBackend.MATH) if len(x) <= self.few else contextlib.nullcontext():
            x = self.inner(x)
        assert are_same(read_flags(), before)
        return x


def test_batches_that_differ_in_what_they_change() -> None:
    before = read_flags()
    small_first = images(2, 4, 4, 3)
    a = population_statistics(randomized(EnteringForFew(2)), small_first)
    b = population_statistics(randomized(EnteringForFew(0)), small_first)
    for name, moments in a.items():
        assert torch.equal(moments.mean, b[name].mean)
    for few in (2, 3):  # the first batch has changed nothing, so that the others were not looked at
        with pytest.raises(ValueError, match=r"some batches.*layerwise"):
            population_statistics(randomized(EnteringForFew(few)), images(4, 2, 3, 4))
    assert are_same(read_flags(), before)


class Changing(nn.Module):
    """Leaves a flag changed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = True
        return self.inner(x)


@pytest.mark.parametrize("upstream", ["population", "batch"])
def test_what_a_forward_leaves_changed_is_put_back(upstream: str) -> None:
    model, before = randomized(Changing()), read_flags()
    found = population_statistics(model, images(3, 4), upstream=upstream)
    self_consistency(model, found, images(3, 4))
    assert are_same(read_flags(), before)


class Compiling(nn.Module):
    """Passes a layer inside of a compiled function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = plain()[:6], nn.Sequential(nn.Conv2d(12, 5, 1), nn.BatchNorm2d(5))
        self.compiled = torch.compile(lambda x: self.inner(x).relu(), backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.compiled(x))


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_compiled_functions_run_as_they_are_written(strategy: str) -> None:
    model = randomized(Compiling())
    model(images(4)[0])
    before, batches = read_flags(), images(4, 3, 2)
    found = population_statistics(model, batches, strategy=strategy)
    assert list(found) == ["inner.1", "inner.4", "outer.1"]
    assert max(self_consistency(model, found, batches)) < 1e-5
    assert are_same(read_flags(), before)
    counted = torch._dynamo.testing.CompileCounter()
    torch.compile(lambda x: x + 1, backend=counted)(torch.ones(2))
    assert counted.frame_count == 1, "compiling works again after it"


def test_a_log_that_begins_in_a_block_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end
    model, log = plain(), io.StringIO()
    with using(model, running_statistics(model)):
        sys.stdout = log
    assert sys.stdout is log


def test_newer_settings_of_the_precision() -> None:
    before = read_flags()
    with flags_restored():
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # from now on torch does not say what the older one is
        changed = read_flags()
        with flags_restored():
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
        assert are_same(read_flags(), changed)
    assert are_same(read_flags(), before)


def test_flags_after_an_exception() -> None:
    before = read_flags()
    with pytest.raises(ZeroDivisionError), flags_restored():
        torch.set_default_dtype(torch.float16)
        warnings.filters = []  # type: ignore[assignment]
        raise ZeroDivisionError
    assert are_same(read_flags(), before)


class Asynchronous(nn.Module):
    """Runs its layers in an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    async def later(self, x: Tensor) -> Tensor:
        await asyncio.sleep(0)
        return self.inner(x)

    def forward(self, x: Tensor) -> Tensor:
        return asyncio.run(self.later(x))


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_event_loops_of_the_forward(strategy: str) -> None:
    hooks = sys.get_asyncgen_hooks()
    found = population_statistics(Asynchronous(), images(4, 3), strategy=strategy)
    expected = population_statistics(plain(), images(4, 3))
    assert all(found[f"inner.{name}"].mean.allclose(expected[name].mean) for name in expected)
    assert sys.get_asyncgen_hooks() == hooks and asyncio._get_running_loop() is None
